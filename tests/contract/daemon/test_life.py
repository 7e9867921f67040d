"""Endpoints outlive the daemon: its end, its crash, and whatever happens to them meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import ConflictError, NotFoundError, PermissionDeniedError, RingwayError, UsageError
from ringway.testing.daemon import Daemon
from ringway.testing.sockets import wait_for_socket
from ringway.testing.waiting import wait_until

from .plants import Plant


@contextlib.contextmanager
def running(plant: Plant) -> Iterator[Daemon]:
    """A daemon that is ready."""
    with plant.daemon() as daemon:
        assert daemon.start()
        yield daemon


def test_create_list_delete(plant: Plant) -> None:
    with running(plant) as daemon:
        made = daemon.ask("POST", "/1.0/endpoints", plant.spec("db0", luns=2))
        assert (made["state"], [lun["lun"] for lun in made["luns"]]) == ("ready", [0, 1])
        assert daemon.ask("GET", "/1.0/endpoints", read_only=True) == [made]
        assert plant.actual().keys() == {"db0"}
        assert {lun["backstore"] for lun in made["luns"]} == {
            one["name"] for one in daemon.ask("GET", "/1.0/backstores") if not one["foreign"]
        }
        daemon.ask("DELETE", "/1.0/endpoints/db0")
        assert daemon.names() == {}
        assert plant.left() == []
        with pytest.raises(NotFoundError):
            daemon.ask("GET", "/1.0/endpoints/db0")
        with pytest.raises(PermissionDeniedError):
            daemon.ask("POST", "/1.0/endpoints", plant.spec("a"), read_only=True)


def test_luns_come_and_go(plant: Plant) -> None:
    with running(plant) as daemon:
        daemon.ask("POST", "/1.0/endpoints", plant.spec("a"))
        lun = {"target": 0, "lun": 5, "backstore": {"kind": "ram", "size_bytes": 1 << 20}}
        info = daemon.ask("POST", "/1.0/endpoints/a/luns", lun)
        assert [one["lun"] for one in info["luns"]] == [0, 5]
        with pytest.raises(UsageError, match="same target"):
            daemon.ask("POST", "/1.0/endpoints/a/luns", lun)
        info = daemon.ask("DELETE", "/1.0/endpoints/a/luns/0:0")
        assert [one["lun"] for one in info["luns"]] == [5]
        assert [one.lun for one in plant.actual()["a"].luns] == [5]
        daemon.ask("DELETE", "/1.0/endpoints/a")


@pytest.mark.parametrize("end", ["term", "kill"])
def test_endpoints_outlive_the_daemon(plant: Plant, end: str) -> None:
    with running(plant) as daemon:
        before = daemon.ask("POST", "/1.0/endpoints", plant.spec("a"))
        assert daemon.stop() == 0 if end == "term" else daemon.kill() is None  # type: ignore[func-returns-value]
        assert plant.actual()["a"].state == "ready"
        daemon.start()
        after = daemon.ask("GET", "/1.0/endpoints/a")
        assert after == before  # its process, its names and its serials as well
        daemon.ask("DELETE", "/1.0/endpoints/a")
        assert plant.left() == []


def test_what_ends_by_itself_comes_back(plant: Plant) -> None:
    with running(plant) as daemon:
        before = daemon.ask("POST", "/1.0/endpoints", plant.spec("a"))
        plant.break_off("a")
        events = daemon.events()
        kinds = set()
        for event in events:
            kinds.add(event["kind"])
            if event["kind"] == "endpoint.restarted":
                break
        events.close()
        assert "endpoint.died" in kinds
        after = daemon.ask("GET", "/1.0/endpoints/a")
        assert (after["state"], after["restarts"], after["spec"]) == ("ready", 1, before["spec"])
        daemon.ask("DELETE", "/1.0/endpoints/a")
        assert plant.left() == []


def test_what_was_lost_meanwhile_is_there_when_it_is_ready(plant: Plant) -> None:
    with running(plant) as daemon:
        for name in ("a", "b"):
            daemon.ask("POST", "/1.0/endpoints", plant.spec(name))
        daemon.kill()
        plant.break_off("a")
        daemon.start()
        assert daemon.names() == {"a": "ready", "b": "ready"}
        assert daemon.ask("GET", "/1.0/endpoints/a")["restarts"] == 0


def test_a_second_daemon_is_refused_and_the_first_is_not_disturbed(plant: Plant) -> None:
    with running(plant) as first, plant.daemon() as second:
        with pytest.raises(RingwayError, match=f"(?s)ended with 6.*pid {first.pid}"):
            second.start()
        assert first.names() == {}


def test_it_tells_its_service_manager(plant: Plant) -> None:
    plant.daemon()  # its configuration
    with Daemon(plant.folder, environment={"WATCHDOG_USEC": "1000000"}) as daemon:
        daemon.start()
        ready = [word for word in daemon.words if word != "WATCHDOG=1"]
        assert ready == ["READY=1\nSTATUS=0 endpoints, 0 degraded"]
        assert daemon.next_word() == daemon.next_word() == "WATCHDOG=1"
        assert daemon.stop() == 0
        while (word := daemon.next_word()) == "WATCHDOG=1":
            pass
        assert word == "STOPPING=1\nSTATUS=ending; endpoints go on"
        assert not daemon.api.exists()


def test_it_takes_the_sockets_that_systemd_opens(plant: Plant) -> None:
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("no systemd-socket-activate: apt-get install systemd")
    daemon = plant.daemon()
    (plant.folder / "run").mkdir()
    paths = {"api": daemon.api, "ro": plant.folder / "run" / "ro.sock"}
    listen = [f"--listen={path}" for path in paths.values()]
    command = ["systemd-socket-activate", *listen, f"--fdname={':'.join(paths)}", sys.executable]
    program = [*command, "-m", "ringway.cli.daemon", "--directory", str(plant.folder)]
    environment = [f"--setenv=PYTHONPATH={os.environ.get('PYTHONPATH', '')}"]
    with subprocess.Popen([*program[:1], *environment, *program[1:]], stderr=subprocess.DEVNULL) as process:
        try:
            for path in paths.values():
                wait_for_socket(path)
            inode = daemon.api.stat().st_ino
            assert daemon.ask("GET", "/1.0", read_only=True)["read_only"] is True
            assert daemon.ask("GET", "/1.0")["pid"] == process.pid
            assert daemon.api.stat().st_ino == inode
        finally:
            process.terminate()
    assert daemon.api.exists()  # systemd's, not ours to remove


def test_sighup_reads_the_configuration_again(plant: Plant) -> None:
    with running(plant) as daemon:
        daemon.configure(plant.config + "[daemon]\nreconcile_s = 5\nparallel = 3\n")
        daemon.signal(signal.SIGHUP)
        reloaded = next(event for event in daemon.events() if event["kind"] == "daemon.reloaded")
        assert reloaded["message"] == "daemon.reconcile_s, daemon.parallel"
        daemon.configure("this is no TOML")
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: "stays as it was" in daemon.log, "what it says of it")
        assert daemon.names() == {}
        assert "daemon.parallel: changed, and used from the next start on" in daemon.log


def test_a_malformed_configuration_is_named(plant: Plant) -> None:
    with plant.daemon() as daemon:
        daemon.configure("[daemon]\nreconcile = 1\n")
        with pytest.raises(RingwayError, match=r"(?s)ended with 2.*ringway.toml.*reconcile"):
            daemon.start()


def test_every_change_is_in_the_log_with_who_asked(plant: Plant) -> None:
    with running(plant) as daemon:
        daemon.ask("POST", "/1.0/endpoints", plant.spec("a"))
        with pytest.raises(ConflictError):
            daemon.ask("POST", "/1.0/endpoints", plant.spec("a", luns=2))
        daemon.ask("DELETE", "/1.0/endpoints/a")
        daemon.stop()
    entries = [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]
    changes = [entry for entry in entries if entry.get("event") == "change"]
    assert [(entry["verb"], entry["result"]) for entry in changes] == [
        ("create_endpoint", "done"),
        ("create_endpoint", "conflict"),
        ("delete_endpoint", "done"),
    ]
    assert {(entry["uid"], entry["pid"]) for entry in changes} == {(os.getuid(), os.getpid())}


def test_its_folders_are_its_users(plant: Plant) -> None:
    with running(plant) as daemon:
        daemon.ask("POST", "/1.0/endpoints", plant.spec("a"))
        modes = {path.name: path.stat().st_mode & 0o777 for path in _files(plant.folder)}
        daemon.ask("DELETE", "/1.0/endpoints/a")
    assert modes["api.sock"] == modes["ro.sock"] == modes["state.db"] == modes["lock"] == 0o600
    assert modes["state"] == 0o700


def _files(folder: Path) -> list[Path]:
    return [path for part in ("run", "state") for path in (folder / part, *(folder / part).rglob("*"))]


def test_a_new_size_that_the_kernel_tells_nobody_of(plant: Plant, run_dir: Path) -> None:
    """The user engine's guests hear of it; to others the answer says what to do, and it is said once."""
    image = run_dir / "a.img"
    image.write_bytes(bytes(1 << 20))
    disk = {"target": 0, "lun": 3, "backstore": {"kind": "path", "path": str(image)}}
    with running(plant) as daemon:
        daemon.ask("POST", "/1.0/endpoints", plant.spec("a") | {"luns": [disk]})
        os.truncate(image, 2 << 20)
        answer = daemon.ask("POST", "/1.0/endpoints/a/luns/0:3/resize", {})
        assert answer["luns"][0]["size_bytes"] == 2 << 20
        told = "echo 1 | tee /sys/class/scsi_device/*:0:0:3/device/rescan" in (answer["message"] or "")
        by_command = subprocess.run(
            [sys.executable, "-m", "ringway", "lun", "resize", "a", "3"],
            env={**os.environ, "RINGWAY_SOCKET": str(daemon.api)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("note: the kernel tells no guest" in by_command.stderr) is told
        assert told is (answer["engine"] == "lio")
        assert daemon.ask("GET", "/1.0/endpoints/a")["message"] is None
        daemon.ask("DELETE", "/1.0/endpoints/a")
