"""libvirt, as the daemon has it: opened once, asked on threads, and missing where it is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from ringway.errors import UnreachableError
from ringway.guest.base import Hypervisor, Notify
from ringway.host.config import GuestsConfig
from ringway.host.places import Places
from ringway.model import Check, GuestInfo

_WORKERS: Final = 16
_P = ParamSpec("_P")
_T = TypeVar("_T")


def open_hypervisor(config: GuestsConfig, places: Places) -> Hypervisor | None:
    """Make the one that a configuration names; ``None``: this daemon has no guests.

    :raises UnreachableError: it shall have, and the library is not there.
    """
    wanted = not places.private if config.enabled is None else config.enabled
    if not wanted:
        return None
    try:
        from ringway.guest.libvirt import LibvirtHypervisor
    except ImportError as error:
        if config.enabled:
            raise UnreachableError(
                "Python's binding of libvirt is not installed", hint="pip install 'ringway[guest]'"
            ) from error
        return None
    return LibvirtHypervisor(config.uri)


class Guests:
    """The hypervisor's calls, on threads. For one event loop."""

    def __init__(self, hypervisor: Hypervisor | None) -> None:
        self._hypervisor = hypervisor
        self._threads = ThreadPoolExecutor(_WORKERS, "guest")

    @property
    def hypervisor(self) -> Hypervisor:
        """:raises UnreachableError: this daemon has none."""
        if self._hypervisor is None:
            raise UnreachableError(
                "this daemon has no libvirt, and knows no guests",
                hint="pip install 'ringway[guest]', set enabled = true below [guests], and restart it",
            )
        return self._hypervisor

    @property
    def there(self) -> bool:
        """Whether this daemon has one at all."""
        return self._hypervisor is not None

    async def ask(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call it. Whoever is cancelled meanwhile waits for nothing; the call goes on."""
        return await asyncio.wrap_future(self._threads.submit(call, *args, **kwargs))

    change = ask

    async def list(self) -> tuple[GuestInfo, ...]:
        """All guests, by name. :raises UnreachableError: libvirt is not there."""
        return await self.ask(self.hypervisor.guests)

    async def show(self, guest: str) -> GuestInfo:
        """One guest. :raises NotFoundError: there is none."""
        return await self.ask(self.hypervisor.show, guest)

    async def probe(self) -> tuple[Check, ...]:
        """What libvirt lets us do; nothing where there is none."""
        return await self.ask(self._hypervisor.probe) if self._hypervisor is not None else ()

    def watch(self, notify: Notify) -> None:
        """Tell of what happens; from any thread."""
        if self._hypervisor is not None:
            self._hypervisor.watch(notify)

    def close(self) -> None:
        """Let go. A call that hangs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._hypervisor is not None:
            self._hypervisor.close()
