"""A logical unit: a medium, its identity, and the state that outlives connections.

Everything that commands can change is here, and what concerns the data path is published at each change: see
:meth:`LogicalUnit.gate`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Flag, auto
from typing import Final, Protocol

from ringway.scsi import attention
from ringway.scsi.attention import Attentions
from ringway.scsi.identity import Identity
from ringway.scsi.pages import ModePages
from ringway.scsi.reply import CheckCondition
from ringway.scsi.sense import Condition
from ringway.scsi.table import NEEDS_READY, Kind, Row, Table
from ringway.scsi.task import Nexus


class Medium(Protocol):
    """Where the blocks are; ``_core.Store`` is one. Methods block and raise OSError."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    @property
    def discard(self) -> bool:
        """Whether blocks can be given back; they read as zeros then."""

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None: ...
    def zero(self, offset: int, length: int, *, unmap: bool = False) -> None: ...
    def flush(self) -> None: ...


class Gate(Flag):
    """What the data path may not run for a nexus without asking."""

    OPEN = 0
    ATTENTION = auto()  #: any command
    NO_WRITE = auto()  #: commands that change the medium


class Host(Protocol):
    """What a logical unit needs of the data path that serves it."""

    @property
    def instance(self) -> int:
        """Tells the unit from all others that have been at its address."""

    def set_gate(self, nexus: Nexus, gate: Gate) -> None:
        """Commands of ``nexus`` that begin after this returns see ``gate``. Does not block."""

    def lock_range(self, offset: int, length: int, *, reads: bool) -> AbstractContextManager[None]:
        """Hold back initiators' writes (and reads) of a range of bytes, once those in flight are finished.

        :raises Busy: on entry, when others held on too long; nothing is locked.
        """

    def drain(self) -> bool:
        """Wait until what is in flight now is finished. :returns: whether it is."""


