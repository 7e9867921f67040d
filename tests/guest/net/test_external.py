"""A guest and a program that is no switch of ours: DPDK's testpmd, which answers what the guest sends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.model import PortMode, PortSpec, PortState, socket_of
from ringway.net.base import Settings, Switch
from ringway.net.drivers import open_switch
from ringway.testing.guest import LinuxGuest, Shell
from ringway.testing.testpmd import Testpmd
from ringway.testing.waiting import wait_until

from .conftest import guest_on, set_address, wait_state
from .traffic import HERE, carrier, ping, wait_links

_STATISTICS = "/sys/class/net/eth0/statistics"


@pytest.fixture
def external(run_dir: Path) -> Iterator[Switch]:
    switch = open_switch("external", Settings(folder=run_dir / "port"))
    yield switch
    switch.close()


def make(switch: Switch, **more: object) -> PortSpec:
    """A port, as a daemon makes it."""
    spec = switch.resolve(PortSpec(name="p0", **more))  # type: ignore[arg-type]
    switch.check(spec, ())
    switch.create(spec)
    return spec


def side(spec: PortSpec) -> Testpmd:
    return Testpmd(Path(socket_of(spec)), server=spec.mode is PortMode.SERVER, queues=spec.queues)


def counted(guest: Shell) -> tuple[int, int]:
    """Frames that the guest sent and got since its start."""
    sent, got = guest.run(f"cat {_STATISTICS}/tx_packets {_STATISTICS}/rx_packets").split()
    return int(sent), int(got)


@pytest.mark.parametrize("mode", list(PortMode))
def test_every_frame_arrives_and_is_answered(external: Switch, mode: PortMode) -> None:
    """Two pairs of queues. The other side ends, and another takes its place."""
    spec = make(external, mode=mode, queues=2)
    state_alone = {PortMode.CLIENT: PortState.DEGRADED, PortMode.SERVER: PortState.READY}[mode]
    assert external.show(spec).state is state_alone
    with side(spec) as testpmd:
        wait_state(external, spec, PortState.READY)
        with guest_on(spec) as guest:
            guest.run("echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6")  # nothing that we do not count
            set_address(guest, HERE)
            wait_state(external, spec, PortState.UP)
            wait_links(guest)
            check_frames(guest, testpmd, (0, 0))
            wait_until(lambda: carrier(guest) == "0", "the guest sees that its cable is out")
            wait_state(external, spec, state_alone)
            before = counted(guest)
            with side(spec) as another:
                wait_state(external, spec, PortState.UP)
                wait_links(guest)
                check_frames(guest, another, before)


def check_frames(guest: LinuxGuest, testpmd: Testpmd, before: tuple[int, int]) -> None:
    """Both count the same, and each processor's queue has been used."""
    for cpu in range(2):
        ping(guest, cpu=cpu)
    counts = testpmd.stop()

    def agree() -> bool:  # a guest counts what it sent when it takes its buffer back
        now = counted(guest)
        return (now[0] - before[0], now[1] - before[1]) == (counts.received, counts.sent)

    wait_until(agree, f"the guest's count to become {counts}")
    assert len(counts.queues) == 2
    assert min(counts.queues) >= 3
    assert sum(counts.queues) == counts.received >= 6
