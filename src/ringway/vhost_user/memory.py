"""The guest memory that a front end shares, as an immutable table that is replaced as a whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ringway._core import Region
from ringway.errors import ProtocolError
from ringway.vhost_user.connection import OwnedFd
from ringway.vhost_user.messages import MAX_MEM_SLOTS, MemoryRegion


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """The regions known now. Each change makes a new table; a region that stays keeps its mapping."""

    regions: tuple[Region, ...] = ()

    def holding(self, user_address: int) -> Region | None:
        """The region that a front end's own address lies in."""
        for region in self.regions:
            if 0 <= user_address - region.user_address < region.size_bytes:
                return region
        return None

    def with_added(self, wanted: MemoryRegion, fd: OwnedFd) -> MemoryTable:
        """:raises ProtocolError: no slot is left, or the fd is no such memory."""
        if len(self.regions) >= MAX_MEM_SLOTS:
            raise ProtocolError(f"all {MAX_MEM_SLOTS} memory slots are taken")
        return MemoryTable((*self.regions, map_region(wanted, fd)))

    def without(self, unwanted: MemoryRegion) -> MemoryTable:
        """Drop the region of that guest address, user address and size; ``mmap_offset`` does not count.

        :raises ProtocolError: there is none.
        """
        key = (unwanted.guest_address, unwanted.user_address, unwanted.size)
        kept = tuple(
            region
            for region in self.regions
            if (region.guest_address, region.user_address, region.size_bytes) != key
        )
        if len(kept) == len(self.regions):
            raise ProtocolError(f"no memory region of {unwanted.size} bytes at {unwanted.guest_address:#x}")
        return MemoryTable(kept)

    def replaced_by(self, wanted: Sequence[MemoryRegion], fds: Sequence[OwnedFd]) -> MemoryTable:
        """The table of a SET_MEM_TABLE: what it has in common with this one is not mapped again.

        :raises ProtocolError: a number of fds that does not match, or an fd that is no such memory.
        """
        if len(wanted) != len(fds):
            raise ProtocolError(f"{len(wanted)} memory regions came with {len(fds)} file descriptors")
        known = {_key_of(region): region for region in self.regions}
        return MemoryTable(tuple(_pick(known, row, fd) for row, fd in zip(wanted, fds, strict=True)))


_Key = tuple[tuple[int, int], int, int, int, int]


def _key_of(region: Region) -> _Key:
    return (
        region.identity,
        region.guest_address,
        region.size_bytes,
        region.user_address,
        region.mmap_offset,
    )


def _pick(known: dict[_Key, Region], wanted: MemoryRegion, fd: OwnedFd) -> Region:
    found = os.fstat(fd.fileno())
    identity = (found.st_dev, found.st_ino)
    key = (identity, wanted.guest_address, wanted.size, wanted.user_address, wanted.mmap_offset)
    return known.get(key) or map_region(wanted, fd)


def map_region(wanted: MemoryRegion, fd: OwnedFd) -> Region:
    """:raises ProtocolError: the fd is no memory of that size, or the addresses make no sense."""
    try:
        return Region(
            fd.fileno(),
            guest_address=wanted.guest_address,
            size_bytes=wanted.size,
            user_address=wanted.user_address,
            mmap_offset=wanted.mmap_offset,
        )
    except (OSError, ValueError, OverflowError) as error:
        where = f"{wanted.size} bytes at {wanted.guest_address:#x}"
        raise ProtocolError(f"the memory region of {where} cannot be mapped: {error}") from error
