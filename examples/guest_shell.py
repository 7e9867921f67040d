"""Boot a Linux guest on a target that runs, and run commands in it.

    ringway serve --create 1G disk.img &
    python examples/guest_shell.py disk.img.sock

Commands come from the arguments, else line by line from the standard input. Each runs in a shell of its own.
The guest is the tests' own: a Debian kernel with a root file system in memory (``make system`` fetches what
it needs). It runs in software emulation, and it ends with this program.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from ringway.model import DeviceKind, InfoRequest, TargetInfo
from ringway.target.control import ControlClient
from ringway.testing.guest import LinuxGuest
from ringway.testing.qemu import vhost_user_blk, vhost_user_scsi

PROMPT = "guest# "


def ask(socket: str) -> TargetInfo:
    """Ask a target what it is. :raises UnreachableError: nobody listens there."""
    with ControlClient(f"{socket}.ctl") as client:
        return client.call(InfoRequest(), TargetInfo)


def typed() -> Iterator[str]:
    """Return the lines of the standard input, with a prompt on a terminal."""
    while True:
        try:
            yield input(PROMPT if sys.stdin.isatty() else "")
        except EOFError:
            return


def main(socket: str, *commands: str) -> None:
    """Run the commands one after the other and print what they print."""
    info = ask(socket)
    connect = vhost_user_scsi if info.device is DeviceKind.SCSI else vhost_user_blk
    with LinuxGuest(connect(Path(socket).absolute(), queues=info.queues), cpus=info.queues) as guest:
        for command in commands or typed():
            status, text = guest.try_run(command)
            print(text, end="", flush=True)
            if status != 0:
                print(f"(exit status {status})")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: guest_shell.py SOCKET [COMMAND ...]")
    main(*sys.argv[1:])
