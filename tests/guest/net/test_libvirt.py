"""libvirt's guests on ports of a real switch: from what a person types to the packets that arrive."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringway.errors import GuestError, TimedOutError
from ringway.testing.daemon import Daemon
from ringway.testing.domain import DomainGuest
from ringway.testing.libvirtd import Libvirtd, check_programs
from ringway.testing.openvswitch import OpenVSwitch
from ringway.testing.testpmd import Testpmd
from ringway.testing.waiting import PATIENCE_S, wait_until

from ..operator import KernelGuest, Operator
from .conftest import BRIDGE, patient, set_address
from .traffic import HERE, THERE, carrier, mtu, ping, wait_card, wait_links

pytestmark = patient
#: How long a guest may take to let a card go.
RELEASE = ("--release", f"{PATIENCE_S:g}s")


class Host(Operator):
    """A daemon with a libvirt and a switch, and a person who types."""

    def __init__(self, daemon: Daemon, libvirtd: Libvirtd, ovs: OpenVSwitch) -> None:
        super().__init__(daemon)
        self.libvirtd = libvirtd
        self.ovs = ovs

    def port(self, name: str) -> tuple[str, str | None]:
        """A port's state, and the guest that has it."""
        found: dict[str, Any] = json.loads(self.do("port", "show", name, "-o", "json"))
        return found["state"], found.get("guest")

    def wait_port(self, name: str, state: str, guest: str | None) -> None:
        """:raises TimedOutError: it does not get so; says how it is."""
        try:
            wait_until(lambda: self.port(name) == (state, guest), f"port {name} is {state} of {guest}")
        except TimedOutError as error:
            error.add_note(f"{self.do('port', 'show', name)}\n{self.daemon.log}")
            raise

    def ports_of_switch(self) -> set[str]:
        return set(self.ovs.vsctl("list-ports", BRIDGE).split())


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    """One for all tests here."""
    try:
        check_programs()
    except GuestError as error:
        pytest.fail(f"{error}; {error.hint}", pytrace=False)
    with Libvirtd(tmp_path_factory.mktemp("l")) as found:
        yield found


@pytest.fixture
def host(run_dir: Path, libvirtd: Libvirtd, ovs_dpdk: OpenVSwitch) -> Iterator[Host]:
    with Daemon(run_dir / "d") as daemon:
        daemon.configure(
            "[lio]\nenabled = false\n"
            f'[guests]\nenabled = true\nuri = "{libvirtd.uri}"\n'
            f'[net.switch.ovs]\ndatabase = "{ovs_dpdk.remote}"\nbridge = "{BRIDGE}"\n'
            f'timeout_s = "{PATIENCE_S:g}"\n'
        )
        daemon.start()
        host = Host(daemon, libvirtd, ovs_dpdk)
        yield host
        for port in json.loads(host.do("port", "list", "-o", "json")):
            host.do("port", "delete", port["name"], "--force")


@contextlib.contextmanager
def created(host: Host, folder: Path, name: str, *words: str) -> Iterator[KernelGuest]:
    """A guest that the daemon makes; it runs."""
    host.do("guest", "create", name, "--no-start", "--emulate", "--memory", "512M", *words)
    with KernelGuest(host.libvirtd, name, folder) as guest:
        yield guest


def test_guests_of_libvirts_talk_through_the_switch(host: Host, run_dir: Path) -> None:
    """One is made with its port, the other gets one while it runs; switch, daemon and guests restart."""
    vif = "id=there0,switch=ovs,ovs.create=yes,mtu=9000"
    with created(host, run_dir, "there", "--vif", vif) as there:
        set_address(there, THERE)
        host.wait_port("there0", "up", "there")
        assert mtu(there) == "9000", "by the port, not by the guest"
        host.do("port", "create", "here0", "--switch", "ovs", "--queues", "2", "--mtu", "9000")
        with DomainGuest(host.libvirtd, "here", run_dir, cpus=2) as here:
            host.do("guest", "plug", "here", "here0")
            wait_card(here)
            assert mtu(here) == "1500", "libvirt plugs in without overrides"
            set_address(here, HERE)
            host.wait_port("here0", "up", "here")
            wait_links(here, there)
            ping(here)
            check_switch_restart(host, here)
            wait_links(here, there)
            ping(here)
            check_daemon_restart(host, here)
            check_unplug(host, here)
            check_client(host, here)
            check_stop(host, here)
        host.wait_port("here0", "ready", None)
    host.wait_port("there0", "ready", None)
    host.do("port", "delete", "here0")
    host.do("port", "delete", "there0")
    assert host.ports_of_switch() == set()


