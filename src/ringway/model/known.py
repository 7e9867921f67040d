"""Let msgspec know all of these classes before any of them is decoded.

It learns what a class is made of when it first decodes one, and crashes when two threads make it do so at
once (msgspec 0.22). An import is one thread's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ringway.model import endpoint, guest, mapping, port, sandbox, statistics, target


def structs() -> Iterator[type[msgspec.Struct]]:
    """Yield every class of the model."""
    for module in (statistics, target, sandbox, endpoint, guest, port, mapping):
        yield from (kind for kind in vars(module).values() if _is_struct(kind))


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct


for _kind in structs():
    msgspec.json.Decoder(_kind)
