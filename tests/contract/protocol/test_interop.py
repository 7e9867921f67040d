"""A client that nobody here wrote: libblkio's driver, by way of the crate ``virtio-driver``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ringway.testing.waiting import PATIENCE_S

from ..conftest import Serve
from ..disks import STORES, MakeDisk

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def client() -> Path:
    """The program; it is built when it is not there."""
    program = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "ringway-interop"
    if not program.exists():
        build = ["cargo", "build", "--release", "--locked", "-p", "ringway-interop"]
        subprocess.run(build, cwd=ROOT, check=True, timeout=540)
    return program


@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", STORES)
def test_libblkios_driver_finds_its_disk(serve: Serve, disk_of: MakeDisk, client: Path, store: str) -> None:
    path = serve("blk", disk_of(store), queues=2, workers=2)
    for _ in range(2):  # it leaves without a word, and comes back
        done = subprocess.run([client, path], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "written, read, zeroed, flushed" in done.stdout
    (lun,) = serve.target.statistics().luns
    assert (lun.writes, lun.reads, lun.errors) == (2 * 4 * 512, 2 * 2 * 4 * 512, 0)
    assert (lun.flushes, lun.unmaps) == (2 * 4, 2 * 2 * 4)
