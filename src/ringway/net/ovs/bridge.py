"""The questions and orders for a bridge of Open vSwitch that the driver puts together."""

from __future__ import annotations

import time
from pathlib import Path

from ringway.errors import ConflictError, NotFoundError, RingwayError, UnreachableError
from ringway.model import PortSpec
from ringway.net.ovs import rows
from ringway.net.ovs.database import Database, Operation
from ringway.net.ovs.rows import Interface, Root
from ringway.net.ovs.values import as_set, is_row, put, to_map, to_set, to_uuid

_DEAD = "start it (systemctl start openvswitch-switch); its log is /var/log/openvswitch/ovs-vswitchd.log"
_PID_FILE = "ovs-vswitchd.pid"


class Bridges:
    """What of the database concerns ports. Any thread may call; all of it raises what
    :class:`~ringway.net.ovs.database.Database` does.

    :param run_dir: where the switch has its process id; ``None``: it is on another host.
    """

    def __init__(self, database: Database, run_dir: Path | None) -> None:
        self._database = database
        self._run_dir = run_dir
        self._looked = 0  # the start of the switch that has looked again

    def root(self) -> Root:
        """The switch as a whole. :raises UnreachableError: it never ran."""
        found = self._database.select("Open_vSwitch", [], rows.SWITCH)
        if not found:
            raise UnreachableError("Open vSwitch's database is empty", hint=_DEAD)
        return Root.of(found[0])

    def check_runs(self) -> None:
        """:raises UnreachableError: ovs-vswitchd does not run, as far as its file tells: the database goes on
        to say what was last so."""
        pid = _pid(self._run_dir / _PID_FILE) if self._run_dir else None
        if pid is not None and not _is_switch(pid):
            raise UnreachableError("ovs-vswitchd does not run", hint=_DEAD)

    def look_again(self) -> None:
        """Have a switch that started since the last time write down anew how its interfaces are.

        As it starts it writes that they have no link. A link that comes before the database has confirmed
        that it may leave out: it compares with what was written before its start, which was that there is
        one. When it is nudged it compares again, and the first nudge may still be a part of the start.

        :raises UnreachableError: it does not answer.
        """
        started = _started(self._run_dir / _PID_FILE) if self._run_dir else 0
        if started == self._looked:
            return
        for _ in range(2):
            self.settle(self.apply([]))
        self._looked = started

    def interface(self, name: str) -> Interface | None:
        """An interface by its name, whoever made it."""
        found = self._database.select("Interface", [["name", "==", name]], rows.INTERFACE)
        return Interface.of(found[0]) if found else None

    def has_id(self, key: str, value: str) -> tuple[str, ...]:
        """The names of the interfaces with an external id."""
        where = [["external_ids", "includes", to_map({key: value})]]
        return tuple(row["name"] for row in self._database.select("Interface", where, ["name"]))

    def check_bridge(self, name: str, *, may_create: bool) -> bool:
        """Whether there is a bridge.

        :raises NotFoundError: there is none, and none is to be made.
        :raises ConflictError: there is one that forwards in the kernel.
        """
        found = self._database.select("Bridge", [["name", "==", name]], ["datapath_type"])
        if not found and not may_create:
            command = f"ovs-vsctl add-br {name} -- set bridge {name} datapath_type=netdev"
            hint = f"make it ({command}), or take create=yes"
            raise NotFoundError(f"Open vSwitch has no bridge '{name}'", hint=hint)
        if found and found[0]["datapath_type"] != "netdev":
            kind = found[0]["datapath_type"] or "system"
            raise ConflictError(
                f"bridge '{name}' forwards in the kernel (datapath_type={kind}), without vhost-user",
                hint="name a bridge whose datapath_type is netdev",
            )
        return bool(found)

    def is_on(self, interface: Interface, bridge: str) -> bool:
        """Whether an interface is of a port of that bridge."""
        place = self._place(interface)
        return place is not None and place[2] == bridge

    def apply(self, operations: list[Operation]) -> int:
        """Do it, and have the switch look. :returns: the number to wait for with :meth:`settle`."""
        asked: int = self._database.transact(*operations, *rows.nudge())[-1]["rows"][0]["next_cfg"]
        return asked

    def settle(self, asked: int) -> None:
        """Wait until the switch has done what stands there. :raises UnreachableError: it does not."""
        deadline = time.monotonic() + self._database.timeout_s
        while (done := self.root().done) < asked:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise UnreachableError("ovs-vswitchd does not answer", hint=_DEAD)
            self._await(done, left_s)

    def remove(self, interface: Interface) -> int | None:
        """Take the port of an interface off its bridge.

        :returns: as :meth:`apply`; ``None``: it was on none.
        """
        place = self._place(interface)
        return None if place is None else self.apply(rows.drop_port(place[0], place[1]))

    def remove_bridge(self, name: str) -> None:
        """Take a bridge away that was just made, unless somebody has put a port on it by now.

        :raises RingwayError: somebody did so at this moment.
        """
        for row in self._database.select("Bridge", [["name", "==", name]], ["ports"]):
            if len(as_set(row["ports"])) == 1:
                self.apply(rows.drop_bridge(row))

    def set_guest(self, interface: Interface, guest: str | None) -> None:
        """Write down who has the port, or that nobody has it any more."""
        mutations = put("external_ids", {rows.GUEST: guest or ""})[: 2 if guest else 1]
        where = is_row(interface.uuid)
        self._database.transact(
            {"op": "mutate", "table": "Interface", "where": where, "mutations": mutations}
        )

    def _await(self, done: int, left_s: float) -> None:
        operations = rows.await_change(done, round(left_s * 1000))
        try:
            self._database.transact(*operations, timeout_s=left_s + 1)
        except UnreachableError:
            raise
        except RingwayError:
            return  # timed out: the caller looks once more

    def _place(self, interface: Interface) -> tuple[str, str, str] | None:
        """The port and the bridge of an interface, and the bridge's name."""
        port = self._owner("Port", "interfaces", interface.uuid)
        bridge = self._owner("Bridge", "ports", port[0]) if port else None
        return (port[0], *bridge) if port and bridge else None

    def _owner(self, table: str, column: str, uuid: str) -> tuple[str, str] | None:
        where = [[column, "includes", to_set((to_uuid(uuid),))]]
        found = self._database.select(table, where, ["name"])
        return (found[0]["_uuid"][1], found[0]["name"]) if found else None


def explain(spec: PortSpec, reason: str) -> RingwayError:
    """What the switch says of a port that it could not make, for a person."""
    if "Address family not supported" in reason:
        hint = "the switch runs without DPDK: see `ovs-vsctl get Open_vSwitch . dpdk_initialized`"
    elif "Unknown error" in reason or "in use" in reason:
        hint = f"its log (/var/log/openvswitch/ovs-vswitchd.log) says more; is '{spec.socket}' in its way?"
    else:
        hint = "its log says more: /var/log/openvswitch/ovs-vswitchd.log"
    return RingwayError(f"Open vSwitch could not make port '{spec.name}': {reason}", hint=hint)


def _is_switch(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("ovs-vswitchd")
    except OSError:
        return False


def _started(path: Path) -> int:
    """When the switch wrote its process id, in ns; 0: it has not, or one may not look."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
