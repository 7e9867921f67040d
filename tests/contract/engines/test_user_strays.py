"""Targets whose files went under them: found, adopted or replaced, and named to whom they are in the way."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.engine.user import UserDriver, records
from ringway.engine.user.processes import Identity, Process
from ringway.errors import BusyError
from ringway.model import EndpointSpec, EndpointState
from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.waiting import wait_until

from .user_host import UserHost, file_disk


@pytest.fixture
def host() -> Iterator[UserHost]:
    with UserHost() as host:
        yield host


def target(host: UserHost, spec: EndpointSpec) -> Process:
    """A target that serves it; its driver knows nothing of the others."""
    driver = host.driver()
    driver.create(spec)
    found = Process.find(Identity.of(driver.show(spec.name).pid or 0))
    assert found is not None
    return found


def answers(host: UserHost) -> None:
    with ScsiFrontEnd(host.places.of("db0").socket).open() as guest:
        assert guest.command(bytes(6)).response == 0


@pytest.mark.parametrize("part", ["endpoint", "."])
@pytest.mark.parametrize("daemon", ["next", "same"])
def test_a_target_whose_folder_is_gone_is_replaced(host: UserHost, daemon: str, part: str) -> None:
    spec = host.spec()
    old = target(host, spec)
    same = host.driver()
    assert same.show("db0").state is EndpointState.READY
    shutil.rmtree(host.places.run / part)
    driver = same if daemon == "same" else host.driver()
    (info,) = driver.list()
    assert info.pid == old.pid
    driver.create(spec)
    assert not old.alive
    assert driver.show("db0").state is EndpointState.READY
    answers(host)


def test_a_guest_keeps_the_target_whose_folder_is_gone(host: UserHost) -> None:
    spec = host.spec()
    old = target(host, spec)
    with ScsiFrontEnd(host.places.of("db0").socket).open() as guest:
        shutil.rmtree(host.places.run)
        driver = host.driver()
        (info,) = driver.list()
        assert (info.state, info.pid, info.connected) == (EndpointState.LOST, old.pid, True)
        assert f"kill {old.pid}" in (info.message or "")
        for verb in ("create", "delete"):
            with pytest.raises(BusyError, match="has lost its files") as caught:
                driver.create(spec) if verb == "create" else driver.delete("db0")
            assert f"pid {old.pid}" in (caught.value.holder or "")
        assert guest.command(bytes(6)).response == 0
    wait_until(lambda: not driver.list()[0].connected, "the guest to be gone")
    driver.create(spec)
    answers(host)


def test_who_wants_the_disk_is_told_who_holds_it(host: UserHost) -> None:
    old = target(host, host.spec())
    shutil.rmtree(host.places.run)
    other = host.spec("other", file_disk(host.image("db0")))
    with pytest.raises(BusyError, match=f"pid {old.pid} \\(ringway-target\\)"):
        host.first.check(other, ())
    with pytest.raises(BusyError, match=f"pid {old.pid} \\(ringway-target\\)"):
        host.first.create(other)
    host.first.delete("db0")
    assert not old.alive
    host.first.create(other)


def test_a_target_that_no_look_had_found_goes_when_it_is_in_the_way(host: UserHost) -> None:
    spec = host.spec()
    driver = host.driver()
    assert driver.list() == ()
    old = target(host, spec)
    shutil.rmtree(host.places.run)
    driver.create(spec)
    assert not old.alive
    answers(host)


def test_a_target_whose_record_is_lost_is_adopted_with_its_guest(host: UserHost) -> None:
    spec = host.spec("db0", file_disk(host.image()), file_disk(host.image("more")))
    old = target(host, spec)
    with ScsiFrontEnd(host.places.of("db0").socket).open() as guest:
        os.unlink(host.places.of("db0").record)
        driver = host.driver()
        assert [info.state for info in driver.list()] == [EndpointState.LOST]
        driver.create(spec)
        (info,) = driver.list()
        assert (info.pid, info.state, info.spec) == (old.pid, EndpointState.READY, spec)
        assert guest.command(bytes(6)).response == 0
    record = records.read(host.places.of("db0").record)
    assert record is not None
    assert (record.process, record.spec, record.pending) == (old.identity, spec, None)


def test_another_hosts_target_is_none_of_ours(host: UserHost) -> None:
    with UserHost() as other:
        theirs = target(other, other.spec())
        assert host.driver().list() == ()
        host.driver().delete("db0", force=True)
        assert theirs.alive


def test_a_folder_may_be_a_link(host: UserHost, tmp_path: Path) -> None:
    spec = host.spec()
    old = target(host, spec)
    (tmp_path / "link").symlink_to(host.places.run)
    os.unlink(host.places.of("db0").record)
    driver = UserDriver(tmp_path / "link")
    assert [info.pid for info in driver.list()] == [old.pid]
    driver.delete("db0")
    driver.close()
    assert host.files() == []


def test_nobody_comes_up_for_who_is_gone(host: UserHost) -> None:
    """A daemon that died as its order was taken: the next one must not miss what comes up behind its look."""
    spec, places = host.spec(), host.places.of("db0")
    host.driver().create(host.spec("other"))
    lock = Path(places.log)
    lock.touch()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        creator = os.fork()
        if creator == 0:
            try:
                host.first.create(spec)
            finally:
                os._exit(0)
        wait_until(lambda: _waits_for(places.log), "a target that waits for its log")
        os.kill(creator, signal.SIGKILL)
        os.waitpid(creator, 0)
    wait_until(lambda: not _waits_for(places.log), "it to be gone")
    assert records.read(places.record) is None
    host.driver().delete("db0")
    assert [info.name for info in host.driver().list()] == ["other"]


def _waits_for(log: str) -> bool:
    """Whether a process other than this one has a log open."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) != os.getpid():
            try:
                links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            except OSError:
                continue
            if log in links:
                return True
    return False
