"""The switch ``ovs``: ports of a bridge of Open vSwitch with DPDK."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ringway.errors import ConflictError, NotFoundError, RingwayError, UnreachableError, UsageError
from ringway.model import Check, PortMode, PortSpec, PortState, socket_of
from ringway.net import sockets
from ringway.net.base import Condition, Notify, Settings, check_others, resolve_port, take_options
from ringway.net.ovs import rows
from ringway.net.ovs.bridge import Bridges, explain
from ringway.net.ovs.database import Database
from ringway.net.ovs.rows import Interface
from ringway.net.ovs.watcher import Watcher
from ringway.net.places import check_place, default_socket, forget_socket, make_place, open_socket

OPTIONS: Final = frozenset({"bridge", "create", "interface", "iface-id", "tag"})
DATABASE: Final = "unix:/run/openvswitch/db.sock"
MAX_MTU: Final = 9702  #: NETDEV_DPDK_MAX_PKT_LEN (9728) less Ethernet's header, two tags and its sum
_MAX_NAME: Final = 15  #: of an interface: IFNAMSIZ without its zero
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_WAIT_S: Final = 10.0
_CANNOT_LISTEN: Final = "(Unknown error -1)"  #: all that the switch says of it, but in its log


class OvsSettings(Struct, frozen=True, kw_only=True):
    """The driver's table of the configuration."""

    database: str = DATABASE
    bridge: str | None = None  #: of ports that name none
    run_dir: str | None = None  #: where the switch has its sockets; by default, the database's folder
    timeout_s: float = _WAIT_S

    @classmethod
    def of(cls, options: Mapping[str, str]) -> OvsSettings:
        """:raises UsageError: one is unknown, or makes no sense."""
        take_options(
            PortSpec(name="configuration", switch="ovs", options=dict(options)),
            frozenset(cls.__struct_fields__),
        )
        known: dict[str, str] = {**options}
        seconds = known.pop("timeout_s", str(_WAIT_S))
        if not re.fullmatch(r"\d{1,3}(\.\d+)?", seconds) or not float(seconds):
            raise UsageError(f"timeout_s is seconds, not '{seconds}'")
        settings = cls(timeout_s=float(seconds), **known)
        if not settings.database.startswith(("unix:/", "tcp:")):
            hint = "write it as unix:/run/openvswitch/db.sock or tcp:127.0.0.1:6640"
            raise UsageError(f"'{settings.database}' is no place of a database", hint=hint)
        return settings

    def folder(self) -> Path | None:
        """Where the switch runs, if it is on this host."""
        if self.run_dir is not None:
            return Path(self.run_dir)
        return Path(self.database[len("unix:") :]).parent if self.database.startswith("unix:") else None


