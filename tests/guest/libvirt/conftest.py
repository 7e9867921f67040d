"""A libvirtd for all tests of a worker, and one guest that runs in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.testing.domain import DomainGuest
from ringway.testing.libvirtd import Libvirtd, check_programs

from .bench import Bench


@pytest.fixture(scope="session", autouse=True)
def binding() -> None:
    """Fail every test here, rather than skip it, where libvirt is missing; say what mends that."""
    try:
        check_programs()
        import libvirt  # noqa: F401 - only whether it is there
    except (GuestError, ImportError) as error:
        pytest.fail(f"{error}; run `make system libvirt`", pytrace=False)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A place whose sockets have short names."""
    with tempfile.TemporaryDirectory(prefix="rw-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def capabilities(folder: Path) -> Path:
    """Where libvirtds remember what QEMU can do."""
    return folder / "cache"


@pytest.fixture(scope="session")
def libvirtd(folder: Path, capabilities: Path) -> Iterator[Libvirtd]:
    """The daemon that most tests share."""
    with Libvirtd(folder / "libvirt", cache=capabilities) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def booted(libvirtd: Libvirtd, folder: Path) -> Iterator[DomainGuest]:
    """A guest that runs for the whole session."""
    with DomainGuest(libvirtd, "web0", folder) as guest:
        yield guest


@pytest.fixture
def web0(booted: DomainGuest, bench: Bench) -> Iterator[DomainGuest]:
    """That guest, without disks before and after."""
    yield booted
    for attachment in bench.hypervisor.show("web0").attachments:
        bench.detach("web0", attachment.endpoint)


@pytest.fixture
def bench(libvirtd: Libvirtd, run_dir: Path) -> Iterator[Bench]:
    """A hypervisor of one's own, and targets."""
    with Bench(libvirtd, run_dir) as bench:
        yield bench
