"""DPDK's testpmd as the other side of a port: it answers ARP and pings, and counts frames.

It needs no huge pages for that: the memory that it reads and writes is the guest's.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from msgspec import Struct

from ringway.errors import GuestError
from ringway.testing.initramfs import find_program
from ringway.testing.waiting import PATIENCE_S

_PACKAGE: Final = "dpdk-dev"
_MEMORY_MIB: Final = 128
_BUFFERS: Final = 2048
#: Two threads, wherever there is a processor for them.
_SETTINGS: Final = ("--no-huge", "--no-pci", "--no-shconf", "--no-telemetry", "--lcores=(0,1)@(0-1)")
_QUEUE: Final = re.compile(r"RX Port= 0/Queue= *(\d+) .*?\n +RX-packets: (\d+) +TX-packets: (\d+)")
_ALL: Final = re.compile(r"Accumulated.*?RX-packets: (\d+).*?TX-packets: (\d+)", re.DOTALL)


class Counts(Struct, frozen=True):
    """What went through, in frames."""

    received: int
    sent: int
    queues: tuple[int, ...]  #: those of them that were received, by queue


class Testpmd:
    """A context manager that runs it, and ends it without a word.

    :param socket: of the port.
    :param server: QEMU listens there, and testpmd connects, again and again; else testpmd listens.
    """

    __test__ = False

    def __init__(self, socket: Path, *, server: bool, queues: int = 1) -> None:
        program = str(find_program("dpdk-testpmd", _PACKAGE))
        port = f"net_vhost0,iface={socket},queues={queues}{',client=1' if server else ''}"
        forward = ("--forward-mode=icmpecho", f"--total-num-mbufs={_BUFFERS}", "--port-topology=loop")
        pairs = (f"--rxq={queues}", f"--txq={queues}")
        self._command = [program, *_SETTINGS, "-m", str(_MEMORY_MIB), "--vdev", port, "--", *forward, *pairs]
        self._words = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed at the end
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=self._words, stderr=subprocess.STDOUT, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            error.add_note(f"testpmd:\n{self._said()[-4000:]}")
        self._words.close()

    def stop(self) -> Counts:
        """End it in good order. :raises GuestError: it does not end well, or does not say what it counted."""
        assert self._process is not None, "it does not run"
        self._process.communicate("\n", PATIENCE_S)
        said, status = self._said(), self._process.returncode
        self._process = None
        whole = _ALL.search(said)
        if status != 0 or whole is None:
            raise GuestError(f"testpmd ended with {status}: {said[-2000:]}")
        queues = tuple(int(received) for _, received, _ in sorted(_QUEUE.findall(said)))
        return Counts(int(whole[1]), int(whole[2]), queues or (int(whole[1]),))

    def kill(self) -> None:
        """End it at once; again is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _said(self) -> str:
        self._words.seek(0)
        return self._words.read()