class OvsSwitch:
    """Keeps no state but a thread that watches, once it is asked to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ovs = OvsSettings.of(settings.options)
        self._database = Database(self._ovs.database, self._ovs.timeout_s)
        self._bridges = Bridges(self._database, self._ovs.folder())
        self._watcher: Watcher | None = None

    @property
    def name(self) -> str:
        return "ovs"

    def probe(self) -> tuple[Check, ...]:
        """Whether the database answers, and whether the switch has DPDK."""
        try:
            root = self._bridges.root()
            self._bridges.check_runs()
        except RingwayError as error:
            return (Check(name="ovs", ok=False, detail=error.message, hint=error.hint),)
        running = Check(name="ovs", ok=True, detail=f"Open vSwitch {root.version} at {self._ovs.database}")
        try:
            _check_dpdk(root, rows.TYPES[PortMode.SERVER])
        except RingwayError as error:
            return (running, Check(name="dpdk", ok=False, detail=error.message, hint=error.hint))
        return (running, Check(name="dpdk", ok=True, detail=root.dpdk or ""))

    def resolve(self, spec: PortSpec) -> PortSpec:
        """Choose bridge, interface and socket too."""
        given = take_options(spec, OPTIONS)
        bridge = given.get("bridge") or self._ovs.bridge
        if not bridge:
            hint = "name it with bridge=NAME, or for all ports in [net.switch.ovs] bridge"
            raise UsageError(f"port '{spec.name}' has no bridge", hint=hint)
        if spec.mtu is not None and spec.mtu > MAX_MTU:
            raise UsageError(f"Open vSwitch has an MTU of {MAX_MTU} at most, not {spec.mtu}")
        interface = given.get("interface") or self._interface_name(spec)
        chosen = {**given, "bridge": bridge, "interface": interface}
        chosen.setdefault("iface-id", spec.name)
        _check_options(chosen)
        whole = resolve_port(replace(spec, options=chosen), self._socket(spec, interface))
        self._check_socket(whole)
        return whole

    def check(self, spec: PortSpec, others: tuple[PortSpec, ...]) -> None:
        """Refuse what the switch would refuse or, worse, take and never do."""
        check_others(spec, others)
        root = self._bridges.root()
        self._bridges.check_runs()
        _check_dpdk(root, rows.TYPES[spec.mode])
        self._bridges.check_bridge(spec.options["bridge"], may_create=_may_create(spec))
        self._check_free(spec)
        check_place(spec, self._settings)

    def create(self, spec: PortSpec) -> None:
        """Put it into the database, and wait until the switch has it."""
        self._bridges.check_runs()
        if spec.mode is PortMode.SERVER:
            make_place(spec, self._settings)
        found = self._bridges.interface(spec.options["interface"])
        if found is not None and not found.is_of(spec):
            raise _taken(found)
        if found is None or not self._bridges.is_on(found, spec.options["bridge"]):
            self._add(spec, found)
        elif not rows.agrees(found, spec):
            self._settle(spec, self._bridges.apply(rows.mend(found, spec)))
        elif spec.mode is PortMode.CLIENT and _CANNOT_LISTEN in (found.error or ""):
            raise _gave_up(spec)
        elif found.error is not None:
            self._settle(spec, self._bridges.apply([]))
        if spec.mode is PortMode.CLIENT:
            open_socket(socket_of(spec), self._settings)

    def delete(self, spec: PortSpec) -> None:
        """Take it out of the database; a switch that is down does its part when it comes back."""
        found = self._bridges.interface(spec.options["interface"])
        if found is not None and found.is_of(spec):
            asked = self._bridges.remove(found)
            with contextlib.suppress(UnreachableError):
                self._bridges.check_runs()
                self._bridges.settle(asked or 0)
        if spec.mode is PortMode.SERVER:
            forget_socket(spec, self._settings)

    def plug(self, spec: PortSpec, guest: str) -> None:
        self._bridges.set_guest(self._own(spec), guest)

    def unplug(self, spec: PortSpec) -> None:
        with contextlib.suppress(NotFoundError):
            self._bridges.set_guest(self._own(spec), None)

    def show(self, spec: PortSpec) -> Condition:
        """What the switch says of the port: its error, its link, its MTU."""
        self._bridges.check_runs()
        if spec.mode is PortMode.SERVER:  # else QEMU comes later, and a nudge may do harm: see _gave_up
            self._bridges.look_again()
        found = self._own(spec)
        wrong = next(self._complaints(spec, found), None)
        return Condition(
            PortState.DEGRADED if wrong else PortState.UP if found.up else PortState.READY, wrong
        )

    def watch(self, notify: Notify) -> None:
        self._watcher = Watcher(self._database, notify)

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.close()

    # Choices

    def _interface_name(self, spec: PortSpec) -> str:
        """As the socket is called where the switch makes that, else after the port."""
        if spec.socket is not None and spec.mode is PortMode.CLIENT:
            return os.path.basename(spec.socket)
        return interface_name(spec.name)

    def _socket(self, spec: PortSpec, interface: str) -> str:
        if spec.socket is not None or spec.mode is PortMode.SERVER:
            return default_socket(spec, self._settings)
        return str(self._socket_folder() / interface)

    def _check_socket(self, spec: PortSpec) -> None:
        """:raises UsageError: the switch listens, and elsewhere: where its sockets are is not ours to say."""
        if spec.mode is PortMode.SERVER:
            return
        wanted = self._socket_folder() / spec.options["interface"]
        if spec.socket != str(wanted):
            raise UsageError(
                f"with mode=client the socket is the switch's, '{wanted}', and cannot be '{spec.socket}'",
                hint="leave socket= out, or take mode=server, where it can be anywhere",
            )

    def _socket_folder(self) -> Path:
        """:raises UsageError: it is on another host. :raises UnreachableError: it cannot be asked."""
        folder = self._ovs.folder()
        if folder is None:
            hint = "name its folder in [net.switch.ovs] run_dir, or take mode=server"
            raise UsageError(
                f"where the switch at '{self._ovs.database}' has its sockets is not known", hint=hint
            )
        return folder / self._bridges.root().socket_folder

    # What is there

    def _own(self, spec: PortSpec) -> Interface:
        """:raises NotFoundError: the switch has no such interface, or it is another's."""
        found = self._bridges.interface(spec.options["interface"])
        if found is None or not found.is_of(spec):
            name = spec.options["interface"]
            raise NotFoundError(f"Open vSwitch has no interface '{name}' of port '{spec.name}'")
        return found

    def _check_free(self, spec: PortSpec) -> None:
        """:raises ConflictError: the interface, or its id, is another's."""
        found = self._bridges.interface(spec.options["interface"])
        if found is not None and not found.is_of(spec):
            raise _taken(found)
        same = set(self._bridges.has_id("iface-id", spec.options["iface-id"])) - {spec.options["interface"]}
        if same:
            raise ConflictError(
                f"interface '{min(same)}' has the iface-id '{spec.options['iface-id']}' already",
                hint="name another with iface-id=, or delete that one",
            )

    def _complaints(self, spec: PortSpec, found: Interface) -> Iterator[str]:
        if found.error is not None:
            yield found.error
        if not rows.agrees(found, spec):
            yield f"somebody changed interface '{found.name}' in the switch"
        if spec.mtu is not None and found.up and found.mtu != spec.mtu:
            yield f"the switch has an MTU of {found.mtu}, and {spec.mtu} was asked for"
        if spec.mode is PortMode.CLIENT and not sockets.may_connect(socket_of(spec), self._settings.account):
            name = self._settings.account.name if self._settings.account else "this user"
            yield f"user '{name}', who runs QEMU, may not connect to '{spec.socket}'"

    # Changes

    def _add(self, spec: PortSpec, stray: Interface | None) -> None:
        """Make the port, and its bridge; a stray one of ours on another bridge goes first."""
        if stray is not None:
            self._bridges.remove(stray)
        if spec.mode is PortMode.CLIENT:
            _make_way(spec)
        bridge = self._make_bridge(spec)
        try:
            self._settle(spec, self._bridges.apply(rows.add_port(spec)))
        except BaseException:
            self._undo(spec, bridge)
            raise

    def _make_bridge(self, spec: PortSpec) -> str | None:
        """Make the bridge of a port, if it is to be made. :returns: its name, if it was."""
        bridge = spec.options["bridge"]
        if self._bridges.check_bridge(bridge, may_create=_may_create(spec)):
            return None
        try:
            self._bridges.apply(rows.add_bridge(bridge))
        except ConflictError:  # another port's creation came first
            self._bridges.check_bridge(bridge, may_create=False)
            return None
        return bridge

    def _undo(self, spec: PortSpec, bridge: str | None) -> None:
        with contextlib.suppress(RingwayError):
            found = self._bridges.interface(spec.options["interface"])
            if found is not None and found.is_of(spec):
                self._bridges.remove(found)
            if bridge is not None:
                self._bridges.remove_bridge(bridge)

    def _settle(self, spec: PortSpec, asked: int) -> None:
        """:raises RingwayError: the switch could not do it, and says why."""
        self._bridges.settle(asked)
        found = self._own(spec)
        if found.error is not None:
            raise explain(spec, found.error)


