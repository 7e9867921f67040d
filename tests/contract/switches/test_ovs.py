"""What only Open vSwitch's driver does: what it writes, what it refuses, what it says of trouble."""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ringway.errors import (
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RingwayError,
    UnreachableError,
    UsageError,
)
from ringway.model import PortMode, PortSpec, PortState, socket_of
from ringway.net.account import Account
from ringway.net.base import Settings, Switch
from ringway.net.drivers import open_switch
from ringway.net.ovs.driver import interface_name
from ringway.testing.openvswitch import OpenVSwitch
from ringway.testing.waiting import PATIENCE_S

from .conftest import OpenOvs
from .standin import StandIn, stand_in

GUEST = "0c9f1f6e-5f0c-4d4e-9d3c-6f5b1a2c3d4e"


def wanted(switch: Switch, name: str = "web0", **more: Any) -> PortSpec:
    return switch.resolve(replace(PortSpec(name=name, switch="ovs"), **more))


def get(database: OpenVSwitch, name: str, *columns: str) -> tuple[str, ...]:
    """What ovs-vsctl says of an interface."""
    return tuple(database.vsctl("get", "Interface", name, *columns).splitlines())


# What is written


def test_what_neutron_writes_is_written(ovs: Switch, database: OpenVSwitch) -> None:
    spec = wanted(
        ovs, mtu=9000, options={"iface-id": "11111111-2222", "tag": "100", "interface": "vhu11111111"}
    )
    ovs.create(spec)
    ids = "external_ids:iface-id", "external_ids:iface-status", "external_ids:attached-mac"
    assert get(database, "vhu11111111", *ids) == ('"11111111-2222"', "active", f'"{spec.mac}"')
    kind, path, mtu = get(database, "vhu11111111", "type", "options:vhost-server-path", "mtu_request")
    assert (kind, path, mtu) == ("dpdkvhostuserclient", f'"{spec.socket}"', "9000")
    assert database.vsctl("get", "Port", "vhu11111111", "tag") == "100"
    assert database.vsctl("iface-to-br", "vhu11111111") == "br-test"
    ovs.plug(spec, GUEST)
    assert get(database, "vhu11111111", "external_ids:vm-uuid") == (f'"{GUEST}"',)
    ovs.unplug(spec)
    assert "vm-uuid" not in get(database, "vhu11111111", "external_ids")[0]
    ovs.delete(spec)
    assert database.vsctl("list-ports", "br-test") == ""


def test_a_port_whose_socket_the_switch_makes(ovs: Switch, database: OpenVSwitch) -> None:
    spec = wanted(ovs, mode=PortMode.CLIENT)
    assert spec.socket == f"{database.folder}/vhu-web0"
    assert spec.reconnect_s == 1, "or the guest would have no network after the switch's next start"
    ovs.create(spec)
    assert get(database, "vhu-web0", "type", "options") == ("dpdkvhostuser", "{}")
    database.vsctl("--no-wait", "set", "Open_vSwitch", ".", "other_config:vhost-sock-dir=vms")
    assert wanted(ovs, "db0", mode=PortMode.CLIENT).socket == f"{database.folder}/vms/vhu-db0"


def test_where_the_switch_has_its_sockets_is_not_ours_to_say(ovs: Switch, database: OpenVSwitch) -> None:
    spec = wanted(ovs, mode=PortMode.CLIENT, socket=f"{database.folder}/mine")
    assert spec.options["interface"] == "mine"
    with pytest.raises(UsageError, match="cannot be '/run/elsewhere/mine'"):
        wanted(ovs, mode=PortMode.CLIENT, socket="/run/elsewhere/mine")


def test_names_of_interfaces() -> None:
    assert interface_name("web0") == "vhu-web0"
    assert interface_name("x" * 11) == "vhu-" + "x" * 11
    assert len(interface_name("x" * 12)) == 14
    assert interface_name("x" * 12) != interface_name("x" * 13)


def test_a_bridge_is_made_where_that_is_asked(
    vswitchd: StandIn, database: OpenVSwitch, open_ovs: OpenOvs
) -> None:
    switch = open_ovs(bridge="br-new")
    spec = wanted(switch)
    with pytest.raises(NotFoundError, match="no bridge 'br-new'") as caught:
        switch.check(spec, ())
    assert "create=yes" in (caught.value.hint or "")
    spec = wanted(switch, options={"create": "yes"})
    switch.check(spec, ())
    switch.create(spec)
    assert database.vsctl("get", "bridge", "br-new", "datapath_type") == "netdev"
    switch.delete(spec)
    assert database.vsctl("list-br") == "br-new", "others may have plans with it"


