"""What a target's process carries along: each module that it imports is memory on a host of many targets."""

from __future__ import annotations

import subprocess
import sys

from ringway.testing.waiting import PATIENCE_S

_HEAVY = (
    *("ssl", "urllib", "http.client", "email", "rich", "asyncio", "xml", "matplotlib", "numpy"),
    *("hashlib", "html", "pathlib", "subprocess", "pyseccomp"),
)


def test_a_target_imports_nothing_that_it_does_not_need() -> None:
    serve = "import sys, ringway.cli.main, ringway.cli.serve, ringway.cli.program, ringway.target.target"
    code = f"{serve}; print(*(name for name in {_HEAVY!r} if name in sys.modules))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert found.stdout.split() == []
