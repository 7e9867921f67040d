"""A host on which something is wrong: disks that go, a store without room, input that makes no sense."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringway.errors import BusyError, ConflictError, RingwayError, UsageError
from ringway.testing.daemon import Daemon
from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.waiting import PATIENCE_S, wait_until

from .plants import MIB, Plant


def on_disk(plant: Plant, name: str, path: Path) -> dict[str, Any]:
    """An endpoint on an image, which is made unless it is there."""
    if not path.exists():
        path.touch()
        os.truncate(path, MIB)
    backstore = {"kind": "path", "path": str(path)}
    return plant.spec(name, 0) | {"luns": [{"target": 0, "lun": 0, "backstore": backstore}]}


def wait_left(daemon: Daemon, name: str) -> None:
    """Wait until nobody is connected to an endpoint: who hung up is seen off a moment later."""
    wait_until(lambda: not daemon.ask("GET", f"/1.0/endpoints/{name}")["connected"], "the guest to be gone")


def wait_for(daemon: Daemon, kind: str) -> list[Any]:
    """All events up to the first of a kind."""
    found, events = [], daemon.events()
    for event in events:
        found.append(event)
        if event["kind"] == kind:
            break
    events.close()
    return found


def test_what_cannot_come_back_is_degraded_and_tried_until_it_can(plant: Plant, run_dir: Path) -> None:
    image, away = run_dir / "disk.img", run_dir / "away.img"
    with plant.daemon() as daemon:
        daemon.start()
        daemon.ask("POST", "/1.0/endpoints", on_disk(plant, "a", image))
        image.rename(away)
        plant.break_off("a")
        kinds = [event["kind"] for event in wait_for(daemon, "endpoint.degraded")]
        assert "endpoint.died" in kinds
        info = daemon.ask("GET", "/1.0/endpoints/a")
        assert info["state"] == "degraded"
        assert str(image) in info["message"]
        assert daemon.ask("GET", "/1.0")["degraded"] == 1
        away.rename(image)
        wait_for(daemon, "endpoint.restarted")
        assert plant.actual()["a"].state == "ready"
        assert daemon.ask("GET", "/1.0/endpoints/a")["restarts"] == 1
        daemon.ask("DELETE", "/1.0/endpoints/a")
        assert plant.left() == []


def test_a_disk_that_is_missing_at_the_start_keeps_nobody_else_waiting(plant: Plant, run_dir: Path) -> None:
    with plant.daemon() as daemon:
        daemon.start()
        for name in ("gone", "there"):
            daemon.ask("POST", "/1.0/endpoints", on_disk(plant, name, run_dir / f"{name}.img"))
        daemon.stop()
        for name in ("gone", "there"):
            plant.break_off(name)
        (run_dir / "gone.img").unlink()
        daemon.start()
        assert daemon.names() == {"gone": "degraded", "there": "ready"}
        daemon.ask("DELETE", "/1.0/endpoints/gone")
        daemon.ask("DELETE", "/1.0/endpoints/there")
        assert plant.left() == []


@pytest.fixture
def small_state(plant: Plant) -> Iterator[Path]:
    """A file system of 512 KiB for the daemon's state."""
    state = plant.folder / "state"
    state.mkdir(parents=True, mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs", str(state)]
    if subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE_S).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield state
    subprocess.run(["umount", str(state)], check=True, timeout=PATIENCE_S)


@pytest.mark.usefixtures("small_state")
def test_a_store_without_room_changes_nothing(plant: Plant) -> None:
    with plant.daemon() as daemon:
        daemon.start()
        daemon.ask("POST", "/1.0/endpoints", plant.spec("before"))
        filler = plant.folder / "state" / "filler"
        _fill(filler)
        with pytest.raises(RingwayError, match="full") as caught:
            _create_many(plant, daemon)
        assert "make room" in (caught.value.hint or "")
        assert plant.actual().keys() == daemon.names().keys()
        assert set(daemon.names().values()) == {"ready"}
        filler.unlink()
        daemon.ask("POST", "/1.0/endpoints", plant.spec("after"))
        known = daemon.names()
        daemon.kill()
        daemon.start()
        assert daemon.names() == known
        for name in known:
            daemon.ask("DELETE", f"/1.0/endpoints/{name}")
        assert plant.left() == []
        daemon.stop()


def _create_many(plant: Plant, daemon: Daemon) -> None:
    """More than there is room for."""
    for number in range(100):
        daemon.ask("POST", "/1.0/endpoints", plant.spec(f"e{number}", luns=4))


def _fill(path: Path) -> None:
    """Take all the room that there is."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            assert shutil.disk_usage(path.parent).free == 0


def test_bad_input_is_refused_with_a_reason(plant: Plant, run_dir: Path) -> None:
    image = run_dir / "disk.img"
    with plant.daemon() as daemon:
        daemon.start()
        made = daemon.ask("POST", "/1.0/endpoints", on_disk(plant, "owner", image))
        for body, kind, words in (
            (plant.spec("owner", luns=3), ConflictError, "'owner' already"),
            (plant.spec("b", wwpn=made["wwpn"]), ConflictError, "'owner'"),
            (plant.spec("b", wwpn="naa.xyz"), UsageError, "wwpn has to be 'naa.'"),
            (plant.spec("b", colour="red"), UsageError, "'colour'"),
            (on_disk(plant, "b", image), BusyError, "'owner'"),
            (plant.spec("b", 0, device="blk"), UsageError, "blk"),
            (
                plant.spec("b", 0)
                | {"luns": [{"target": 0, "lun": 0, "backstore": {"kind": "path", "path": "/no/such"}}]},
                RingwayError,
                "/no/such",
            ),
        ):
            with pytest.raises(kind) as caught:
                daemon.ask("POST", "/1.0/endpoints", body)
            assert words in caught.value.message
        assert daemon.names() == {"owner": "ready"}
        assert plant.actual().keys() == {"owner"}
        daemon.ask("DELETE", "/1.0/endpoints/owner")


def test_a_file_takes_no_disk_from_a_guest_unless_it_is_forced(user: Plant) -> None:
    with user.daemon() as daemon:
        daemon.start()
        made = daemon.ask("POST", "/1.0/endpoints", user.spec("a", luns=2))
        less = {"endpoint": [user.spec("a")]}
        with ScsiFrontEnd(made["socket"]).open() as guest:
            with pytest.raises(BusyError, match="'a': a guest is connected") as refused:
                daemon.ask("POST", "/1.0/apply", less)
            assert "--force" in (refused.value.hint or "")
            assert len(daemon.ask("GET", "/1.0/endpoints/a")["luns"]) == 2
            daemon.ask("POST", "/1.0/apply?force=1", less)
            assert len(daemon.ask("GET", "/1.0/endpoints/a")["luns"]) == 1
            assert guest.command(bytes(6)).response == 0
        wait_left(daemon, "a")
        daemon.ask("POST", "/1.0/apply?prune=1", {})


def test_the_daemon_is_idle_when_nothing_happens(plant: Plant) -> None:
    """It does not wake up more than some times a second: a loop that spins would take all it can get."""
    with plant.daemon() as daemon:
        daemon.start()
        daemon.ask("POST", "/1.0/endpoints", plant.spec("a"))
        before = _ticks(daemon)
        time.sleep(2)
        assert _ticks(daemon) - before < os.sysconf("SC_CLK_TCK")
        daemon.ask("DELETE", "/1.0/endpoints/a")


def _ticks(daemon: Daemon) -> int:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
