"""What a target had in flight in the kernel goes on after its death: nothing may run again before it ended.

A direct write or read of io_uring has no thread that dies with the process. A write that came late would lie
over a newer one; a read that came late would change memory that the guest uses for something else by then.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.testing.frontend import BlkFrontEnd
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import PATIENCE_S, wait_until

from ..volatile import VolatileDisk, require_fuse

_SIZE = 1 << 20
_OLD, _NEW = b"o" * 4096, b"n" * 4096


@pytest.fixture
def disk() -> Iterator[VolatileDisk]:
    require_fuse()
    with tempfile.TemporaryDirectory(prefix="rw-") as name, VolatileDisk(Path(name), _SIZE) as disk:
        yield disk


@pytest.fixture
def device(disk: VolatileDisk) -> Iterator[str]:
    """The disk as a block device: I/O on it belongs to the kernel alone, and its process can die."""
    losetup = shutil.which("losetup", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if losetup is None or os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices need root, losetup and /dev/loop-control")
    attach = [losetup, "--find", "--show", str(disk.path)]
    name = subprocess.run(
        attach, check=True, capture_output=True, text=True, timeout=PATIENCE_S
    ).stdout.strip()
    yield name
    disk.let_go()
    subprocess.run([losetup, "--detach", name], check=True, timeout=PATIENCE_S)


def test_a_write_that_outlives_its_target_does_not_come_after_a_newer_one(
    run_dir: Path, disk: VolatileDisk, device: str
) -> None:
    options = ["--device", "blk", "--io-engine", "uring", "--lun", f"0={device},direct"]
    with ServedTarget(run_dir, *options) as target, BlkFrontEnd(target.socket).open() as front:
        assert front.write(8, _NEW).status == 0
        disk.hold_writes()
        late = front.send_request(1, 0, data_out=_OLD)
        disk.wait_held()
        target.kill()
        successor = threading.Thread(target=target.start)
        successor.start()
        wait_until(lambda: any("waiting for" in line["message"] for line in target.log), "the successor")
        disk.let_go()
        successor.join(PATIENCE_S)
        front.reconnect()
        assert front.wait_request(late).status == 0
        assert front.write(0, _NEW).status == 0
        assert front.read(0, 4096).data == _NEW
