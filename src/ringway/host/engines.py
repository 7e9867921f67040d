"""The engines that a configuration names."""

from __future__ import annotations

from ringway.engine.base import Driver
from ringway.host.config import Config
from ringway.host.places import Places
from ringway.model import EngineKind


def open_engines(config: Config, places: Places) -> dict[EngineKind, Driver]:
    """Make the drivers. What this host lacks for one, its ``probe`` says."""
    return {}
