"""Image formats that people mistake for raw images: served as bytes, a guest would destroy them."""

from __future__ import annotations

from typing import Final

#: Bytes that are enough to tell.
HEAD_BYTES: Final = 8
_MAGIC: Final = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"<<< ": "vdi",
}


def format_of(head: bytes) -> str | None:
    """:returns: the format's name; ``None`` for what may be raw."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
