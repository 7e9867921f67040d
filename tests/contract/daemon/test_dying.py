"""Changes that arrive while a target dies, or is being started again: the answer is right, and holds."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ringway.errors import RingwayError
from ringway.testing.daemon import Daemon
from ringway.testing.processes import freeze
from ringway.testing.waiting import wait_until

from .plants import MIB, Plant
from .test_trouble import on_disk

Answer = dict[str, Any] | RingwayError


def ask(daemon: Daemon, method: str, path: str, body: object) -> Answer:
    try:
        found: dict[str, Any] = daemon.ask(method, path, body)
    except RingwayError as error:
        return error
    return found


def until_ready(daemon: Daemon, before: int | None = None) -> dict[str, Any]:
    """Wait until a target serves. :param before: not this one, which is dead or about to die."""
    found: dict[str, Any] = {}

    def looked() -> bool:
        found.update(daemon.ask("GET", "/1.0/endpoints/a"))
        return found["pid"] not in (None, before) and found["luns"][0]["size_bytes"] is not None

    wait_until(looked, "a target")
    return found


def limits(daemon: Daemon, iops: int) -> Answer:
    return ask(daemon, "PUT", "/1.0/endpoints/a/luns/0:0/limits", {"iops": iops})


def agree(daemon: Daemon, plant: Plant, before: int | None = None) -> dict[str, Any]:
    """Desired and actual are the same. :returns: the LUN as it is."""
    info = until_ready(daemon, before)
    (wanted,), (there,) = info["spec"]["luns"], info["luns"]
    served = plant.actual()["a"]
    assert served.spec is not None
    assert wanted["limits"] == there["limits"]
    assert served.spec.luns[0].limits.iops == there["limits"]["iops"]
    assert served.spec.luns[0].backstore.size_bytes == wanted["backstore"].get("size_bytes")
    found: dict[str, Any] = there
    return found


@pytest.mark.parametrize("how", ["dead", "dying", "stopped"])
def test_limits_of_a_target_that_dies(user: Plant, how: str) -> None:
    with user.daemon() as daemon:
        daemon.start()
        pid = daemon.ask("POST", "/1.0/endpoints", user.spec("a"))["pid"]
        if how == "stopped":
            freeze(pid)
            killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
        else:
            killer = threading.Timer(0.0 if how == "dying" else 3600, os.kill, (pid, signal.SIGKILL))
            if how == "dead":
                os.kill(pid, signal.SIGKILL)
        killer.start()
        answer = limits(daemon, 4000)
        killer.cancel()
        killer.join()
        iops = agree(daemon, user, pid)["limits"]["iops"]
        assert iops == (0 if isinstance(answer, RingwayError) else 4000), answer
        assert not isinstance(limits(daemon, 5000), RingwayError)
        assert agree(daemon, user)["limits"]["iops"] == 5000
        daemon.ask("DELETE", "/1.0/endpoints/a")


@pytest.mark.parametrize("how", ["dead", "dying"])
def test_a_resize_of_a_target_that_dies(user: Plant, how: str) -> None:
    null = {"target": 0, "lun": 0, "backstore": {"kind": "null", "size_bytes": MIB}}
    with user.daemon() as daemon:
        daemon.start()
        pid = daemon.ask("POST", "/1.0/endpoints", user.spec("a", 0) | {"luns": [null]})["pid"]
        killer = threading.Timer(0.0, os.kill, (pid, signal.SIGKILL))
        killer.start()
        if how == "dead":
            killer.join()
        answer = ask(daemon, "POST", "/1.0/endpoints/a/luns/0:0/resize", {"size_bytes": 2 * MIB})
        killer.join()
        size = agree(daemon, user, pid)["size_bytes"]
        assert size == (MIB if isinstance(answer, RingwayError) else 2 * MIB), answer
        daemon.ask("POST", "/1.0/endpoints/a/luns/0:0/resize", {"size_bytes": 4 * MIB})
        assert agree(daemon, user)["size_bytes"] == 4 * MIB
        daemon.ask("DELETE", "/1.0/endpoints/a")


def test_a_file_that_grew_while_its_target_was_dead(user: Plant, run_dir: Path) -> None:
    image = run_dir / "a.img"
    with user.daemon() as daemon:
        daemon.start()
        pid = daemon.ask("POST", "/1.0/endpoints", on_disk(user, "a", image))["pid"]
        os.kill(pid, signal.SIGKILL)
        os.truncate(image, 3 * MIB)
        answer = ask(daemon, "POST", "/1.0/endpoints/a/luns/0:0/resize", {})
        assert agree(daemon, user, pid)["size_bytes"] == 3 * MIB, answer
        assert not isinstance(answer, RingwayError) or re.search("died meanwhile|not run", answer.message)
        daemon.ask("DELETE", "/1.0/endpoints/a")


def test_changes_while_a_target_dies_again_and_again(user: Plant) -> None:
    """All answers were right: what is there in the end is what was last confirmed."""
    with user.daemon() as daemon:
        daemon.start()
        daemon.ask("POST", "/1.0/endpoints", user.spec("a"))
        confirmed, ended = 0, threading.Event()

        def kill() -> None:
            pid = None
            for _ in range(3):
                pid = until_ready(daemon, pid)["pid"]
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)
            ended.set()

        killer = threading.Thread(target=kill)
        killer.start()
        asked = 0
        while not ended.is_set():
            asked += 1
            if not isinstance(limits(daemon, 1000 + asked), RingwayError):
                confirmed = 1000 + asked
        killer.join()
        assert agree(daemon, user)["limits"]["iops"] == confirmed
        daemon.ask("DELETE", "/1.0/endpoints/a")
