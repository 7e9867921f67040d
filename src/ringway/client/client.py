"""The two clients: the same resources, over a transport that blocks and over one that is awaited."""

from __future__ import annotations

from typing import Generic

from ringway.client.resources import (
    Backstores,
    Config,
    Endpoints,
    Events,
    Guests,
    Host,
    Luns,
    Operations,
    Ports,
)
from ringway.client.sockets import AsyncSocketTransport, AsyncTransport, Path, SocketTransport, Transport
from ringway.client.verbs import Awaiting, Blocking, DriverT, Patience, Progress


class _Resources(Generic[DriverT]):
    """Everything that a daemon can be asked."""

    def __init__(self, driver: DriverT) -> None:
        self.endpoints: Endpoints[DriverT] = Endpoints(driver)
        self.luns: Luns[DriverT] = Luns(driver)
        self.backstores: Backstores[DriverT] = Backstores(driver)
        self.guests: Guests[DriverT] = Guests(driver)
        self.ports: Ports[DriverT] = Ports(driver)
        self.operations: Operations[DriverT] = Operations(driver)
        self.host: Host[DriverT] = Host(driver)
        self.config: Config[DriverT] = Config(driver)
        self.events: Events[DriverT] = Events(driver)


class Client(_Resources[Blocking]):
    """Asks the daemon of this host. It holds no connection, and may be used from many threads.

    Verbs that change something wait until it is done. ``verb.plan(…)`` says what it would change;
    ``verb.begin(…)`` begins it and waits for nothing.

    :param socket: the daemon's; if not given, ``$RINGWAY_SOCKET`` or its usual places.
    :param timeout_s: how long a change may take before TimedOutError is raised; it goes on then.
    :param progress: called with the operation while a change takes long.
    :param transport: instead of the socket: for tests.
    """

    def __init__(
        self,
        socket: Path | None = None,
        *,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        transport: Transport | None = None,
    ) -> None:
        super().__init__(Blocking(transport or SocketTransport(socket), Patience(timeout_s, progress)))


class AsyncClient(_Resources[Awaiting]):
    """The same for asyncio: each verb is awaited, each stream is entered with ``async with``."""

    def __init__(
        self,
        socket: Path | None = None,
        *,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        transport: AsyncTransport | None = None,
    ) -> None:
        super().__init__(Awaiting(transport or AsyncSocketTransport(socket), Patience(timeout_s, progress)))
