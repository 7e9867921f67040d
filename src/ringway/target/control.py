"""The control socket of a target: one JSON line asks, one JSON line answers.

    {"version": 1, "verb": "statistics"}
    {"version": 1, "ok": {"uptime_s": 12.5, "luns": [...], ...}}
    {"version": 1, "error": {"code": "control", "message": "...", "hint": null}}

A file descriptor may ride with a request (SCM_RIGHTS). The socket belongs to who started the target (mode
0600). Clients share nothing with the data path but the target's own methods: one that is slow, silent or
hostile costs a thread of at most ``MAX_CLIENTS``, and only until its time is up.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, get_args

import msgspec

from ringway.control import ControlChannel
from ringway.errors import ControlError, RingwayError
from ringway.model import (
    CONTROL_VERSION,
    ControlEnvelope,
    ControlRequest,
    ErrorRecord,
    InfoRequest,
    LunAddRequest,
    LunInfo,
    LunLimitRequest,
    LunRemoveRequest,
    LunResizeRequest,
    LunSpec,
    StatisticsRequest,
    TraceFetchRequest,
)
from ringway.model.validation import reason
from ringway.target.backstore import open_file, serial_of
from ringway.target.listen import Listener, peer_process
from ringway.vhost_user.throttle import Throttle

_log: Final = logging.getLogger(__name__)

MAX_LINE: Final = 64 * 1024
MAX_CLIENTS: Final = 8
MAX_FDS: Final = 1
_PAUSE_S: Final = 0.1  #: rest after accept failed (no fds left, say): it would fail again at once
PATIENCE_S: Final = 10.0  #: how long a client may take to say a line or to hear one
_LOOKS: Final = (InfoRequest, StatisticsRequest, TraceFetchRequest)  #: change nothing
_ENVELOPE: Final = msgspec.json.Decoder(ControlEnvelope)
_VERBS: Final = [kind.__struct_config__.tag for kind in get_args(ControlRequest)]
_VERBS_HINT: Final = f"this target knows {', '.join(map(str, _VERBS[:-1]))} and {_VERBS[-1]}"
_REQUEST: Final[msgspec.json.Decoder[ControlRequest]] = msgspec.json.Decoder(ControlRequest)

Handler = Callable[[ControlRequest, int | None], msgspec.Struct]


class ControlServer:
    """Answers on a control socket until :meth:`close`.

    :param handler: called with a request and the fd that came along (closed afterwards), on a thread of its
        connection; it returns the answer or raises a RingwayError.
    :param client_gone: called on that same thread when the connection has ended, however it did.
    """

    def __init__(
        self, listener: Listener, handler: Handler, client_gone: Callable[[], None] = lambda: None
    ) -> None:
        self._listener = listener
        self._handler = handler
        self._client_gone = client_gone
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._closing = threading.Event()
        self._throttle = Throttle(_log)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer what was asked before this, hang up, and remove the socket. Idempotent."""
        self._closing.set()
        self._listener.remove_path()
        with contextlib.suppress(OSError):
            self._listener.socket.shutdown(socket.SHUT_RD)
        self._listener.close()
        self._thread.join()
        with self._lock:
            clients = dict(self._clients)
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RD)
        for thread in clients.values():
            thread.join(PATIENCE_S)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.socket.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                self._throttle.log(logging.WARNING, "a control client could not be accepted: %s", error)
                self._closing.wait(_PAUSE_S)
            else:
                self._begin(client)

    def _begin(self, client: socket.socket) -> None:
        """Give a client a thread, if there is one to give."""
        thread = threading.Thread(target=self._serve, args=(client,), name="control-client", daemon=True)
        with self._lock:
            room = len(self._clients) < MAX_CLIENTS
            if room:
                self._clients[client] = thread
        if not room:
            client.close()
            return
        try:
            thread.start()
        except RuntimeError as error:  # the process may have no more threads
            self._throttle.log(logging.WARNING, "a control client was dropped: %s", error)
            self._drop(client)

    def _serve(self, client: socket.socket) -> None:
        """Answer one client's requests until it hangs up, breaks the rules or takes too long."""
        try:
            lines = _LineReader(client)
            while (line := lines.read()) is not None:
                with lines.take_fds() as fds:
                    answer = self._answer(client, line, fds)
                client.settimeout(PATIENCE_S)
                client.sendall(answer)
        except OSError as error:
            _log.info("a control client was dropped: %s", error)
        finally:
            self._client_gone()
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        with self._lock:
            del self._clients[client]
        client.close()

    def _answer(self, client: socket.socket, line: bytes, fds: Sequence[int]) -> bytes:
        try:
            request = decode_request(line)
            if not isinstance(request, _LOOKS):
                _log.info("control: %s from pid %d", _words(request), peer_process(client))
            return _line(ok=self._handler(request, fds[0] if fds else None))
        except RingwayError as error:
            return _line(error=ErrorRecord(error.code, error.message, error.hint))
        except Exception as error:  # a fault of ours must not silence the socket
            _log.exception("a control request failed")
            return _line(error=ErrorRecord("failed", f"internal error: {error}"))


