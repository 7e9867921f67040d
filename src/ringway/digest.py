"""SHA-256 for names, without OpenSSL.

``hashlib`` loads OpenSSL's libcrypto: 4 MiB for each process, where a few names are all that is wanted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

#: Python's own: since 3.12, until 3.11; a Python may be built without.
_MODULES: Final = ("_sha2", "_sha256", "hashlib")


def sha256(data: bytes) -> bytes:
    """:returns: the digest, 32 bytes."""
    digest: bytes = _sha256(data).digest()
    return digest


def _find() -> Callable[[bytes], Any]:
    for name in _MODULES:
        try:
            found: Callable[[bytes], Any] = importlib.import_module(name).sha256
        except ImportError:
            continue
        return found
    raise ImportError("this Python has no SHA-256")


_sha256: Final = _find()
