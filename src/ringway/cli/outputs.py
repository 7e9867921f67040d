"""Files that a command writes at its end."""

from __future__ import annotations

import os
from pathlib import Path

from ringway.errors import UsageError


def check_writable(file: Path) -> None:
    """Look whether a result can be kept, before it takes minutes. Nothing is made or changed.

    :raises UsageError: it cannot.
    """
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        reason = "may not be written" if file.parent.is_dir() else f"'{file.parent}' is not a directory"
        raise UsageError(f"cannot write {file}: {reason}", hint="name a file in a directory of your own")