class Inventory(Protocol):
    """The other logical units of a target, as one of them sees them."""

    def luns(self) -> Sequence[int]:
        """:returns: LUNs, ascending."""

    def clear_attention(self, nexus: Nexus, condition: Condition) -> None:
        """Drop a unit attention of ``nexus`` on every unit."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes in bytes, powers of two.

    :param block_bytes: the logical block.
    :param physical_block_bytes: what the medium writes at once, at least a block.
    :param discard_bytes: what it gives back at once.
    """

    block_bytes: int = 512
    physical_block_bytes: int = 4096
    discard_bytes: int = 4096

    @property
    def physical_exponent(self) -> int:
        """log2 of logical blocks in a physical one."""
        return (self.physical_block_bytes // self.block_bytes).bit_length() - 1


class LogicalUnit:
    """A disk. Its methods may be called from several threads.

    :param host: told of each change of the gate, under the unit's lock.
    """

    def __init__(
        self, medium: Medium, host: Host, identity: Identity, inventory: Inventory, geometry: Geometry
    ) -> None:
        self.host: Final = host
        self.identity: Final = identity
        self.inventory: Final = inventory
        self.geometry: Final = geometry
        self._medium = medium
        self._pages = ModePages()
        self._stopped = False
        self._attentions: dict[Nexus, Attentions] = {}
        self._lock = threading.RLock()

    # What is

    @property
    def medium(self) -> Medium:
        """Where the blocks are now; take it once for a command."""
        return self._medium

    @property
    def pages(self) -> ModePages:
        """The current mode pages."""
        return self._pages

    @property
    def blocks(self) -> int:
        """Logical blocks."""
        return self._medium.size_bytes // self.geometry.block_bytes

    @property
    def stopped(self) -> bool:
        """Whether START STOP UNIT stopped it."""
        return self._stopped

    @property
    def write_protected(self) -> bool:
        """Whether the medium, or the initiator's wish, forbids writing."""
        return not self._medium.writable or self._pages.software_write_protect

    def gate(self, nexus: Nexus) -> Gate:
        """What the data path has to ask for: the one place where this is decided."""
        with self._lock:
            gate = Gate.NO_WRITE if self.write_protected else Gate.OPEN
            if self._stopped or self._attentions.get(nexus):
                gate |= Gate.ATTENTION
            return gate

    def _publish(self) -> None:
        for nexus in self._attentions:
            self.host.set_gate(nexus, self.gate(nexus))

    # Nexuses and unit attentions

    def join(self, nexus: Nexus, *, power_on: bool) -> None:
        """Let a nexus in.

        :param power_on: it is told so. Not after a migration, where nothing of the state was lost.
        """
        powered = Condition.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED
        with self._lock:
            self._attentions[nexus] = (powered,) if power_on else ()
            self._publish()

    def establish(
        self, condition: Condition, *, only: Nexus | None = None, spare: Nexus | None = None
    ) -> None:
        """Queue a unit attention for all nexuses, for ``only`` one, or for all but the one to ``spare``."""
        with self._lock:
            for nexus, pending in self._attentions.items():
                if nexus != spare and only in (None, nexus):
                    self._attentions[nexus] = attention.add(pending, condition)
            self._publish()

    def take_attention(self, nexus: Nexus) -> Condition | None:
        """Remove and return the oldest unit attention."""
        with self._lock:
            pending = self._attentions.get(nexus)
            if not pending:
                return None
            self._attentions[nexus] = pending[1:]
            self._publish()
            return pending[0]

    def clear_attention(self, nexus: Nexus, condition: Condition) -> None:
        """Drop a unit attention that the nexus learned of in another way."""
        with self._lock:
            pending = self._attentions.get(nexus, ())
            if condition in pending:
                self._attentions[nexus] = tuple(each for each in pending if each is not condition)
                self._publish()

    # Admission

    def admit(self, row: Row[LogicalUnit], nexus: Nexus) -> None:
        """Decide whether a command may run now.

        :raises CheckCondition: a unit attention (reported once), a stopped unit, a protected medium.
        """
        if row.kind & Kind.EXEMPT:
            return
        if condition := self.take_attention(nexus):
            raise CheckCondition(condition)
        # A reservation of another nexus refuses it here: after unit attentions, before the medium matters.
        if self._stopped and row.kind & NEEDS_READY:
            raise CheckCondition(Condition.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED)
        if self.write_protected and row.kind & Kind.WRITES:
            raise CheckCondition(Condition.WRITE_PROTECTED)

    # What happens to it

    def change_pages(self, pages: ModePages, nexus: Nexus) -> None:
        """Set the mode pages; the other nexuses are told."""
        with self._lock:
            changed = pages != self._pages
            self._pages = pages
            if changed:
                self.establish(Condition.MODE_PARAMETERS_CHANGED, spare=nexus)

    def start(self) -> None:
        """Leave the stopped state."""
        with self._lock:
            self._stopped = False
            self._publish()

    def stop(self, *, flush: bool) -> None:
        """Take no more commands that need the medium; finish and flush what is in flight.

        :raises OSError: the flush failed; the unit is stopped all the same.
        """
        with self._lock:
            self._stopped = True
            self._publish()
        self.host.drain()
        if flush:
            self._medium.flush()

    def reset(self) -> None:
        """LOGICAL UNIT RESET, once its commands are aborted. Spec: SAM-5 r21, Logical unit reset."""
        with self._lock:
            self._forget()
            self.establish(Condition.BUS_DEVICE_RESET_FUNCTION_OCCURRED)

    def power_on(self, nexus: Nexus) -> None:
        """Another guest came by ``nexus``: it finds the unit started, with the default mode pages.

        It learns of a power on and of nothing that its predecessor was to learn; other nexuses do as well.
        """
        with self._lock:
            self._forget()
            self.establish(Condition.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED, spare=nexus)
            self.join(nexus, power_on=True)

    def _forget(self) -> None:
        """Drop all that commands set; the caller publishes it."""
        self._pages = ModePages()
        self._stopped = False

    def replace_medium(self, medium: Medium) -> bool:
        """Serve the same disk from another medium, or from the same one of another size.

        :returns: whether the capacity changed, which the nexuses are told.
        """
        with self._lock:
            before, self._medium = self.blocks, medium
            self._publish()
            if self.blocks == before:
                return False
            self.resized()
            return True

    def resized(self) -> None:
        """Tell all nexuses that the capacity changed."""
        self.establish(Condition.CAPACITY_DATA_HAS_CHANGED)


#: The commands of a disk; the family modules fill it.
DISK: Final[Table[LogicalUnit]] = Table()
