"""libvirt, as the daemon has it: opened once, asked on threads, and missing where it is missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

from ringway.errors import UnreachableError
from ringway.guest.base import Hypervisor, Notify
from ringway.host.calls import Calls
from ringway.host.config import GuestsConfig
from ringway.host.places import Places
from ringway.model import Check, GuestInfo

_WORKERS: Final = 16
_LOOK_S: Final = 20.0  #: until libvirt counts as hanging; a look at hundreds of guests takes a while
_PROBE_S: Final = 15.0  #: the first look of a libvirtd at its QEMU takes seconds
_CLOSE_S: Final = 2.0
_RECENT_S: Final = 1.0  #: a list that is younger needs no look at libvirt
_PATIENCE_S: Final = 5.0  #: of who would rather know, and can do without
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
        self.ask = Calls(_WORKERS, "guest")
        self._looking: asyncio.Task[tuple[GuestInfo, ...]] | None = None
        self._looked_at = 0.0

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

    async def list(self) -> tuple[GuestInfo, ...]:
        """All guests, by name. :raises UnreachableError: libvirt is not there, or does not answer."""
        return await _in_time(self.ask(self.hypervisor.guests), _LOOK_S)

    async def recent(self) -> tuple[GuestInfo, ...]:
        """All guests, as they were seen within the last second; who comes while somebody looks shares that.

        :raises UnreachableError: as :meth:`list`, and sooner.
        """
        if self._looking is None or (self._looking.done() and time.monotonic() - self._looked_at > _RECENT_S):
            self._looked_at = time.monotonic()
            self._looking = asyncio.create_task(self.list())
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await _in_time(asyncio.shield(self._looking), _PATIENCE_S)

    def forget_recent(self) -> None:
        """Have the next who asks look: something has changed."""
        self._looking = None

    async def show(self, guest: str) -> GuestInfo:
        """One guest. :raises NotFoundError: there is none. :raises UnreachableError: as :meth:`list`."""
        return await _in_time(self.ask(self.hypervisor.show, guest), _LOOK_S)

    async def tidy(self, guest: str) -> None:
        """As the hypervisor's. :raises UnreachableError: as :meth:`list`; it is done later then."""
        await _in_time(self.ask(self.hypervisor.tidy, guest), _LOOK_S)

    async def probe(self) -> tuple[Check, ...]:
        """What libvirt lets us do; nothing where there is none."""
        if self._hypervisor is None:
            return ()
        try:
            return await _in_time(self.ask(self._hypervisor.probe), _PROBE_S)
        except UnreachableError as error:
            return (Check(name="libvirt", ok=False, detail=error.message, hint=error.hint),)

    def watch(self, notify: Notify) -> None:
        """Tell of what happens; from any thread."""
        if self._hypervisor is not None:
            self._hypervisor.watch(notify)

    async def close(self) -> bool:
        """Let go. :returns: whether all has ended; a call that hangs is not waited for."""
        if self._hypervisor is None:
            return self.ask.close()
        hanging_up = Calls(1, "guest-close")
        try:
            await _in_time(hanging_up(self._hypervisor.close), _CLOSE_S)
        except UnreachableError:
            self.ask.close()
            return False
        return self.ask.close()


async def _in_time(answer: Awaitable[_T], timeout_s: float) -> _T:
    """:raises UnreachableError: it takes longer, and goes on in its thread."""
    try:
        return await asyncio.wait_for(answer, timeout_s)
    except TimeoutError as error:
        raise UnreachableError(
            f"libvirt has not answered in {timeout_s:g} s",
            hint="see: systemctl status libvirtd (or virtqemud)",
        ) from error
