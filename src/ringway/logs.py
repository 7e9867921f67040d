"""Logs on stderr: one JSON object a line for machines, plain lines on a terminal.

Who logs never waits for who reads: lines go through a queue, and are dropped and counted when it is full.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

EVENT: Final = logging.getLogger("ringway.event")
MAX_FILE: Final = 1 << 20  #: bytes of a log that is a file
MAX_WAITING: Final = 1000  #: lines that wait for a slow reader
_FLUSH_S: Final = 1.0  #: how long the process's end waits for one

_HandlerT = TypeVar("_HandlerT", bound=logging.Handler)


def log_event(event: str, message: str, **fields: Any) -> None:
    """Log something that a program may wait for; ``fields`` become members of the JSON object."""
    EVENT.info(message, extra={"fields": {"event": event, **fields}})


def log_as_json() -> QueuedHandler:
    """One object a line: ``time``, ``level``, ``logger``, ``message``, and an event's own fields.

    :returns: the handler. Until it is started lines wait, and there is no thread.
    """
    fd = sys.stderr.fileno()
    handler = QueuedHandler(lambda line: write_line(fd, line))
    handler.setFormatter(_JsonFormatter())
    return _install(handler)


def log_directly() -> None:
    """As :func:`log_as_json`, where stderr is a file: a line is written at once, whoever dies next.

    A file that has grown to ``MAX_FILE`` is begun anew: a guest that comes and goes for ever fills no disk.
    """
    handler = _DirectHandler()
    handler.setFormatter(_JsonFormatter())
    _install(handler)


def log_as_text(write: Callable[[str], None]) -> QueuedHandler:
    """Lines for a person, given to ``write`` (which knows how to keep a live display below them).

    Events are left out: a person is shown the same in other words.

    :returns: as :func:`log_as_json`.
    """
    handler = QueuedHandler(write)
    handler.addFilter(lambda record: record.name != EVENT.name)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s", "%H:%M:%S"))
    return _install(handler)


def _install(handler: _HandlerT) -> _HandlerT:
    root = logging.getLogger("ringway")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
    return handler


class _DirectHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        fd = sys.stderr.fileno()
        with contextlib.suppress(OSError):  # no room
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_size >= MAX_FILE:
                os.ftruncate(fd, 0)
            write_line(fd, self.format(record))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class QueuedHandler(logging.Handler):
    """Hands lines to ``write`` on a thread of its own, which alone waits for a reader, from :meth:`start`
    on.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def start(self) -> None:
        """Write what was queued and what will be. Idempotent."""
        if self._thread.ident is None:
            self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, or count it as dropped. Does not block."""
        line = self.format(record)
        with self._changed:
            if len(self._lines) < MAX_WAITING:
                self._lines.append(line)
            else:
                self._dropped += 1
            if len(self._lines) == 1:  # else the thread is awake
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, but not long: ``logging`` calls this at the process's end."""
        if self._lines:
            self.start()
        with self._changed:
            self._changed.wait_for(lambda: not self._lines, _FLUSH_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                lines = tuple(self._lines)
            for line in lines:
                with contextlib.suppress(Exception):  # nobody reads any more; others are still to be counted
                    self._write(line)
            with self._changed:
                for _ in lines:
                    self._lines.popleft()
                self._tell_dropped()
                self._changed.notify_all()

    def _tell_dropped(self) -> None:
        """Behind what was queued before, now that there is room."""
        if self._dropped:
            message = f"{self._dropped} lines of log were dropped: nobody read them in time"
            self._dropped = 0
            record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (), None)
            self._lines.append(self.format(record))


def write_line(fd: int, line: str) -> None:
    """Write a line, however long the reader takes. :raises OSError: it left.

    Past ``sys.stderr``, whose lock a stuck reader would make the interpreter's end wait for.
    """
    rest = memoryview(f"{line}\n".encode(errors="backslashreplace"))
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # who started us shares the pipe, and made it so
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()
