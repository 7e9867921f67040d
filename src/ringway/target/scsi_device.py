"""The virtio-scsi face of an endpoint: from ``_core.Command`` to SCSI and back.

It owns the targets and their logical units, whose state outlives front ends. All methods may be called from
any thread.

Spec: virtio 1.3, 5.6.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Final, Protocol

from ringway import _core
from ringway.errors import ProtocolError
from ringway.scsi import (
    RESUME,
    Busy,
    Condition,
    Delivery,
    Gate,
    Geometry,
    Identity,
    Kind,
    LogicalUnit,
    Medium,
    Nexus,
    Sense,
    Status,
    Target,
    Task,
)
from ringway.target.lanes import Lanes
from ringway.target.scsi_control import DRAIN_TIMEOUT_S, ControlQueue
from ringway.target.scsi_tasks import Command, Job, TaskCore, TaskSet
from ringway.target.virtio_scsi import Address, Event, Feature, ResetReason, Response

_log = logging.getLogger(__name__)

_DELIVERIES: Final = {
    Delivery.COMPLETE: Response.OK,
    Delivery.OVERRUN: Response.OVERRUN,
    Delivery.ABORTED: Response.ABORTED,
}


class Disk(Protocol):
    """What is read of a ``Backstore``; see there."""

    @property
    def store(self) -> Medium: ...
    @property
    def geometry(self) -> DiskGeometry: ...


class DiskGeometry(Protocol):
    """What is read of a backstore's geometry; all in bytes."""

    @property
    def block_size(self) -> int: ...
    @property
    def physical_block_size(self) -> int: ...
    @property
    def discard_granularity(self) -> int: ...


class Core(TaskCore, Protocol):
    """What is needed of ``_core.Device``; see there."""

    def lun_instance(self, target: int, lun: int) -> int: ...
    def set_gate(self, target: int, lun: int, word: int, *, instance: int | None = None) -> None: ...
    def lock_range(
        self,
        target: int,
        lun: int,
        offset: int,
        length: int,
        *,
        reads: bool = True,
        instance: int | None = None,
    ) -> int | None: ...
    def unlock_range(self, target: int, lun: int, handle: int) -> None: ...
    def complete_control(self, tag: int, response: bytes) -> None: ...
    def resume(self, tag: int) -> None: ...
    def post_event(self, event: int, lun: bytes, reason: int) -> None: ...


class _Host:
    """The data path under one logical unit, and under no later one at its address.

    :raises KeyError: the data path has no such LUN.
    """

    def __init__(self, core: Core, target: int, number: int) -> None:
        self._core, self._target, self._number = core, target, number
        self.instance: Final = core.lun_instance(target, number)

    def set_gate(self, nexus: Nexus, gate: Gate) -> None:
        """There is one nexus, and a word for it; a LUN that is just being removed has none."""
        word = _core.GATE_ATTENTION if gate & Gate.ATTENTION else 0
        word |= _core.GATE_NO_WRITE if gate & Gate.NO_WRITE else 0
        with suppress(KeyError):
            self._core.set_gate(self._target, self._number, word, instance=self.instance)

    @contextmanager
    def lock_range(self, offset: int, length: int, *, reads: bool) -> Iterator[None]:
        """:raises Busy: others held on for too long."""
        address = (self._target, self._number)
        handle = self._core.lock_range(*address, offset, length, reads=reads, instance=self.instance)
        if handle is None:
            raise Busy
        try:
            yield
        finally:
            with suppress(KeyError):  # the LUN was removed meanwhile, and its locks with it
                self._core.unlock_range(self._target, self._number, handle)

    def drain(self) -> bool:
        """:returns: whether what was in flight is finished."""
        return self._core.drain(instance=self.instance, timeout_s=DRAIN_TIMEOUT_S)


def _is_anothers(command: Command, unit: LogicalUnit | None) -> bool:
    """Whether a command was sent to another unit than the one that is at its address now."""
    return command.instance not in (0, None if unit is None else unit.host.instance)


def _log_broken(queue: int, reason: str) -> None:
    _log.error("queue %d was stopped: %s", queue, reason)


def _log_failure(error: BaseException) -> None:
    _log.critical("a thread of the slow path failed", exc_info=error)


