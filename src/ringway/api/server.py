"""uvicorn on our sockets, with what it lacks: who connected, how many, and how long they may think."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from ringway.api.doors import Door
from ringway.api.peers import STATE_KEY, Access, peer_of

HEADER_TIMEOUT_S: Final = 10.0  #: from a request's first byte, or from connecting, to the end of its header
_CLOSING_S: Final = 5  #: how long answers under way may take when the daemon ends
_IDLE_S: Final = 60  #: how long a connection may stay without a request


class Server(uvicorn.Server):
    """Serves an application on doors until :meth:`stop`. Signals are the daemon's."""

    def __init__(self, app: Starlette, doors: list[Door]) -> None:
        protocol: Any = _connections({door.address: door for door in doors})
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=_CLOSING_S,
            )
        )
        self._doors = doors
        self._stopped = asyncio.Event()

    async def run_until_stopped(self) -> None:
        """Serve. :returns: after :meth:`stop`, when all answers are out or cut short."""
        await self.serve(sockets=[door.socket for door in self._doors])

    def stop(self) -> None:
        """Take nobody in any more."""
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """Wait for :meth:`stop` without a look at the clock ten times a second."""
        await self._stopped.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def _connections(doors: dict[str, Door]) -> type[H11Protocol]:
    """The class of the connections that come by these doors; uvicorn makes them and knows no more."""
    return type("Connection", (_Connection,), {"doors": doors})


class _Connection(H11Protocol):
    """One client."""

    doors: ClassVar[dict[str, Door]]
    _door: Door | None = None
    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Ask who it is; one too many is shown out."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        try:
            door, peer = self.doors[connection.getsockname()], peer_of(connection)
        except OSError:
            transport.abort()
            return
        door.inside += 1
        self._door = door
        if door.inside > door.most:
            transport.abort()
        self.app_state = {**self.app_state, STATE_KEY: Access(door.read_only, peer)}
        self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for another."""
        super().connection_lost(exc)
        self._be_patient()
        if self._door is not None:
            self._door.inside -= 1
            self._door = None

    def data_received(self, data: bytes) -> None:
        """Read on, but not for ever."""
        super().data_received(data)
        self._watch_header()

    def _watch_header(self) -> None:
        """Hang up on who never ends the header that he began."""
        if self.conn.their_state is not h11.IDLE or self.timeout_keep_alive_task is not None:
            self._be_patient()
        elif self._impatience is None:
            self._impatience = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)

    def _be_patient(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None
