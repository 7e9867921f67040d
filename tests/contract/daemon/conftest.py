"""A place for daemons with each engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.testing.fake_kernel import FakeKernel

from .plants import Plant, end_user_plant, lio_plant, user_plant


@pytest.fixture
def fake_kernel(run_dir: Path) -> Iterator[FakeKernel]:
    """A fake kernel; the test is skipped where it cannot be had."""
    (run_dir / "k").mkdir()
    kernel = FakeKernel(run_dir / "k")
    try:
        kernel.__enter__()
    except GuestError as error:
        pytest.skip(f"{error}: {error.hint}")
    try:
        yield kernel
    finally:
        kernel.__exit__()


@pytest.fixture
def lio(run_dir: Path, fake_kernel: FakeKernel) -> Plant:
    """The kernel engine on a fake kernel."""
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
