"""What every switch does, whichever it is."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import ConflictError, NotFoundError, UsageError
from ringway.model import PortSpec, PortState, socket_of
from ringway.net.base import Condition, Switch

GUEST = "0c9f1f6e-5f0c-4d4e-9d3c-6f5b1a2c3d4e"


def wanted(switch: Switch, name: str = "web0", **more: object) -> PortSpec:
    return switch.resolve(replace(PortSpec(name=name, switch=switch.name), **more))


def test_what_is_chosen_is_whole_and_chosen_once(switch: Switch) -> None:
    spec = wanted(switch)
    assert spec.mac is not None
    assert spec.socket is not None
    assert switch.resolve(spec) == spec


def test_a_port_comes_and_goes(switch: Switch) -> None:
    spec = wanted(switch, mtu=1600, queues=2)
    switch.check(spec, ())
    switch.create(spec)
    assert switch.show(spec) == Condition(PortState.READY)
    switch.delete(spec)
    switch.check(spec, ())


def test_doing_it_again_changes_nothing(switch: Switch) -> None:
    spec = wanted(switch)
    switch.delete(spec)
    switch.create(spec)
    first = switch.show(spec)
    switch.create(spec)
    switch.check(spec, (spec,))
    assert switch.show(spec) == first
    switch.delete(spec)
    switch.delete(spec)


def test_a_guest_comes_and_goes(switch: Switch) -> None:
    spec = wanted(switch)
    switch.unplug(spec)
    switch.create(spec)
    before = switch.show(spec)
    for _ in range(2):
        switch.plug(spec, GUEST)
    assert switch.show(spec) == before, "the guest is the caller's to know"
    for _ in range(2):
        switch.unplug(spec)
    switch.delete(spec)


def test_a_port_is_up_while_both_are_there(switch: Switch, request: pytest.FixtureRequest) -> None:
    spec = wanted(switch)
    switch.create(spec)
    if switch.name == "ovs":  # the stand-in has no packets to move: the switch's word is taken
        request.getfixturevalue("vswitchd").linked.add(spec.options["interface"])
        request.getfixturevalue("database").vsctl("set", "Open_vSwitch", ".", "external_ids:a=b")
        assert switch.show(spec).state is PortState.UP
        return
    with socket.socket(socket.AF_UNIX) as qemu, socket.socket(socket.AF_UNIX) as other:
        qemu.bind(socket_of(spec))
        qemu.listen()
        other.connect(socket_of(spec))
        accepted, _ = qemu.accept()
        with accepted:
            assert switch.show(spec).state is PortState.UP
    assert switch.show(spec).state is PortState.READY


def test_many_ports_at_once(switch: Switch) -> None:
    """Calls come from many threads, one at a time for each port."""
    specs = [wanted(switch, f"web{number}") for number in range(12)]

    def live(spec: PortSpec) -> PortState:
        switch.check(spec, tuple(specs))
        switch.create(spec)
        switch.plug(spec, GUEST)
        state = switch.show(spec).state
        switch.unplug(spec)
        switch.delete(spec)
        return state

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(live, specs)) == {PortState.READY}


def test_two_ports_share_nothing(switch: Switch) -> None:
    one, other = wanted(switch), wanted(switch, "db0")
    switch.create(one)
    with pytest.raises(ConflictError, match="'web0' has the MAC"):
        switch.check(replace(other, mac=one.mac), (one,))
    with pytest.raises(ConflictError, match="'web0' has the socket"):
        switch.check(replace(other, socket=one.socket), (one,))
    switch.check(other, (one,))


def test_a_socket_has_a_folder_that_is_there(switch: Switch, run_dir: Path) -> None:
    spec = wanted(switch, socket=str(run_dir / "nowhere" / "a.sock"))
    with pytest.raises(NotFoundError, match=f"'{run_dir}/nowhere' is not a folder"):
        switch.check(spec, ())


def test_what_is_in_the_way_is_named(switch: Switch, run_dir: Path) -> None:
    (run_dir / "image").write_text("precious")
    spec = wanted(switch, socket=str(run_dir / "image"))
    with pytest.raises(ConflictError, match="is not a socket"):
        switch.check(spec, ())
    switch.delete(spec)
    assert (run_dir / "image").read_text() == "precious"


def test_unknown_options_are_refused(switch: Switch) -> None:
    with pytest.raises(UsageError, match=f"'{switch.name}' has no option 'brigde'"):
        wanted(switch, options={"brigde": "br0"})


def test_a_probe_says_what_is_there(switch: Switch) -> None:
    assert all(check.ok for check in switch.probe())


def test_closing_twice_is_closing_once(switch: Switch) -> None:
    switch.watch(lambda port: None)
    switch.close()
    switch.close()
