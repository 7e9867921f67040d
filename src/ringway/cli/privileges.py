"""The options about a target's privileges, for each command that serves, and what is said of the outcome."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Final

import click

_log: Final = logging.getLogger(__name__)


#: ``--sandbox`` and ``--user``.
OPTIONS: Final = (
    click.option(
        "--sandbox",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="Give up all privileges before serving: those that this host lets go of, all or fail, or none.",
    ),
    click.option(
        "--user",
        metavar="NAME",
        help="As root: serve as this user (name or number).  [default: a number that nobody else has]",
    ),
)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def announce(mode: str, missing: Sequence[str]) -> None:
    """Say what is wrong with a target's confinement; nothing when it is whole."""
    if mode == "off":
        _log.warning(
            "THE SANDBOX IS OFF: a guest that breaks this target has all rights of who started it. "
            "Leave out --sandbox off"
        )
    elif os.geteuid() == 0:
        _log.warning("serving as root, as --user says: leave it out for a user that nothing else is")
    for each in missing:
        _log.warning("the sandbox is not whole: this host does not offer %s (see ringway doctor)", each)
