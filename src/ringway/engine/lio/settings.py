"""Where the kernel shows its target, and where the engine keeps what it made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Places of this host.

    :param configfs: the kernel target's folder.
    :param sysfs: where modules and devices are described.
    :param runtime: a folder that a reboot empties; what the engine made is noted in ``runtime/lio``.
    :param kmsg: the kernel's log.
    :param modprobe: the command that loads a module, without its name.
    """

    configfs: Path = Path("/sys/kernel/config/target")
    sysfs: Path = Path("/sys")
    runtime: Path = Path("/run/ringway")
    kmsg: Path = Path("/dev/kmsg")
    modprobe: tuple[str, ...] = ("modprobe",)
