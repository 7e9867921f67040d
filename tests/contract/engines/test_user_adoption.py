"""Targets outlive who started them, and whoever comes next goes on with them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest
from msgspec.structs import replace

from ringway.engine.user import records
from ringway.engine.user.processes import Identity
from ringway.engine.user.records import Record
from ringway.errors import BusyError
from ringway.model import EndpointSpec, EndpointState, LunSpec
from ringway.testing.frontend import BlkFrontEnd, ScsiFrontEnd
from ringway.testing.processes import freeze
from ringway.testing.waiting import wait_until

from ..loads import Load
from .user_host import SIZE, UserHost, file_disk, null_disk

#: A driver in a process of its own: it creates what it is told, says so, and waits for its death.
_DRIVER = """
import sys
from pathlib import Path
import msgspec
from ringway.engine.user import UserDriver
from ringway.model import EndpointSpec
driver = UserDriver(Path(sys.argv[1]))
driver.create(msgspec.json.decode(sys.argv[2], type=EndpointSpec))
print(driver.show("db0").pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def host() -> Iterator[UserHost]:
    with UserHost() as host:
        yield host


def start_driver(host: UserHost, spec: EndpointSpec) -> tuple[subprocess.Popen[str], int]:
    """:returns: a driver that created an endpoint, and the target's process."""
    command = [sys.executable, "-c", _DRIVER, str(host.places.run), msgspec.json.encode(spec).decode()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def kill(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


def test_targets_outlive_driver_and_spawner(host: UserHost) -> None:
    spec = host.blk()
    driver, pid = start_driver(host, spec)
    try:
        with BlkFrontEnd(host.places.of("db0").socket).open() as guest, Load(guest, size_bytes=SIZE) as load:
            load.wait_progress()
            host.end_spawner(signal.SIGKILL)
            load.wait_progress()
            kill(driver)
            load.wait_progress()
            adopted = host.driver()
            (info,) = adopted.list()
            assert (info.pid, info.state, info.connected, info.spec) == (pid, EndpointState.READY, True, spec)
            adopted.create(spec)
            assert adopted.show("db0").pid == pid
            load.wait_progress()
        told: list[str] = []
        adopted.watch(told.append)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: told == ["db0"], "the death of a target that another driver started")
    finally:
        kill(driver)


def test_a_new_spawner_is_started_when_it_is_needed(host: UserHost) -> None:
    host.first.create(host.spec("vm0", null_disk()))
    before = host.spawner
    host.end_spawner(signal.SIGKILL)
    host.first.create(host.spec("vm1", null_disk()))
    assert host.spawner not in (None, before)
    assert [info.state for info in host.first.list()] == [EndpointState.READY] * 2
    host.first.delete("vm0")


def test_a_spawner_that_is_told_to_end_takes_its_socket_away_and_no_target(host: UserHost) -> None:
    host.first.create(host.spec())
    host.end_spawner(signal.SIGTERM)
    wait_until(lambda: not host.places.spawner.exists(), "the socket to be gone")
    assert host.first.show("db0").state is EndpointState.READY


def test_another_process_with_the_number_is_not_the_target(host: UserHost) -> None:
    spec = host.spec()
    host.first.create(spec)
    pid = host.first.show("db0").pid
    record = records.read(host.places.of("db0").record)
    assert pid is not None
    assert record is not None
    assert record.process == Identity.of(pid)
    other = replace(record, process=replace(record.process, started=record.process.started - 1))
    records.write(host.places.of("db0").record, other)
    info = host.driver().show("db0")
    assert (info.state, info.pid) == (EndpointState.DEGRADED, None)
    records.write(host.places.of("db0").record, record)
    assert host.driver().show("db0").pid == pid


@pytest.mark.parametrize("damage", ["", "{", '{"process": 1}'])
def test_a_target_whose_record_is_lost_is_not_forgotten(host: UserHost, damage: str) -> None:
    """Its endpoint was deleted, and it went on with nobody to know of it."""
    host.first.create(host.spec())
    pid = host.first.show("db0").pid
    places = host.places.of("db0")
    with open(places.record, "w") as record:
        record.write(damage)
    with ScsiFrontEnd(places.socket).open():
        with pytest.raises(BusyError, match="has lost its files") as refused:
            host.driver().delete("db0")
        assert f"pid {pid}" in (refused.value.holder or "")
        assert os.path.exists(places.socket)
    host.driver().delete("db0", force=True)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "its spawner to take leave of it")
    assert host.files() == []


@pytest.mark.parametrize("boot", ["another boot", None])
def test_what_a_crash_of_the_host_left_is_replaced(host: UserHost, boot: str | None) -> None:
    """The runtime folder of a daemon without root may lie on a disk."""
    spec, places = host.spec(), host.places.of("db0")
    host.places.endpoints.mkdir(parents=True)
    me = Identity.of(os.getpid())  # its number is taken again
    gone = replace(me, boot=boot) if boot else replace(me, started=1)
    records.write(places.record, Record(process=gone, spec=spec))
    for path in (places.socket, places.control, str(host.places.spawner)):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
    with open(places.log, "w") as log:
        log.write('{"level": "error", "message": "the light went out"}\n')
    driver = host.driver()
    (info,) = driver.list()
    assert (info.state, info.message, info.spec) == (EndpointState.DEGRADED, "the light went out", spec)
    driver.create(spec)
    with ScsiFrontEnd(places.socket).open() as guest:
        assert guest.command(bytes(6)).response == 0
    driver.delete("db0")
    assert host.files() == []


def test_what_a_crash_of_the_host_left_is_deleted(host: UserHost) -> None:
    places = host.places.of("db0")
    host.places.endpoints.mkdir(parents=True)
    records.write(places.record, Record(process=Identity(1, 1, "another boot"), spec=host.spec()))
    host.driver().delete("db0")
    assert host.files() == []


def test_a_record_that_a_driver_did_not_finish_goes_with_its_endpoint(host: UserHost) -> None:
    """A driver was killed between a temporary file and its place; the file stayed when all else had gone."""
    host.first.create(host.spec())
    unfinished = host.places.of("db0").record + records.UNFINISHED
    with open(unfinished, "wb") as file:
        file.write(b"{")
    host.first.delete("db0")
    assert host.files() == []


@pytest.mark.parametrize("text", ["", "{", '{"version": 1}', "[]", '{"version": 99}'])
def test_a_record_that_makes_no_sense_is_none(host: UserHost, text: str) -> None:
    host.places.endpoints.mkdir(parents=True)
    with open(host.places.of("db0").record, "w") as file:
        file.write(text)
    assert host.first.list() == ()
    host.first.create(host.spec())
    assert host.first.show("db0").state is EndpointState.READY


@pytest.mark.parametrize("came_to_be", [True, False])
def test_a_change_that_its_driver_did_not_survive_is_found_out(host: UserHost, came_to_be: bool) -> None:
    old, places = host.spec(), host.places.of("db0")
    host.first.create(old)
    more = LunSpec(0, 1, file_disk(host.image("more")))
    new = host.first.resolve(replace(old, luns=(*old.luns, more)))
    if came_to_be:
        host.first.update(old, new)
    record = records.read(places.record)
    assert record is not None
    records.write(places.record, replace(record, spec=old, pending=new))
    found = host.driver()
    assert found.list()[0].spec == (new if came_to_be else old)
    written = records.read(places.record)
    assert written is not None
    assert (written.spec, written.pending) == (new if came_to_be else old, None)
    found.update(old, new)
    assert [lun.lun for lun in found.show("db0").luns] == [0, 1]


def test_a_target_that_does_not_answer_is_listed_and_can_be_deleted(host: UserHost) -> None:
    host.first.create(host.spec())
    pid = host.first.show("db0").pid or 0
    with ScsiFrontEnd(host.places.of("db0").socket).open():
        freeze(pid)
        info = host.first.show("db0")
        assert (info.state, info.pid) == (EndpointState.DEGRADED, pid)
        assert "does not answer" in (info.message or "")
        with pytest.raises(BusyError, match="a guest is connected"):
            host.first.delete("db0")
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: host.first.show("db0").state is EndpointState.READY, "an answer")
    freeze(pid)
    host.first.delete("db0", force=True)
    assert host.files() == []
