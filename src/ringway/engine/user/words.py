"""The last words of a target: what its log says since its start that is more than information."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from ringway.engine.files import open_regular

STARTING: Final = "starting"  #: the event of a start
_TAIL: Final = 1 << 14
_MOST: Final = 4
_MAX_LENGTH: Final = 600
_WORTH_IT: Final = ("warning", "error", "critical")


def last_words(path: str) -> str | None:
    """:returns: the last few lines in one, or ``None``: it said nothing, or there is no log."""
    said = list(_since_start(_tail(path)))[-_MOST:]
    return "; ".join(said)[-_MAX_LENGTH:] or None


def _tail(path: str) -> list[str]:
    try:
        with open(open_regular(path), "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, 0))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _since_start(lines: list[str]) -> Iterator[str]:
    entries = [_entry(line) for line in lines]
    starts = [number for number, entry in enumerate(entries) if entry.get("event") == STARTING]
    for entry in entries[starts[-1] + 1 :] if starts else entries:
        if entry.get("level") in _WORTH_IT and (text := _text(entry)):
            yield text


def _entry(line: str) -> dict[str, Any]:
    """A line; what is no JSON is nothing that a target would say in peace."""
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.MsgspecError, RecursionError):
        entry = None
    return entry if isinstance(entry, dict) else {"level": "critical", "message": line}


def _text(entry: dict[str, Any]) -> str:
    """The message, and of a traceback the last line."""
    exception = str(entry.get("exception", "")).strip().splitlines()[-1:]
    return ": ".join([str(entry.get("message", "")).strip(), *exception])
