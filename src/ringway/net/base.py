"""The verbs that every switch has, and what is asked of a port whatever switch it is on."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from ringway.errors import ConflictError, UsageError
from ringway.model import Check, PortSpec, PortState, resolved_port
from ringway.net.account import Account

Notify = Callable[[str], None]
"""Called with a port's name when it may have changed by itself; from any thread, and it must not block."""

_PREFIX: Final = "52:54:00"  #: what QEMU and libvirt give guests


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
    """Choose what is open.

    :param socket: what to take where none is named. :raises UsageError: no socket can be there.
    """
    return resolved_port(spec, mac=random_mac(), socket=socket)


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
