"""What a guest did to the units' state is its own: the next guest finds them as after a power on."""

from __future__ import annotations

from ringway.testing.frontend import ScsiFrontEnd

from ..cdb import READ_CAPACITY_10, TEST_UNIT_READY
from ..conftest import Serve
from ..disks import MakeDisk
from ..requests import make_ready

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


def test_an_index_that_wrapped_to_zero_is_no_new_guest(serve: Serve, disk_of: MakeDisk) -> None:
    """It was taken for one by its next available index alone: the guest was told of a power on."""
    path = serve("scsi", disk_of("ram"))
    with ScsiFrontEnd(path, queue_size=8) as front:
        ring = front.rings[2]
        ring.publish(0xFFFC)
        front.memory.write(ring.used + 2, (0xFFFC).to_bytes(2, "little"))
        ring._seen_index = ring._kicked_index = 0xFFFC
        front.bases[2] = 0xFFFC
        front.open()
        assert front.command(STOP_UNIT).status == 0
        for _ in range(3):
            assert front.command(READ_CAPACITY_10, data_in=8).status == 0
        assert ring.used_index == 0
        front.reconnect()
        answers = [front.command(TEST_UNIT_READY).sense_key for _ in range(2)]
        assert POWER_ON not in answers
        assert answers[-1][0] == NOT_READY
    with ScsiFrontEnd(path).open() as other:
        assert other.command(TEST_UNIT_READY).sense_key == POWER_ON
        assert other.command(TEST_UNIT_READY).status == 0
