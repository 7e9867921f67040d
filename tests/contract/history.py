"""What a disk may hold: an oracle for loads whose requests overlap, die with their target, and run again.

A write counts from when it was submitted, for ever until another one that was submitted after its
acknowledgement is acknowledged. What was in flight together may lie in any order, and in pieces: no disk
promises more. Once no write is in flight, what was read once is read again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final

BLOCK: Final = 4096
ZEROS: Final = bytes(BLOCK)


class Contradiction(AssertionError):
    """A block held what it cannot."""


@dataclass(eq=False, slots=True)
class Change:
    """A request that changes blocks, and what they hold after it."""

    contents: Mapping[int, bytes]
    submitted: int
    acknowledged: int | None = None

    def precedes(self, other: Change) -> bool:
        """Whether it was over before ``other`` began."""
        return self.acknowledged is not None and self.acknowledged < other.submitted


@dataclass(eq=False, slots=True)
class Look:
    """A request that tells what blocks hold, from its submission on.

    :ivar legal: for each block, the changes of which one may be seen. :ivar quiet: blocks that none changes.
    """

    legal: dict[int, list[Change]]
    quiet: set[int]


@dataclass(slots=True)
class _Block:
    possible: list[Change]
    pending: int = 0
    looks: set[Look] = field(default_factory=set)


class History:
    """All that was asked of some blocks, which begin as zeros."""

    def __init__(self, blocks: int) -> None:
        self._clock = count(1)
        self._blocks = [_Block([Change({number: ZEROS}, 0, 0)]) for number in range(blocks)]

    def submit(self, contents: Mapping[int, bytes]) -> Change:
        """A change is about to be made available to the device."""
        change = Change(contents, next(self._clock))
        for number in contents:
            block = self._blocks[number]
            block.possible.append(change)
            block.pending += 1
            for look in block.looks:
                look.legal[number].append(change)
                look.quiet.discard(number)
        return change

    def acknowledge(self, change: Change) -> None:
        """The device has said that a change is done."""
        change.acknowledged = next(self._clock)
        for number in change.contents:
            block = self._blocks[number]
            block.pending -= 1
            block.possible = [other for other in block.possible if not other.precedes(change)]

    def look(self, numbers: Iterable[int]) -> Look:
        """A request for the content of blocks is about to be made available."""
        seen = {number: self._blocks[number] for number in numbers}
        look = Look(
            {number: list(block.possible) for number, block in seen.items()},
            {number for number, block in seen.items() if not block.pending},
        )
        for block in seen.values():
            block.looks.add(look)
        return look

    def saw(self, look: Look, found: Mapping[int, bytes]) -> None:
        """It is answered. :raises Contradiction: a block cannot hold that."""
        for number, legal in look.legal.items():
            block = self._blocks[number]
            block.looks.discard(look)
            _check(number, found[number], [change.contents[number] for change in legal])
            if number in look.quiet:
                now = next(self._clock)
                block.possible = [Change({number: found[number]}, now, now)]

    def holds(self, change: Change, found: Mapping[int, bytes]) -> None:
        """What blocks hold on the medium after the acknowledgement of a change that promises to be stable.

        :raises Contradiction: it does not lie there.
        """
        for number in change.contents:
            legal = [other.contents[number] for other in self._blocks[number].possible]
            _check(number, found[number], legal)


def _check(number: int, found: bytes, legal: list[bytes]) -> None:
    """Whole, or in pieces of words of those that were in flight together."""
    if found in legal:
        return
    words = [array("Q", content) for content in legal]
    for at, word in enumerate(array("Q", found)):
        allowed = {content[at] for content in words}
        if word not in allowed:
            names = sorted(describe(one) for one in allowed)
            raise Contradiction(f"block {number}, word {at}: {describe(word)}, and not {' or '.join(names)}")


def content(identity: int, *, repeat: int = BLOCK) -> bytes:
    """A block that no other change writes.

    :param repeat: bytes after which it is the same again.
    """
    base = identity << 10
    return array("Q", range(base, base + repeat // 8)).tobytes() * (BLOCK // repeat)


def describe(word: int) -> str:
    """Which change wrote a word."""
    return f"change {word >> 10} (word {word & 0x3FF})" if word else "zero"
