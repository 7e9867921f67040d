"""What stands in Open vSwitch's database of a port of ours, and what it takes to put it there.

``Open_vSwitch`` → ``Bridge.ports`` → ``Port.interfaces`` → ``Interface``: what nothing refers to is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from ringway.model import PortMode, PortSpec, mac_of, socket_of
from ringway.net.ovs.database import Operation, Row
from ringway.net.ovs.values import as_map, as_one, as_set, is_row, put, to_map, to_set, to_uuid

#: Our mark, in the external ids of an interface: the name of the port that it is.
MARK: Final = "ringway-port"
GUEST: Final = "vm-uuid"
TYPES: Final = {PortMode.SERVER: "dpdkvhostuserclient", PortMode.CLIENT: "dpdkvhostuser"}
INTERFACE: Final = ["name", "type", "options", "external_ids", "mtu", "mtu_request", "error", "link_state"]
SWITCH: Final = [
    "ovs_version",
    "datapath_types",
    "iface_types",
    "dpdk_initialized",
    "dpdk_version",
    "other_config",
    "cur_cfg",
]


class Interface(Struct, frozen=True, kw_only=True):
    """An interface as it stands there."""

    uuid: str
    name: str
    type: str
    options: Mapping[str, str]
    external_ids: Mapping[str, str]
    mtu: int | None
    mtu_request: int | None
    error: str | None
    up: bool

    @classmethod
    def of(cls, row: Row) -> Interface:
        """:param row: with the columns of :data:`INTERFACE`."""
        return cls(
            uuid=row["_uuid"][1],
            name=row["name"],
            type=row["type"],
            options=as_map(row["options"]),
            external_ids=as_map(row["external_ids"]),
            mtu=as_one(row["mtu"]) or None,  # 0 until a guest has come
            mtu_request=as_one(row["mtu_request"]),
            error=as_one(row["error"]),
            up=as_one(row["link_state"]) == "up",
        )

    def is_of(self, spec: PortSpec) -> bool:
        """Whether it carries our mark for a port."""
        return self.external_ids.get(MARK) == spec.name


class Root(Struct, frozen=True, kw_only=True):
    """The switch as a whole."""

    version: str  #: as the switch's start script wrote it; a switch that was started without one tells none
    dpdk: str | None  #: its version, once it is initialised
    wants_dpdk: bool
    types: frozenset[str]  #: of interfaces that it can make
    socket_folder: str  #: relative to where it runs
    done: int  #: the number of the configuration that it is done with

    @classmethod
    def of(cls, row: Row) -> Root:
        """:param row: with the columns of :data:`SWITCH`."""
        config = as_map(row["other_config"])
        return cls(
            version=as_one(row["ovs_version"]) or "of no version",
            dpdk=(as_one(row["dpdk_version"]) or "DPDK") if row["dpdk_initialized"] else None,
            wants_dpdk=config.get("dpdk-init") in ("true", "try"),
            types=frozenset(as_set(row["iface_types"])),
            socket_folder=config.get("vhost-sock-dir", ""),
            done=row["cur_cfg"],
        )


def interface_columns(spec: PortSpec) -> dict[str, Any]:
    """What of an interface is ours to say, but for its name and external ids."""
    path = {"vhost-server-path": socket_of(spec)} if spec.mode is PortMode.SERVER else {}
    return {
        "type": TYPES[spec.mode],
        "options": to_map(path),
        "mtu_request": to_set(() if spec.mtu is None else (spec.mtu,)),
    }


def ids_of(spec: PortSpec) -> dict[str, str]:
    """The external ids that Neutron and os-vif set, and our mark. Who controls the bridge finds the port by
    them."""
    return {
        "iface-id": spec.options["iface-id"],
        "iface-status": "active",
        "attached-mac": mac_of(spec),
        MARK: spec.name,
    }


def agrees(interface: Interface, spec: PortSpec) -> bool:
    """Whether an interface is as the port is wanted."""
    wanted = interface_columns(spec)
    return (
        interface.type == wanted["type"]
        and interface.options == as_map(wanted["options"])
        and interface.mtu_request == spec.mtu
        and ids_of(spec).items() <= interface.external_ids.items()
    )


def add_port(spec: PortSpec) -> list[Operation]:
    """Put a port on its bridge, which is there."""
    name, tag = spec.options["interface"], spec.options.get("tag")
    interface = {"name": name, "external_ids": to_map(ids_of(spec)), **interface_columns(spec)}
    port = {
        "name": name,
        "interfaces": ["named-uuid", "interface"],
        "external_ids": to_map({MARK: spec.name}),
    }
    vlan = {} if tag is None else {"tag": int(tag)}
    return [
        {"op": "insert", "table": "Interface", "uuid-name": "interface", "row": interface},
        {"op": "insert", "table": "Port", "uuid-name": "port", "row": {**port, **vlan}},
        {
            "op": "mutate",
            "table": "Bridge",
            "where": [["name", "==", spec.options["bridge"]]],
            "mutations": [["ports", "insert", ["named-uuid", "port"]]],
        },
    ]


def mend(interface: Interface, spec: PortSpec) -> list[Operation]:
    """Make an interface what it should be; what others wrote into its external ids stays."""
    where = is_row(interface.uuid)
    return [
        {"op": "update", "table": "Interface", "where": where, "row": interface_columns(spec)},
        {
            "op": "mutate",
            "table": "Interface",
            "where": where,
            "mutations": put("external_ids", ids_of(spec)),
        },
    ]


def drop_port(port: str, bridge: str) -> list[Operation]:
    """Take a port off its bridge; interface and port go with it."""
    mutation = ["ports", "delete", to_uuid(port)]
    return [{"op": "mutate", "table": "Bridge", "where": is_row(bridge), "mutations": [mutation]}]


def add_bridge(name: str) -> list[Operation]:
    """Make a bridge that forwards in user space, with the port that every bridge has."""
    return [
        {
            "op": "insert",
            "table": "Interface",
            "uuid-name": "local_interface",
            "row": {"name": name, "type": "internal"},
        },
        {
            "op": "insert",
            "table": "Port",
            "uuid-name": "local_port",
            "row": {"name": name, "interfaces": ["named-uuid", "local_interface"]},
        },
        {
            "op": "insert",
            "table": "Bridge",
            "uuid-name": "bridge",
            "row": {"name": name, "datapath_type": "netdev", "ports": ["named-uuid", "local_port"]},
        },
        {
            "op": "mutate",
            "table": "Open_vSwitch",
            "where": [],
            "mutations": [["bridges", "insert", ["named-uuid", "bridge"]]],
        },
    ]


def drop_bridge(row: Row) -> list[Operation]:
    """Take a bridge away if its ports are still those of ``row``."""
    where = is_row(row["_uuid"][1])
    same = {"ports": row["ports"]}
    return [
        {
            "op": "wait",
            "table": "Bridge",
            "where": where,
            "columns": ["ports"],
            "until": "==",
            "rows": [same],
            "timeout": 0,
        },
        {
            "op": "mutate",
            "table": "Open_vSwitch",
            "where": [],
            "mutations": [["bridges", "delete", row["_uuid"]]],
        },
    ]


def nudge() -> list[Operation]:
    """Have the switch look at its configuration again, and say which number that has."""
    return [
        {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]]},
        {"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["next_cfg"]},
    ]


def await_change(done: int, timeout_ms: int) -> list[Operation]:
    """Wait until the switch has done anything beyond ``done``."""
    return [
        {
            "op": "wait",
            "table": "Open_vSwitch",
            "where": [],
            "columns": ["cur_cfg"],
            "until": "!=",
            "rows": [{"cur_cfg": done}],
            "timeout": timeout_ms,
        }
    ]
