"""The switches that a host's ports can be of, opened once."""

from __future__ import annotations

import logging
from typing import Final

from ringway.errors import NotFoundError, RingwayError
from ringway.host.config import NetConfig
from ringway.host.places import Places
from ringway.net import drivers
from ringway.net.account import Account
from ringway.net.base import Settings, Switch

_log: Final = logging.getLogger(__name__)


def open_switches(config: NetConfig, places: Places) -> dict[str, Switch]:
    """Make the drivers. One that cannot be made is logged, and the others are there all the same."""
    found: dict[str, Switch] = {}
    for name in drivers.names():
        settings = Settings(
            folder=places.run / "port", account=_account(config, places), options=config.switch.get(name, {})
        )
        try:
            found[name] = drivers.open_switch(name, settings)
        except RingwayError as error:
            _log.warning("switch '%s' is left out: %s", name, error)
    return found


def _account(config: NetConfig, places: Places) -> Account | None:
    """Who QEMU runs as; where there is no such user, it is us."""
    if places.private:
        return None
    try:
        return Account.named(config.qemu_user)
    except NotFoundError:
        return None
