"""What libvirt and QEMU tell of guests, and who waits for it.

Callbacks run on libvirt's event thread: they note, wake, and pass on.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Final

import libvirt
import libvirt_qemu

from ringway.guest.base import GuestEvent, GuestEventKind, Notify
from ringway.model import ALIAS_PREFIX

_LIFECYCLE: Final = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: GuestEventKind.DEFINED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: GuestEventKind.UNDEFINED,
    libvirt.VIR_DOMAIN_EVENT_STARTED: GuestEventKind.STARTED,
    libvirt.VIR_DOMAIN_EVENT_RESUMED: GuestEventKind.RESUMED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: GuestEventKind.STOPPED,
    libvirt.VIR_DOMAIN_EVENT_CRASHED: GuestEventKind.STOPPED,
}
_DELETED: Final = "DEVICE_DELETED"
GOING_S: Final = 5.0  #: how long libvirt may take to hear what QEMU told of a device
_LOOK_S: Final = 1.0  #: an event can be missed while libvirtd is away, so who waits looks as well


class Events:
    """Registered at each new connection by :meth:`prepare`."""

    def __init__(self) -> None:
        self._notify: Notify | None = None
        self._happened = threading.Condition()
        self._count = 0
        self._going: dict[tuple[str, str], float] = {}  #: UUID, alias: when QEMU let it go

    def watch(self, notify: Notify) -> None:
        """Pass on what happens from now on."""
        self._notify = notify

    def prepare(self, connection: libvirt.virConnect) -> None:
        """:raises libvirtError: libvirt tells nothing."""
        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._on_removed),
        ):
            connection.domainEventRegisterAny(None, event, callback, None)
        libvirt_qemu.qemuMonitorEventRegister(connection, None, _DELETED, self._on_deleted, None)

    def came_back(self) -> None:
        """The connection is there again."""
        self._tell(GuestEvent(GuestEventKind.CONNECTED))

    def wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Look whether something is done, after each event and each second.

        :returns: whether it was, in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self._count
            if done():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._wait_another(seen, min(left, _LOOK_S))

    def is_going(self, uuid: str, alias: str) -> bool:
        """Whether QEMU has just let a device go, and libvirt has not said so."""
        told_s = self._going.get((uuid, alias))
        return told_s is not None and time.monotonic() - told_s < GOING_S

    def _wait_another(self, seen: int, timeout_s: float) -> None:
        with self._happened:
            self._happened.wait_for(lambda: self._count != seen, timeout_s)

    def _tell(self, event: GuestEvent) -> None:
        with self._happened:
            self._count += 1
            self._happened.notify_all()
        if self._notify is not None:
            self._notify(event)

    def _on_lifecycle(
        self, _connection: object, domain: libvirt.virDomain, event: int, _detail: int, _opaque: object
    ) -> None:
        kind = _LIFECYCLE.get(event)
        if kind is not None:
            self._tell(GuestEvent(kind, domain.name(), uuid=domain.UUIDString()))

    def _on_removed(
        self, _connection: object, domain: libvirt.virDomain, alias: str, _opaque: object
    ) -> None:
        self._going.pop((domain.UUIDString(), alias), None)
        self._tell_removed(domain, alias)

    def _on_deleted(
        self,
        _connection: object,
        domain: libvirt.virDomain,
        _event: str,
        _seconds: int,
        _micros: int,
        details: str,
        _opaque: object,
    ) -> None:
        alias = json.loads(details).get("device", "")
        self._going = {key: told_s for key, told_s in self._going.items() if self.is_going(*key)}
        self._going[domain.UUIDString(), alias] = time.monotonic()
        self._tell_removed(domain, alias)

    def _tell_removed(self, domain: libvirt.virDomain, alias: str) -> None:
        if alias.startswith(ALIAS_PREFIX):
            self._tell(GuestEvent(GuestEventKind.DEVICE_REMOVED, domain.name(), alias, domain.UUIDString()))
