"""Front ends of scsi and blk devices: commands in, answers out, every byte of them looked at.

    with ScsiFrontEnd("disk.img.sock").open() as guest:
        answer = guest.command(bytes.fromhex("12 00 00 00 24 00"), data_in=36)  # INQUIRY
        assert (answer.response, answer.status) == (0, 0)

Spec: virtio 1.3, 5.2.6 (block), 5.6.6 (SCSI host).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final, Literal

from ringway import _core
from ringway.testing.memory import GuestMemory
from ringway.testing.orders import LIBBLKIO, ORDERS, QEMU, SPDK, Order
from ringway.testing.ring import Buffer, Chain, Ring
from ringway.testing.session import FrontEnd, RefusedError
from ringway.testing.waiting import PATIENCE_S

__all__ = [
    "LIBBLKIO",
    "ORDERS",
    "QEMU",
    "SPDK",
    "BlkFrontEnd",
    "BlkRequest",
    "BlkResponse",
    "Buffer",
    "Chain",
    "Framing",
    "FrontEnd",
    "GuestMemory",
    "Order",
    "RefusedError",
    "Ring",
    "ScsiEvent",
    "ScsiFrontEnd",
    "ScsiRequest",
    "ScsiResponse",
    "lun_address",
]

T10_PI: Final = 1 << 3
_PAGE: Final = 4096

_SCSI_REQUEST: Final = struct.Struct("<8sQBBB32s")
#: As Linux and QEMU lay it out: the protection lengths precede the CDB (the OASIS text has them after it).
_SCSI_REQUEST_PI: Final = struct.Struct("<8sQBBBII32s")
_SCSI_RESPONSE: Final = struct.Struct("<IIHBB96s")
_TMF: Final = struct.Struct("<II8sQ")
_EVENT: Final = struct.Struct("<I8sI")
_BLK_REQUEST: Final = struct.Struct("<IIQ")
_BLK_RANGE: Final = struct.Struct("<QII")
_SECTOR: Final = 512


def lun_address(target: int, lun: int, *, flat: bool = True) -> bytes:
    """The eight LUN bytes of a request: Linux and QEMU write them flat, SPDK as a peripheral device."""
    return struct.pack(">BBHI", 1, target, (0x4000 if flat else 0) | lun, 0)


@dataclass(frozen=True, slots=True)
class Framing:
    """How a request is cut into descriptors, which a device must not care about. Spec: virtio 1.3, 2.7.4.

    :ivar joined: header and data share descriptors. :ivar segment: bytes that one descriptor holds at most.
    :ivar first: bytes that the first descriptor holds at most, which cuts into the header.
    """

    joined: bool = False
    segment: int | None = None
    first: int | None = None
    indirect: bool | None = None

    def readable(self, *parts: bytes) -> list[bytes]:
        """Cut what the device reads."""
        whole = b"".join(parts)
        ends = list(accumulate(self.writable(*map(len, parts))))
        return [whole[start:end] for start, end in pairwise([0, *ends])]

    def writable(self, *sizes: int) -> list[int]:
        """Cut what the device writes. :returns: the size of each descriptor."""
        wholes = [sum(sizes)] if self.joined else list(sizes)
        if self.first and wholes[0] > self.first:
            wholes[:1] = [self.first, wholes[0] - self.first]
        return [piece for whole in wholes for piece in self._pieces(whole)]

    def _pieces(self, whole: int) -> list[int]:
        step = self.segment or max(whole, 1)
        return [min(step, whole - done) for done in range(0, whole, step)]


PLAIN: Final = Framing()


@dataclass(frozen=True, slots=True)
class ScsiResponse:
    """The answer to a SCSI command.

    :ivar response: VIRTIO_SCSI_S_*. :ivar sense: ``sense_len`` bytes of it.
    :ivar data: of data-in, what ``used_len`` says was written.
    :ivar buffer: all of data-in; what the device did not write is ``0x5a``.
    """

    response: int
    status: int
    sense: bytes
    residual: int
    data: bytes
    used_len: int
    status_qualifier: int
    buffer: bytes

    @property
    def sense_key(self) -> tuple[int, int, int]:
        """(key, ASC, ASCQ) of fixed-format sense data, (0, 0, 0) without any. Spec: SPC-4 r37, 4.5.3."""
        if len(self.sense) < 14:
            return (0, 0, 0)
        return (self.sense[2] & 0xF, self.sense[12], self.sense[13])


@dataclass(frozen=True, slots=True)
class ScsiRequest:
    """A command on its way."""

    ring: Ring
    chain: Chain
    id: int


@dataclass(frozen=True, slots=True)
class ScsiEvent:
    """What the event queue brought."""

    event: int
    lun: bytes
    reason: int


class ScsiFrontEnd(FrontEnd):
    """A virtio-scsi driver: ring 0 is the control queue, 1 the event queue, the others take requests.

    :param request_queues: how many of those. The other parameters are :class:`FrontEnd`'s.
    """

    def __init__(self, target: Any, *, request_queues: int = 1, **more: Any) -> None:
        more.setdefault("features", more.get("order", QEMU).features | 0b110)  # HOTPLUG, CHANGE
        super().__init__(target, queues=2 + request_queues, **more)
        self._next_id = 1
        self._event_chains: list[Chain] = []

    def command(self, cdb: bytes, **more: Any) -> ScsiResponse:
        """Send a command and wait for its answer. Parameters as for :meth:`send_command`."""
        return self.wait_command(self.send_command(cdb, **more))

    def send_command(
        self,
        cdb: bytes,
        *,
        target: int = 0,
        lun: int | bytes = 0,
        data_out: bytes = b"",
        data_in: int = 0,
        queue: int = 0,
        id: int | None = None,
        attribute: int = 0,
        framing: Framing = PLAIN,
        kick: bool = True,
    ) -> ScsiRequest:
        """Put a command into a request queue.

        :param lun: a number, or the eight LUN bytes. :param data_in: bytes of buffer for data.
        :param queue: which of the request queues. :param id: the command's tag; by default a fresh one.
        """
        if id is None:
            id, self._next_id = self._next_id, self._next_id + 1
        address = lun if isinstance(lun, bytes) else lun_address(target, lun)
        header = self._header(address, id, attribute, cdb)
        ring = self.rings[2 + queue]
        chain = ring.add(
            framing.readable(header, data_out),
            framing.writable(_SCSI_RESPONSE.size, data_in),
            indirect=framing.indirect,
        )
        if kick:
            ring.kick()
        return ScsiRequest(ring, chain, id)

    def wait_command(self, request: ScsiRequest) -> ScsiResponse:
        """Wait for a command's answer. :raises TimedOutError: none came, or no interrupt for it."""
        chain = request.ring.wait(request.chain, self.timeout_s)
        size = _SCSI_RESPONSE.size
        sense_len, residual, qualifier, status, response, sense = _SCSI_RESPONSE.unpack(chain.data[:size])
        return ScsiResponse(
            response=response,
            status=status,
            sense=sense[:sense_len],
            residual=residual,
            data=chain.data[size : max(size, chain.used_len)],
            used_len=chain.used_len,
            status_qualifier=qualifier,
            buffer=chain.data[size:],
        )

    def task_management(self, subtype: int, *, target: int = 0, lun: int | bytes = 0, id: int = 0) -> int:
        """Send a task management function. :param id: the tag of the command that it is about.

        :returns: VIRTIO_SCSI_S_FUNCTION_*. Spec: virtio 1.3, 5.6.6.2.
        """
        address = lun if isinstance(lun, bytes) else lun_address(target, lun)
        return self.control(_TMF.pack(0, subtype, address, id), 1)[0]

    def control(self, request: bytes, response_size: int) -> bytes:
        """Send anything to the control queue. :returns: the response buffer."""
        ring = self.rings[0]
        return ring.wait(ring.submit([request], [response_size]), self.timeout_s).data

    def offer_event_buffers(self, count: int = 4) -> None:
        """Give the device room for events."""
        ring = self.rings[1]
        self._event_chains += [ring.add([], [_EVENT.size]) for _ in range(count)]
        ring.kick()

    def wait_event(self) -> ScsiEvent:
        """Wait for the next event; its buffer is used up."""
        chain = self.rings[1].wait(self._event_chains.pop(0), self.timeout_s)
        event, lun, reason = _EVENT.unpack(chain.data)
        return ScsiEvent(event, lun, reason)

    def load_driver(self, timeout_s: float = PATIENCE_S) -> _core.LoadDriver:
        """A driver that polls, over the request queues, which must not be used otherwise from now on."""
        return _load_driver(self, "scsi", self.rings[2:], timeout_s)

    def _header(self, lun: bytes, id: int, attribute: int, cdb: bytes) -> bytes:
        if self.features & T10_PI:
            return _SCSI_REQUEST_PI.pack(lun, id, attribute, 0, 0, 0, 0, cdb)
        return _SCSI_REQUEST.pack(lun, id, attribute, 0, 0, cdb)


