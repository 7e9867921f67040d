"""What all tests share.

A target that they start hears SIGINT, even below a shell's background job. In CI a test that skips for want
of a package fails: what `make test` installs has to be there. No example has to be fast: how long one takes
is the machine's matter.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the kernel's guest: it takes ten minutes, and the others would wait for it at the end."""
    items.sort(key=lambda item: "guest/lio" not in item.path.as_posix())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn such a skip into a failure."""
    report = yield
    if report.skipped and "CI" in os.environ and "apt-get install" in str(report.longrepr):
        report.outcome, report.longrepr = "failed", f"not to be skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def faulty_core() -> Path:
    """The core with fault points, built now unless it is fresh; it lies apart from the shipped one."""
    if shutil.which("cargo") is None:
        pytest.skip("no cargo: apt-get install cargo")
    root = Path(__file__).parents[1]
    command = ["make", "faulty"]
    made = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    return root / "target" / "faulty" / "lib_core.so"
