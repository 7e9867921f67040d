"""The media that a disk can lie on, made for one test."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringway.model import BackstoreSpec, Mapped, SpecKind

MIB: Final = 1 << 20
SIZE: Final = 16 * MIB

_FIEMAP: Final = 0xC020660B  # FS_IOC_FIEMAP
_FIEMAP_HEAD: Final = struct.Struct("=QQIIII")
_EXTENT: Final = struct.Struct("=QQQQQIIII")
_DELAYED: Final = 0x2 | 0x4  # FIEMAP_EXTENT_UNKNOWN, FIEMAP_EXTENT_DELALLOC
_MAX_EXTENTS: Final = 64


@dataclass(frozen=True)
class Disk:
    """A backstore, as the library and as the command want it named.

    :ivar path: its file; ``None`` for memory.
    """

    spec: BackstoreSpec

    @property
    def path(self) -> Path:
        assert self.spec.path is not None, "a disk in memory has no file"
        return Path(self.spec.path)

    @property
    def argument(self) -> str:
        """As in ``--lun 0=ARGUMENT``."""
        if self.spec.kind is SpecKind.RAM:
            return f"ram:{self.spec.size_bytes}"
        options = ["direct"] if self.spec.direct else [f"mapped={self.spec.mapped}"]
        if self.spec.block_size is not None:
            options.append(f"block-size={self.spec.block_size}")
        return ",".join([str(self.path), *options])


#: Names of the stores: how the bytes are reached, and where they lie.
STORES: Final = ("ram", "mapped", "mapped on disk", "cached", "direct")
FILES: Final = STORES[1:]  #: those that outlive a target
ON_DISK: Final = STORES[3:]  #: those that a worker does I/O for

MakeDisk = Callable[..., Disk]


def make_disk(
    store: str,
    memory: Path,
    medium: Path,
    *,
    size: int = SIZE,
    name: str = "disk.img",
    block_size: int | None = None,
    readonly: bool = False,
) -> Disk:
    """Make a disk of zeros.

    :param memory: a folder on tmpfs. :param medium: one on a real disk.
    """
    if store == "ram":
        return Disk(BackstoreSpec(SpecKind.RAM, size_bytes=size, block_size=block_size))
    path = (memory if store == "mapped" else medium) / name
    path.touch()
    os.truncate(path, size)
    return Disk(
        BackstoreSpec(
            SpecKind.PATH,
            path=str(path),
            direct=store == "direct",
            mapped=Mapped.ON if store.startswith("mapped") else Mapped.OFF,
            block_size=block_size,
            readonly=readonly,
        )
    )


def is_stable(path: Path, offset: int, size: int) -> bool:
    """Whether what was written to a hole of a file has got its place on the medium.

    File systems choose it when they write back, so it tells a flushed page from a dirty one.
    """
    request = _FIEMAP_HEAD.pack(offset, size, 0, 0, _MAX_EXTENTS, 0) + bytes(_EXTENT.size * _MAX_EXTENTS)
    buffer = bytearray(request)
    with path.open("rb") as file:
        fcntl.ioctl(file, _FIEMAP, buffer)
    *_, count, _, _ = _FIEMAP_HEAD.unpack_from(buffer)
    extents = [_EXTENT.unpack_from(buffer, _FIEMAP_HEAD.size + _EXTENT.size * at) for at in range(count)]
    return bool(extents) and not any(extent[5] & _DELAYED for extent in extents)