def check_switch_restart(host: Host, here: DomainGuest) -> None:
    """A switch that died comes back to guests that wait for it; what would hang meanwhile is refused."""
    host.do("port", "create", "spare", "--switch", "ovs")
    host.ovs.stop_switch()
    wait_until(lambda: carrier(here) == "0", "the guest sees that its cable is out")
    assert host.port("here0") == ("degraded", "here")
    assert "stand still until a switch connects" in host.refusal("guest", "plug", "here", "spare")
    assert "ovs-vswitchd does not run" in host.refusal("port", "create", "more", "--switch", "ovs")
    host.ovs.start_switch()
    host.do("port", "delete", "spare")
    host.wait_port("here0", "up", "here")
    host.wait_port("there0", "up", "there")


def check_daemon_restart(host: Host, here: DomainGuest) -> None:
    """The daemon forwards nothing, and finds all again."""
    host.daemon.stop()
    ping(here)
    host.daemon.start()
    host.wait_port("here0", "up", "here")
    host.wait_port("there0", "up", "there")


def check_unplug(host: Host, here: DomainGuest) -> None:
    """The guest loses its card and gets it again, with its address."""
    mac = here.run("cat /sys/class/net/eth0/address")
    refusal = host.refusal("port", "delete", "here0")
    assert "plugged into guest 'here'" in refusal
    assert "ringway guest unplug here here0" in refusal
    host.do("guest", "unplug", "here", "here0", *RELEASE)
    assert here.try_run("ls /sys/class/net/eth0").status != 0
    host.wait_port("here0", "ready", None)
    assert "vm-uuid" not in host.ovs.vsctl("get", "Interface", "vhu-here0", "external_ids")
    assert "here0" not in host.libvirtd.virsh("dumpxml", "here")
    host.do("guest", "plug", "here", "here0")
    wait_card(here)
    assert here.run("cat /sys/class/net/eth0/address") == mac
    set_address(here, HERE)
    host.wait_port("here0", "up", "here")
    wait_links(here)
    ping(here)


def check_client(host: Host, here: DomainGuest) -> None:
    """QEMU connects to the switch, which has a network namespace of its own."""
    host.do("port", "create", "client0", "--switch", "ovs", "--mode", "client")
    host.do("guest", "plug", "here", "client0")
    host.wait_port("client0", "up", "here")
    host.do("guest", "unplug", "here", "client0", *RELEASE)
    host.wait_port("client0", "ready", None)
    host.do("port", "delete", "client0")


def check_stop(host: Host, here: DomainGuest) -> None:
    """A guest that was shut off has its port when it starts again."""
    here.stop_domain()
    host.wait_port("here0", "ready", "here")
    here.start_domain()
    here.wait_ready()
    assert mtu(here) == "9000"
    set_address(here, HERE)
    host.wait_port("here0", "up", "here")
    wait_links(here)
    ping(here, size=9000 - 28)


def test_a_guest_of_libvirts_and_a_program_that_others_started(host: Host, run_dir: Path) -> None:
    """Nobody knows when such a one connects, or listens: what would wait for it, or fail, is refused."""
    sockets = host.daemon.folder / "run" / "port"
    guest = DomainGuest(host.libvirtd, "web", run_dir)
    guest.define()
    with contextlib.closing(guest):
        host.do("port", "create", "server0")
        host.do("guest", "plug", "web", "server0")
        with Testpmd(sockets / "server0.sock", server=True) as testpmd:
            guest.start_domain()
            guest.wait_ready()
            check_answers(host, guest, "server0", testpmd)
        host.do("guest", "unplug", "web", "server0", *RELEASE)
        assert "stand still until a switch connects" in host.refusal("guest", "plug", "web", "server0")
        host.do("port", "create", "client0", "--mode", "client")
        assert "does not listen at" in host.refusal("guest", "plug", "web", "client0")
        with Testpmd(sockets / "client0.sock", server=False) as testpmd:
            host.wait_port("client0", "ready", None)
            host.do("guest", "plug", "web", "client0")
            wait_card(guest)
            check_answers(host, guest, "client0", testpmd)
        vif = ("--emulate", "--vif", "id=more,mode=client")
        assert "no guest can start with port 'more' now" in host.refusal("guest", "create", "more", *vif)
        assert "more" not in host.libvirtd.virsh("list", "--all", "--name")


def check_answers(host: Host, guest: DomainGuest, port: str, testpmd: Testpmd) -> None:
    """Pings are answered by who counts them."""
    set_address(guest, HERE)
    host.wait_port(port, "up", "web")
    wait_links(guest)
    ping(guest)
    assert testpmd.stop().sent >= 3