@dataclass(frozen=True, slots=True)
class BlkResponse:
    """The answer to a virtio-blk request: 0 OK, 1 IOERR, 2 UNSUPP.

    :ivar data: the whole data buffer.
    """

    status: int
    data: bytes
    used_len: int


@dataclass(frozen=True, slots=True)
class BlkRequest:
    """A request on its way."""

    ring: Ring
    chain: Chain


class BlkFrontEnd(FrontEnd):
    """A virtio-blk driver: every ring takes requests. Addresses are in sectors of 512 bytes."""

    def request(
        self, kind: int, sector: int = 0, *, data_out: bytes = b"", data_in: int = 0, **more: Any
    ) -> BlkResponse:
        """Send a request and wait for its answer. :param kind: VIRTIO_BLK_T_*."""
        return self.wait_request(self.send_request(kind, sector, data_out=data_out, data_in=data_in, **more))

    def send_request(
        self,
        kind: int,
        sector: int = 0,
        *,
        data_out: bytes = b"",
        data_in: int = 0,
        queue: int = 0,
        framing: Framing = PLAIN,
        kick: bool = True,
    ) -> BlkRequest:
        """Put a request into a queue."""
        ring = self.rings[queue]
        chain = ring.add(
            framing.readable(_BLK_REQUEST.pack(kind, 0, sector), data_out),
            framing.writable(data_in, 1),
            indirect=framing.indirect,
        )
        if kick:
            ring.kick()
        return BlkRequest(ring, chain)

    def wait_request(self, request: BlkRequest) -> BlkResponse:
        """Wait for an answer. :raises TimedOutError: none came, or no interrupt for it."""
        chain = request.ring.wait(request.chain, self.timeout_s)
        return BlkResponse(chain.data[-1], chain.data[:-1], chain.used_len)

    def read(self, sector: int, size: int, **more: Any) -> BlkResponse:
        return self.request(0, sector, data_in=size, **more)

    def write(self, sector: int, data: bytes, **more: Any) -> BlkResponse:
        return self.request(1, sector, data_out=data, **more)

    def flush(self, **more: Any) -> BlkResponse:
        return self.request(4, **more)

    def serial(self, **more: Any) -> bytes:
        """The disk's GET_ID string, without its padding."""
        return self.request(8, data_in=20, **more).data.split(b"\0")[0]

    def discard(self, sector: int, sectors: int, **more: Any) -> BlkResponse:
        return self.request(11, data_out=_BLK_RANGE.pack(sector, sectors, 0), **more)

    def write_zeroes(self, sector: int, sectors: int, *, unmap: bool = False, **more: Any) -> BlkResponse:
        return self.request(13, data_out=_BLK_RANGE.pack(sector, sectors, int(unmap)), **more)

    @property
    def capacity(self) -> int:
        """Sectors of 512 bytes, from the configuration space."""
        return int.from_bytes(self.get_config(0, 8), "little")

    def load_driver(self, timeout_s: float = PATIENCE_S) -> _core.LoadDriver:
        """A driver that polls, over the queues, which must not be used otherwise from now on."""
        return _load_driver(self, "blk", self.rings, timeout_s)


def _load_driver(
    front: FrontEnd, kind: Literal["scsi", "blk"], rings: Sequence[Ring], timeout_s: float
) -> _core.LoadDriver:
    return _core.LoadDriver(
        front.memory.fd,
        kind=kind,
        rings=[ring.offsets for ring in rings],
        queue_size=front.queue_size,
        kick_fds=[ring.kick_fd for ring in rings],
        data_offset=-(-front.memory.unused_offset // _PAGE) * _PAGE,
        event_idx=all(ring.event_idx for ring in rings),
        indirect=all(ring.indirect for ring in rings),
        timeout_s=timeout_s,
    )
