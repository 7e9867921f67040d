"""The suite that runs against a fake kernel outside runs against the real one here."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What has no place here: the user engine, a device that a fake takes and a kernel does not, and a hundred
#: starts of an interpreter, which take minutes in software emulation.
LEFT_OUT = "not user and not a_block_device_comes and not cut_off"


@pytest.mark.timeout(600)
def test_the_suite_of_engines_holds(pytestconfig: pytest.Config) -> None:
    pytest_ = (sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist")
    words = [*pytest_, "tests/contract/engines", "-k", LEFT_OUT]
    run = subprocess.run(words, check=False, cwd=pytestconfig.rootpath, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:]
