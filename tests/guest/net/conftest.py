"""A switch for all tests of this folder that want one, its driver, and guests on ports.

The switch takes huge pages from the machine, and one runs at a time; a host that has none skips its tests.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import GuestError, TimedOutError
from ringway.model import PortMode, PortSpec, PortState, mac_of, socket_of
from ringway.net.base import Settings, Switch
from ringway.net.drivers import open_switch
from ringway.testing.guest import LinuxGuest, Shell
from ringway.testing.openvswitch import OpenVSwitch, hugepages
from ringway.testing.qemu import vhost_user_net
from ringway.testing.waiting import PATIENCE_S, wait_until

BRIDGE = "br-guests"
#: With the time that another worker may keep the only switch.
patient = pytest.mark.timeout(2400)
MakePort = Callable[..., PortSpec]


@pytest.fixture(scope="module")
def only_switch() -> Iterator[OpenVSwitch]:
    """The switch; it runs. A worker gives it up after its module: others wait for the huge pages."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rw-")))
        try:
            private = OpenVSwitch(folder)
            stack.enter_context(hugepages())
        except GuestError as error:
            pytest.skip(f"{error}: {error.hint}")
        stack.enter_context(private)
        private.start_switch()
        yield private


@pytest.fixture
def ovs_dpdk(only_switch: OpenVSwitch) -> Iterator[OpenVSwitch]:
    """The switch; what it says is beside a test that failed."""
    yield only_switch
    print(only_switch.describe())


@pytest.fixture
def driver(ovs_dpdk: OpenVSwitch, run_dir: Path) -> Iterator[Switch]:
    options = {"database": ovs_dpdk.remote, "bridge": BRIDGE, "timeout_s": f"{PATIENCE_S:g}"}
    switch = open_switch("ovs", Settings(folder=run_dir, options=options))
    yield switch
    switch.close()


@pytest.fixture
def make_port(driver: Switch) -> Iterator[MakePort]:
    """Make ports as a daemon does; they are deleted at the end."""
    made: list[PortSpec] = []

    def make(name: str, **more: object) -> PortSpec:
        asked = replace(PortSpec(name=name, switch="ovs", options={"create": "yes"}), **more)
        spec = driver.resolve(asked)
        driver.check(spec, tuple(made))
        driver.create(spec)
        made.append(spec)
        return spec

    yield make
    for spec in made:
        driver.delete(spec)


def guest_on(spec: PortSpec, **more: object) -> LinuxGuest:
    """A guest with one network card. QEMU's role is the port's ``mode``."""
    mtu = "" if spec.mtu is None else f"host_mtu={spec.mtu}"
    card = vhost_user_net(
        Path(socket_of(spec)),
        mac=mac_of(spec),
        server=spec.mode is PortMode.SERVER,
        queues=spec.queues,
        reconnect_ms=1000 * (spec.reconnect_s or 0),
        options=mtu,
    )
    return LinuxGuest(card, cpus=spec.queues, **more)  # type: ignore[arg-type]


def set_address(guest: Shell, address: str) -> None:
    guest.run(f"ip addr add {address}/24 dev eth0 && ip link set eth0 up")


def wait_state(switch: Switch, spec: PortSpec, state: PortState) -> None:
    """Wait until a port is so. :raises TimedOutError: it does not get so; it says how it is."""
    try:
        wait_until(lambda: switch.show(spec).state is state, f"port {spec.name} is {state}")
    except TimedOutError as error:
        error.add_note(str(switch.show(spec)))
        raise
