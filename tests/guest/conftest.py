"""What tests with guests share: a lab that is complete, folders with short paths, counts of two sizes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.testing import initramfs
from ringway.testing.kernel import find_kernel
from ringway.testing.qemu import find_qemu
from ringway.testing.uefi import find_firmware

# A guest under software emulation on a busy host can be ten times slower than on an idle one.
TIMEOUT_S = 1200

Count = Callable[[int, int], int]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in this folder, and give a guest's time limit to those without one of their own."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.guest)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session", autouse=True)
def lab() -> None:
    """Fail every test here, rather than skip it, when this host cannot run a guest; say what mends that."""
    try:
        find_qemu()
        find_firmware()
        initramfs.build(find_kernel())
    except GuestError as error:
        pytest.fail(f"{error}; {error.hint}", pytrace=False)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Return an empty folder whose path leaves room for a unix socket's name (107 bytes in all)."""
    with tempfile.TemporaryDirectory(prefix="rw-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def count() -> Count:
    """Return a chooser between an everyday count and the promised one (with RINGWAY_LONG=1)."""
    long = os.environ.get("RINGWAY_LONG") == "1"
    return lambda reduced, promised: promised if long else reduced
