"""Signals whose effect has come when the call returns: the kernel takes its time on a busy host."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from ringway.errors import TimedOutError
from ringway.testing.waiting import PATIENCE_S, wait_until


def freeze(pid: int) -> None:
    """Stop a process, every thread of it. SIGCONT lets it go on. :raises TimedOutError: one goes on."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: _states(pid) == {"T"}, f"a standstill of process {pid}")


def _states(pid: int) -> set[str]:
    """Of its threads, as ``/proc/PID/stat`` has them."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return {thread.read_text().rpartition(")")[2].split()[0] for thread in threads}


def kill(pid: int) -> None:
    """Kill a process; its parent need not have noticed. :raises TimedOutError: it goes on."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        if not select.select([process], [], [], PATIENCE_S)[0]:
            raise TimedOutError(f"process {pid} does not die")
    finally:
        os.close(process)
