"""Who reads the database where ovs-vswitchd would, without its huge pages: it opens whatever it is told to.

It has a copy of the database by the library's IDL, which checks all that is written against the schema.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import ovs.db.idl
import ovs.poller

from ringway.testing.openvswitch import SCHEMA

DPDK_TYPES = ("dpdk", "dpdkvhostuser", "dpdkvhostuserclient", "internal")


class StandIn(threading.Thread):
    """Gives interfaces numbers and links, or errors, and says that it is done.

    :param errors: what it says of interfaces, by their names.
    :param linked: the names of those whose guests have come.
    """

    def __init__(self, remote: str, *, dpdk: bool = True) -> None:
        super().__init__(name="stand-in", daemon=True)
        self.errors: dict[str, str] = {}
        self.linked: set[str] = set()
        self._dpdk = dpdk
        self._ended = threading.Event()
        helper = ovs.db.idl.SchemaHelper(str(SCHEMA))
        helper.register_columns("Interface", ["name", "ofport", "error", "link_state", "mtu", "mtu_request"])
        helper.register_columns(
            "Open_vSwitch",
            ["next_cfg", "cur_cfg", "dpdk_initialized", "iface_types", "datapath_types", "ovs_version"],
        )
        self._idl: Any = ovs.db.idl.Idl(remote, helper)

    def run(self) -> None:
        while not self._ended.is_set():
            self._idl.run()
            if self._idl.tables["Open_vSwitch"].rows:
                self._do()
            poller = ovs.poller.Poller()
            self._idl.wait(poller)
            poller.timer_wait(20)
            poller.block()
        self._idl.close()

    def close(self) -> None:
        self._ended.set()
        self.join()

    def _do(self) -> None:
        transaction = ovs.db.idl.Transaction(self._idl)
        root = next(iter(self._idl.tables["Open_vSwitch"].rows.values()))
        for number, row in enumerate(list(self._idl.tables["Interface"].rows.values())):
            error = self.errors.get(row.name)
            _set(row, "error", [error] if error else [])
            _set(row, "ofport", [-1 if error else number + 1])
            _set(row, "link_state", ["up" if row.name in self.linked else "down"])
            _set(row, "mtu", row.mtu_request or [1500])
        _set(root, "dpdk_initialized", self._dpdk)
        _set(root, "iface_types", sorted(DPDK_TYPES) if self._dpdk else ["internal"])
        _set(root, "datapath_types", ["netdev", "system"])
        _set(root, "ovs_version", ["3.1.0"])
        _set(root, "cur_cfg", root.next_cfg)
        transaction.commit_block()


def _set(row: Any, column: str, value: object) -> None:
    if getattr(row, column) != value:
        setattr(row, column, value)


@contextlib.contextmanager
def stand_in(remote: str, *, dpdk: bool = True) -> Iterator[StandIn]:
    """One that runs; it ends at the end."""
    switch = StandIn(remote, dpdk=dpdk)
    switch.start()
    try:
        yield switch
    finally:
        switch.close()
