"""Two guests on a host: front ends that write and read one endpoint of each engine until SIGTERM.

A program for the guest that plays the host: ``guests.py SOCKET WWPN``. It makes ``/run/attached`` when both
are served, and ends with status 0 if not one command failed.
"""

from __future__ import annotations

import signal
import struct
import sys
import time
from pathlib import Path
from typing import Final

from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.vhost_scsi import VhostScsiFrontEnd

ATTACHED: Final = Path("/run/attached")
BLOCK: Final = 512
PAUSE_S: Final = 0.5


def _command(operation: int, lba: int) -> bytes:
    """READ (10) or WRITE (10) of one block."""
    return struct.pack(">BBIBHB", operation, 0, lba, 0, 1, 0)


def settle(guest: ScsiFrontEnd) -> None:
    """Hear the unit attentions of who comes anew. :raises RuntimeError: there is no end of them."""
    for _ in range(8):
        if guest.command(bytes(6)).status == 0:
            return
    raise RuntimeError("it is not ready")


def work(guest: ScsiFrontEnd, number: int) -> None:
    """Write a block and read it. :raises RuntimeError: a command failed, or something else was read."""
    lba, data = number % 1024, struct.pack(">Q", number) * (BLOCK // 8)
    wrote = guest.command(_command(0x2A, lba), data_out=data)
    answer = guest.command(_command(0x28, lba), data_in=BLOCK)
    if (wrote.status, answer.status, answer.data) != (0, 0, data):
        raise RuntimeError(f"round {number}: {wrote}, {answer}")


def main(socket: str, wwpn: str) -> None:
    """Work on both until told to end."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    with ScsiFrontEnd(socket).open() as one, VhostScsiFrontEnd(wwpn, tag=0).open() as other:
        for guest in (one, other):
            settle(guest)
        ATTACHED.touch()
        number = 0
        while not told:
            number += 1
            for guest in (one, other):
                work(guest, number)
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
