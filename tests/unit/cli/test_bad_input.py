"""Bad input gets a sentence and a hint, the exit status says what kind it is, and nothing is touched."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Run, Start

SERVE = ("-m", "ringway.cli.main", "serve")


def _long_directory(folder: Path) -> None:
    (folder / ("d" * 120)).mkdir()


def _nothing(folder: Path) -> None:
    pass


def _directory(folder: Path) -> None:
    (folder / "x").mkdir()


def _empty(folder: Path) -> None:
    (folder / "x").touch()


def _odd(folder: Path) -> None:
    (folder / "x").write_bytes(bytes(1000))


def _file_at_socket(folder: Path) -> None:
    (folder / "disk.img.sock").touch()


Prepare = Callable[[Path], None]

TABLE: list[tuple[str, Prepare, list[str], int, str]] = [
    ("image missing", _nothing, ["x"], 3, "'x' does not exist"),
    ("a directory", _directory, ["x"], 1, "'x' is a directory"),
    ("size 0", _empty, ["x"], 1, "'x' is empty"),
    ("no multiple of the block size", _odd, ["x"], 1, "no multiple of its 512-byte blocks"),
    ("no multiple of 4096", _odd, ["x", "--block-size", "4096"], 1, "no multiple of its 4096-byte blocks"),
    ("socket path too long", _long_directory, ["disk.img", "--socket", f"{'d' * 120}/s"], 2, "122 bytes"),
    ("control socket path too long", _nothing, ["disk.img", "--socket", "s" * 104], 2, "108 bytes"),
    ("socket's directory missing", _nothing, ["disk.img", "--socket", "no/s"], 3, "'no' is not a directory"),
    ("no socket at the path", _file_at_socket, ["disk.img"], 6, "not a socket"),
    ("no queues", _nothing, ["disk.img", "--queues", "0"], 2, "--queues 0 is out of range"),
    ("too many queues", _nothing, ["disk.img", "--queues", "255"], 2, "--queues 255 is out of range"),
    ("too many workers", _nothing, ["disk.img", "--workers", "2"], 2, "--workers 2 is out of range"),
    ("no number", _nothing, ["disk.img", "--queues", "many"], 2, "not a valid integer"),
    ("no disk", _nothing, [], 2, "nothing to serve"),
    ("no such block size", _nothing, ["disk.img", "--block-size", "1024"], 2, "block size of 1024"),
    ("no such option of a disk", _nothing, ["disk.img,fast"], 2, "'fast' is not an option"),
    ("no LUN", _nothing, ["--lun", "disk.img"], 2, "'disk.img' is not a LUN"),
    ("LUN out of range", _nothing, ["--lun", "16384=disk.img"], 2, "LUN 16384 is out of range"),
    ("an address twice", _nothing, ["disk.img", "--lun", "0=null:1G"], 2, "same target and LUN"),
    (
        "two disks of a blk device",
        _nothing,
        ["--device", "blk", "disk.img", "--lun", "1=null:1G"],
        2,
        "one disk",
    ),
    ("no size", _nothing, ["ram:big"], 2, "'big' is not a size"),
    (
        "a serial number for two",
        _nothing,
        ["disk.img", "--lun", "1=null:1G", "--serial", "x"],
        2,
        "--serial names",
    ),
    (
        "a long serial number",
        _nothing,
        ["--device", "blk", "disk.img", "--serial", "x" * 21],
        2,
        "21 characters",
    ),
    ("no WWPN", _nothing, ["disk.img", "--wwpn", "eui.42"], 2, "is not a WWPN"),
    ("direct and mapped", _nothing, ["disk.img,mapped=on", "--direct"], 2, "contradict"),
    ("an image to create exists", _nothing, ["disk.img", "--create", "1G"], 6, "exists already"),
    ("create without a path", _nothing, ["ram:1G", "--create", "1G"], 2, "--create makes one image"),
    ("no such CPU list", _nothing, ["disk.img", "--cpus", "a-b"], 2, "no list of CPUs"),
    ("no such CPU", _nothing, ["disk.img", "--cpus", "9999"], 2, "9999"),
    ("no such option", _nothing, ["--frobnicate"], 2, "No such option"),
]


@pytest.mark.parametrize(
    ("prepare", "arguments", "status", "sentence"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_bad_input_is_explained_and_nothing_is_touched(
    run: Run, tmp_path: Path, image: Path, prepare: Prepare, arguments: list[str], status: int, sentence: str
) -> None:
    prepare(tmp_path)
    before = {path: path.lstat() for path in tmp_path.iterdir()}
    result = run("serve", *arguments)
    assert result.status == status, result.err
    error, hint = result.err.splitlines()
    assert error.startswith("error: ")
    assert sentence in error
    assert hint.startswith("hint: ")
    assert result.out == ""
    after = {path: path.lstat() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[path].st_mtime_ns == before[path].st_mtime_ns for path in before if path.is_file())


def test_an_image_in_use_by_another_writer_is_named(run: Run, start: Start, image: Path) -> None:
    other = start(*SERVE, image.name, "--socket", "other.sock")
    other.event("ready")
    result = run("serve", image.name)
    assert result.status == 6
    assert f"pid {other.process.pid} (" in result.err
    assert not Path("disk.img.sock").exists()


def test_a_socket_in_use_by_a_live_process_is_named(run: Run, start: Start, image: Path) -> None:
    other = start(*SERVE, "null:1G", "--socket", "disk.img.sock")
    other.event("ready")
    result = run("serve", image.name)
    assert result.status == 6
    assert f"pid {other.process.pid} (" in result.err
    assert other.process.poll() is None


def test_a_socket_left_by_a_dead_process_is_replaced(start: Start, image: Path, tmp_path: Path) -> None:
    dead = start(*SERVE, image.name)
    dead.event("ready")
    dead.process.kill()
    dead.process.wait()
    assert (tmp_path / "disk.img.sock").is_socket()
    start(*SERVE, image.name).event("ready")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "disk.img.sock"))


def test_an_image_that_was_made_in_vain_is_removed(run: Run, tmp_path: Path) -> None:
    result = run("serve", "new.img", "--create", "1G", "--wwpn", "bad")
    assert result.status == 2
    assert os.listdir(tmp_path) == []
