"""What a host keeps is lost, in part: no endpoint goes for that."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ringway.model import EngineKind
from ringway.testing.daemon import Daemon
from ringway.testing.frontend import ScsiFrontEnd

from .plants import Plant
from .test_trouble import on_disk, wait_left


def lose_store(plant: Plant) -> None:
    for file in (plant.folder / "state").glob("state.db*"):
        file.unlink()


def specs(daemon: Daemon) -> dict[str, Any]:
    return {info["name"]: info["spec"] for info in daemon.ask("GET", "/1.0/endpoints")}


def delete_all(plant: Plant, daemon: Daemon) -> None:
    for name in daemon.names():
        daemon.ask("DELETE", f"/1.0/endpoints/{name}")
    assert plant.left() == []


@pytest.mark.parametrize("empty", [False, True])
def test_a_store_that_was_lost_is_filled_again(plant: Plant, run_dir: Path, *, empty: bool) -> None:
    with plant.daemon() as daemon:
        daemon.start()
        daemon.ask("POST", "/1.0/endpoints", on_disk(plant, "a", run_dir / "a.img"))
        daemon.ask("POST", "/1.0/endpoints", plant.spec("b", luns=3))
        known, pids = specs(daemon), {name: info.pid for name, info in plant.actual().items()}
        daemon.kill()
        lose_store(plant)
        if empty:
            (plant.folder / "state" / "state.db").touch()
        for _ in range(2):  # the first has a new store, the second does not
            daemon.start()
            assert daemon.names() == {"a": "ready", "b": "ready"}
            assert specs(daemon) == known
            assert {name: info.pid for name, info in plant.actual().items()} == pids
            daemon.kill()
        daemon.start()
        delete_all(plant, daemon)


def test_a_store_from_a_backup_takes_nothing_away(plant: Plant, run_dir: Path) -> None:
    state = plant.folder / "state"
    with plant.daemon() as daemon:
        daemon.start()
        daemon.ask("POST", "/1.0/endpoints", plant.spec("a"))
        daemon.stop()
        shutil.copytree(state, run_dir / "backup")
        daemon.start()
        ram = {"kind": "ram", "size_bytes": 1 << 20}
        daemon.ask("POST", "/1.0/endpoints/a/luns", {"target": 0, "lun": 7, "backstore": ram})
        daemon.ask("POST", "/1.0/endpoints", plant.spec("b"))
        known = specs(daemon)
        daemon.kill()
        shutil.rmtree(state)
        shutil.copytree(run_dir / "backup", state)
        daemon.start()
        assert specs(daemon) == known
        assert [lun.lun for lun in plant.actual()["a"].luns] == [0, 7]
        delete_all(plant, daemon)


@pytest.mark.parametrize("part", ["run", "run/endpoint", "run/lio"])
def test_endpoints_whose_runtime_folder_was_removed_are_up_again(
    plant: Plant, run_dir: Path, part: str
) -> None:
    """The targets lived on, held their disks, and were found by nobody."""
    with plant.daemon() as daemon:
        daemon.start()
        daemon.ask("POST", "/1.0/endpoints", on_disk(plant, "a", run_dir / "a.img"))
        known = specs(daemon)
        daemon.stop()
        shutil.rmtree(plant.folder / part, ignore_errors=True)
        daemon.start()
        assert daemon.names() == {"a": "ready"}
        assert specs(daemon) == known
        if plant.engine is EngineKind.USER:
            with ScsiFrontEnd(daemon.ask("GET", "/1.0/endpoints/a")["socket"]).open() as guest:
                assert guest.command(bytes(6)).response == 0
            wait_left(daemon, "a")
        delete_all(plant, daemon)


def test_what_cannot_be_told_any_more_is_shown_with_what_to_do(plant: Plant, run_dir: Path) -> None:
    """Store and record are lost, and the endpoint is not."""
    with plant.daemon() as daemon:
        daemon.start()
        daemon.ask("POST", "/1.0/endpoints", on_disk(plant, "a", run_dir / "a.img"))
        pid = plant.actual()["a"].pid
        daemon.stop()
        lose_store(plant)
        is_user = plant.engine is EngineKind.USER
        os.unlink(plant.folder / ("run/endpoint/a.json" if is_user else "run/lio/a.json"))
        daemon.start()
        for _ in range(2):
            (info,) = daemon.ask("GET", "/1.0/endpoints")
            assert info["state"] == ("lost" if is_user else "foreign")
            assert (f"kill {pid}" if is_user else "import --adopt") in info["message"]
            assert daemon.ask("GET", f"/1.0/endpoints/{info['name']}")["state"] == info["state"]
            daemon.kill()
            daemon.start()
        if is_user:
            os.kill(pid, 15)
            return
        found = daemon.ask("POST", "/1.0/config/import?adopt=1")
        assert [change["action"] for change in found["changes"]] == ["create"]
        delete_all(plant, daemon)
