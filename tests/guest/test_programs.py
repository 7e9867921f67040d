"""The programs as others start them: QEMU's back-end conventions, and the demonstration."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ringway.testing.bootsector import BootSectorGuest, Load, Verdict, install
from ringway.testing.qemu import vhost_user_blk, vhost_user_scsi
from ringway.testing.sockets import wait_for_socket
from ringway.testing.waiting import PATIENCE_S

from .serving import BOOT, both_devices, make_image

LOAD = Load(passes=3)
CONNECT = {"scsi": vhost_user_scsi, "blk": vhost_user_blk}
DISK = {"scsi": ["--lun", "0=disk.img"], "blk": ["--blk-file", "disk.img"]}


@contextlib.contextmanager
def program(
    folder: Path, device: str, *arguments: str, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Start a back-end program; its log is part of what fails."""
    path = Path(sys.executable).with_name(f"ringway-vhost-user-{device}")
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [path, *DISK[device], *arguments], cwd=folder, stderr=file, pass_fds=pass_fds, text=True
        )
    try:
        yield process
    except BaseException as error:
        error.add_note(log.read_text())
        raise
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def image(run_dir: Path) -> Path:
    """Return an image with a short load."""
    path = make_image(run_dir / "disk.img")
    install(path, LOAD)
    return path


@both_devices
def test_a_program_serves_on_a_path(run_dir: Path, image: Path, device: str) -> None:
    path = run_dir / "socket"
    with program(run_dir, device, "--socket-path", str(path)) as process:
        wait_for_socket(path)
        with BootSectorGuest(CONNECT[device](path, options=BOOT)) as guest:
            assert guest.wait() is Verdict.OK
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    LOAD.verify(image, LOAD.passes)


@both_devices
def test_a_program_serves_on_a_socket_that_it_inherits(run_dir: Path, image: Path, device: str) -> None:
    """QEMU may connect before the program listens to anything: the socket is there."""
    path = run_dir / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        with (
            program(run_dir, device, f"--fd={number}", "--queues=2", pass_fds=[number]) as process,
            BootSectorGuest(CONNECT[device](path, queues=2, options=BOOT)) as guest,
        ):
            assert guest.wait() is Verdict.OK
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
    LOAD.verify(image, LOAD.passes)


@pytest.mark.parametrize("arguments", [[], ["--device", "blk", "--size", "256M", "--data", "4M"]], ids=str)
def test_the_demonstration_runs_to_its_end(run_dir: Path, arguments: list[str]) -> None:
    """``make run`` is this."""
    command = [sys.executable, "-m", "ringway", "demo", *arguments]
    ended = subprocess.run(command, cwd=run_dir, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "It works" in ended.stdout
    assert list(run_dir.iterdir()) == []
