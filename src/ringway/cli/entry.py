"""Where the programs begin. Until their modules are read, Ctrl-C ends them without a word.

Python would show a traceback, or lose the signal in a callback of its import system.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


def ringway() -> NoReturn:
    """The program ``ringway``.

    Garbage is not collected until a command has been read: imports leave none, and looking costs a tenth of
    what a short command takes.
    """
    gc.disable()
    with _quiet():
        from ringway.cli.main import main
    main()


def daemon() -> NoReturn:
    """The program ``ringwayd``."""
    with _quiet():
        from ringway.cli import daemon as program
    program.main()


def scsi() -> NoReturn:
    """The program ``ringway-vhost-user-scsi``."""
    with _quiet():
        from ringway.cli import program
    program.scsi()


def blk() -> NoReturn:
    """The program ``ringway-vhost-user-blk``."""
    with _quiet():
        from ringway.cli import program
    program.blk()


@contextmanager
def _quiet() -> Iterator[None]:
    """Let SIGINT kill this process in the block, unless it is ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
