"""Many clients at once, and a daemon that dies at any moment: what was acknowledged holds."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ringway.errors import ConflictError, NotFoundError, RingwayError
from ringway.testing.daemon import Daemon
from ringway.testing.kernel_target import INSIDE

from ..conftest import Count
from .plants import Plant

CLIENTS = 8
#: How often a daemon dies, every day and as is promised. A guest in software emulation has a tenth of it.
DEATHS = (3, 20) if INSIDE in os.environ else (20, 200)


@pytest.mark.timeout(1800)
def test_eight_clients_create_and_delete(plant: Plant, count: Count) -> None:
    """No leak, no half-made endpoint; state and host agree at the end."""
    rounds = count(12, 200)
    with plant.daemon() as daemon:
        daemon.start()
        before = open_files(daemon)
        with ThreadPoolExecutor(CLIENTS) as pool:
            work = [pool.submit(_create_and_delete, plant, daemon, each, rounds) for each in range(CLIENTS)]
            for each in work:
                each.result()
        assert daemon.names() == {f"c{client}-kept": "ready" for client in range(CLIENTS)}
        assert plant.actual().keys() == daemon.names().keys()
        for client in range(CLIENTS):
            daemon.ask("DELETE", f"/1.0/endpoints/c{client}-kept")
        assert (daemon.names(), plant.actual(), plant.left()) == ({}, {}, [])
        assert open_files(daemon) <= before + 16  # threads' and SQLite's own, whatever the rounds


def open_files(daemon: Daemon) -> int:
    """How many descriptors the daemon has."""
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def _create_and_delete(plant: Plant, daemon: Daemon, client: int, rounds: int) -> None:
    """Names of its own, and one that all want."""
    daemon.ask("POST", "/1.0/endpoints", plant.spec(f"c{client}-kept"))
    for number in range(rounds):
        name = f"c{client}-{number}"
        made = daemon.ask("POST", "/1.0/endpoints", plant.spec(name))
        assert (made["name"], made["state"]) == (name, "ready")
        for method, path, body in (
            ("POST", "/1.0/endpoints", plant.spec("all", luns=1 + client % 2)),
            ("DELETE", "/1.0/endpoints/all", None),
        ):
            with contextlib.suppress(ConflictError, NotFoundError):  # another client was faster
                daemon.ask(method, path, body)
        daemon.ask("DELETE", f"/1.0/endpoints/{name}")


class Client:
    """Creates and deletes names of its own until the daemon is gone, and notes what it was told."""

    NAMES = 4

    def __init__(self, plant: Plant, number: int) -> None:
        self._plant = plant
        self._names = [f"k{number}-{each}" for each in range(self.NAMES)]
        self._random = random.Random(number)
        #: What is known of each: there, not there, or either (a request had no answer).
        self.there: dict[str, bool | None] = dict.fromkeys(self._names, False)

    def run(self, daemon: Daemon) -> None:
        """Until there is no answer any more. :raises RingwayError: an answer that should not be."""
        while True:
            name = self._random.choice(self._names)
            verb = self._delete if self.there[name] else self._create
            known, self.there[name] = self.there[name], None
            try:
                self.there[name] = verb(daemon, name)
            except OSError:
                return
            except RingwayError:
                self.there[name] = known
                raise

    def _create(self, daemon: Daemon, name: str) -> bool:
        daemon.ask("POST", "/1.0/endpoints", self._plant.spec(name, luns=2))
        if self._random.random() < 0.3:
            daemon.ask("DELETE", f"/1.0/endpoints/{name}/luns/0:1")
        return True

    @staticmethod
    def _delete(daemon: Daemon, name: str) -> bool:
        daemon.ask("DELETE", f"/1.0/endpoints/{name}")
        return False

    def check(self, names: dict[str, str]) -> None:
        """Compare what was told with what is; what was not told may be either."""
        for name, there in self.there.items():
            if there is not None:
                assert (name in names) is there, f"{name} was acknowledged"
            self.there[name] = name in names


@pytest.mark.timeout(3600)
def test_a_daemon_that_dies_at_any_moment(plant: Plant, count: Count) -> None:
    """Each life ends at another passing of a fault point, in its recovery or under its clients' hands."""
    deaths, chance = count(*DEATHS), random.Random(4)
    clients = [Client(plant, number) for number in range(4)]
    with plant.daemon() as daemon:
        for _ in range(deaths):
            daemon.fault = f"any:{chance.randint(1, 24 * plant.points)}"
            if not daemon.start():
                continue  # it died while it put in order what the one before had left
            _check(plant, daemon, clients)
            _run_until_dead(daemon, [client.run for client in clients])
        daemon.fault = ""
        daemon.start()
        _check(plant, daemon, clients)
        for name in daemon.names():
            daemon.ask("DELETE", f"/1.0/endpoints/{name}")
        assert (daemon.names(), plant.actual(), plant.left()) == ({}, {}, [])


def _check(plant: Plant, daemon: Daemon, clients: list[Client]) -> None:
    """Desired and actual agree, and no acknowledged endpoint is lost."""
    infos = daemon.ask("GET", "/1.0/endpoints")
    names = {info["name"]: info["state"] for info in infos}
    assert set(names.values()) <= {"ready"}
    for client in clients:
        client.check(names)
    actual = plant.actual()
    assert actual.keys() == names.keys()
    for info in infos:
        there = [lun.lun for lun in actual[info["name"]].luns]
        assert there == [lun["lun"] for lun in info["spec"]["luns"]]


def _run_until_dead(daemon: Daemon, work: list[Callable[[Daemon], None]]) -> None:
    failed: list[BaseException] = []

    def guarded(each: Callable[[Daemon], None]) -> None:
        try:
            each(daemon)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert daemon.wait_dead() == -9
