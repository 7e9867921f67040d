"""Devices that a guest is asked to let go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import libvirt

from ringway.errors import BusyError, RingwayError, TimedOutError, UnreachableError
from ringway.guest.aliases import spoken
from ringway.guest.libvirt import hotplug
from ringway.guest.libvirt.events import GOING_S, Events
from ringway.guest.libvirt.failures import error_of
from ringway.guest.libvirt.looks import Look
from ringway.guest.libvirt.monitor import Monitor

_TRIES: Final = 20

Find = Callable[[], libvirt.virDomain]
"""The domain, by the connection of this moment. :raises NotFoundError: it is gone."""


class Removals:
    """What guests were asked to let go. From many threads."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, str], int] = {}  # guest's UUID, alias: which of its runs was asked

    def asked(self, domain: libvirt.virDomain) -> frozenset[str]:
        """Aliases that a guest was asked for, as it runs now: its next start knows nothing of it."""
        uuid, run = domain.UUIDString(), domain.ID()
        with self._lock:
            return frozenset(
                alias for (guest, alias), of in self._asked.items() if (guest, of) == (uuid, run)
            )

    def forget(self, uuid: str, alias: str) -> None:
        """It came to an end, whichever."""
        with self._lock:
            self._asked.pop((uuid, alias), None)

    def remove(self, find: Find, alias: str, timeout_s: float) -> None:
        """Have the guest that runs let a device go, and wait for it. One that is not there is fine.

        :raises TimedOutError: the guest did not; it was asked, and may still.
        """
        domain = find()
        uuid, name = domain.UUIDString(), domain.name()
        with self._lock:
            self._asked[uuid, alias] = domain.ID()
        look = Look(domain)
        if look.knows(alias):
            self._let_libvirt_hear(find, uuid, alias)
            look = Look(domain)
        _ask(domain, look, alias)
        if not self._events.wait(lambda: _is_gone(find, alias), timeout_s):
            raise TimedOutError(
                f"guest '{name}' was asked to let {spoken(alias)} go, and has not in {timeout_s:g} s",
                hint="a guest that is paused, or has not booted, cannot; unmount what it uses, and try again",
            )
        self.forget(uuid, alias)
        tidy(Look(find()))

    def _let_libvirt_hear(self, find: Find, uuid: str, alias: str) -> None:
        """Wait a moment if QEMU has told that a device is gone, and libvirt has not.

        libvirtd 11.3 was seen to end when it was asked for one at that moment.
        """
        self._events.wait(lambda: not self._events.is_going(uuid, alias) or _is_gone(find, alias), GOING_S)


def _ask(domain: libvirt.virDomain, look: Look, alias: str) -> None:
    if look.knows(alias):
        _ask_libvirt(domain, alias)
    elif look.is_live(alias):
        hotplug.ask(Monitor(domain), alias)


def _ask_libvirt(domain: libvirt.virDomain, alias: str) -> None:
    try:
        domain.detachDeviceAlias(alias, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_DEVICE_MISSING or "unplug" in str(error):
            return  # it has gone meanwhile, or was asked already
        raise error_of(f"guest '{domain.name()}' cannot be asked for {spoken(alias)}", error) from error


def _is_gone(find: Find, alias: str) -> bool:
    """While libvirtd is away or busy nothing is known, and the guest may still answer."""
    try:
        return not Look(find()).is_live(alias)
    except (UnreachableError, BusyError):
        return False


def tidy(look: Look) -> None:
    """Remove the connections that devices have left behind, where it is not libvirt's to do so.

    Nobody may give the guest anything meanwhile: the connection comes before its device.
    """
    if look.was_tampered_with:
        monitor = Monitor(look.domain)
        for alias in hotplug.connected(monitor):
            if not look.is_live(alias):
                _clear(monitor, alias)


def _clear(monitor: Monitor, alias: str) -> None:
    for attempt in range(_TRIES):
        try:
            hotplug.clear(monitor, alias)
        except RingwayError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.1)  # QEMU lets go of it a moment after its device
        else:
            return