def test_many_ports_make_one_bridge(vswitchd: StandIn, database: OpenVSwitch, open_ovs: OpenOvs) -> None:
    switch = open_ovs(bridge="br-new")
    specs = [wanted(switch, f"web{number}", options={"create": "yes"}) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(switch.create, specs))
    assert len(database.vsctl("list-ports", "br-new").split()) == 6


# What is refused


def test_a_bridge_of_the_kernel(ovs: Switch, database: OpenVSwitch) -> None:
    database.vsctl("add-br", "br-kernel")
    with pytest.raises(ConflictError, match="forwards in the kernel") as caught:
        ovs.check(wanted(ovs, options={"bridge": "br-kernel"}), ())
    assert "netdev" in (caught.value.hint or "")


def test_a_switch_without_dpdk(database: OpenVSwitch, open_ovs: OpenOvs) -> None:
    switch = open_ovs()
    with stand_in(database.remote, dpdk=False):
        database.vsctl("add-br", "br-test", "--", "set", "bridge", "br-test", "datapath_type=netdev")
        with pytest.raises(ConflictError, match="has not initialised DPDK") as caught:
            switch.check(wanted(switch), ())
        assert "other_config:dpdk-init=true" in (caught.value.hint or "")
        database.vsctl("set", "Open_vSwitch", ".", "other_config:dpdk-init=true")
        with pytest.raises(ConflictError, match="was told to") as caught:
            switch.check(wanted(switch), ())
        assert "huge pages" in (caught.value.hint or "")
        assert [check.ok for check in switch.probe()] == [True, False]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mtu": 9703}, "9702 at most"),
        ({"options": {"create": "maybe"}}, "yes or no"),
        ({"options": {"interface": "x" * 16}}, "interface cannot be"),
        ({"options": {"bridge": "br/0"}}, "bridge cannot be"),
        ({"options": {"tag": "0"}}, "VLAN from 1 to 4094"),
        ({"options": {"tag": "4095"}}, "VLAN from 1 to 4094"),
        ({"options": {"tag": "trunk"}}, "VLAN from 1 to 4094"),
        ({"options": {"iface_id": "a"}}, "no option 'iface_id'"),
    ],
)
def test_what_makes_no_sense(ovs: Switch, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        wanted(ovs, **changes)


def test_a_port_without_a_bridge(open_ovs: OpenOvs) -> None:
    with pytest.raises(UsageError, match="has no bridge") as caught:
        wanted(open_ovs(bridge=""))
    assert "[net.switch.ovs]" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"database": "/run/db.sock"}, "no place of a database"),
        ({"timeout_s": "0"}, "timeout_s is seconds"),
        ({"timeout_s": "soon"}, "timeout_s is seconds"),
        ({"remote": "unix:/x"}, "no option 'remote'"),
    ],
)
def test_a_configuration_that_makes_no_sense(tmp_path: Path, options: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        open_switch("ovs", Settings(folder=tmp_path, options=options))


def test_what_is_anothers_stays(ovs: Switch, database: OpenVSwitch) -> None:
    database.vsctl(
        "add-port", "br-test", "vhu-web0", "--", "set", "Interface", "vhu-web0", "type=dpdkvhostuser"
    )
    spec = wanted(ovs)
    with pytest.raises(ConflictError, match="'vhu-web0' of somebody else"):
        ovs.check(spec, ())
    with pytest.raises(ConflictError, match="'vhu-web0' of somebody else"):
        ovs.create(spec)
    with pytest.raises(NotFoundError):
        ovs.show(spec)
    with pytest.raises(NotFoundError):
        ovs.plug(spec, GUEST)
    ovs.unplug(spec)
    ovs.delete(spec)
    assert database.vsctl("list-ports", "br-test") == "vhu-web0"
    mine = wanted(ovs, "db0")
    ovs.create(mine)
    with pytest.raises(ConflictError, match="of port 'db0'"):
        ovs.check(wanted(ovs, options={"interface": "vhu-db0", "iface-id": "other"}), ())
    with pytest.raises(ConflictError, match="has the iface-id 'db0'"):
        ovs.check(wanted(ovs, "web1", options={"iface-id": "db0"}), ())


# Trouble


def test_the_error_that_users_meet_is_said(ovs: Switch, vswitchd: StandIn, database: OpenVSwitch) -> None:
    spec = wanted(ovs)
    ovs.create(spec)
    vswitchd.errors["vhu-web0"] = "could not open network device vhu-web0 (Unknown error -1)"
    database.vsctl("set", "Open_vSwitch", ".", "external_ids:look=again")
    shown = ovs.show(spec)
    assert shown.state is PortState.DEGRADED
    assert shown.message == "could not open network device vhu-web0 (Unknown error -1)"
    with pytest.raises(RingwayError, match="could not open network device"):
        ovs.create(spec)
    vswitchd.errors.clear()
    ovs.create(spec)
    assert ovs.show(spec).state is PortState.READY


def test_a_switch_that_gave_up_is_not_asked_again(
    ovs: Switch, vswitchd: StandIn, database: OpenVSwitch
) -> None:
    """A further attempt in the same process does harm: the way is made free for the next one."""
    spec = wanted(ovs, mode=PortMode.CLIENT)
    ovs.create(spec)
    vswitchd.errors["vhu-web0"] = "could not open network device vhu-web0 (Unknown error -1)"
    database.vsctl("set", "Open_vSwitch", ".", "external_ids:look=again")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(socket_of(spec))
    asked = database.vsctl("get", "Open_vSwitch", ".", "next_cfg")
    with pytest.raises(ConflictError, match="was in its way when it started"):
        ovs.create(spec)
    assert not os.path.exists(socket_of(spec))
    assert database.vsctl("get", "Open_vSwitch", ".", "next_cfg") == asked


def test_the_switch_is_not_sent_where_somebody_listens(ovs: Switch, database: OpenVSwitch) -> None:
    spec = wanted(ovs, mode=PortMode.CLIENT)
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(socket_of(spec))
        squatter.listen()
        with pytest.raises(ConflictError, match="somebody does"):
            ovs.create(spec)
    assert database.vsctl("list-ports", "br-test") == ""


def test_a_switch_that_started_looks_again(ovs: Switch, database: OpenVSwitch) -> None:
    """Twice, since the first time may be a part of its start; and not with each question."""
    spec = wanted(ovs)
    ovs.create(spec)
    (database.folder / "ovs-vswitchd.pid").write_text("no number")
    before = int(database.vsctl("get", "Open_vSwitch", ".", "next_cfg"))
    for _ in range(2):
        ovs.show(spec)
        assert int(database.vsctl("get", "Open_vSwitch", ".", "next_cfg")) == before + 2


def test_a_port_that_cannot_be_made_leaves_nothing(
    vswitchd: StandIn, database: OpenVSwitch, open_ovs: OpenOvs
) -> None:
    switch = open_ovs(bridge="br-new")
    vswitchd.errors["vhu-web0"] = (
        "could not open network device vhu-web0 (Address family not supported by protocol)"
    )
    with pytest.raises(RingwayError, match="could not make port 'web0'") as caught:
        switch.create(wanted(switch, options={"create": "yes"}))
    assert "without DPDK" in (caught.value.hint or "")
    assert database.vsctl("list-br") == ""


def test_a_bridge_that_somebody_uses_by_now_is_left(
    vswitchd: StandIn, database: OpenVSwitch, open_ovs: OpenOvs
) -> None:
    switch = open_ovs(bridge="br-new")
    other = wanted(switch, "db0", options={"create": "yes"})
    vswitchd.errors["vhu-web0"] = "no"
    create = threading.Thread(target=switch.create, args=(other,))
    create.start()
    with pytest.raises(RingwayError, match="could not make"):
        switch.create(wanted(switch, options={"create": "yes"}))
    create.join()
    switch.create(other)
    assert database.vsctl("list-ports", "br-new") == "vhu-db0"


def test_what_somebody_changed_is_told_and_mended(ovs: Switch, database: OpenVSwitch) -> None:
    spec = wanted(ovs, mtu=1600)
    ovs.create(spec)
    ovs.plug(spec, GUEST)
    database.vsctl("set", "Interface", "vhu-web0", "mtu_request=1400", "external_ids:owner=me")
    assert "somebody changed" in (ovs.show(spec).message or "")
    ovs.create(spec)
    assert ovs.show(spec).state is PortState.READY
    ids = json.loads(
        database.vsctl("--format=json", "--columns=external_ids", "list", "Interface", "vhu-web0")
    )
    kept = dict(ids["data"][0][0][1])
    assert (kept["owner"], kept["vm-uuid"]) == ("me", GUEST)
    database.vsctl("del-port", "vhu-web0")
    with pytest.raises(NotFoundError, match="no interface 'vhu-web0'"):
        ovs.show(spec)


def test_a_port_on_another_bridge_moves(ovs: Switch, database: OpenVSwitch) -> None:
    spec = wanted(ovs)
    ovs.create(spec)
    database.vsctl("add-br", "br-other", "--", "set", "bridge", "br-other", "datapath_type=netdev")
    moved = replace(spec, options={**spec.options, "bridge": "br-other"})
    ovs.create(moved)
    assert database.vsctl("iface-to-br", "vhu-web0") == "br-other"


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    options = {"database": f"unix:{tmp_path}/db.sock", "bridge": "br0"}
    switch = open_switch("ovs", Settings(folder=tmp_path, options=options))
    spec = wanted(switch)
    for call in (lambda: switch.check(spec, ()), lambda: switch.create(spec), lambda: switch.show(spec)):
        with pytest.raises(UnreachableError, match="No such file") as caught:
            call()
        assert "systemctl start openvswitch-switch" in (caught.value.hint or "")
    with pytest.raises(UnreachableError):
        switch.delete(spec)
    assert [check.ok for check in switch.probe()] == [False]


def test_a_database_that_does_not_answer(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dumb:
        dumb.bind(str(run_dir / "db.sock"))
        dumb.listen()
        options = {"database": f"unix:{run_dir}/db.sock", "bridge": "br0", "timeout_s": "0.2"}
        switch = open_switch("ovs", Settings(folder=run_dir, options=options))
        with pytest.raises(UnreachableError, match="does not answer"):
            switch.check(wanted(switch), ())


def test_a_switch_that_does_not_run(database: OpenVSwitch, open_ovs: OpenOvs) -> None:
    """The database alone takes anything; nobody makes it true."""
    switch = open_ovs(timeout_s="0.5")
    database.vsctl("--no-wait", "add-br", "br-test", "--", "set", "bridge", "br-test", "datapath_type=netdev")
    with pytest.raises(UnreachableError, match="ovs-vswitchd does not answer"):
        switch.create(wanted(switch))
    assert database.vsctl("list-ports", "br-test") == "", "nothing is left of it"


def test_a_switch_that_died_is_not_taken_for_one_that_lives(ovs: Switch, database: OpenVSwitch) -> None:
    """The database goes on to say what was last so."""
    spec = wanted(ovs)
    ovs.create(spec)
    (database.folder / "ovs-vswitchd.pid").write_text(f"{os.getpid()}\n")  # somebody else has the number now
    for call in (lambda: ovs.show(spec), lambda: ovs.check(spec, ()), lambda: ovs.create(spec)):
        with pytest.raises(UnreachableError, match="ovs-vswitchd does not run"):
            call()
    ovs.delete(spec)
    assert database.vsctl("list-ports", "br-test") == ""


def test_a_database_that_comes_back(ovs: Switch, database: OpenVSwitch) -> None:
    spec = wanted(ovs)
    ovs.create(spec)
    database.stop_database()
    with pytest.raises(UnreachableError):
        ovs.show(spec)
    database.start_database()
    assert ovs.show(spec).state is PortState.READY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives sockets away")
def test_a_socket_of_the_switchs_is_opened_to_qemus_user(
    ovs: Switch, database: OpenVSwitch, run_dir: Path
) -> None:
    os.chmod(run_dir, 0o755)
    os.chmod(database.folder, 0o755)
    account = Account(name="stranger", uid=54321, gid=54321, gids=(54321,))
    options = {"database": database.remote, "bridge": "br-test"}
    switch = open_switch("ovs", Settings(folder=run_dir / "port", account=account, options=options))
    spec = wanted(switch, mode=PortMode.CLIENT)
    switch.create(spec)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(socket_of(spec))
        os.chmod(socket_of(spec), 0o755)  # as the switch makes it
        shown = switch.show(spec)
        assert "'stranger', who runs QEMU, may not connect" in (shown.message or "")
        switch.create(spec)
        assert switch.show(spec).state is PortState.READY
    for mode in PortMode:
        other = wanted(switch, "db0", mode=mode)
        switch.check(other, ())
        os.chmod(run_dir, 0o700)
        with pytest.raises(PermissionDeniedError, match=f"go through '{run_dir}'"):
            switch.check(other, ())
        os.chmod(run_dir, 0o755)


# Watching


def test_changes_are_told(ovs: Switch, vswitchd: StandIn, database: OpenVSwitch) -> None:
    """Whether or not the watcher is back when the port goes: who missed that was told nothing."""
    heard: queue.Queue[str] = queue.Queue()
    ovs.watch(heard.put)
    spec = wanted(ovs)
    ovs.create(spec)
    assert heard.get(timeout=PATIENCE_S) == "web0"
    database.stop_database()
    while not heard.empty():
        heard.get()
    assert heard.get(timeout=PATIENCE_S) == "web0", "it went away, which is a change"
    database.start_database()
    database.vsctl("add-port", "br-test", "other", "--", "set", "Interface", "other", "type=dpdkvhostuser")
    database.vsctl("del-port", "vhu-web0")
    assert heard.get(timeout=PATIENCE_S) == "web0"
    ovs.close()
    assert set(heard.queue) <= {"web0"}, "and nothing of what is not ours"
