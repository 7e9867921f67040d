"""Logs on stderr: one JSON object a line for machines, plain lines on a terminal."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

EVENT: Final = logging.getLogger("ringway.event")


def log_event(event: str, message: str, **fields: Any) -> None:
    """Log something that a program may wait for; ``fields`` become members of the JSON object."""
    EVENT.info(message, extra={"fields": {"event": event, **fields}})


def log_as_json() -> None:
    """One object a line: ``time``, ``level``, ``logger``, ``message``, and an event's own fields."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    _install(handler)


def log_as_text(write: Callable[[str], None]) -> None:
    """Lines for a person, given to ``write`` (which knows how to keep a live display below them).

    Events are left out: a person is shown the same in other words.
    """
    handler = _CallHandler(write)
    handler.addFilter(lambda record: record.name != EVENT.name)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s", "%H:%M:%S"))
    _install(handler)


def _install(handler: logging.Handler) -> None:
    root = logging.getLogger("ringway")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False


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


class _CallHandler(logging.Handler):
    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record))
