"""A front end of our own on the kernel's ``/dev/vhost-scsi``: what QEMU's ``vhost-scsi-pci`` does, in Python.

    with VhostScsiFrontEnd("naa.5001405a1b2c3d4e").open() as guest:
        answer = guest.command(bytes.fromhex("12 00 00 00 24 00"), data_in=36)  # INQUIRY

The target number of a command is the tag of the endpoint's port group, and not 0.

Spec: Linux 6.12, include/uapi/linux/vhost.h and vhost_types.h
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from ringway.errors import BusyError, NotFoundError, RingwayError
from ringway.testing.frontend import ScsiFrontEnd, ScsiRequest, ScsiResponse
from ringway.testing.memory import GuestMemory, Piece
from ringway.testing.orders import VERSION_1

DEVICE: Final = Path("/dev/vhost-scsi")
HOTPLUG: Final = 1 << 1

_UNIT_ATTENTION: Final = 6
_VIRTIO: Final = 0xAF
_READ, _WRITE = 2, 1  #: directions of an ioctl, seen from the caller: the kernel fills, the kernel takes

_U64: Final = struct.Struct("=Q")
_STATE: Final = struct.Struct("=II")
_FILE: Final = struct.Struct("=Ii")
_ADDRESS: Final = struct.Struct("=IIQQQQ")
_TABLE: Final = struct.Struct("=II")
_REGION: Final = struct.Struct("=QQQQ")
_TARGET: Final = struct.Struct("=i224sHH")
_ABI: Final = struct.Struct("=i")


def _request(direction: int, number: int, size: int) -> int:
    """Return an ioctl's number. Spec: Linux 6.12, include/uapi/asm-generic/ioctl.h"""
    return direction << 30 | size << 16 | _VIRTIO << 8 | number


GET_FEATURES: Final = _request(_READ, 0x00, _U64.size)
SET_FEATURES: Final = _request(_WRITE, 0x00, _U64.size)
SET_OWNER: Final = _request(0, 0x01, 0)
SET_MEM_TABLE: Final = _request(_WRITE, 0x03, _TABLE.size)
SET_VRING_NUM: Final = _request(_WRITE, 0x10, _STATE.size)
SET_VRING_ADDR: Final = _request(_WRITE, 0x11, _ADDRESS.size)
SET_VRING_BASE: Final = _request(_WRITE, 0x12, _STATE.size)
GET_VRING_BASE: Final = _request(_READ | _WRITE, 0x12, _STATE.size)
SET_VRING_KICK: Final = _request(_WRITE, 0x20, _FILE.size)
SET_VRING_CALL: Final = _request(_WRITE, 0x21, _FILE.size)
SET_VRING_ERR: Final = _request(_WRITE, 0x22, _FILE.size)
SET_ENDPOINT: Final = _request(_WRITE, 0x40, _TARGET.size)
CLEAR_ENDPOINT: Final = _request(_WRITE, 0x41, _TARGET.size)
GET_ABI_VERSION: Final = _request(_WRITE, 0x42, _ABI.size)


class OwnMemory(GuestMemory):
    """Guest memory whose user addresses are this process's own, as the kernel wants them."""

    def add(self, size: int, *, at: int) -> Piece:
        """Add the only region. :raises ValueError: there is one already."""
        if self.pieces:
            raise ValueError("one region is all that a single user_base can tell of")
        piece = super().add(size, at=at)
        address = _address(piece.map)
        self.user_base = address - at
        self.pieces[-1] = replace(piece, region=replace(piece.region, user_address=address))
        return self.pieces[-1]


