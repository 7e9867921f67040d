"""The client: a vhost-user front end, and the polling driver over its rings.

The handshake is QEMU's, which SPDK's vhost, qemu-storage-daemon and others know. Chains are direct, a
descriptor each for header, data and response, as SPDK's initiator makes them; EVENT_IDX is taken where it
is offered.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ringway import _core
from ringway.bench.plan import Case, DeviceKind, Setup
from ringway.errors import ProtocolError, UsageError
from ringway.testing.frontend import BlkFrontEnd, ScsiFrontEnd
from ringway.testing.memory import GuestMemory

#: See :class:`Client`.
BURST: Final = 8
#: Three descriptors for each of 64 requests, and a power of two.
_QUEUE_SIZE: Final = 256
_RING_BYTES: Final = 8 << 20
_HUGE_PAGE: Final = 2 << 20
#: How long a device may keep a request, and its back end a message.
_SILENCE_S, _ANSWER_S = 5.0, 20.0

_TEST_UNIT_READY: Final = bytes(6)
#: READ CAPACITY(16). Spec: SBC-4 r22, 5.20.
_READ_CAPACITY: Final = bytes.fromhex("9e10" + "00" * 8 + "00000020" + "0000")
_CAPACITY: Final = struct.Struct(">QI")
_ATTEMPTS: Final = 10
_FILL_BYTES: Final = 1 << 20
_FILL_DEPTH: Final = 4

Report = dict[str, int | float | list[int]]


@dataclass(frozen=True, slots=True)
class Client:
    """A front end whose rings run.

    :ivar disk_bytes: what the loads use of each disk. :ivar sector_bytes: its logical block.
    :ivar burst: completions that are taken, at most, before their successors are published together; never
        more than half of what is in flight, so that client and target do not wait for each other in turn.
    """

    driver: _core.LoadDriver
    disk_bytes: int
    sector_bytes: int
    burst: int = BURST

    def run(self, case: Case, seconds: float, cpu: int | None) -> Report:
        """Put a load on the target.

        :raises TimeoutError: the target fell silent. :raises OSError: it broke a ring.
        :raises ValueError: the target's disk or queues are too small for the case.
        """
        return self.driver.run(
            seconds=seconds,
            block_bytes=case.block_bytes,
            depth=case.depth,
            size_bytes=self.disk_bytes,
            read_percent=case.read_percent,
            luns=case.luns,
            batch=case.batch,
            burst=case.batch if case.batch > 1 else min(self.burst, max(1, case.depth // 2)),
            rate_iops=case.rate_iops,
            cpu=cpu,
            sector_bytes=self.sector_bytes,
        )

    def fill(self, luns: int) -> None:
        """Write all of the disks: memory that was never written costs a store nothing to read."""
        wanted, written, seconds = luns * self.disk_bytes, 0, 0.1
        while written < wanted:
            done = self.driver.run(
                seconds=seconds,
                block_bytes=_FILL_BYTES,
                depth=_FILL_DEPTH,
                size_bytes=self.disk_bytes,
                read_percent=0,
                sequential=True,
                luns=luns,
                sector_bytes=self.sector_bytes,
            )["write_bytes"]
            assert isinstance(done, int)
            written, seconds = done, seconds * 2


@contextmanager
def connected(
    socket: Path,
    device: DeviceKind,
    setup: Setup,
    buffer_bytes: int,
    *,
    huge_pages: bool = False,
    burst: int = BURST,
) -> Iterator[Client]:
    """Connect, and bring the disks to where they take commands.

    :param buffer_bytes: guest memory that the largest case takes. :param huge_pages: of 2 MiB.
    :raises RingwayError: nobody listens, the handshake fails, or there is no such memory.
    """
    room = _RING_BYTES + max(buffer_bytes, _FILL_BYTES * _FILL_DEPTH * setup.queues)
    memory_bytes = -(-room // _HUGE_PAGE) * _HUGE_PAGE
    with ExitStack() as stack:
        memory = _memory(memory_bytes, huge_pages)
        common: dict[str, Any] = {"memory": memory, "queue_size": _QUEUE_SIZE, "timeout_s": _ANSWER_S}
        if device == "blk":
            blk = BlkFrontEnd(socket, queues=setup.queues, **common)
            stack.enter_context(blk.open())
            disk_bytes, sector_bytes = blk.capacity * 512, 512
        else:
            scsi = ScsiFrontEnd(socket, request_queues=setup.queues, **common)
            stack.enter_context(scsi.open())
            disk_bytes, sector_bytes = min(_ready(scsi, lun) for lun in range(setup.luns))
        front = blk if device == "blk" else scsi
        yield Client(front.load_driver(_SILENCE_S), min(disk_bytes, setup.disk_bytes), sector_bytes, burst)


def _memory(size: int, huge_pages: bool) -> GuestMemory:
    try:
        return GuestMemory([size], huge_pages=huge_pages)
    except OSError as error:
        pages = f", {size // _HUGE_PAGE} of 2 MiB" if huge_pages else ""
        hint = "sysctl vm.nr_hugepages reserves some" if huge_pages else None
        raise UsageError(f"no memory for the guest{pages}: {error.strerror}", hint=hint) from error


def _ready(front: ScsiFrontEnd, lun: int) -> tuple[int, int]:
    """Take a unit's attentions. :returns: its bytes and those of a block.

    :raises ProtocolError: it does not become ready.
    """
    for _ in range(_ATTEMPTS):
        answer = front.command(_TEST_UNIT_READY, lun=lun)
        if answer.response:
            raise ProtocolError(f"LUN {lun} answers with response {answer.response}")
        if not answer.status:
            last, block = _CAPACITY.unpack_from(front.command(_READ_CAPACITY, lun=lun, data_in=32).buffer)
            return (last + 1) * block, block
    raise ProtocolError(f"LUN {lun} does not become ready: sense {answer.sense_key}")
