"""Memory of a pretended guest: memfds that are mapped here and shared with a back end."""

from __future__ import annotations

import mmap
import os
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ringway.vhost_user.messages import MemoryRegion

#: Where user addresses start: apart from the guest addresses, so that a back end that mixes them up fails.
USER_BASE: Final = 0x7F00_0000_0000
_SMALLEST: Final = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """One region: its memory, and where it lies for the guest and for the front end."""

    fd: int
    map: mmap.mmap
    region: MemoryRegion

    @property
    def end(self) -> int:
        return self.region.guest_address + self.region.size


class GuestMemory:
    """Guest memory in one or several regions, with an allocator. All addresses are guest physical.

    :param sizes: bytes of each region; they need be no multiple of a page.
    :param gap: bytes that are no memory between two regions.
    :param base: guest address of the first region.
    :param user_base: front end's address of guest address 0; 0 makes the two the same, as SPDK does.
    :param mmap_offset: bytes in each fd before its region starts (a multiple of a page).
    :param huge_pages: of 2 MiB, which every size must be a multiple of.
    :raises OSError: the host has not enough of those free.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (16 << 20,),
        *,
        gap: int = 1 << 20,
        base: int = 0,
        user_base: int = USER_BASE,
        mmap_offset: int = 0,
        huge_pages: bool = False,
    ) -> None:
        self.user_base = user_base
        self._mmap_offset = mmap_offset
        self._flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB if huge_pages else 0)
        self.pieces: list[Piece] = []
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        for size in sizes:
            self.add(size, at=self._next_place(base, gap))
        self._next, self._end = base, self.pieces[0].end

    @property
    def fd(self) -> int:
        """The first region's memory."""
        return self.pieces[0].fd

    @property
    def size_bytes(self) -> int:
        """The guest address after the last byte: what a dirty log must cover."""
        return max(piece.end for piece in self.pieces)

    def add(self, size: int, *, at: int) -> Piece:
        """Add a region at guest address ``at``; the back end has to be told of it."""
        fd = os.memfd_create("guest-memory", self._flags)
        os.ftruncate(fd, self._mmap_offset + size)
        view = mmap.mmap(fd, self._mmap_offset + size)
        piece = Piece(fd, view, MemoryRegion(at, size, self.user_base + at, self._mmap_offset))
        self.pieces.append(piece)
        return piece

    def remove(self, piece: Piece) -> None:
        """Drop a region, which the back end was told of."""
        self.pieces.remove(piece)
        piece.map.close()
        os.close(piece.fd)

    def close(self) -> None:
        for piece in tuple(self.pieces):
            self.remove(piece)

    def allocate(self, size: int, *, align: int = _SMALLEST) -> int:
        """Take ``size`` bytes of the first region (they are not zeroed). :raises MemoryError: it is full."""
        room = _class_of(size)
        if self._free[room] and self._free[room][-1] % align == 0:
            return self._free[room].pop()
        address = -(-self._next // align) * align
        if address + room > self._end:
            raise MemoryError(f"{size} bytes do not fit in the first region any more")
        self._next = address + room
        return address

    def free(self, address: int, size: int) -> None:
        """Give back what :meth:`allocate` gave."""
        self._free[_class_of(size)].append(address)

    @property
    def unused_offset(self) -> int:
        """Offset in the first region's memory from where nothing was ever allocated."""
        first = self.pieces[0].region
        return self._next - first.guest_address + first.mmap_offset

    def load(self, layout: struct.Struct, address: int) -> tuple[int, ...]:
        """Read numbers; one number of native size is read at once."""
        piece, offset = self._find(address, layout.size)
        return layout.unpack_from(piece.map, offset)

    def store(self, layout: struct.Struct, address: int, *numbers: int) -> None:
        """Write numbers; one number of native size is written at once."""
        piece, offset = self._find(address, layout.size)
        # not pack_into(): it clears the bytes first, and a back end that polls would see that
        piece.map[offset : offset + layout.size] = layout.pack(*numbers)

    def read(self, address: int, size: int) -> bytes:
        piece, offset = self._find(address, size)
        return piece.map[offset : offset + size]

    def write(self, address: int, data: bytes) -> None:
        piece, offset = self._find(address, len(data))
        piece.map[offset : offset + len(data)] = data

    def user(self, address: int) -> int:
        """The front end's address of a guest address."""
        return self.user_base + address

    def offset(self, address: int) -> int:
        """Where a guest address lies in its region's fd."""
        return self._find(address, 1)[1]

    def _find(self, address: int, size: int) -> tuple[Piece, int]:
        for piece in self.pieces:
            start = piece.region.guest_address
            if start <= address and address + size <= piece.end:
                return piece, address - start + piece.region.mmap_offset
        raise ValueError(f"{size} bytes at guest address {address:#x} are no memory")

    def _next_place(self, base: int, gap: int) -> int:
        return max((piece.end + gap for piece in self.pieces), default=base)


def _class_of(size: int) -> int:
    return max(_SMALLEST, 1 << (size - 1).bit_length()) if size else _SMALLEST
