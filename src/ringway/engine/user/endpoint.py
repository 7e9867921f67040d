"""One endpoint that was started or found: its process, its record, what it last told of itself."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from ringway.control import ControlChannel
from ringway.engine.user import records
from ringway.engine.user.places import EndpointPlaces
from ringway.engine.user.processes import Process
from ringway.engine.user.records import Record
from ringway.engine.user.words import last_words
from ringway.errors import (
    BusyError,
    DegradedError,
    NotFoundError,
    RingwayError,
    TimedOutError,
    UnreachableError,
)
from ringway.model import (
    ControlRequest,
    Done,
    EndpointInfo,
    EndpointSpec,
    EndpointState,
    EngineKind,
    InfoRequest,
    LunInfo,
    LunSpec,
    LunStatus,
    QuitRequest,
    TargetInfo,
)
from ringway.unix_sockets import connected_paths

#: Seconds that a target has to answer a question that nothing hangs on.
LOOK_S: Final = 2.0
#: Seconds until an endpoint ends: asked to, told to, and killed.
QUIT_S, TERMINATE_S, KILL_S = 10.0, 5.0, 5.0

#: Seconds that a process which hung up may take to end.
DYING_S: Final = 0.5
#: Seconds that a target has to notice that its front end hung up.
LEAVING_S: Final = 0.5
_PAUSE_S: Final = 0.02

AnswerT = TypeVar("AnswerT", bound=msgspec.Struct)
Address = tuple[int, int]


class Endpoint:
    """An endpoint of which there is a record. Its process may have ended.

    :param process: ``None``: it had ended when it was found.
    """

    def __init__(
        self, places: EndpointPlaces, record: Record, process: Process | None, info: TargetInfo | None = None
    ) -> None:
        self.places = places
        self.record = record
        self.process = process
        self._info = info
        self._silent: str | None = None  #: why it did not answer when it was last asked

    @property
    def name(self) -> str:
        return self.places.name

    @property
    def spec(self) -> EndpointSpec:
        """What it serves."""
        return self.record.spec

    @property
    def alive(self) -> bool:
        """Whether its process has not ended."""
        return self.process is not None and self.process.alive

    @property
    def is_cut_off(self) -> bool:
        """Whether its process lives, and its files were removed under it: it serves only who is there."""
        process = self.process
        if process is None or not self.alive or os.path.exists(self.places.control):
            return False
        log = process.log
        return log is not None and log.gone

    def ask(self, request: ControlRequest, answer: type[AnswerT], *, timeout_s: float = 30.0) -> AnswerT:
        """Ask its target. :raises NotFoundError: there is none. :raises RingwayError: as ``call``.

        :raises DegradedError: it died before it answered.
        """
        try:
            return self._ask(request, answer, timeout_s)
        except UnreachableError as error:
            if self.process is None or not self.process.wait(DYING_S):
                raise
            raise DegradedError(
                f"the target of endpoint '{self.name}' died meanwhile",
                hint="it is started again at once; look at it, then try again",
            ) from error

    def _ask(self, request: ControlRequest, answer: type[AnswerT], timeout_s: float) -> AnswerT:
        if not self.alive:
            raise NotFoundError(f"endpoint '{self.name}' does not run", hint=last_words(self.places.log))
        with ControlChannel(self.places.control, timeout_s=timeout_s) as channel:
            return channel.call(request, answer)

    def look(self, timeout_s: float = LOOK_S) -> TargetInfo:
        """Ask it what it is, and remember that. :raises RingwayError: it does not answer, or does not run."""
        try:
            self._info = self._ask(InfoRequest(), TargetInfo, timeout_s)
            self._silent = None
        except RingwayError as error:
            self._silent = error.message
            raise
        if self.record.pending is not None:
            self.note(_what_is(self._info, self.record))
        return self._info

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until one that somebody started answers. :returns: whether it lives.

        :raises RingwayError: it lives, and does not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        while self.alive:
            try:
                self.look(max(deadline - time.monotonic(), LOOK_S))
                return True
            except RingwayError:  # it has yet to listen, or it has just ended
                if self.alive and time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE_S)
        return False

    def note(self, spec: EndpointSpec, pending: EndpointSpec | None = None) -> None:
        """Put down what it serves, and what it is changed into. :raises OSError: as ``records.write``."""
        self.record = replace(self.record, spec=spec, pending=pending)
        records.write(self.places.record, self.record)

    def end(self) -> None:
        """Have the process end, politely first.

        :raises TimedOutError: even SIGKILL does not end it: a request of its hangs in the kernel.
        """
        process = self.process
        if process is None:
            return
        with contextlib.suppress(RingwayError):
            self._ask(QuitRequest(), Done, LOOK_S)
            if process.wait(QUIT_S):
                return
        for number, patience_s in ((signal.SIGTERM, TERMINATE_S), (signal.SIGKILL, KILL_S)):
            process.signal(number)
            if process.wait(patience_s):
                return
        raise TimedOutError(
            f"the target of '{self.name}' (pid {process.pid}) does not end, not even when it is killed",
            hint="a request of its hangs in the kernel: look at its disks, then delete it again",
        )

    def refuse_if_used(self) -> None:
        """Give one that has just left the time to be gone. :raises BusyError: a front end is connected."""
        deadline = time.monotonic() + LEAVING_S
        while (connected := self._is_connected()) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        if connected:
            hint = "detach it first; --force takes the disks away from under it"
            raise BusyError(f"a guest is connected to '{self.name}'", holder="a guest", hint=hint)

    def _is_connected(self) -> bool:
        """Of one that does not answer, the kernel knows."""
        try:
            return self.look().connected
        except RingwayError:
            return self.places.socket in (connected_paths() or ())

    # What is told of it

    def describe(self, connected: bool | None) -> EndpointInfo:
        """What is known of it, without asking it."""
        alive = self.alive
        state, message = self._condition(alive)
        return EndpointInfo(
            name=self.name,
            engine=EngineKind.USER,
            device=self.spec.device,
            state=state,
            wwpn=self.spec.wwpn,
            socket=self.places.socket,
            pid=self.record.process.pid if alive else None,
            connected=connected if alive else False,
            message=message,
            luns=self._luns(),
            spec=self.spec,
        )

    def _condition(self, alive: bool) -> tuple[EndpointState, str | None]:
        if not alive:
            return EndpointState.DEGRADED, last_words(self.places.log) or "its target ended without a word"
        if self._silent is not None:
            return EndpointState.DEGRADED, self._silent
        return (EndpointState.STARTING if self._info is None else EndpointState.READY), None

    def _luns(self) -> tuple[LunStatus, ...]:
        told = {} if self._info is None else {(lun.target, lun.lun): lun for lun in self._info.luns}
        return tuple(_status(lun, told.get((lun.target, lun.lun))) for lun in self.spec.luns)


def _status(lun: LunSpec, told: LunInfo | None) -> LunStatus:
    disk = lun.backstore
    return LunStatus(
        target=lun.target,
        lun=lun.lun,
        backstore=disk.name or str(disk),
        kind=str(disk.kind if told is None else told.kind),
        path=disk.path,
        size_bytes=disk.size_bytes if told is None else told.size_bytes,
        block_size=disk.block_size if told is None else told.block_size,
        readonly=disk.readonly,
        serial=disk.serial if told is None else told.serial,
        ownership=None if told is None else told.ownership,
        limits=lun.limits if told is None else told.limits,
    )


def _what_is(info: TargetInfo, record: Record) -> EndpointSpec:
    """What an interrupted change has come to: of each LUN that is there, the specification that it fits."""
    wanted = record.pending or record.spec
    served = []
    for told in info.luns:
        served += [lun for lun in (*wanted.luns, *record.spec.luns) if _fits(lun, told)][:1]
    return replace(wanted, luns=tuple(served))


def _fits(lun: LunSpec, told: LunInfo) -> bool:
    disk = lun.backstore
    return (
        (lun.target, lun.lun, disk.readonly) == (told.target, told.lun, told.readonly)
        and lun.limits == told.limits
        and str(disk) == told.name
        and disk.serial in (None, told.serial)
        and disk.block_size in (None, told.block_size)
        and (told.direct or not disk.direct)
    )
