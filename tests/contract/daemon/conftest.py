"""A place for daemons with each engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..kernels import Kernel, kernel_at
from .plants import Plant, end_user_plant, lio_plant, user_plant


@pytest.fixture
def fake_kernel(run_dir: Path) -> Iterator[Kernel]:
    """A fake kernel, and the real one in a guest of the tests; the test is skipped where there is none."""
    (run_dir / "k").mkdir()
    with kernel_at(run_dir / "k") as kernel:
        yield kernel


@pytest.fixture
def lio(run_dir: Path, fake_kernel: Kernel) -> Plant:
    """The kernel engine."""
    return lio_plant(run_dir / "d", fake_kernel)


@pytest.fixture
def user(run_dir: Path) -> Iterator[Plant]:
    """The user engine."""
    found = user_plant(run_dir / "d")
    yield found
    end_user_plant(found)


@pytest.fixture(params=["user", "lio"])
def plant(request: pytest.FixtureRequest) -> Plant:
    """Each engine in turn."""
    found: Plant = request.getfixturevalue(request.param)
    return found
