"""The virtio-blk face of an endpoint: features, configuration space, write cache. One disk, at (0, 0).

All requests run in the core; the slow path sees none of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from ringway import _core
from ringway.errors import ProtocolError, UsageError
from ringway.target.backstore import Backstore
from ringway.target.medium import Geometry

F_SEG_MAX: Final = 1 << 2
F_RO: Final = 1 << 5
F_BLK_SIZE: Final = 1 << 6
F_FLUSH: Final = 1 << 9
F_TOPOLOGY: Final = 1 << 10
F_CONFIG_WCE: Final = 1 << 11
F_MQ: Final = 1 << 12
F_DISCARD: Final = 1 << 13
F_WRITE_ZEROES: Final = 1 << 14

SECTOR: Final = 512  #: the unit of capacity and limits, whatever the block size. Spec: virtio 1.3, 5.2.4
SEG_MAX: Final = 126  #: a queue of 128 without header and status
MAX_RANGE_SECTORS: Final = (1 << 30) // SECTOR  #: of one range of a discard: what the core takes
MAX_RANGES: Final = 256  #: ranges of one discard or write-zeroes request: what the core takes
SERIAL_BYTES: Final = 20
WRITEBACK_OFFSET: Final = 32

_CONFIG: Final = struct.Struct("<QIIHBBIBBHIBxHIIIIIBxxx")


class BlkDevice:
    """What a guest sees of the endpoint besides its requests.

    :param broken: told of a queue that the data path stopped.
    """

    extra_queues: Final = 0
    has_config: Final = True

    def __init__(self, core: _core.Device, queues: int, *, broken: Callable[[int, str], None]) -> None:
        self._core = core
        self._broken = broken
        self._queues = queues
        self._geometry: Geometry | None = None
        self._readonly = False
        self._wce = True
        self._acknowledged = 0

    @property
    def features(self) -> int:
        """Feature bits of the device type. SIZE_MAX is never offered, so a zero in its field binds nobody."""
        geometry = self._known_geometry()
        bits = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH | F_CONFIG_WCE | F_MQ
        if self._readonly:
            return bits | F_RO
        return bits | F_WRITE_ZEROES | (F_DISCARD if geometry.discard_granularity else 0)

    def config(self) -> bytes:
        """The configuration space, up to and including write-zeroes. Spec: virtio 1.3, 5.2.4."""
        geometry = self._known_geometry()
        ratio = geometry.physical_block_size // geometry.block_size
        return _CONFIG.pack(
            geometry.size_bytes // SECTOR,
            0,  # size_max
            SEG_MAX,
            *(0, 0, 0),  # cylinders, heads, sectors
            geometry.block_size,
            ratio.bit_length() - 1,  # physical_block_exp
            0,  # alignment_offset
            ratio,  # min_io_size, in logical blocks
            0,  # opt_io_size: none better than another
            self._wce,
            self._queues,
            _range_sectors(geometry.max_discard_bytes),
            MAX_RANGES,
            geometry.discard_granularity // SECTOR,
            _range_sectors(geometry.max_write_zeroes_bytes),
            MAX_RANGES,
            geometry.discard_granularity > 0,  # write_zeroes_may_unmap
        )

    def set_config(self, offset: int, data: bytes) -> None:
        """Switch the write cache. :raises ProtocolError: any other field. Spec: virtio 1.3, 5.2.6.2."""
        if offset != WRITEBACK_OFFSET or len(data) != 1 or data[0] > 1:
            raise ProtocolError(
                f"the front end writes {len(data)} bytes at {offset} of the blk configuration space,"
                " where only writeback may be written"
            )
        self._wce = bool(data[0])
        self._publish_cache()

    def acknowledged(self, features: int) -> None:
        """A driver that knows no FLUSH, or may not ask for a write cache, gets none or one. Spec: 5.2.6.2."""
        self._acknowledged = features
        self._publish_cache()

    def reset(self) -> None:
        """The write cache is on again, as it was at first."""
        self._wce = True
        self._publish_cache()

    def powered_on(self) -> None:
        """Nothing: a blk device has no state but its write cache, which the driver sets."""

    def resumed(self) -> None:
        """A guest goes on where it was. It may have chosen write-through from a back end that is gone."""
        self._core.doubt_writeback()

    def settled(self, timeout_s: float, instance: int | None = None) -> bool:
        """The core does all the work."""
        return True

    def serve_waiting(self) -> None:
        """Take notices of queues that were stopped: the core asks for no decision on a blk request."""
        while (command := self._core.next_command(0)) is not None:
            self._broken(command.queue, command.failure)

    def check_new_lun(self, target: int, lun: int) -> None:
        """:raises UsageError: a blk device has its one disk for life."""
        if (target, lun) != (0, 0) or self._geometry is not None:
            raise UsageError("a blk device has exactly one disk", hint="serve several with --device scsi")

    def lun_added(self, target: int, lun: int, backstore: Backstore, serial: str) -> None:
        """Show the disk's geometry."""
        self._geometry, self._readonly = backstore.geometry, backstore.readonly

    def lun_resized(self, target: int, lun: int, backstore: Backstore) -> None:
        """Show a new size; the front end is told by the caller."""
        self._geometry = backstore.geometry

    def lun_reloaded(self, target: int, lun: int, backstore: Backstore) -> None:
        """Show a new size to who asks."""
        self._geometry = backstore.geometry

    def lun_removed(self, target: int, lun: int) -> None:
        """:raises UsageError: always; a blk device without its disk is none."""
        raise UsageError("a blk device cannot lose its only disk", hint="stop the target instead")

    def _known_geometry(self) -> Geometry:
        assert self._geometry is not None, "a blk device is given its disk before it is shown"
        return self._geometry

    def _publish_cache(self) -> None:
        self._core.set_writeback(self._wce and bool(self._acknowledged & F_FLUSH))


def serial_bytes(serial: str) -> bytes:
    """The answer to GET_ID. :raises UsageError: longer than its 20 bytes. Spec: virtio 1.3, 5.2.6."""
    if len(serial) > SERIAL_BYTES:
        raise UsageError(
            f"the serial number '{serial}' has {len(serial)} characters",
            hint=f"a blk disk's has at most {SERIAL_BYTES}",
        )
    return serial.encode("ascii")


def _range_sectors(limit_bytes: int) -> int:
    return min(limit_bytes // SECTOR, MAX_RANGE_SECTORS)