class ScsiDevice:
    """An endpoint's targets behind a data path: :class:`ringway.target.device.Face` of a scsi device.

    :param wwpn: the endpoint's name, which its units' names are derived from.
    :param incoming: a migration brings a guest that must not be told of a power on.
    :param broken: told of a queue that the data path stopped.
    :param failed: told of an error that is none of a command's: the device cannot serve.
    """

    extra_queues: Final = 2  #: control and event
    has_config: Final = False
    # A number: the complement of a flag has no bits above its own, so that nothing would be refused up there.
    features: Final = int(Feature.HOTPLUG | Feature.CHANGE)

    def __init__(
        self,
        core: Core,
        wwpn: str,
        *,
        incoming: bool = False,
        broken: Callable[[int, str], None] = _log_broken,
        failed: Callable[[BaseException], None] = _log_failure,
    ) -> None:
        self._core = core
        self._wwpn = wwpn
        self._incoming = incoming
        self._broken = broken
        self._nexus = Nexus(wwpn)
        self._targets: Mapping[int, Target] = MappingProxyType({})
        self._acknowledged: int | None = None
        self._tasks = TaskSet(core, self._dispatch, self._run, failed)
        self._control = ControlQueue(core, self._tasks, lambda: self._targets, self._nexus)
        self._functions: Lanes[Address | None, Command] = Lanes("task-management", self._manage, failed)
        self._lock = threading.RLock()

    # The front end

    def config(self) -> bytes:
        """Nothing: QEMU makes the configuration space of a scsi device."""
        return b""

    def set_config(self, offset: int, data: bytes) -> None:
        """:raises ProtocolError: always."""
        raise ProtocolError("the front end writes to a scsi device's configuration space, which is its own")

    def acknowledged(self, features: int) -> None:
        """Take what the driver took of the features; from now on there is a guest to tell of changes."""
        self._acknowledged = features

    def reset(self) -> None:
        """The guest's HBA was reset: the nexus is lost, and nothing of anybody else (trap T11)."""
        for target in self._targets.values():
            target.lose_nexus(self._nexus)

    def powered_on(self) -> None:
        """Another guest starts: what the last one stopped or protected is as after a power on."""
        for target in self._targets.values():
            target.power_on(self._nexus)

    def resumed(self) -> None:
        """A guest goes on where it was, as if nothing had happened: it is told of no power on.

        So a target can die and come back, or be replaced, without a command that fails for it; firmware takes
        a unit attention for an I/O error.
        """
        for target in self._targets.values():
            target.clear_attention(self._nexus, Condition.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED)

    # Logical units

    @property
    def units(self) -> dict[tuple[int, int], LogicalUnit]:
        """:returns: the units by (target, LUN), as they are now."""
        targets = self._targets.items()
        return {(number, each): unit for number, target in targets for each, unit in target.units.items()}

    def check_new_lun(self, target: int, lun: int) -> None:
        """Any address that a guest can name can have a unit."""

    def lun_added(self, target: int, lun: int, backstore: Disk, serial: str) -> None:
        """Show a store to the guest; the core serves it already.

        :raises UsageError: the serial number cannot be shown; the guest does not see the LUN then.
        """
        sizes = backstore.geometry
        geometry = Geometry(sizes.block_size, sizes.physical_block_size, sizes.discard_granularity)
        identity = Identity.derive(self._wwpn, serial)
        with self._lock:
            home = self._targets.get(target) or Target()
            unit = LogicalUnit(backstore.store, _Host(self._core, target, lun), identity, home, geometry)
            unit.join(self._nexus, power_on=not self._incoming or self._acknowledged is not None)
            home.add(lun, unit)
            self._targets = MappingProxyType({**self._targets, target: home})
            self._announce(home, Address(target, lun), ResetReason.RESCAN)

    def lun_resized(self, target: int, lun: int, backstore: Disk) -> None:
        """Serve the same disk from a new store. :raises KeyError: no such LUN."""
        with self._lock:
            resized = self._targets[target].units[lun].replace_medium(backstore.store)
        if resized and self._may_tell(Feature.CHANGE):
            code, qualifier = Condition.CAPACITY_DATA_HAS_CHANGED.code
            self._core.post_event(Event.PARAM_CHANGE, Address(target, lun).encode(), code | qualifier << 8)

    def lun_reloaded(self, target: int, lun: int, backstore: Disk) -> None:
        """Serve the same disk from a new store to a guest that knows its size. :raises KeyError: no LUN."""
        with self._lock:
            home = self._targets[target]
            home.units[lun].replace_medium(backstore.store)
            home.clear_attention(self._nexus, Condition.CAPACITY_DATA_HAS_CHANGED)

    def lun_removed(self, target: int, lun: int) -> None:
        """Show no unit there any more. :raises KeyError: no such LUN."""
        with self._lock:
            home = self._targets[target]
            home.remove(lun)
            if not home.units:
                rest = {each: other for each, other in self._targets.items() if each != target}
                self._targets = MappingProxyType(rest)
            self._announce(home, Address(target, lun), ResetReason.REMOVED)

    def _may_tell(self, feature: Feature) -> bool:
        return bool((self._acknowledged or 0) & feature)

    def _announce(self, home: Target, address: Address, reason: ResetReason) -> None:
        """Tell the guest, if there is one, that an address came or went: the other units do, and an event."""
        others = [unit for number, unit in home.units.items() if number != address.lun]
        for unit in others if self._acknowledged is not None else ():
            unit.establish(Condition.REPORTED_LUNS_DATA_HAS_CHANGED)
        if self._may_tell(Feature.HOTPLUG):
            self._core.post_event(Event.TRANSPORT_RESET, address.encode(), reason)

    # Commands

    def settled(self, timeout_s: float, instance: int | None = None) -> bool:
        """Wait until no command (of a LUN) uses the medium. :returns: whether none does."""
        return self._tasks.settled(instance, timeout_s)

    def serve_waiting(self) -> None:
        """Decide on all commands that wait, and complete or resume them. It does not wait for a medium."""
        self._tasks.take()

    def handle(self, command: Command) -> None:
        """As :meth:`serve_waiting`, with a command that was taken before those. None can make it raise."""
        self._tasks.take(command)

    def _dispatch(self, command: Command) -> None:
        """Decide on a command now, or have its unit's thread do it."""
        with self._guarded(command):
            if command.kind == "broken":
                self._broken(command.queue, command.failure)
            elif command.kind == "control":
                if not self._functions.put(self._control.unit_of(command.data_out), command):
                    self._fail(command)
            elif not self._put_aside(command):
                self._execute(command)

    def _put_aside(self, command: Command) -> bool:
        """Hand a command that may wait to its unit's thread. :returns: whether it is one."""
        address = Address.decode(command.lun)
        target = None if address is None else self._targets.get(address.target)
        if address is None or target is None or command.failure:
            return False
        unit, kind = target.get(address.lun), target.kind_of(address.lun, command.cdb)
        if unit is None or not kind & Kind.WAITS or _is_anothers(command, unit):
            return False
        if not self._tasks.put(Job(command, unit, writes=bool(kind & Kind.WRITES))):
            self._core.complete(command.tag, response=Response.OK, status=Status.BUSY)
        return True

    def _manage(self, command: Command) -> None:
        """Answer a control request. On its unit's thread."""
        with self._guarded(command):
            if not command.dead:
                self._core.complete_control(command.tag, self._control.answer(command.data_out))

    def _run(self, job: Job) -> None:
        """Do a command that may wait. On its unit's thread."""
        with self._guarded(job.command):
            self._execute(job.command, job.unit)

    @contextmanager
    def _guarded(self, command: Command) -> Iterator[None]:
        """End a command that we have an error in."""
        try:
            yield
        except Exception:
            _log.exception("%s failed: queue %d, CDB %s", command.kind, command.queue, command.cdb.hex(" "))
            self._fail(command)

    def _fail(self, command: Command) -> None:
        """End a command that we have an error in."""
        if command.kind == "control":
            self._core.complete_control(command.tag, bytes((Response.FAILURE,)))
        elif command.kind == "cdb":
            sense = Sense(Condition.INTERNAL_TARGET_FAILURE).encode(descriptor=False)
            status = Status.CHECK_CONDITION
            self._core.complete(command.tag, response=Response.OK, status=status, sense=sense)

    def _execute(self, command: Command, only: LogicalUnit | None = None) -> None:
        """Run a command and answer it, on no other unit than ``only`` if there is one."""
        address = Address.decode(command.lun)
        target = None if address is None else self._targets.get(address.target)
        if address is None or target is None:
            self._core.complete(command.tag, response=Response.BAD_TARGET)
            return
        unit = target.get(address.lun)
        # what was sent to a unit that is gone finds none, whatever came to its address meanwhile
        number = None if _is_anothers(command, unit) else address.lun
        task = Task(command.cdb, self._nexus, command.data_out, command.data_out_size, command.failure)
        end = target.execute(number, task, only or unit)
        if end is RESUME:
            self._core.resume(command.tag)
            return
        response = _DELIVERIES[end.delivery]
        self._core.complete(
            command.tag,
            response=response,
            status=end.status,
            sense=end.sense,
            data=end.data,
            taken=task.taken,
        )
