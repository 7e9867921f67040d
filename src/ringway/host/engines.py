"""The engines that a configuration names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ringway.engine.base import Driver
from ringway.host.config import Config
from ringway.host.places import Places
from ringway.model import EngineKind

_GROUP: Final = "kvm"  #: in which libvirt's QEMU is


def open_engines(config: Config, places: Places) -> dict[EngineKind, Driver]:
    """Make the drivers. What this host lacks for one, its ``probe`` says."""
    found: dict[EngineKind, Driver] = {}
    if config.user.enabled:
        found[EngineKind.USER] = _user(config, places)
    if _runs_lio(config, places):
        found[EngineKind.LIO] = _lio(config, places)
    return found


def open_guards(config: Config, places: Places) -> tuple[Driver, ...]:
    """Make drivers of engines that are not run: the kernel serves disks, whichever daemon asks it to."""
    return () if _runs_lio(config, places) else (_lio(config, places),)


def _runs_lio(config: Config, places: Places) -> bool:
    """Unless it is said: whether the daemon has the host, and not a folder."""
    is_said = config.lio.enabled
    return os.geteuid() == 0 and not places.private if is_said is None else is_said


def _user(config: Config, places: Places) -> Driver:
    from ringway.engine.user import UserDriver

    usual = None if places.private else _GROUP
    return UserDriver(places.run, group=config.user.group or usual, user=config.user.user or None)


def _lio(config: Config, places: Places) -> Driver:
    from ringway.engine.lio import LioDriver, Settings

    settings = Settings(Path(config.lio.configfs), Path(config.lio.sysfs), places.run, Path(config.lio.kmsg))
    return LioDriver(settings)
