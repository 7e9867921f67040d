"""The switches that a host's ports can be of: opened once, and asked on threads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ringway.errors import NotFoundError, RingwayError, UsageError
from ringway.host.calls import Calls
from ringway.host.config import NetConfig
from ringway.host.places import Places
from ringway.model import Check, PortSpec
from ringway.net import drivers
from ringway.net.account import Account
from ringway.net.base import Settings, Switch

_WORKERS: Final = 8
_USERS: Final = ("libvirt-qemu", "qemu")  #: Debian's name of it, and Fedora's
_log: Final = logging.getLogger(__name__)


def open_switches(config: NetConfig, places: Places) -> dict[str, Switch]:
    """Make the drivers. One that cannot be made is logged, and the others are there all the same."""
    found: dict[str, Switch] = {}
    for name in drivers.names():
        settings = Settings(
            folder=places.run / "port",
            account=account(config.qemu_user, private=places.private),
            options=config.switch.get(name, {}),
        )
        try:
            found[name] = drivers.open_switch(name, settings)
        except RingwayError as error:
            _log.warning("switch '%s' is left out: %s", name, error)
    return found


def account(chosen: str | None, users: Sequence[str] = _USERS, *, private: bool) -> Account | None:
    """Who QEMU runs as; where there is no such user, it is us.

    :param chosen: what the configuration says. :param users: who it is where that says nothing, if there.
    :param private: the daemon is a user's own, and so is QEMU.
    """
    if chosen:
        try:
            return Account.named(chosen)
        except NotFoundError as error:
            _log.warning("%s: %s", error.message, error.hint)
            return None
    for name in () if private else users:
        with contextlib.suppress(NotFoundError):
            return Account.named(name)
    return None


class Switches:
    """The drivers of a host. For one event loop."""

    def __init__(self, drivers: Mapping[str, Switch]) -> None:
        self._drivers = dict(drivers)
        self.ask = Calls(_WORKERS, "switch")

    def of(self, port: PortSpec) -> Switch:
        """The switch of a port. :raises UsageError: this host has no driver for it."""
        if (found := self._drivers.get(port.switch)) is None:
            raise UsageError(
                f"there is no driver for the switch '{port.switch}'",
                hint=f"there are: {', '.join(sorted(self._drivers))}",
            )
        return found

    async def probe(self) -> tuple[Check, ...]:
        """What they are able to on this host."""
        found = await asyncio.gather(*(self.ask(switch.probe) for switch in self._drivers.values()))
        return tuple(check for checks in found for check in checks)

    def watch(self, wake: Callable[[str], None]) -> None:
        """Tell of ports that change by themselves. :param wake: called with a name, from any thread."""
        for switch in self._drivers.values():
            switch.watch(wake)

    def close(self) -> bool:
        """Let go of them; ports stay. :returns: whether all has ended."""
        ended = self.ask.close()
        for switch in self._drivers.values():
            switch.close()
        return ended
