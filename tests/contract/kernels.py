"""The kernel that a test drives the kernel engine against."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.testing.fake_kernel import FakeKernel
from ringway.testing.kernel_target import INSIDE
from ringway.testing.real_kernel import RealKernel

Kernel = FakeKernel | RealKernel


@contextmanager
def kernel_at(folder: Path) -> Iterator[Kernel]:
    """A fake kernel in a folder, and the real one in a guest of the tests; skips where no fake can be had."""
    if INSIDE in os.environ:
        with RealKernel() as real:
            yield real
        return
    fake = FakeKernel(folder)
    try:
        fake.__enter__()
    except GuestError as error:
        pytest.skip(f"{error}: {error.hint}")
    try:
        yield fake
    finally:
        fake.__exit__()
