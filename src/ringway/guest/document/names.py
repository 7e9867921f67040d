"""Names of disks: ``sda`` to ``sdz``, ``sdaa`` and on, as libvirt and Linux count them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

from ringway.guest.document.facts import each_device
from ringway.guest.document.tree import Element

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def disk_name(prefix: str, index: int) -> str:
    """``("sd", 0)`` is ``sda``, ``("sd", 26)`` is ``sdaa``."""
    letters = ""
    while index >= 0:
        index, letter = divmod(index, 26)
        letters = _LETTERS[letter] + letters
        index -= 1
    return prefix + letters


def disk_index(name: str) -> int | None:
    """The reverse, for the prefixes that libvirt knows; ``None`` for other names."""
    match = re.fullmatch(r"(?:fd|hd|vd|sd|xvd|ubd)([a-z]{1,4})[0-9]*", name)
    if match is None:
        return None
    index = 0
    for letter in match[1]:
        index = index * 26 + _LETTERS.index(letter) + 1
    return index - 1


def target_names(root: Element) -> Iterator[str]:
    """The names of all disks."""
    for disk in each_device(root, "disk"):
        target = disk.find("target")
        if target is not None:
            yield target.get("dev", "")


def free_name(root: Element, prefix: str) -> str:
    """The first name that no disk has."""
    taken = set(target_names(root))
    return next(name for index in count() if (name := disk_name(prefix, index)) not in taken)
