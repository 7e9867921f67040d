"""What is known of a running endpoint, in a file beside its socket: who serves it, and what."""

from __future__ import annotations

import os
from typing import Final

import msgspec
from msgspec import Struct

from ringway.engine import files
from ringway.engine.user.processes import Identity
from ringway.errors import UsageError
from ringway.model import EndpointSpec

VERSION: Final = 1
SUFFIX: Final = ".json"
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
    """:returns: ``None``: there is none, or none of this endpoint that this version understands."""
    try:
        record = _DECODER.decode(files.read(path))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UsageError):
        return None
    is_its = os.path.basename(path) == record.spec.name + SUFFIX
    return record if record.version == VERSION and is_its else None


def write(path: str, record: Record) -> None:
    """Whole or not at all; one at a time writes an endpoint's. It need not survive the host: the process does
    not.

    :raises OSError: no room, or no right.
    """
    files.write(path, msgspec.json.encode(record), partial=path + UNFINISHED, mode=0o640)
