"""What tests of a migration share: targets on one disk, and the front ends of a guest that moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ringway.model import IoEngine
from ringway.testing.frontend import BlkFrontEnd, FrontEnd, GuestMemory, ScsiFrontEnd
from ringway.testing.target import ServedTarget

from .. import cdb
from ..disks import MIB, Disk

QUEUES = 2
DEVICES = ["blk", "scsi"]


def served(folder: Path, engine: IoEngine, device: str, disk: Disk, name: str, *more: str) -> ServedTarget:
    options = ["--device", device, "--io-engine", engine.value, "--queues", str(QUEUES), *more]
    return ServedTarget(folder, *options, "--lun", f"0={disk.argument}", name=name)


def guest_of(device: str, path: str, **more: object) -> BlkFrontEnd | ScsiFrontEnd:
    if device == "blk":
        return BlkFrontEnd(path, queues=QUEUES, **more)  # type: ignore[arg-type]
    return ScsiFrontEnd(path, request_queues=QUEUES, **more)


def opened(device: str, path: str) -> BlkFrontEnd | ScsiFrontEnd:
    front = guest_of(device, path).open()
    while isinstance(front, ScsiFrontEnd) and front.command(cdb.TEST_UNIT_READY).status:
        pass
    return front


@contextmanager
def destination(source: BlkFrontEnd | ScsiFrontEnd, path: str) -> Iterator[FrontEnd]:
    """The other side's front end for the same guest: connected, its device reset (trap T11), not started."""
    device = "blk" if isinstance(source, BlkFrontEnd) else "scsi"
    with guest_of(device, path, memory=GuestMemory((MIB,))) as front:
        own_memory, own_rings = front.memory, front.rings
        front.memory, front.rings = source.memory, source.rings
        try:
            front.connect().run(front.order.connect)
            yield front
        finally:
            front.disconnect()
            front.memory, front.rings = own_memory, own_rings
