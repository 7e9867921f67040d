"""One endpoint's process: core, face, LUNs, session server, control socket and slow path, put together."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from typing import Final

import msgspec

import ringway
from ringway import _core
from ringway.digest import sha256
from ringway.errors import BusyError, ConflictError, ControlError, UsageError
from ringway.model import (
    ControlRequest,
    DeviceKind,
    Done,
    DrainRequest,
    InfoRequest,
    IoEngine,
    Limits,
    LunAddRequest,
    LunInfo,
    LunLimitRequest,
    LunRemoveRequest,
    LunResizeRequest,
    LunSpec,
    QuitRequest,
    SandboxMode,
    StatisticsRequest,
    TargetConfig,
    TargetInfo,
    TargetStatistics,
    TraceFetchRequest,
    TraceStartRequest,
    TraceStopRequest,
)
from ringway.scsi.identity import parse_wwpn
from ringway.target import host, statistics
from ringway.target.backstore import Backstore, open_backstore, serial_of
from ringway.target.blk_device import BlkDevice, serial_bytes
from ringway.target.control import ControlServer
from ringway.target.device import Face, TargetDevice
from ringway.target.listen import Listener
from ringway.target.luns import LunTable
from ringway.target.sandbox import Sandbox
from ringway.target.scsi_device import ScsiDevice
from ringway.target.tracing import Tracing
from ringway.vhost_user import Server

_log: Final = logging.getLogger(__name__)

#: Seconds that a disk is waited for which nobody who lives has.
LATE_IO_S: Final = 10.0
_RETRY_S: Final = 0.05
#: Seconds that the slow path has to end in when the target is closed.
SLOW_STOP_S: Final = 5.0


class Target:
    """An endpoint that serves. Everything is open when the constructor returns, and front ends may come.

    :param endpoint: where front ends come: a listener, or a socket that was handed in (listening or
        connected).
    :param control: where the control socket listens; ``None``: there is none.
    :param sandbox: what this process gives up once all is open; ``None``: nothing, it is more than a target.
    :raises RingwayError: bad input; then nothing stays open (the two listeners are closed as well).
    """

    def __init__(
        self,
        config: TargetConfig,
        endpoint: Listener | socket.socket,
        control: Listener | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.config = config
        self.sandbox = sandbox or Sandbox(SandboxMode.OFF)
        self._unserved: list[Backstore] = []
        self._started_s = time.monotonic()
        self._slow_stopped = threading.Event()
        self._slow = threading.Thread(target=self._run_slow_path, name="slow-path", daemon=True)
        self._failed = False
        self._settled = True
        with contextlib.ExitStack() as undo:
            self._quit = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._quit)
            self._build(undo, endpoint, control)
            self._undo = undo.pop_all()

    def _build(
        self, undo: contextlib.ExitStack, endpoint: Listener | socket.socket, control: Listener | None
    ) -> None:
        """Open everything; ``undo`` closes it in the opposite order."""
        config = self.config
        for listener in (endpoint, control):
            if listener is not None:
                undo.callback(listener.close)
        undo.callback(self._close_unserved)
        self._wwpn = wwpn_of(config) if config.device is DeviceKind.SCSI else None
        self._open_disks()
        self.sandbox.confine()
        self._core = make_core(config)
        if (reason := self._core.engine_reason) is not None:
            _log.warning("io_uring cannot be used, epoll does its work with less speed: %s", reason)
        self._face = self._make_face()
        self._luns = LunTable(self._core, config.device, self._face, owned=not config.incoming)
        undo.callback(self._close_luns)
        undo.callback(self._core.close)
        for spec in config.luns:
            self._luns.add_open(spec, self._unserved[0])
            del self._unserved[0]
        self._device = TargetDevice(
            self._core,
            config.device,
            self._face,
            self._luns,
            request_queues=config.queues,
            ring_failed=self._ring_failed,
        )
        self._socket_path = endpoint.path if isinstance(endpoint, Listener) else None
        listening = endpoint.socket if isinstance(endpoint, Listener) else endpoint
        self._server = Server(listening, self._device, host.command_name)
        self.sandbox.seal()
        self._slow.start()
        undo.callback(self._stop_slow_path)
        self._server.start()
        watcher = threading.Thread(target=self._watch_server, name="server-watch", daemon=True)
        watcher.start()
        undo.callback(watcher.join)
        undo.callback(self._server.stop)
        self._tracing = Tracing(self._core)
        if control is not None:
            server = ControlServer(control, self._handle_control, self._tracing.client_gone)
            undo.callback(server.close)

    def fileno(self) -> int:
        """A descriptor that is readable once the target is to end: see :meth:`wait`."""
        return self._quit

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the target is to end.

        :returns: whether it is: by :meth:`quit`, by the control socket, or because its server ended (that of
            a connected socket ends with its front end).
        """
        poller = select.poll()  # select() knows no descriptor above 1023
        poller.register(self, select.POLLIN)
        return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))

    @property
    def failed(self) -> bool:
        """Whether it ends because of an error of its own; the log says which."""
        return self._failed

    def quit(self) -> None:
        """Let :meth:`wait` return. From any thread."""
        os.eventfd_write(self._quit, 1)

    def close(self) -> None:
        """Hang up, drain and close everything.

        What guests did not flush is left to the kernel. Idempotent.
        """
        self._undo.close()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What can be asked of it

    def info(self) -> TargetInfo:
        """What it is now."""
        self._luns.reap()
        return TargetInfo(
            ringway=ringway.__version__,
            pid=os.getpid(),
            device=self.config.device,
            socket=self._socket_path,
            io_engine=self._core.engine,
            poll=self.config.poll,
            queues=self.config.queues,
            workers=self.config.workers,
            wwpn=self._wwpn,
            connected=self._server.peer is not None,
            luns=tuple(lun.info() for lun in self._luns),
            sandbox=self.sandbox.info(),
        )

    def statistics(self) -> TargetStatistics:
        """Counters since the start."""
        return statistics.collect(self._core.statistics(), time.monotonic() - self._started_s)

    def add_lun(self, spec: LunSpec, fd: int | None = None) -> LunInfo:
        """Open a backstore and show it to the guest. :raises RingwayError: as ``LunTable.add``."""
        info = self._luns.add(spec, fd=fd)
        self._device.luns_changed()
        return info

    def remove_lun(self, target: int, lun: int) -> None:
        """Take a LUN away from the guest and close it. :raises RingwayError: as ``LunTable.remove``."""
        try:
            self._luns.remove(target, lun)
        finally:
            self._device.luns_changed()

    def resize_lun(
        self, target: int, lun: int, *, size_bytes: int | None = None, fd: int | None = None
    ) -> LunInfo:
        """Look at a LUN's size again and tell the guest. :raises RingwayError: as ``LunTable.resize``."""
        info = self._luns.resize(target, lun, size_bytes=size_bytes, fd=fd)
        if self.config.device is DeviceKind.BLK:
            self._server.config_changed()
        return info

    def limit_lun(self, target: int, lun: int, limits: Limits) -> LunInfo:
        """Limit what guests may do to a LUN, from now on. :raises NotFoundError: no such LUN."""
        return self._luns.limit(target, lun, limits)

    def drain(self, timeout_s: float) -> bool:
        """Wait for what is in flight now. :returns: whether it finished in time."""
        return self._core.drain(timeout_s=timeout_s)

    # Inside

    def _take_over(self, spec: LunSpec) -> Backstore:
        """Open a disk that a predecessor may have died with.

        What it had in flight in the kernel goes on without it, and keeps the disk's locks until it has ended.
        Only then may anything be run again: a late write would undo a newer one, and a late read would change
        memory that the guest uses for something else.

        :raises BusyError: somebody has it, or such a request does not end. :raises RingwayError: as
            ``open_backstore``.
        """
        deadline, told = time.monotonic() + LATE_IO_S, False
        while True:
            try:
                return open_backstore(spec.backstore, claim=not self.config.incoming)
            except BusyError as error:
                if error.holder is not None or time.monotonic() > deadline:
                    raise
                if not told:
                    _log.warning("waiting for '%s': no process has it, I/O of a dead one may", spec.backstore)
                told = True
            time.sleep(_RETRY_S)

    def _make_face(self) -> Face:
        if self._wwpn is None:
            return BlkDevice(self._core, self.config.queues, broken=self._ring_failed)
        return ScsiDevice(
            self._core,
            self._wwpn,
            incoming=self.config.incoming,
            broken=self._ring_failed,
            failed=self._slow_path_failed,
        )

    def _handle_control(self, request: ControlRequest, fd: int | None) -> msgspec.Struct:
        match request:
            case InfoRequest() | StatisticsRequest():
                return self._look(request)
            case TraceStartRequest() | TraceFetchRequest() | TraceStopRequest():
                return self._trace(request)
            case LunAddRequest() | LunResizeRequest() | LunLimitRequest():
                return self._change_lun(request, fd)
            case LunRemoveRequest():
                self.remove_lun(request.target, request.lun)
            case DrainRequest():
                return Done(self.drain(request.timeout_s))
            case QuitRequest():
                self.quit()
            case _:
                raise ControlError("this verb is not served")
        return Done()

    def _change_lun(
        self, request: LunAddRequest | LunResizeRequest | LunLimitRequest, fd: int | None
    ) -> LunInfo:
        match request:
            case LunAddRequest():
                return self.add_lun(request.spec, fd)
            case LunResizeRequest():
                return self.resize_lun(request.target, request.lun, size_bytes=request.size_bytes, fd=fd)
            case LunLimitRequest():
                return self.limit_lun(request.target, request.lun, request.limits)

    def _look(self, request: InfoRequest | StatisticsRequest) -> msgspec.Struct:
        match request:
            case InfoRequest():
                return self.info()
            case StatisticsRequest():
                return self.statistics()

    def _trace(self, request: TraceStartRequest | TraceFetchRequest | TraceStopRequest) -> msgspec.Struct:
        match request:
            case TraceStartRequest():
                self._tracing.start(request, self._luns)
            case TraceFetchRequest():
                return self._tracing.fetch(request.most)
            case TraceStopRequest():
                self._tracing.stop()
        return Done()

    def _ring_failed(self, index: int, message: str) -> None:
        self._server.ring_broken(index, message)

    def _run_slow_path(self) -> None:
        """Decide on what workers cannot. It ends after the server, whose rings drain through it."""
        try:
            while not self._slow_stopped.is_set():
                if self._core.wait_command():
                    self._face.serve_waiting()
        except BaseException as error:  # a panic of the core is no Exception
            self._slow_path_failed(error)

    def _slow_path_failed(self, error: BaseException) -> None:
        """A target whose slow path fails cannot serve: it says so and ends, to be started anew."""
        _log.critical("the slow path failed: the target ends", exc_info=error)
        self._failed = True
        if not self._slow_stopped.is_set():  # the event is closed soon after that
            self.quit()

    def _stop_slow_path(self) -> None:
        """Wait for the requests that still use a disk, but not for ever: it may not answer any more."""
        self._slow_stopped.set()
        deadline = time.monotonic() + SLOW_STOP_S
        while self._slow.is_alive() and time.monotonic() < deadline:
            self._core.wake()
            self._slow.join(0.05)
        self._settled = not self._slow.is_alive() and all(
            wait(timeout_s=max(deadline - time.monotonic(), 0.0))
            for wait in (self._face.settled, self._core.drain)
        )

    def _open_disks(self) -> None:
        """With all rights of who started this: what is wrong with the input is found out here."""
        for spec in self.config.luns:
            if self.config.device is DeviceKind.BLK:
                serial_bytes(spec.backstore.serial or "")
            self._unserved.append(self._take_over(spec))

    def _close_unserved(self) -> None:
        """Those that were opened before the target failed to be made."""
        for backstore in self._unserved:
            backstore.close()

    def _close_luns(self) -> None:
        """Claims are kept for this process's life if a request may still write."""
        if self._settled:
            self._luns.close()
        else:
            _log.error("a request does not end: the disks are kept until this process ends")

    def _watch_server(self) -> None:
        """A server that ends by itself ends the target."""
        self._server.wait()
        self.quit()


