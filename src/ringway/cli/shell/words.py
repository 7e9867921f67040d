"""A line of the shell: where, which command, and its words. No I/O."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from typing import Final

from ringway.errors import UsageError

_ASSIGNMENT: Final = re.compile(r"([a-z][a-z-]*)=(.*)", re.DOTALL)


def split(line: str) -> list[str]:
    """Split a line as a shell does; what follows a # is a remark. :raises UsageError: a quote has no end."""
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise UsageError(f"this line is not understood: {error}", hint="close the quotes") from error


def is_path(word: str) -> bool:
    """Whether a first word says where, not what: ``/endpoints``, ``..``, ``./db0``."""
    return word.startswith("/") or word in (".", "..") or word.startswith(("./", "../"))


def resolve(path: str, here: Sequence[str]) -> tuple[str, ...]:
    """Where a path leads from ``here``. Above the root is the root."""
    found = [] if path.startswith("/") else list(here)
    for part in path.split("/"):
        if part == "..":
            del found[-1:]
        elif part not in ("", "."):
            found.append(part)
    return tuple(found)


def spell(path: Sequence[str]) -> str:
    """A path as it is typed."""
    return f"/{'/'.join(path)}"


def to_options(words: Sequence[str], known: Collection[str]) -> list[str]:
    """Turn ``key=value`` into ``--key=value`` where that is an option; all else stays as it is.

    :param known: the command's options, with their dashes. A switch (``force=true``) is not meant.
    """
    return [_option(word, known) for word in words]


def _option(word: str, known: Collection[str]) -> str:
    match = _ASSIGNMENT.fullmatch(word)
    return f"--{word}" if match and f"--{match[1]}" in known else word
