"""Benches over a data path in memory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest

from ringway.testing.waiting import PATIENCE_S

from .fake import Bench

Decoder = Callable[..., str]


@pytest.fixture
def bench() -> Bench:
    """A disk of 1 MiB, blocks of 512 bytes."""
    return Bench()


@pytest.fixture
def sg() -> Decoder:
    """Run a decoder of sg3_utils on bytes: our output as somebody else reads it.

    :returns: its text, with white space made single blanks.
    """
    if shutil.which("sg_vpd") is None:
        pytest.skip("sg3_utils is not installed (apt-get install sg3-utils)")

    def run(*command: str, data: bytes = b"") -> str:
        done = subprocess.run(
            command, input=data.hex(" "), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return " ".join(done.stdout.split())

    return run
