"""A load of everything, for targets that die under it: it looks at every answer, and outlives the target.

Requests go to few blocks, so that many of them meet: in sequence, and in flight together. The load sleeps on
its rings' call eventfds whenever nothing is done, so that an interrupt that a death swallowed is missed.
"""

from __future__ import annotations

import os
import random
import select
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from ringway.errors import TimedOutError
from ringway.testing.frontend import BlkFrontEnd, Chain, ScsiFrontEnd, lun_address
from ringway.testing.ring import Ring
from ringway.testing.waiting import PATIENCE_S

from . import cdb
from .history import BLOCK, ZEROS, Change, History, content
from .requests import Front, Request, wait

BLOCKS: Final = 32  #: of the disk that everybody writes to
PRIVATE: Final = 4  #: behind them: each for one request at a time
SIZE: Final = (BLOCKS + PRIVATE) * BLOCK
_SECTORS: Final = BLOCK // 512
_DEPTH: Final = 6
_FAVOUR: Final = 0.5
_UNKNOWN_TAG: Final = 0xDEAD

Finish = Callable[[int, bytes], None]
#: What reads the medium behind the target's back: (offset, size) to bytes.
Medium = Callable[[int, int], bytes]


@dataclass(slots=True)
class Sent:
    """A request on its way, how its answer is read, and what becomes of that: status (0: good) and data."""

    chain: Chain
    answer: Callable[[], tuple[int, bytes]]
    finish: Finish


@dataclass(slots=True)
class Private:
    """A block that one request at a time is about."""

    number: int
    data: bytes = ZEROS
    busy: bool = False


