"""What a guest did to the units' state is its own: the next guest finds them as after a power on."""

from __future__ import annotations

from ringway.testing.frontend import ScsiFrontEnd

from .cdb import TEST_UNIT_READY
from .conftest import Serve
from .disks import MakeDisk
from .requests import make_ready

STOP_UNIT = bytes.fromhex("1b0000000000")
NOT_READY = 2
POWER_ON = (6, 0x29, 0)


def test_a_unit_that_one_guest_stopped_is_ready_for_the_next(serve: Serve, disk_of: MakeDisk) -> None:
    """Once firmware could not boot from it any more."""
    path = serve("scsi", disk_of("ram"))
    with ScsiFrontEnd(path).open() as first:
        make_ready(first)
        assert first.command(STOP_UNIT).status == 0
        assert first.command(TEST_UNIT_READY).sense_key[0] == NOT_READY
        first.reconnect()
        answers = [first.command(TEST_UNIT_READY).sense_key for _ in range(2)]
        assert POWER_ON not in answers
        assert answers[-1][0] == NOT_READY, "the same guest goes on"
    with ScsiFrontEnd(path).open() as second:
        assert second.command(TEST_UNIT_READY).sense_key == POWER_ON
        assert second.command(TEST_UNIT_READY).status == 0
