"""The suite that runs against a fake kernel outside runs against the real one here."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What has no place here: the user engine, a device that a fake takes and a kernel does not, and a hundred
#: starts of an interpreter, which take minutes in software emulation.
LEFT_OUT = "not user and not a_block_device_comes and not cut_off"


def check(config: pytest.Config, place: str, chosen: str) -> None:
    """Run a suite as a program of its own."""
    pytest_ = (sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist")
    words = [*pytest_, f"tests/contract/{place}", "-k", chosen]
    run = subprocess.run(words, check=False, cwd=config.rootpath, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:]


@pytest.mark.timeout(3600)
def test_the_suite_of_engines_holds(pytestconfig: pytest.Config) -> None:
    check(pytestconfig, "engines", LEFT_OUT)


@pytest.mark.timeout(3600)
def test_a_daemon_that_dies_loses_nothing(pytestconfig: pytest.Config) -> None:
    """SIGKILL at fault points while clients create and delete; after each, desired and actual agree."""
    check(pytestconfig, "daemon/test_crowds.py", "lio and dies_at_any_moment")
