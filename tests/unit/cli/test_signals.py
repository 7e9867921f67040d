"""Signals and descriptors that end a target."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ringway.cli.signals import stop_signals
from ringway.testing.waiting import PATIENCE_S

_SLOW_CLOSE = """
import logging, os, sys
from ringway.cli.signals import stop_signals
logging.basicConfig(format="%(message)s")
with stop_signals() as signals:
    print("ready", flush=True)
    signals.wait(os.eventfd(0), None)
    print("closing", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def many_fds() -> Iterator[None]:
    """Room for descriptors above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this host allows no more than 2047 file descriptors (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_fds")
def test_a_descriptor_above_1023_can_be_waited_for() -> None:
    """A target with 350 disks did not start: select() knows no such descriptor."""
    event = os.eventfd(0)
    high = fcntl.fcntl(event, fcntl.F_DUPFD_CLOEXEC, 1500)
    try:
        with stop_signals() as signals:
            assert not signals.wait(high, 0.0)
            os.eventfd_write(event, 1)
            assert signals.wait(high, None)
            assert signals.received is None
    finally:
        os.close(high)
        os.close(event)


def test_a_second_signal_is_ignored_with_one_line() -> None:
    """It killed a target that was closing: the sockets stayed behind."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_CLOSE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "closing\n"
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: the target ends already" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate("\n", timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")


_INTERRUPTED_IMPORT = """
import os, signal, sys
from ringway.cli import entry
class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupter())
entry.PROGRAM()
"""


@pytest.mark.parametrize("program", ["ringway", "scsi", "blk"])
def test_ctrl_c_while_modules_are_read_shows_no_traceback(program: str) -> None:
    script = _INTERRUPTED_IMPORT.replace("PROGRAM", program)
    command = ["env", "--default-signal=INT", sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    assert run.returncode == -signal.SIGINT
    assert run.stderr == b""
