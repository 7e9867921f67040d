"""A place for daemons with each engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.testing.fake_kernel import FakeKernel
from ringway.testing.kernel_target import INSIDE
from ringway.testing.real_kernel import RealKernel

from .plants import Plant, end_user_plant, lio_plant, user_plant


@pytest.fixture
def fake_kernel(run_dir: Path) -> Iterator[FakeKernel | RealKernel]:
    """A fake kernel, and the real one in a guest of the tests; the test is skipped where there is none."""
    if INSIDE in os.environ:
        with RealKernel() as real:
            yield real
        return
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
def lio(run_dir: Path, fake_kernel: FakeKernel | RealKernel) -> Plant:
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
