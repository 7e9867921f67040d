"""What the kernel's target said lately: the reason that an errno does not tell."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Final

#: ``PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT``; lines that begin with a space belong to the one before.
_RECORD: Final = re.compile(r"^(\d+),\d+,(\d+),[^;]*;(.*)$", re.MULTILINE)
_ERROR: Final = 3
_SLACK_US: Final = 50_000  #: the log's clock is not quite ours
_MOST_LINES: Final = 3
_CHUNK: Final = 8192


def parse_records(text: str, since_us: int) -> list[str]:
    """:returns: texts of errors and worse, of the kernel itself, that are not older than ``since_us``."""
    return [
        said.strip()
        for priority, when, said in _RECORD.findall(text)
        if int(priority) <= _ERROR and int(when) >= since_us
    ]


def said_since(path: Path, begin_ns: int) -> str:
    """The kernel's last errors, oldest first, joined by semicolons.

    :param begin_ns: on the monotonic clock.
    :returns: the empty string when it said nothing, or when its log may not be read.
    """
    since_us = begin_ns // 1000 - _SLACK_US
    return "; ".join(dict.fromkeys(parse_records(_whole(path), since_us)[-_MOST_LINES:]))


def now_ns() -> int:
    """The clock of :func:`said_since`."""
    return time.monotonic_ns()


def _whole(path: Path) -> str:
    """All records that are still there; reading never waits."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return "".join(_chunks(fd))
    finally:
        os.close(fd)


def _chunks(fd: int) -> list[str]:
    chunks: list[str] = []
    while True:
        try:
            chunk = os.read(fd, _CHUNK)
        except BrokenPipeError:  # records were overwritten while we read; the next ones are there
            continue
        except OSError:  # EAGAIN: the end
            return chunks
        if not chunk:
            return chunks
        chunks.append(chunk.decode(errors="replace"))