class VhostScsiFrontEnd(ScsiFrontEnd):
    """A virtio-scsi driver on an endpoint of the kernel's; commands and events are :class:`ScsiFrontEnd`'s.

    :param wwpn: the endpoint's name. :param tag: of its port group, which commands go to.
    :param queues: request queues. :param features: bits that are acknowledged if the kernel offers them.
    """

    def __init__(
        self, wwpn: str, *, tag: int = 1, queues: int = 1, features: int = VERSION_1 | HOTPLUG, **more: Any
    ) -> None:
        super().__init__("", request_queues=queues, memory=OwnMemory(), features=features, **more)
        self.wwpn = wwpn
        self.tag = tag
        self._device: int | None = None

    def open(self) -> Self:
        """Open the device, start the rings, and attach to the endpoint.

        :raises NotFoundError: it has no nexus, or is not there. :raises BusyError: another has it.
        """
        with contextlib.ExitStack() as failed:
            failed.callback(self.disconnect)
            self.start_rings()
            self.attach()
            failed.pop_all()
        return self

    def start_rings(self) -> None:
        """Open the device and start the rings; no endpoint is told yet."""
        self._device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        self._ioctl(SET_OWNER)
        (self.offered,) = _U64.unpack(self._ioctl(GET_FEATURES, bytes(_U64.size)))
        self.features = self.offered & self.wanted
        self._ioctl(SET_FEATURES, _U64.pack(self.features))
        self._ioctl(SET_MEM_TABLE, self._memory_table())
        for index in range(len(self.rings)):
            self._start_ring(index)

    def attach(self) -> None:
        """Take the endpoint. :raises NotFoundError: no such endpoint with a nexus that is free.

        :raises BusyError: this front end has one already.
        """
        with _explained(self.wwpn):
            self._ioctl(SET_ENDPOINT, self._endpoint())

    def detach(self) -> None:
        """Let go of the endpoint, in order; rings stay as they are."""
        self._ioctl(CLEAR_ENDPOINT, self._endpoint())

    def disconnect(self) -> None:
        """Close the device, as a VMM that dies does. Memory and rings stay."""
        if self._device is not None:
            os.close(self._device)
        self._device = None

    def send_command(self, cdb: bytes, *, target: int | None = None, **more: Any) -> ScsiRequest:
        """As :meth:`ScsiFrontEnd.send_command`; the target is the port group's tag by default."""
        return super().send_command(cdb, target=self.tag if target is None else target, **more)

    def wait_command(self, request: ScsiRequest) -> ScsiResponse:
        """As :meth:`ScsiFrontEnd.wait_command`. The kernel says 0 bytes of every chain, so that data-in ends
        where the residual begins."""
        answer = super().wait_command(request)
        return replace(answer, data=answer.buffer[: len(answer.buffer) - answer.residual])

    def settle(self, lun: int = 0) -> None:
        """Take what a LUN has to say at first (unit attentions), as a driver does that finds a disk."""
        while self.command(bytes(6), lun=lun).sense_key[0] == _UNIT_ATTENTION:
            pass

    @property
    def abi_version(self) -> int:
        """The kernel's VHOST_SCSI_ABI_VERSION."""
        return int(_ABI.unpack(self._ioctl(GET_ABI_VERSION, bytes(_ABI.size)))[0])

    def _memory_table(self) -> bytes:
        regions = [piece.region for piece in self.memory.pieces]
        rows = (_REGION.pack(each.guest_address, each.size, each.user_address, 0) for each in regions)
        return _TABLE.pack(len(regions), 0) + b"".join(rows)

    def _start_ring(self, index: int) -> None:
        ring = self.rings[index]
        place = ring.address(index)
        self._ioctl(SET_VRING_NUM, _STATE.pack(index, ring.size))
        self._ioctl(SET_VRING_BASE, _STATE.pack(index, self.bases[index]))
        addresses = (place.descriptors, place.used, place.available, place.log)
        self._ioctl(SET_VRING_ADDR, _ADDRESS.pack(index, place.flags, *addresses))
        for request, fd in (
            (SET_VRING_KICK, ring.kick_fd),
            (SET_VRING_CALL, ring.call_fd),
            (SET_VRING_ERR, ring.err_fd),
        ):
            self._ioctl(request, _FILE.pack(index, fd))

    def _endpoint(self) -> bytes:
        return _TARGET.pack(0, self.wwpn.encode(), self.tag, 0)

    def _ioctl(self, request: int, argument: bytes = b"") -> bytes:
        assert self._device is not None, "the device is not open"
        return fcntl.ioctl(self._device, request, argument) if argument else _call(self._device, request)


def _call(fd: int, request: int) -> bytes:
    fcntl.ioctl(fd, request)
    return b""


def _address(view: mmap.mmap) -> int:
    cell = ctypes.c_char.from_buffer(view)
    address = ctypes.addressof(cell)
    del cell  # the mapping cannot be closed while something points into it
    return address


@contextlib.contextmanager
def _explained(wwpn: str) -> Iterator[None]:
    reasons: dict[int, RingwayError] = {
        errno.ENODEV: NotFoundError(f"no free endpoint {wwpn} with a nexus"),
        errno.EEXIST: BusyError(f"this front end has an endpoint already, and cannot take {wwpn}"),
    }
    try:
        yield
    except OSError as error:
        if error.errno in reasons:
            raise reasons[error.errno] from error
        raise
