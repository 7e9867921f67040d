"""The verbs that every switch has, and what is asked of a port whatever switch it is on."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from ringway.errors import ConflictError, UsageError
from ringway.model import Check, PortMode, PortSpec, PortState
from ringway.net.account import Account
from ringway.net.sockets import check_path

Notify = Callable[[str], None]
"""Called with a port's name when it may have changed by itself; from any thread, and it must not block."""

MAX_QUEUES: Final = 256
_PREFIX: Final = "52:54:00"  #: what QEMU and libvirt give guests
_MAC_HINT: Final = "the first byte is even, as in 52:54:00:12:34:56; left out, one is chosen"
_RING_SIZES: Final = (256, 512, 1024)  #: what QEMU takes (VIRTIO_NET_RX_QUEUE_MIN_SIZE to VIRTQUEUE_MAX_SIZE)
_RECONNECT_S: Final = 1  #: without it a guest has no network from the switch's next start on
_MTU_MIN: Final = 68  #: the smallest that IPv4 allows (RFC 791), and virtio
_MTU_MAX: Final = 65535


class Settings(Struct, frozen=True, kw_only=True):
    """What a host tells a driver.

    :param folder: where sockets go whose path nobody chose; the driver makes it.
    :param account: who QEMU runs as; ``None``: whoever this process is.
    :param options: the driver's own table of the configuration.
    """

    folder: Path
    account: Account | None = None
    options: Mapping[str, str] = {}


class Condition(Struct, frozen=True):
    """How a port is doing."""

    state: PortState
    message: str | None = None  #: what is wrong with it


class Switch(Protocol):
    """One switch of this host.

    Calls block; they come from many threads, at most one at a time for each port. The specifications that
    they get are whole: what was open was chosen by :meth:`resolve`, once. Nothing here remembers which ports
    are wanted: that is the host's. Only what carries our mark is ever changed or removed.
    """

    @property
    def name(self) -> str:
        """What ``PortSpec.switch`` calls it."""

    def probe(self) -> tuple[Check, ...]:
        """Say what this host has of what the switch needs. Never raises."""

    def resolve(self, spec: PortSpec) -> PortSpec:
        """Choose what ``spec`` leaves open (MAC, socket), so that it can be kept.

        The same choice for the same specification is not promised; what was set is never changed.

        :raises UsageError: this switch cannot have such a port, on any host.
        :raises UnreachableError: the choice is the switch's, and it cannot be asked.
        """

    def check(self, spec: PortSpec, others: tuple[PortSpec, ...]) -> None:
        """Refuse what would fail: a switch that is down or lacks something, a socket or MAC of another port,
        a folder that QEMU may not use.

        :param others: all other ports that are wanted on this host, of all switches.
        :raises RingwayError: with what is in the way, and what to do.
        """

    def create(self, spec: PortSpec) -> None:
        """Make the switch have this port, from nothing or from a part of it; mend what differs.

        Doing it again changes nothing. :raises RingwayError: it could not; nothing is left of what this
        call made.
        """

    def delete(self, spec: PortSpec) -> None:
        """Leave nothing behind. A port that is not there is fine, and so is a guest that uses it: its link
        goes down.

        :raises UnreachableError: the switch cannot be asked, and may still have it.
        """

    def plug(self, spec: PortSpec, guest: str) -> None:
        """Tell the switch which guest has the port. Doing it again changes nothing.

        :param guest: the UUID of the domain.
        :raises NotFoundError: the switch does not have the port.
        """

    def unplug(self, spec: PortSpec) -> None:
        """Take that back. A port that is not there is fine."""

    def show(self, spec: PortSpec) -> Condition:
        """How the port is. Cheap enough for once a second.

        :raises NotFoundError: the switch does not have it.
        :raises UnreachableError: the switch cannot be asked. A guest that is QEMU's server must not be
            started then: its start would wait for the switch.
        """

    def watch(self, notify: Notify) -> None:
        """Tell of ports that change by themselves, until :meth:`close`. A switch that cannot be watched
        never calls; who needs to know asks :meth:`show` now and then."""

    def close(self) -> None:
        """Let go of threads and connections; ports stay as they are. Doing so again changes nothing."""