@dataclass(slots=True)
class CrashLoad:
    """Keeps the request queues of a front end full.

    :ivar favourite: the class of every other request, so that a fault is met soon.
    :ivar life: how many targets there were. :ivar done: requests that were answered.
    """

    front: Front
    seed: int
    medium: Medium | None = None
    favourite: str = "write"
    life: int = 0
    done: int = 0
    history: History = field(default_factory=lambda: History(BLOCKS))
    sent: list[Sent] = field(default_factory=list)
    private: list[Private] = field(default_factory=lambda: [Private(BLOCKS + at) for at in range(PRIVATE)])
    random: random.Random = field(init=False)
    identities: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    # Its life

    def run_until(self, readable: int, favourite: str) -> None:
        """Go on with a new target until a descriptor is readable.

        :raises AssertionError: an answer is wrong. :raises TimedOutError: one, or its interrupt, is missing.
        """
        self.favourite = favourite
        self._begin_life()
        while True:
            self._take_answers()
            self._send_more()
            if self._answered() or not self._rest():
                continue
            if readable in self._sleep(readable):
                return

    def finish(self) -> None:
        """Wait for all answers of a new target, and look at the whole disk. Raises as :meth:`run_until`."""
        self._begin_life()
        self._drain()
        self._flush()
        for number in range(BLOCKS):
            self._read(range(number, number + 1))
            self._drain()
        for block in self.private:
            assert self._now(self._send_read(range(block.number, block.number + 1))) == block.data
        self._drain()

    def _begin_life(self) -> None:
        """What the last target answered is taken now, by who was told of it: now, if it died before that."""
        self.life += 1
        told: set[int] = set()
        while any(ring.has_answers and ring.call_fd not in told for ring in self._rings):
            told |= self._sleep()

    def _now(self, request: Request) -> bytes:
        status, data = wait(self.front, request)
        assert status == 0
        return data

    def _drain(self) -> None:
        while self.sent:
            self._take_answers()
            if self.sent and not self._answered() and self._rest():
                self._sleep()

    @property
    def _rings(self) -> list[Ring]:
        return [ring for at, ring in enumerate(self.front.rings) if at != 1 or not self._is_scsi]

    @property
    def _is_scsi(self) -> bool:
        return isinstance(self.front, ScsiFrontEnd)

    @property
    def _queues(self) -> int:
        return len(self.front.rings) - 2 * self._is_scsi

    def _answered(self) -> bool:
        for ring in self._rings:
            ring.collect()
        return any(sent.chain.done for sent in self.sent)

    def _rest(self) -> bool:
        """Ask every ring for an interrupt; whether there is nothing to take."""
        return all([ring.arm() for ring in self._rings])

    def _sleep(self, *others: int) -> set[int]:
        calls = {ring.call_fd for ring in self._rings}
        poller = select.poll()
        for fd in (*calls, *others):
            poller.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(PATIENCE_S * 1000)}
        if not ready:
            raise TimedOutError(f"{len(self.sent)} requests are not answered, or nobody was told")
        for fd in ready & calls:
            os.eventfd_read(fd)
        return ready

    def _take_answers(self) -> None:
        self._answered()
        for sent in [sent for sent in self.sent if sent.chain.done]:
            self.sent.remove(sent)
            self.done += 1
            sent.finish(*sent.answer())

    # What it asks for

    def _send_more(self) -> None:
        while len(self.sent) < _DEPTH * self._queues:
            choice = self.favourite
            if self.random.random() > _FAVOUR:
                choice = self.random.choice(["read", "read", "write", "write", "flush", "unmap", "slow"])
            _ASK[choice](self)

    def _add(self, request: Request, finish: Finish) -> None:
        self.sent.append(Sent(request.chain, lambda: wait(self.front, request), finish))

    def _range(self) -> range:
        start = self.random.randrange(BLOCKS)
        return range(start, min(BLOCKS, start + self.random.randint(1, 3)))

    def _queue(self) -> int:
        return self.random.randrange(self._queues)

    def _read(self, blocks: range) -> None:
        look = self.history.look(blocks)

        def finish(status: int, data: bytes) -> None:
            assert status == 0, f"a read of {blocks} failed: {status}"
            self.history.saw(look, _split(blocks, data))

        self._add(self._send_read(blocks), finish)

    def _send_read(self, blocks: range) -> Request:
        size = len(blocks) * BLOCK
        if isinstance(self.front, BlkFrontEnd):
            return self.front.send_request(0, blocks.start * _SECTORS, data_in=size, queue=self._queue())
        command = cdb.read(blocks.start * _SECTORS, size // 512, size=self.random.choice([10, 16]))
        return self.front.send_command(command, data_in=size, queue=self._queue())

    def _write(self) -> None:
        blocks, identity = self._range(), next(self.identities)
        data = content(identity) * len(blocks)
        stable = self._is_scsi and self.random.random() < 0.2
        change = self.history.submit(_split(blocks, data))
        if isinstance(self.front, BlkFrontEnd):
            request: Request = self.front.send_request(
                1, blocks.start * _SECTORS, data_out=data, queue=self._queue()
            )
        else:
            size = self.random.choice([10, 16])
            command = cdb.write(blocks.start * _SECTORS, len(data) // 512, size=size, fua=stable)
            request = self.front.send_command(command, data_out=data, queue=self._queue())
        self._add(request, self._changed(change, stable=stable))

    def _changed(self, change: Change, *, stable: bool = False) -> Finish:
        def finish(status: int, _: bytes) -> None:
            assert status == 0, f"a change of {list(change.contents)} failed: {status}"
            self.history.acknowledge(change)
            if stable and self.medium is not None:
                self.history.holds(change, self._on_medium(change.contents, self.medium))

        return finish

    def _flush(self) -> None:
        """What was acknowledged before it must be on the medium after it."""
        look = self.history.look(range(BLOCKS))

        def finish(status: int, _: bytes) -> None:
            assert status == 0, f"a flush failed: {status}"
            if self.medium is not None:
                self.history.saw(look, self._on_medium(range(BLOCKS), self.medium))

        if isinstance(self.front, BlkFrontEnd):
            return self._add(self.front.send_request(4, queue=self._queue()), finish)
        command = cdb.synchronize_cache(size=self.random.choice([10, 16]))
        return self._add(self.front.send_command(command, queue=self._queue()), finish)

    def _on_medium(self, blocks: Iterable[int], medium: Medium) -> dict[int, bytes]:
        return {number: medium(number * BLOCK, BLOCK) for number in blocks}

    def _unmap(self) -> None:
        blocks = self._range()
        change = self.history.submit(dict.fromkeys(blocks, ZEROS))
        sector, sectors = blocks.start * _SECTORS, len(blocks) * _SECTORS
        if isinstance(self.front, BlkFrontEnd):
            kind, flags = self.random.choice([(11, 0), (13, 0), (13, 1)])
            data = struct.pack("<QII", sector, sectors, flags)
            request: Request = self.front.send_request(kind, data_out=data, queue=self._queue())
        elif self.random.random() < 0.5:
            data = cdb.unmap_list((sector, sectors))
            request = self.front.send_command(cdb.unmap(data), data_out=data, queue=self._queue())
        else:
            command = cdb.write_same(sector, sectors, unmap=True, no_data=True)
            request = self.front.send_command(command, queue=self._queue())
        self._add(request, self._changed(change))

    def _fill(self) -> None:
        """WRITE SAME of a block with content."""
        assert isinstance(self.front, ScsiFrontEnd)
        blocks, data = self._range(), content(next(self.identities), repeat=512)
        change = self.history.submit(dict.fromkeys(blocks, data))
        command = cdb.write_same(blocks.start * _SECTORS, len(blocks) * _SECTORS)
        request = self.front.send_command(command, data_out=data[:512], queue=self._queue())
        self._add(request, self._changed(change))

    def _zero_or_fill(self) -> None:
        if self._is_scsi and self.random.random() < 0.4:
            return self._fill()
        return self._unmap()

    # What Python decides (scsi), or the data path without the store (blk)

    def _slow(self) -> None:
        if isinstance(self.front, BlkFrontEnd):
            return self._add(self.front.send_request(8, data_in=20, queue=self._queue()), _good)
        free = [block for block in self.private if not block.busy]
        ways = [self._inquire, self._abort_nothing, self._write_and_verify]
        if free:
            ways += [lambda: self._compare_and_write(free[0]), lambda: self._verify(free[0])] * 2
        return self.random.choice(ways)()

    def _inquire(self) -> None:
        assert isinstance(self.front, ScsiFrontEnd)
        request = self.front.send_command(cdb.inquiry(96), data_in=96, queue=self._queue())

        def finish(status: int, data: bytes) -> None:
            assert (status, data[8:16]) == (0, b"RINGWAY ")

        self._add(request, finish)

    def _abort_nothing(self) -> None:
        """ABORT TASK of a command that is not there. "Function complete" is 0, as is a good status."""
        assert isinstance(self.front, ScsiFrontEnd)
        request = struct.pack("<II8sQ", 0, 0, lun_address(0, 0), _UNKNOWN_TAG)
        chain = self.front.rings[0].submit([request], [1])
        self.sent.append(Sent(chain, lambda: (chain.data[0], b""), _good))

    def _write_and_verify(self) -> None:
        assert isinstance(self.front, ScsiFrontEnd)
        number = self.random.randrange(BLOCKS)
        data = content(next(self.identities))
        change = self.history.submit({number: data})
        command = cdb.write_and_verify(number * _SECTORS, _SECTORS)
        request = self.front.send_command(command, data_out=data, queue=self._queue())
        self._add(request, self._changed(change, stable=True))

    def _verify(self, block: Private) -> None:
        assert isinstance(self.front, ScsiFrontEnd)
        command = cdb.verify(block.number * _SECTORS, _SECTORS)
        request = self.front.send_command(command, data_out=block.data, queue=self._queue())
        block.busy = True

        def finish(status: int, _: bytes) -> None:
            assert status == 0, f"block {block.number} does not hold what was acknowledged"
            block.busy = False

        self._add(request, finish)

    def _compare_and_write(self, block: Private) -> None:
        """It ran just once if it finds its own data: then its first answer died with a target."""
        assert isinstance(self.front, ScsiFrontEnd)
        new, life = content(next(self.identities)), self.life
        command = cdb.compare_and_write(block.number * _SECTORS, _SECTORS)
        request = self.front.send_command(command, data_out=block.data + new, queue=self._queue())
        block.busy = True

        def finish(status: int, _: bytes) -> None:
            assert status == 0 or (status == cdb.CHECK_CONDITION and life != self.life)
            block.data, block.busy = new, False

        self._add(request, finish)


def _good(status: int, _: bytes) -> None:
    assert status == 0


def _split(blocks: range, data: bytes) -> dict[int, bytes]:
    return {number: data[at * BLOCK : (at + 1) * BLOCK] for at, number in enumerate(blocks)}


_ASK: Final[Mapping[str, Callable[[CrashLoad], None]]] = {
    "read": lambda load: load._read(load._range()),
    "write": CrashLoad._write,
    "flush": CrashLoad._flush,
    "unmap": CrashLoad._zero_or_fill,
    "slow": CrashLoad._slow,
}
