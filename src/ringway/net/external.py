"""A switch that we do not know: it opens the socket itself, or connects to QEMU's, as somebody told it.

Snabb, VPP, testpmd. Here is only looked whether it can work, and how it goes.
"""

from __future__ import annotations

from typing import Final

from ringway.errors import ConflictError
from ringway.model import Check, PortMode, PortSpec, PortState, socket_of
from ringway.net import sockets
from ringway.net.base import Condition, Notify, Settings, check_others, resolve_port, take_options
from ringway.net.places import check_place, default_socket, forget_socket, make_place

#: What processes are called whose part is QEMU's, as far as a wrong ``mode`` can be told by it.
_VMMS: Final = ("qemu", "kvm", "cloud-hyperv", "crosvm", "CPU ")


class ExternalSwitch:
    """Ports whose other side is set up by somebody else. Keeps nothing; any thread may call."""

    def __init__(self, settings: Settings) -> None:
        take_no_options(settings)
        self._settings = settings

    @property
    def name(self) -> str:
        return "external"

    def probe(self) -> tuple[Check, ...]:
        """Nothing is needed, as far as can be told from here."""
        return (Check(name="external", ok=True, detail="any switch that speaks vhost-user"),)

    def resolve(self, spec: PortSpec) -> PortSpec:
        take_options(spec, frozenset())
        return resolve_port(spec, default_socket(spec, self._settings))

    def check(self, spec: PortSpec, others: tuple[PortSpec, ...]) -> None:
        """Refuse a wrong place, and a socket at which the wrong side listens."""
        check_others(spec, others)
        check_place(spec, self._settings)
        _check_side(spec)

    def create(self, spec: PortSpec) -> None:
        """Make the folder, if it is ours; the rest is the switch's."""
        make_place(spec, self._settings)

    def delete(self, spec: PortSpec) -> None:
        forget_socket(spec, self._settings)

    def plug(self, spec: PortSpec, guest: str) -> None:
        """Nobody is there to be told."""

    def unplug(self, spec: PortSpec) -> None:
        """Nobody is there to be told."""

    def show(self, spec: PortSpec) -> Condition:
        """As far as it can be told from the socket."""
        try:
            seen = sockets.look(socket_of(spec))
        except ConflictError as error:
            return Condition(PortState.DEGRADED, error.message)
        if seen.connected:
            return Condition(PortState.UP)
        wrong = _why_not(spec, seen, self._settings) if spec.mode is PortMode.CLIENT else None
        return Condition(PortState.DEGRADED if wrong else PortState.READY, wrong)

    def watch(self, notify: Notify) -> None:
        """A socket's other side cannot be watched without being it."""

    def close(self) -> None:
        """There is nothing to let go of."""


def take_no_options(settings: Settings) -> None:
    """:raises UsageError: the configuration has a table for this switch with something in it."""
    take_options(PortSpec(name="configuration", options=dict(settings.options)), frozenset())


def _check_side(spec: PortSpec) -> None:
    """:raises ConflictError: the side listens that should connect, as far as its name tells."""
    path = socket_of(spec)
    listener = sockets.look(path).listener
    process = sockets.owner(listener) if listener is not None else None
    if process is None:
        return
    pid, name = process
    is_vmm = name.startswith(_VMMS)
    if is_vmm and spec.mode is PortMode.CLIENT:
        raise ConflictError(
            f"pid {pid} ({name}) listens at '{path}', where with mode=client the switch should",
            hint="take mode=server, or let the switch listen there",
        )
    if not is_vmm and spec.mode is PortMode.SERVER:
        raise ConflictError(
            f"pid {pid} ({name}) listens at '{path}', where with mode=server QEMU should",
            hint="take mode=client, or let the switch connect to that socket as a client",
        )


def _why_not(spec: PortSpec, seen: sockets.Seen, settings: Settings) -> str | None:
    """Why QEMU could not connect now. Where it is the server, what lies there does not matter."""
    path = socket_of(spec)
    if not seen.exists:
        return f"the switch does not listen at '{path}': a guest would not start"
    if seen.listener is None:
        return f"nobody listens at '{path}' any more: a guest would not start"
    if not sockets.may_connect(path, settings.account):
        name = settings.account.name if settings.account else "this user"
        return f"user '{name}', who runs QEMU, may not connect to '{path}'"
    return None