def make_core(config: TargetConfig) -> _core.Device:
    """Start the workers.

    :raises ConflictError: the host does not allow them. :raises UsageError: a number.
    """
    extra = (ScsiDevice if config.device is DeviceKind.SCSI else BlkDevice).extra_queues
    try:
        return _core.Device(
            config.device.value,
            queues=config.queues + extra,
            workers=config.workers,
            cpus=config.cpus,
            poll=config.poll.value,
            engine=config.io_engine.value,
        )
    except OSError as error:
        hint = (
            "take --io-engine epoll, or allow io_uring with: sysctl kernel.io_uring_disabled=0"
            if config.io_engine is IoEngine.URING
            else "look at the limits of this user (ulimit -a), and at --cpus"
        )
        raise ConflictError(f"the I/O threads cannot be started: {error}", hint=hint) from error
    except ValueError as error:
        raise UsageError(str(error), hint="see ringway serve --help for the ranges") from error


def wwpn_of(config: TargetConfig) -> str:
    """The endpoint's name: the given one, else one that follows from its first disk's serial number.

    It says nothing of the host or the socket, so a guest that moves keeps it.

    :raises UsageError: the given one is none.
    """
    if config.wwpn is not None:
        parse_wwpn(config.wwpn)
        return config.wwpn
    first = min(config.luns, key=lambda spec: (spec.target, spec.lun), default=None)
    what = "" if first is None else serial_of(first.backstore, first.target, first.lun)
    return "naa.3" + sha256(f"wwpn:{what}".encode()).hex()[:15]