def random_mac() -> str:
    """A MAC as QEMU and libvirt choose them: 52:54:00 and three bytes of chance."""
    return ":".join((_PREFIX, *(f"{byte:02x}" for byte in secrets.token_bytes(3))))


def resolve_port(spec: PortSpec, socket: str) -> PortSpec:
    """Choose what is open, and refuse what no switch can do.

    :param socket: what to take where none is named.
    :raises UsageError: with what is wrong.
    """
    reconnect_s = _RECONNECT_S if spec.mode is PortMode.CLIENT else None
    whole = replace(
        spec,
        mac=spec.mac or random_mac(),
        socket=spec.socket or socket,
        reconnect_s=reconnect_s if spec.reconnect_s is None else spec.reconnect_s,
    )
    _check_mac(whole)
    _check_rings(whole)
    _check_mtu(whole)
    _check_reconnect(whole)
    check_path(socket_of(whole))
    return whole


def socket_of(spec: PortSpec) -> str:
    """The socket of a port that was resolved. :raises UsageError: it was not."""
    if spec.socket is None:
        raise UsageError(f"port '{spec.name}' has no socket")
    return spec.socket


def mac_of(spec: PortSpec) -> str:
    """The MAC of a port that was resolved. :raises UsageError: it was not."""
    if spec.mac is None:
        raise UsageError(f"port '{spec.name}' has no MAC")
    return spec.mac


def check_others(spec: PortSpec, others: tuple[PortSpec, ...]) -> None:
    """:raises ConflictError: another port has the same socket or the same MAC."""
    for other in others:
        if other.name == spec.name:
            continue
        if other.socket == spec.socket:
            hint = "name another, or leave it out and one is chosen"
            raise ConflictError(f"port '{other.name}' has the socket '{spec.socket}' already", hint=hint)
        if other.mac == spec.mac:
            hint = "name another, or leave it out and one is chosen"
            raise ConflictError(f"port '{other.name}' has the MAC {spec.mac} already", hint=hint)


def take_options(spec: PortSpec, known: frozenset[str]) -> Mapping[str, str]:
    """The options of a port. :raises UsageError: there is one that its switch does not know."""
    for name in sorted(spec.options.keys() - known):
        hint = f"it knows {', '.join(sorted(known))}" if known else "it has no options"
        raise UsageError(f"switch '{spec.switch}' has no option '{name}'", hint=hint)
    return spec.options


def _check_mac(spec: PortSpec) -> None:
    mac = mac_of(spec)
    if int(mac[:2], 16) & 1:
        raise UsageError(f"{mac} is a group's address, and a port needs one of its own", hint=_MAC_HINT)
    if mac == "00:00:00:00:00:00":
        raise UsageError(f"{mac} is nobody's address", hint=_MAC_HINT)


def _check_rings(spec: PortSpec) -> None:
    if not 1 <= spec.queues <= MAX_QUEUES:
        raise UsageError(f"a port has 1 to {MAX_QUEUES} pairs of queues, not {spec.queues}")
    for name, size in (("rx_queue_size", spec.rx_queue_size), ("tx_queue_size", spec.tx_queue_size)):
        if size is not None and size not in _RING_SIZES:
            sizes = ", ".join(map(str, _RING_SIZES))
            raise UsageError(
                f"{name} cannot be {size}: QEMU has rings of {sizes}",
                hint="take one of those, or leave it out",
            )


def _check_mtu(spec: PortSpec) -> None:
    if spec.mtu is not None and not _MTU_MIN <= spec.mtu <= _MTU_MAX:
        raise UsageError(f"an MTU is {_MTU_MIN} to {_MTU_MAX}, not {spec.mtu}")


def _check_reconnect(spec: PortSpec) -> None:
    if spec.reconnect_s is None:
        return
    if spec.mode is PortMode.SERVER:
        raise UsageError(
            "reconnect_s is for mode=client: a server waits for the switch, which comes back by itself",
            hint="leave it out",
        )
    if spec.reconnect_s < 1:
        raise UsageError(f"reconnect_s is whole seconds, from 1 on, not {spec.reconnect_s}")