def interface_name(port: str) -> str:
    """What an interface is called after a port: Neutron's prefix, and what leaves room for it."""
    name = f"vhu-{port}"
    return name if len(name) <= _MAX_NAME else "vhu" + hashlib.sha256(port.encode()).hexdigest()[:11]


def _may_create(spec: PortSpec) -> bool:
    return spec.options.get("create") == "yes"


def _check_options(options: Mapping[str, str]) -> None:
    """:raises UsageError: with the one that makes no sense."""
    if options.get("create", "no") not in ("yes", "no"):
        raise UsageError(f"create is yes or no, not '{options['create']}'")
    for key in ("bridge", "interface"):
        if not _INTERFACE.fullmatch(options[key]):
            hint = f"a name has 1 to {_MAX_NAME} letters, digits, dots, dashes or underscores"
            raise UsageError(f"{key} cannot be '{options[key]}'", hint=hint)
    tag = options.get("tag", "1")
    if not re.fullmatch(r"\d{1,4}", tag) or not 1 <= int(tag) <= 4094:
        raise UsageError(f"tag is a VLAN from 1 to 4094, not '{tag}'")


def _check_dpdk(root: rows.Root, kind: str) -> None:
    """:raises ConflictError: the switch cannot make such interfaces; it says what to set."""
    if root.dpdk is None and not root.wants_dpdk:
        raise ConflictError(
            "Open vSwitch has not initialised DPDK: other_config:dpdk-init is not set",
            hint="run: ovs-vsctl set Open_vSwitch . other_config:dpdk-init=true, and restart ovs-vswitchd",
        )
    if root.dpdk is None:
        raise ConflictError(
            "Open vSwitch was told to initialise DPDK, and has not",
            hint="is it openvswitch-switch-dpdk that runs, and are there huge pages? its log says more",
        )
    if kind not in root.types:
        raise ConflictError(
            f"this Open vSwitch ({root.version}) has no interfaces of type {kind}",
            hint="take mode=server: dpdkvhostuser, for mode=client, is deprecated",
        )


def _make_way(spec: PortSpec) -> None:
    """Remove a dead socket at which the switch shall listen.

    :raises ConflictError: somebody listens there. The switch must not try: see :func:`_gave_up`.
    """
    path = socket_of(spec)
    sockets.remove_stale(path)
    if sockets.look(path).exists:
        hint = "end who listens there, or name another interface="
        raise ConflictError(f"the switch cannot listen at '{path}': somebody does", hint=hint)


def _gave_up(spec: PortSpec) -> ConflictError:
    """Say that a switch that found a socket in its way has to start anew, and make its way free.

    It must not try again in that process. DPDK 22.11 keeps what failed, with the number of a descriptor that
    is closed, and a further attempt for the same path takes that one: it binds, or closes, whatever the
    switch has opened by that number since. What guests send then goes to somebody else.
    """
    sockets.remove_stale(socket_of(spec))
    return ConflictError(
        f"Open vSwitch gave port '{spec.name}' up: '{spec.socket}' was in its way when it started",
        hint="it no longer is: restart the switch (systemctl restart openvswitch-switch)",
    )


def _taken(found: Interface) -> ConflictError:
    owner = found.external_ids.get(rows.MARK)
    who = f"port '{owner}'" if owner else "somebody else"
    hint = "name another with interface=NAME"
    return ConflictError(f"Open vSwitch has an interface '{found.name}' of {who}", hint=hint)