def _words(request: ControlRequest) -> str:
    """A request for the log: its verb, and the LUN that it is about."""
    verb = str(request.__struct_config__.tag)
    match request:
        case LunAddRequest():
            return f"{verb} {request.spec.target}:{request.spec.lun} ({request.spec.backstore})"
        case LunRemoveRequest() | LunResizeRequest() | LunLimitRequest():
            return f"{verb} {request.target}:{request.lun}"
    return verb


def decode_request(line: bytes) -> ControlRequest:
    """Read a request. :raises ControlError: it is none that this version knows; the message says why."""
    try:
        envelope = _ENVELOPE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ControlError(
            f"not a control request: {reason(error)}", hint='send {"version":1,"verb":"info"}'
        ) from error
    if envelope.version != CONTROL_VERSION:
        raise ControlError(
            f"control version {envelope.version} is not spoken here", hint=f"use version {CONTROL_VERSION}"
        )
    try:
        return _REQUEST.decode(line)
    except msgspec.ValidationError as error:
        problem = f"the verb '{envelope.verb}' is not known" if "$.verb" in str(error) else reason(error)
        raise ControlError(problem, hint=_VERBS_HINT) from error


class ControlClient(ControlChannel):
    """Asks a target, and opens files for it. Use it in a ``with`` statement.

    :raises UnreachableError: nobody listens on the path, or it may not be used.
    """

    def add_lun(self, spec: LunSpec) -> LunInfo:
        """Open a disk with the rights of this process, and let the target serve it: it opens no files itself.

        :raises RingwayError: as ``open_backstore``, or as :meth:`call`.
        """
        disk = spec.backstore
        if disk.path is None:
            return self.call(LunAddRequest(spec), LunInfo)
        fd = open_file(disk)
        try:
            return self.call(LunAddRequest(_as_seen_here(spec)), LunInfo, fd=fd)
        finally:
            os.close(fd)


def _as_seen_here(spec: LunSpec) -> LunSpec:
    """The target may run in another directory, and cannot follow links."""
    disk = spec.backstore
    assert disk.path is not None
    serial = serial_of(disk, spec.target, spec.lun)
    here = msgspec.structs.replace(disk, path=os.path.abspath(disk.path), serial=serial)
    return msgspec.structs.replace(spec, backstore=here)


class _LineReader:
    """Takes lines, and the fds that come with them, from a client that is not trusted."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._buffer = b""
        self._fds: list[int] = []

    def read(self) -> bytes | None:
        """:returns: a line; ``None`` when the client hung up. :raises OSError: too long, or too slow."""
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE:
                raise OSError("a line without an end")
            self._client.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                more = self._receive()
            except BaseException:
                self._close_fds()
                raise
            if not more:
                self._close_fds()
                return None
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    @contextlib.contextmanager
    def take_fds(self) -> Any:
        """The fds that came so far; closed on leaving."""
        try:
            yield tuple(self._fds)
        finally:
            self._close_fds()

    def _receive(self) -> bytes:
        size = array.array("i").itemsize * MAX_FDS
        data, ancillary, _, _ = self._client.recvmsg(4096, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                self._keep(numbers)
        return data

    def _keep(self, numbers: Sequence[int]) -> None:
        """Of all fds that a client sends with one line, the first counts; the rest are closed at once."""
        for number in numbers:
            if len(self._fds) < MAX_FDS:
                self._fds.append(number)
            else:
                os.close(number)

    def _close_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def _line(**field: msgspec.Struct) -> bytes:
    return msgspec.json.encode({"version": CONTROL_VERSION, **field}) + b"\n"
