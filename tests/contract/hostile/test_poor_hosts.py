"""Hosts and neighbours that misbehave: full pipes, no descriptors, swapped paths, impatience."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import BackstoreError
from ringway.model import BackstoreSpec, Done, InfoRequest, SpecKind, TargetInfo
from ringway.target import listen as listen_module
from ringway.target.control import ControlClient, ControlServer
from ringway.target.listen import listen
from ringway.target.medium import examine
from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.sockets import wait_for_socket
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import PATIENCE_S

INQUIRY = bytes.fromhex("12 00 00 00 24 00")


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The write end of a pipe that is full and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


def test_a_log_that_nobody_reads_does_not_stop_the_target(run_dir: Path, full_pipe: int) -> None:
    """The session thread wrote to a full pipe and waited there for ever; SIGTERM had no effect either."""
    path = str(run_dir / "x.sock")
    command = [sys.executable, "-m", "ringway", "serve", "--socket", path, "null:1G"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=full_pipe) as process:
        try:
            wait_for_socket(path + ".ctl")
            for _ in range(50):
                with ScsiFrontEnd(path).open() as front:
                    assert front.command(INQUIRY, data_in=36).status == 0
            with ControlClient(path + ".ctl") as client:
                assert client.call(InfoRequest(), TargetInfo).luns
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
    assert list(run_dir.iterdir()) == []


def test_a_control_socket_outlives_a_lack_of_descriptors(run_dir: Path) -> None:
    """One accept that failed ended the thread: the socket answered nobody any more."""
    with ServedTarget(run_dir, "null:1G", "--user", str(os.geteuid())) as target:  # its limits are set here
        limits = resource.prlimit(target.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        with target.control() as client:
            target.wait_message("a control client could not be accepted")
            resource.prlimit(target.pid, resource.RLIMIT_NOFILE, limits)
            assert client.call(InfoRequest(), TargetInfo).luns
        assert target.info().luns


def test_a_thread_that_cannot_start_costs_one_client(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception ended the thread that accepts."""
    path = str(run_dir / "x.ctl")
    server = ControlServer(listen(path), lambda _request, _fd: Done())
    start, failed = threading.Thread.start, threading.Event()

    def start_but_once(thread: threading.Thread) -> None:
        if thread.name == "control-client" and not failed.is_set():
            failed.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_but_once)
    with socket.socket(socket.AF_UNIX) as unlucky:
        unlucky.connect(path)
        assert unlucky.recv(1) == b""
    with ControlClient(path) as client:
        client.call(InfoRequest(), Done)
    server.close()
    assert not os.path.exists(path)


def test_a_second_sigterm_does_not_cut_the_end_short(run_dir: Path) -> None:
    """It killed ``serve`` while that was closing; here a control client that is deaf makes it long."""
    with ServedTarget(run_dir, "null:1G") as target:
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(target.socket + ".ctl")
            deaf.settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                while True:
                    deaf.send(b'{"version":1,"verb":"info"}\n' * 100)
            target.signal(signal.SIGTERM)
            target.wait_event("summary")
            target.signal(signal.SIGTERM)
            target.wait_message("SIGTERM: the target ends already")
        assert target.wait() == 0
    assert list(run_dir.iterdir()) == []


# Paths


def test_a_path_goes_before_its_socket_is_closed(run_dir: Path) -> None:
    """Later, the inode's number could be a successor's: a target on its way out took that one's path away."""
    path = str(run_dir / "x.sock")
    old = listen(path)
    old.socket.close()
    assert not os.path.exists(path)
    new = listen(path)
    old.close()
    assert os.path.exists(path)
    new.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_a_socket_has_its_mode_whatever_the_umask(run_dir: Path, umask: int, mode: int) -> None:
    path = str(run_dir / "x.sock")
    old = os.umask(umask)
    try:
        listener = listen(path, mode=mode)
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode
    listener.close()


def test_a_link_in_the_place_of_a_socket_changes_no_mode(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swapped in between bind and chmod, it had another's file opened to the group."""
    victim, path = run_dir / "victim", run_dir / "x.sock"
    victim.touch(0o600)
    set_mode = listen_module._set_mode

    def swap(where: str, mode: int, group: int | None) -> None:
        os.unlink(where)
        os.symlink(victim, where)
        set_mode(where, mode, group)

    monkeypatch.setattr(listen_module, "_set_mode", swap)
    listener = listen(str(path))
    listener.close()
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert path.is_symlink()


def test_what_was_opened_is_looked_at_again(run_dir: Path) -> None:
    """Only the path was, before it was opened: a FIFO could have taken its place."""
    fifo = run_dir / "disk"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    try:
        with pytest.raises(BackstoreError, match="neither a file nor a block device"):
            examine(BackstoreSpec(SpecKind.PATH, path=str(fifo)), fd)
    finally:
        os.close(fd)
