"""Two guests exchange traffic through ports of a real switch, whatever becomes of it meanwhile."""

from __future__ import annotations

import socket
from functools import partial

import pytest

from ringway.errors import ConflictError, UnreachableError
from ringway.model import PortMode, PortSpec, PortState, socket_of
from ringway.net import sockets
from ringway.net.base import Switch
from ringway.net.ovs.driver import MAX_MTU
from ringway.testing.guest import LinuxGuest
from ringway.testing.openvswitch import OpenVSwitch
from ringway.testing.waiting import wait_until

from .conftest import BRIDGE, MakePort, guest_on, patient, set_address, wait_state
from .traffic import HERE, THERE, carrier, mtu, ping, wait_links

pytestmark = patient
#: 8 MiB that nobody has seen, with their sum.
_SERVE = "head -c 8388608 /dev/urandom >/tmp/file; cd /tmp; sha256sum file >file.sum; httpd -p 80 -h /tmp"
_FETCH = (
    f"cd /root && wget -q http://{THERE}/file.sum && wget -q http://{THERE}/file && sha256sum -c file.sum"
    " && rm file file.sum"
)


def test_guests_that_are_servers(driver: Switch, ovs_dpdk: OpenVSwitch, make_port: MakePort) -> None:
    """Two pairs of queues, and packets as large as they get; the switch dies and comes back."""
    one, other = (make_port(name, queues=2, mtu=9000) for name in ("one", "other"))
    with guest_on(one) as here, guest_on(other) as there:
        set_address(here, HERE)
        set_address(there, THERE)
        wait_up(driver, one, other)
        wait_links(here, there)
        check_traffic(here, there)
        check_queues(ovs_dpdk, here)
        check_switch_restart(driver, ovs_dpdk, one, here)
        check_link_loss(driver, other, here, there)
        there.qemu.quit()
        wait_state(driver, other, PortState.READY)
        assert driver.show(one).state is PortState.UP


def wait_up(driver: Switch, *specs: PortSpec) -> None:
    """Wait until all are connected, and nothing is to be said of them."""
    for spec in specs:
        wait_state(driver, spec, PortState.UP)
        assert driver.show(spec).message is None


def check_traffic(here: LinuxGuest, there: LinuxGuest) -> None:
    """A file arrives as it was, and nothing on the way cuts what fits the MTU."""
    assert mtu(here) == "9000", "by the port, not by the guest"
    ping(here, size=9000 - 28)
    there.run(_SERVE)
    here.run(_FETCH)


def check_queues(ovs: OpenVSwitch, here: LinuxGuest) -> None:
    """Each processor sends by its own queue, and the switch takes from both."""
    for queue in range(2):
        before = received(ovs, queue)
        ping(here, cpu=queue)
        wait_until(partial(more, ovs, queue, before), f"queue {queue} is used")


def more(ovs: OpenVSwitch, queue: int, than: int) -> bool:
    return received(ovs, queue) > than


def received(ovs: OpenVSwitch, queue: int) -> int:
    """Packets that the switch took from a queue of the first guest; it counts anew every five seconds."""
    return int(ovs.vsctl("get", "Interface", "vhu-one", f"statistics:rx_q{queue}_good_packets"))


def check_switch_restart(driver: Switch, ovs: OpenVSwitch, spec: PortSpec, here: LinuxGuest) -> None:
    """QEMU goes on to listen; a transfer that began without a switch ends with one."""
    ovs.stop_switch()
    wait_until(lambda: carrier(here) == "0", "the guest sees that its cable is out")
    with pytest.raises(UnreachableError, match="ovs-vswitchd does not run"):
        driver.show(spec)
    transfer = here.start(_FETCH)
    ovs.start_switch()
    wait_up(driver, spec)
    transfer.wait()
    assert carrier(here) == "1"


def check_link_loss(driver: Switch, spec: PortSpec, here: LinuxGuest, there: LinuxGuest) -> None:
    """A cable that is pulled out and put back. The switch is to have said before that it was in: what it says
    may be behind what it does."""
    wait_state(driver, spec, PortState.UP)
    there.qemu.qmp.execute("set_link", name="net", up=False)
    wait_state(driver, spec, PortState.READY)
    assert here.try_run(f"ping -c 1 -w 2 {THERE}").status != 0
    there.qemu.qmp.execute("set_link", name="net", up=True)
    wait_state(driver, spec, PortState.UP)
    wait_links(there)
    ping(here)


def test_a_guest_that_is_a_client(driver: Switch, ovs_dpdk: OpenVSwitch, make_port: MakePort) -> None:
    """The switch listens; QEMU comes back to one that was restarted in good order."""
    one, other = make_port("one", mode=PortMode.CLIENT), make_port("other")
    with guest_on(one) as here, guest_on(other) as there:
        set_address(here, HERE)
        set_address(there, THERE)
        wait_up(driver, one, other)
        wait_links(here, there)
        ping(here)
        ovs_dpdk.end_switch()
        wait_until(lambda: carrier(here) == "0", "the guest sees that its cable is out")
        ovs_dpdk.start_switch()
        wait_up(driver, one, other)
        wait_links(here, there)
        ping(here)
        check_switch_crash(driver, ovs_dpdk, one)
        wait_up(driver, one, other)
        wait_links(here, there)
        ping(here)


def check_switch_crash(driver: Switch, ovs: OpenVSwitch, spec: PortSpec) -> None:
    """A switch that was killed leaves its socket in its own way. Creating the port again removes it, for the
    next start: the same process must not try again."""
    ovs.stop_switch()
    ovs.start_switch()
    wait_state(driver, spec, PortState.DEGRADED)
    assert "could not open network device" in (driver.show(spec).message or "")
    with pytest.raises(ConflictError, match="was in its way when it started"):
        driver.create(spec)
    ovs.stop_switch()
    ovs.start_switch()


def test_somebody_listens_where_the_switch_would(
    driver: Switch, ovs_dpdk: OpenVSwitch, make_port: MakePort
) -> None:
    """The switch is not asked at all."""
    make_port("other")
    spec = driver.resolve(PortSpec(name="one", switch="ovs", mode=PortMode.CLIENT))
    sockets.remove_stale(socket_of(spec))
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(socket_of(spec))
        squatter.listen()
        with pytest.raises(ConflictError, match=f"cannot listen at '{socket_of(spec)}'"):
            driver.create(spec)
    assert ovs_dpdk.vsctl("list-ports", BRIDGE) == "vhu-other"


def test_the_largest_mtu(driver: Switch, ovs_dpdk: OpenVSwitch, make_port: MakePort) -> None:
    """One more, and the switch says so in its log alone: nobody would hear of it."""
    make_port("one", mtu=MAX_MTU)
    log = ovs_dpdk.folder / "ovs-vswitchd.log"
    assert "unsupported MTU" not in log.read_text()
    ovs_dpdk.vsctl("set", "Interface", "vhu-one", f"mtu_request={MAX_MTU + 1}")
    assert f"unsupported MTU {MAX_MTU + 1}" in log.read_text()
    assert ovs_dpdk.vsctl("get", "Interface", "vhu-one", "error") == "[]"
