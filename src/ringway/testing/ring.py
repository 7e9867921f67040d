"""A split virtqueue's driver side in Python: slow, exact, and able to write what no driver would.

Spec: virtio 1.3, 2.7 "Split Virtqueues".
"""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ringway.errors import ProtocolError, TimedOutError
from ringway.testing.memory import GuestMemory
from ringway.testing.waiting import PATIENCE_S
from ringway.vhost_user.messages import VRING_F_LOG, VringAddress

NEXT: Final = 1
WRITE: Final = 2
INDIRECT: Final = 4
NO_INTERRUPT: Final = 1
NO_NOTIFY: Final = 1

_DESCRIPTOR: Final = struct.Struct("=QIHH")
_INDEX: Final = struct.Struct("=H")
_USED: Final = struct.Struct("=II")
_FILL: Final = b"\x5a"  #: what writable buffers hold before the back end writes, so that a gap shows


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of guest memory in a chain. ``owned`` buffers go back to the allocator after it."""

    address: int
    size: int
    writable: bool
    owned: bool = False


@dataclass(slots=True)
class Chain:
    """A request in the ring; ``data`` and ``used_len`` tell once it is ``done``.

    :ivar used_len: bytes that the back end says it wrote.
    :ivar data: the device-writable buffers as they are after it, one after the other, whole.
    """

    head: int
    slots: tuple[int, ...]
    buffers: tuple[Buffer, ...]
    table: Buffer | None = None
    done: bool = False
    used_len: int = 0
    data: bytes = b""


class Ring:
    """One virtqueue in guest memory, with its eventfds.

    :param event_idx: whether EVENT_IDX was negotiated.
    :param indirect: whether chains are indirect by default.
    """

    def __init__(
        self, memory: GuestMemory, size: int, *, event_idx: bool = False, indirect: bool = False
    ) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.descriptors = memory.allocate(16 * size, align=4096)
        self.available = memory.allocate(6 + 2 * size)
        self.used = memory.allocate(6 + 8 * size, align=4096)
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_fd: int = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.err_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.reset()

    def reset(self) -> None:
        """Begin anew with an empty ring, as a driver does after a device reset."""
        self.memory.write(self.descriptors, bytes(16 * self.size))
        self.memory.write(self.available, bytes(6 + 2 * self.size))
        self.memory.write(self.used, bytes(6 + 8 * self.size))
        self.in_flight: dict[int, Chain] = {}
        self._free = deque(range(self.size))
        self._available_index = 0
        self._kicked_index = 0
        self._seen_index = 0

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)

    def address(self, index: int, *, log: bool = False) -> VringAddress:
        """The SET_VRING_ADDR that tells a back end of this ring."""
        user = self.memory.user
        return VringAddress(
            index=index,
            flags=VRING_F_LOG if log else 0,
            descriptors=user(self.descriptors),
            used=user(self.used),
            available=user(self.available),
            log=self.used,
        )

    @property
    def offsets(self) -> tuple[int, int, int]:
        """Where descriptors, available and used ring lie in the memory's fd."""
        offset = self.memory.offset
        return offset(self.descriptors), offset(self.available), offset(self.used)

    @property
    def used_index(self) -> int:
        """What the back end has written: how many chains it has completed, modulo 65536."""
        return self.memory.load(_INDEX, self.used + 2)[0]

    @property
    def has_answers(self) -> bool:
        """Whether the back end has completed something that was not collected."""
        return self._seen_index != self.used_index

    # Chains

    def submit(
        self, readable: Sequence[bytes], writable: Sequence[int], *, indirect: bool | None = None
    ) -> Chain:
        """Add a chain and kick, if the back end wants to be kicked."""
        chain = self.add(readable, writable, indirect=indirect)
        self.kick()
        return chain

    def add(
        self, readable: Sequence[bytes], writable: Sequence[int], *, indirect: bool | None = None
    ) -> Chain:
        """Make a chain available, one descriptor for each part; it is not kicked.

        :param readable: contents of the device-readable parts. :param writable: sizes of the writable ones.
        """
        buffers = [self._filled(content, False) for content in readable]
        buffers += [self._filled(_FILL * size, True) for size in writable]
        return self.add_buffers(buffers, indirect=indirect)

    def add_buffers(self, buffers: Sequence[Buffer], *, indirect: bool | None = None) -> Chain:
        """Make a chain available over these buffers, in this order."""
        if self.indirect if indirect is None else indirect:
            chain = self._indirect_chain(buffers)
        else:
            slots = tuple(self._free.popleft() for _ in buffers)
            self._link(self.descriptors, slots, buffers)
            chain = Chain(slots[0], slots, tuple(buffers))
        self.in_flight[chain.head] = chain
        self.push(chain.head)
        return chain

    def collect(self) -> list[Chain]:
        """Take what the back end has completed, in its order, without waiting.

        :raises ProtocolError: it completed a chain that it does not have.
        """
        done = []
        while self.has_answers:
            _fence()
            entry = self.used + 4 + 8 * (self._seen_index % self.size)
            head, length = self.memory.load(_USED, entry)
            self._seen_index = (self._seen_index + 1) & 0xFFFF
            done.append(self._finish(head, length))
        return done

    def wait(self, chain: Chain, timeout_s: float = PATIENCE_S) -> Chain:
        """Wait for a chain by the call eventfd alone, so that a missing interrupt shows.

        :raises TimedOutError: it did not come. :raises ProtocolError: as :meth:`collect`.
        """
        deadline = time.monotonic() + timeout_s
        while self.collect() is not None and not chain.done:
            if self.arm() and not self._sleep(deadline - time.monotonic()):
                raise TimedOutError(f"the chain at descriptor {chain.head} was not completed and signalled")
        return chain

    # Notification

    def kick(self, *, force: bool = False) -> bool:
        """Notify the back end if it wants that. :returns: whether it did."""
        _fence()
        wanted = force or self._kick_wanted()
        self._kicked_index = self._available_index
        if wanted:
            os.eventfd_write(self.kick_fd, 1)
        return wanted

    def arm(self) -> bool:
        """Ask for an interrupt at the next completion; whether there is still none to take."""
        if self.event_idx:
            self.memory.store(_INDEX, self.available + 4 + 2 * self.size, self._seen_index)
        _fence()
        return not self.has_answers

    def set_interrupts(self, wanted: bool) -> None:
        """Without EVENT_IDX: ask for interrupts, or for none."""
        self.memory.store(_INDEX, self.available, 0 if wanted else NO_INTERRUPT)

    # What only a hostile driver needs

    def write_descriptor(self, slot: int, address: int, size: int, flags: int, following: int = 0) -> None:
        self.memory.store(_DESCRIPTOR, self.descriptors + 16 * slot, address, size, flags, following)

    def push(self, head: int) -> None:
        """Make descriptor ``head`` available, whatever is in it."""
        slot = self.available + 4 + 2 * (self._available_index % self.size)
        self.memory.store(_INDEX, slot, head)
        _fence()
        self.publish((self._available_index + 1) & 0xFFFF)

    def publish(self, index: int) -> None:
        """Write the available index, whatever was made available."""
        self._available_index = index
        self.memory.store(_INDEX, self.available + 2, index)

    # Inside

    def _room(self, size: int) -> int:
        return self.memory.allocate(size, align=512 if size >= 512 else 16)

    def _filled(self, content: bytes, writable: bool) -> Buffer:
        address = self._room(len(content))
        self.memory.write(address, content)
        return Buffer(address, len(content), writable, owned=True)

    def _indirect_chain(self, buffers: Sequence[Buffer]) -> Chain:
        table = Buffer(self._room(16 * len(buffers)), 16 * len(buffers), False, owned=True)
        self._link(table.address, range(len(buffers)), buffers)
        head = self._free.popleft()
        self.write_descriptor(head, table.address, table.size, INDIRECT)
        return Chain(head, (head,), tuple(buffers), table)

    def _link(self, table: int, slots: Sequence[int], buffers: Sequence[Buffer]) -> None:
        for position, (slot, buffer) in enumerate(zip(slots, buffers, strict=True)):
            last = position == len(buffers) - 1
            flags = (WRITE if buffer.writable else 0) | (0 if last else NEXT)
            following = 0 if last else slots[position + 1]
            self.memory.store(_DESCRIPTOR, table + 16 * slot, buffer.address, buffer.size, flags, following)

    def _finish(self, head: int, length: int) -> Chain:
        chain = self.in_flight.pop(head, None)
        if chain is None:
            raise ProtocolError(f"descriptor {head} was completed, which is not in flight")
        writable = [buffer for buffer in chain.buffers if buffer.writable]
        chain.data = b"".join(self.memory.read(buffer.address, buffer.size) for buffer in writable)
        chain.used_len, chain.done = length, True
        self._free.extend(chain.slots)
        for buffer in (*chain.buffers, chain.table):
            if buffer is not None and buffer.owned:
                self.memory.free(buffer.address, buffer.size)
        return chain

    def _kick_wanted(self) -> bool:
        if not self.event_idx:
            return not self.memory.load(_INDEX, self.used)[0] & NO_NOTIFY
        (event,) = self.memory.load(_INDEX, self.used + 4 + 8 * self.size)
        new, old = self._available_index, self._kicked_index
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    def _sleep(self, timeout_s: float) -> bool:
        """Wait for a signal; false when none came in time."""
        poller = select.poll()
        poller.register(self.call_fd, select.POLLIN)
        if not poller.poll(max(0.0, timeout_s) * 1000):
            return False
        os.eventfd_read(self.call_fd)
        return True


_barrier = threading.Lock()


def _fence() -> None:
    """A full memory barrier, which Python has none of: taking a lock is an atomic read-modify-write."""
    with _barrier:
        pass
