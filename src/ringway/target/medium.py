"""What an open file or device says of itself, and what disk can be made of it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from typing import Final

from ringway.errors import BackstoreError, UsageError
from ringway.model import BLOCK_SIZES, BackstoreSpec, Mapped, StoreKind
from ringway.target import host, kernel

_MEMORY_FILE_SYSTEMS: Final = (kernel.TMPFS_MAGIC, kernel.RAMFS_MAGIC, kernel.HUGETLBFS_MAGIC)
_PAGE: Final = 4096
_UNLIMITED: Final = 1 << 62
_ANY: Final = kernel.DirectAlignment(1, 1)  #: the page cache asks for nothing


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a disk, all in bytes. A limit of zero means that the operation is not to be offered."""

    size_bytes: int
    block_size: int
    physical_block_size: int
    discard_granularity: int = 0
    max_discard_bytes: int = 0
    max_write_zeroes_bytes: int = _UNLIMITED


@dataclass(frozen=True, slots=True)
class Medium:
    """What bytes lie on, and how they are reached."""

    kind: StoreKind
    geometry: Geometry
    align: kernel.DirectAlignment = _ANY
    mapped: bool = False
    direct: bool = False


def examine(spec: BackstoreSpec, fd: int) -> Medium:
    """Find out what disk an open file or device makes. O_DIRECT is set on ``fd`` when it is to be served so.

    On failure nothing was changed but flags of ``fd``.

    :raises BackstoreError: it cannot be served as the user wants it, or at all.
    :raises UsageError: options that contradict each other.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISBLK(mode):
        return _examine_device(spec, fd)
    if not stat.S_ISREG(mode):  # whatever lay on the path before it was opened
        raise BackstoreError(f"'{spec}' is neither a file nor a block device", hint="name an image or a disk")
    mapped = _is_to_be_mapped(spec, fd)
    align = _access(spec, fd, direct=spec.direct and not mapped)
    geometry = _geometry(spec, os.fstat(fd).st_size, sector=align.offset, physical=_PAGE)
    if not spec.readonly and kernel.takes_punch_hole(fd, -(-geometry.size_bytes // _PAGE) * _PAGE):
        geometry = with_discard(geometry, _PAGE, _UNLIMITED)
    return Medium(StoreKind.FILE, geometry, align, mapped, direct=spec.direct and not mapped)


def memory_medium(spec: BackstoreSpec, kind: StoreKind, size_bytes: int) -> Medium:
    """What a disk in memory is. :raises BackstoreError: a size that no disk has."""
    geometry = _geometry(spec, size_bytes, sector=1, physical=_PAGE)
    return Medium(kind, with_discard(geometry, _PAGE, _UNLIMITED))


def with_discard(geometry: Geometry, granularity: int, most: int) -> Geometry:
    """The same disk, which takes discards."""
    return replace(
        geometry, discard_granularity=max(geometry.block_size, granularity), max_discard_bytes=most
    )


def _examine_device(spec: BackstoreSpec, fd: int) -> Medium:
    align = _access(spec, fd, direct=spec.direct)
    geometry = _geometry(
        spec,
        kernel.block_device_size(fd),
        sector=max(align.offset, kernel.logical_sector(fd)),
        physical=kernel.physical_sector(fd),
    )
    granularity, most = host.discard_limits(fd)
    if granularity and not spec.readonly:
        geometry = with_discard(geometry, granularity, most)
    return Medium(StoreKind.BLOCK, geometry, align, direct=spec.direct)


def _file_system(spec: BackstoreSpec, fd: int) -> int:
    """Its magic number: how it is read and written depends on it. :raises BackstoreError: it gives none."""
    try:
        return kernel.file_system_magic(fd)
    except OSError as error:
        raise BackstoreError(
            f"the file system of '{spec}' does not say which one it is (statfs): {error.strerror}",
            hint="move the disk to another file system, or have the FUSE server that it is on answer STATFS",
        ) from error


def _is_to_be_mapped(spec: BackstoreSpec, fd: int) -> bool:
    """:raises UsageError: hugetlbfs, which cannot be written otherwise, and ``mapped=off``.
    :raises BackstoreError: as :func:`_file_system`.
    """
    magic = _file_system(spec, fd)
    if spec.mapped is Mapped.OFF and magic == kernel.HUGETLBFS_MAGIC:
        raise UsageError(f"'{spec}' lies on hugetlbfs and must be mapped", hint="leave out mapped=off")
    if spec.mapped is not Mapped.AUTO:
        return spec.mapped is Mapped.ON
    return magic in _MEMORY_FILE_SYSTEMS or kernel.is_dax(fd)


def _access(spec: BackstoreSpec, fd: int, *, direct: bool) -> kernel.DirectAlignment:
    """Switch O_DIRECT on or off.

    :returns: what it asks for. :raises BackstoreError: the file system has none.
    """
    if not direct:
        kernel.set_status_flags(fd, direct=False)
        return _ANY
    hint = "serve it without direct: the page cache is then used"
    try:
        kernel.set_status_flags(fd, direct=True)
    except OSError as error:
        raise BackstoreError(f"'{spec}' lies on a file system without direct I/O", hint=hint) from error
    align = kernel.direct_alignment(fd)
    if align is None:  # an old kernel
        offset = next((size for size in BLOCK_SIZES if kernel.direct_read_works(fd, size)), 0)
        align = kernel.DirectAlignment(offset, offset)
    if align.offset == 0:
        raise BackstoreError(f"'{spec}' lies on a file system without direct I/O", hint=hint)
    return align


def _geometry(spec: BackstoreSpec, size_bytes: int, *, sector: int, physical: int) -> Geometry:
    """:raises BackstoreError: no block size fits, or the size is none that a disk can have."""
    block = _block_size(spec, sector)
    if size_bytes == 0:
        raise BackstoreError(f"'{spec}' is empty", hint=f"give it a size, as in: truncate -s 10G '{spec}'")
    if size_bytes % block:
        whole = -(-size_bytes // block) * block
        raise BackstoreError(
            f"'{spec}' has {size_bytes} bytes, which is no multiple of its {block}-byte blocks",
            hint=f"make it larger with: truncate -s {whole} '{spec}'",
        )
    return Geometry(size_bytes, block, max(block, physical))


def _block_size(spec: BackstoreSpec, sector: int) -> int:
    """The block size asked for, else the smallest that the medium can serve."""
    possible = [size for size in BLOCK_SIZES if size >= sector]
    if not possible:
        raise BackstoreError(f"'{spec}' has blocks of {sector} bytes, which guests cannot use")
    if spec.block_size is None:
        return possible[0]
    if spec.block_size not in possible:
        raise BackstoreError(
            f"'{spec}' cannot serve blocks of {spec.block_size} bytes: its own have {sector}",
            hint=f"take a larger one, as in: {spec},block-size={possible[0]}",
        )
    return spec.block_size
