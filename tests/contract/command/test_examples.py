"""The examples do what they say, run as their users run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.testing.target import ServedTarget

from .conftest import Host

EXAMPLES = Path(__file__).parents[3] / "examples"
MIB = 1 << 20


def run(name: str, *arguments: str | Path, typed: str = "") -> str:
    """Run an example. :returns: what it prints."""
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, input=typed, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_image(path: Path) -> Path:
    """An image of 64 MiB, all of it a hole."""
    path.touch()
    os.truncate(path, 64 * MIB)
    return path


@pytest.fixture
def target(run_dir: Path) -> Iterator[ServedTarget]:
    """A target with one disk, whose serial number is known."""
    image = make_image(run_dir / "disk.img")
    with ServedTarget(run_dir, image, "--serial", "example-1") as served:
        yield served


def test_the_front_end_reads_who_a_disk_is(target: ServedTarget) -> None:
    lines = dict(line.split(maxsplit=1) for line in run("front_end.py", target.socket).splitlines())
    assert lines == {
        "vendor": "RINGWAY",
        "product": "DISK",
        "serial": "example-1",
        "capacity": f"{64 * MIB // 512} blocks of 512 bytes",
    }


def test_the_control_socket_is_spoken_to(target: ServedTarget, run_dir: Path) -> None:
    answer = json.loads(run("control.py", target.socket, '{"version": 1, "verb": "info"}'))
    assert [lun["serial"] for lun in answer["ok"]["luns"]] == ["example-1"]
    more = make_image(run_dir / "more.img")
    backstore = {"kind": "path", "path": "a name"}
    request = {"version": 1, "verb": "lun-add", "spec": {"target": 0, "lun": 1, "backstore": backstore}}
    answer = json.loads(run("control.py", target.socket, json.dumps(request), more))
    assert (answer["ok"]["name"], answer["ok"]["size_bytes"]) == ("a name", 64 * MIB)
    assert [lun.name for lun in target.info().luns][1:] == ["a name"]


@pytest.mark.guest
@pytest.mark.timeout(600)
def test_the_guest_shell_runs_what_is_typed(target: ServedTarget) -> None:
    typed = "lsblk -dno SIZE,VENDOR /dev/sda\nfalse\nmkfs.ext4 -q /dev/sda\n"
    output = run("guest_shell.py", target.socket, typed=typed)
    assert [line.strip() for line in output.splitlines()] == ["64M RINGWAY", "(exit status 1)"]
    assert target.statistics().luns[0].writes > 0


@pytest.mark.guest
@pytest.mark.timeout(600)
def test_a_guest_is_served_from_one_program(run_dir: Path) -> None:
    image = make_image(run_dir / "disk.img")
    output = run(
        "serve_and_boot.py", image, "mkfs.ext4 -q -L example /dev/sda", "blockdev --getsize64 /dev/sda"
    )
    assert f"guest# blockdev --getsize64 /dev/sda\n{64 * MIB}\n" in output
    assert b"example" in image.read_bytes()[1024:2048]
    assert "LUN 0: " in output


def test_an_endpoint_is_kept_from_a_program(user_host: Host) -> None:
    image = make_image(user_host.folder / "disk.img")
    done = user_host.python(EXAMPLES / "host_endpoints.py", "example", image)
    assert (done.status, done.err) == (0, "")
    assert "create example: engine user, device scsi; " in done.out
    assert (
        f"example is ready, QEMU connects to {user_host.plant.folder}/run/endpoint/example.sock" in done.out
    )
    assert done.out.endswith(f"example is gone, {image} is not\n")
    assert user_host.plant.left() == []


def test_events_are_followed_while_endpoints_are_made(user_host: Host) -> None:
    done = user_host.python(EXAMPLES / "host_events.py", "3")
    assert (done.status, done.err) == (0, "")
    told = [line.split()[1:] for line in done.out.splitlines()]
    assert [kind for kind, _ in told] == ["endpoint.created"] * 3 + ["endpoint.deleted"] * 3
    assert user_host.plant.left() == []


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in source] == []
