"""The slow path over the real core: its stores are media, its device is a host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ringway import _core
from ringway.scsi import Gate, Reply
from ringway.target import scsi_device
from ringway.target.scsi_device import ScsiDevice

from .fake import NEXUS, Bench, MemoryStore, information_of

SIZE = 1 << 20
COMPARE_AND_WRITE = b"\x89" + bytes(12) + b"\x01\0\0"


class CoreBench(Bench):
    """A bench whose unit lies over a store and a device of the core."""

    def __init__(self, core: _core.Device) -> None:
        super().__init__()
        store = _core.Store.ram(SIZE)
        core.set_lun(0, 0, store, block_size=512)
        self.core, self.medium = core, store
        self.unit.replace_medium(store)
        self.unit.host = scsi_device._Host(core, 0, 0)  # type: ignore[misc]


@pytest.fixture
def core() -> Iterator[_core.Device]:
    device = _core.Device("scsi", queues=3, poll="interrupt")
    yield device
    device.close()


def test_commands_on_a_store_of_the_core(core: _core.Device) -> None:
    bench = CoreBench(core)
    assert bench.data("25") == (SIZE // 512 - 1).to_bytes(4) + (512).to_bytes(4)
    assert bench.data("2e 02 00000003 00 0002 00", b"x" * 1024) == b""
    assert bench.medium.read(3 * 512, 1024) == b"x" * 1024
    assert information_of(bench.reply("2f 02 00000003 00 0001 00", b"x" * 511 + b"y")) == 511
    assert bench.run(COMPARE_AND_WRITE, bytes(512) + b"n" * 512) == Reply()
    assert bench.medium.read(0, 512) == b"n" * 512
    assert bench.data("1b 00 00 00 00 00") == b""


def test_ranges_are_locked_in_the_core(core: _core.Device) -> None:
    host = CoreBench(core).unit.host
    with host.lock_range(0, 512, reads=True):
        handle = core.lock_range(0, 0, 512, 512, timeout_s=0)
        assert handle is not None, "another range is free"
        core.unlock_range(0, 0, handle)


def test_a_gate_of_a_lun_that_is_gone_harms_nobody(core: _core.Device) -> None:
    host = CoreBench(core).unit.host
    host.set_gate(NEXUS, Gate.NO_WRITE)
    core.remove_lun(0, 0)
    with pytest.raises(KeyError):
        core.set_gate(0, 0, 0)
    host.set_gate(NEXUS, Gate.OPEN)


def test_a_device_is_a_core(core: _core.Device) -> None:
    """Type checking says so; this is for the day when the stubs are wrong."""
    device = ScsiDevice(core, "naa.5001405c0ffee001")
    core.set_lun(0, 0, _core.Store.ram(SIZE), block_size=512)
    assert device.units == {}
    core.post_event(1, bytes(8), 1)
    assert core.drain(target=0, lun=0, id=7, cancel=True, timeout_s=0)
    assert core.next_command(0) is None


def test_memory_and_core_agree_on_errors() -> None:
    for store in (MemoryStore(SIZE), _core.Store.ram(SIZE)):
        with pytest.raises(OSError, match="Errno 22"):
            store.read(SIZE, 512)
