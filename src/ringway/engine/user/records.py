"""What is known of a running endpoint, in a file beside its socket: who serves it, and what."""

from __future__ import annotations

import contextlib
import os
from typing import Final

import msgspec
from msgspec import Struct

from ringway.engine.user.processes import Identity
from ringway.model import EndpointSpec

VERSION: Final = 1
UNFINISHED: Final = ".new"  #: behind a record's name: who wrote it was killed


class Record(Struct, frozen=True, kw_only=True):
    """Written by the target before it listens, and by its driver with each change.

    ``pending`` is what a change under way leads to: who finds it does not know how far that came.
    """

    process: Identity
    spec: EndpointSpec
    pending: EndpointSpec | None = None
    version: int = VERSION


_DECODER: Final = msgspec.json.Decoder(Record)


def read(path: str) -> Record | None:
    """:returns: ``None``: there is none, or none that this version understands."""
    try:
        with open(path, "rb") as file:
            record = _DECODER.decode(file.read())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return record if record.version == VERSION else None


def write(path: str, record: Record) -> None:
    """Whole or not at all; one at a time writes an endpoint's. It need not survive the host: the process does
    not.

    :raises OSError: no room, or no right.
    """
    new = path + UNFINISHED
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            rest = msgspec.json.encode(record)
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)
        os.rename(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
