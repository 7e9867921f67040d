"""An endpoint of the user engine from its creation to its end, with a front end that looks."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.engine.user import UserDriver
from ringway.errors import BusyError, ConflictError, NotFoundError, UsageError
from ringway.model import (
    EndpointInfo,
    EndpointSpec,
    EndpointState,
    EngineKind,
    Limits,
    LunSpec,
    OwnershipState,
)
from ringway.testing.frontend import BlkFrontEnd, ScsiFrontEnd
from ringway.testing.waiting import PATIENCE_S, wait_until

from .user_host import SIZE, UserHost, file_disk, null_disk


@pytest.fixture
def host() -> Iterator[UserHost]:
    with UserHost() as host:
        yield host


@pytest.fixture
def driver(host: UserHost) -> UserDriver:
    return host.first


def addresses(info: EndpointInfo) -> list[int]:
    return [lun.lun for lun in info.luns]


def with_lun(spec: EndpointSpec, number: int, host: UserHost) -> EndpointSpec:
    more = LunSpec(0, number, file_disk(host.image(f"more{number}")))
    return host.first.resolve(replace(spec, luns=(*spec.luns, more)))


def is_ready(guest: ScsiFrontEnd, lun: int) -> bool:
    """Past the unit attentions: TEST UNIT READY."""
    return any(
        (answer.response, answer.status) == (0, 0)
        for answer in (guest.command(bytes(6), lun=lun) for _ in range(4))
    )


def test_an_endpoint_serves_is_shown_and_leaves_nothing(host: UserHost, driver: UserDriver) -> None:
    spec = host.blk()
    driver.check(spec, ())
    driver.create(spec)
    with BlkFrontEnd(driver.show("db0").socket or "").open() as guest:
        assert guest.write(8, b"x" * 512).status == 0
        assert guest.flush().status == 0
        (listed,), shown = driver.list(), driver.show("db0")
        assert (listed.connected, shown.connected) == (True, True)
    assert (listed.state, listed.engine, listed.spec) == (EndpointState.READY, EngineKind.USER, spec)
    assert [(lun.path, lun.size_bytes, lun.serial) for lun in shown.luns] == [
        (str(host.image("db0")), SIZE, spec.luns[0].backstore.serial)
    ]
    assert host.image("db0").read_bytes()[4096:4608] == b"x" * 512
    wait_until(lambda: driver.list()[0].connected is False, "the guest to be gone")
    driver.delete("db0")
    assert host.files() == []
    assert driver.list() == ()
    driver.delete("db0")


def test_creating_again_changes_nothing(host: UserHost, driver: UserDriver) -> None:
    spec = host.spec()
    driver.create(spec)
    pid = driver.show("db0").pid
    driver.create(spec)
    host.driver().create(spec)
    assert driver.show("db0").pid == pid


def test_creating_what_runs_otherwise_changes_it(host: UserHost, driver: UserDriver) -> None:
    spec = host.spec()
    driver.create(spec)
    pid = driver.show("db0").pid
    driver.create(with_lun(spec, 1, host))
    assert (driver.show("db0").pid, addresses(driver.show("db0"))) == (pid, [0, 1])
    with pytest.raises(UsageError, match="queues"):
        driver.create(replace(spec, queues=2))
    assert driver.show("db0").pid == pid


def test_many_at_once(host: UserHost, driver: UserDriver) -> None:
    specs = [host.spec(f"vm{number}", null_disk()) for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(driver.create, specs))
        infos = driver.list()
        assert [info.state for info in infos] == [EndpointState.READY] * len(specs)
        assert len({info.pid for info in infos}) == len(specs)
        list(pool.map(driver.delete, [spec.name for spec in specs]))
    assert host.files() == []


def test_the_sockets_are_for_whom_they_are(host: UserHost, driver: UserDriver) -> None:
    driver.create(host.spec())
    places = host.places.of("db0")
    modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (places.socket, places.control, places.log)]
    assert modes == [0o660, 0o600, 0o640]
    assert stat.S_IMODE(os.stat(host.places.spawner).st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives sockets to any group, and targets users")
def test_what_root_gives_away(host: UserHost) -> None:
    driver = host.driver(group="daemon")
    driver.create(host.spec())
    info = driver.show("db0")
    assert Path(info.socket or "").group() == "daemon"
    status = Path(f"/proc/{info.pid}/status").read_text()
    user = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))
    assert int(user) != 0


def test_luns_come_and_go_under_a_guest(host: UserHost, driver: UserDriver) -> None:
    spec = host.spec()
    driver.create(spec)
    more = with_lun(spec, 1, host)
    with ScsiFrontEnd(driver.show("db0").socket).open() as guest:
        driver.update(spec, more)
        assert is_ready(guest, 1)
        assert addresses(driver.show("db0")) == addresses(driver.list()[0]) == [0, 1]
        with pytest.raises(BusyError, match="a guest is connected"):
            driver.update(more, spec)
        assert addresses(driver.show("db0")) == [0, 1]
        driver.update(more, spec, force=True)
        assert addresses(driver.show("db0")) == addresses(driver.list()[0]) == [0]
        assert is_ready(guest, 0)
        assert not is_ready(guest, 1)
    assert driver.show("db0").spec == spec


def test_an_update_that_fails_is_undone(host: UserHost, driver: UserDriver) -> None:
    old = with_lun(host.spec(), 1, host)
    driver.create(old)
    gone = LunSpec(0, 3, file_disk(host.folder / "gone"))
    swapped = (old.luns[0], with_lun(old, 2, host).luns[2], gone)
    new = driver.resolve(replace(old, luns=swapped))
    with pytest.raises(NotFoundError, match="gone"):
        driver.update(old, new)
    assert addresses(driver.show("db0")) == [0, 1]
    assert (driver.show("db0").spec, host.driver().show("db0").spec) == (old, old)


def test_limits_are_set_changed_and_shown(host: UserHost, driver: UserDriver) -> None:
    free = host.spec()
    limited = replace(free, luns=(replace(free.luns[0], limits=Limits(iops=100)),))
    driver.create(limited)
    assert driver.show("db0").luns[0].limits == Limits(iops=100)
    tight = replace(free, luns=(replace(free.luns[0], limits=Limits(bytes_per_s=1 << 20)),))
    driver.check(tight, ())  # its own target has the disk, and that is no reason to refuse
    driver.update(limited, tight)
    told = host.driver().show("db0")
    assert (told.luns[0].limits, told.spec) == (Limits(bytes_per_s=1 << 20), tight)


def test_a_blk_device_keeps_its_disk(host: UserHost, driver: UserDriver) -> None:
    spec = host.blk()
    driver.create(spec)
    other = driver.resolve(replace(spec, luns=(LunSpec(0, 0, file_disk(host.image("other"))),)))
    with pytest.raises(UsageError, match="keeps its disk"):
        driver.update(spec, other)


def test_a_guest_is_not_deleted_under(host: UserHost, driver: UserDriver) -> None:
    driver.create(host.spec())
    with ScsiFrontEnd(driver.show("db0").socket).open():
        with pytest.raises(BusyError, match="a guest is connected"):
            driver.delete("db0")
        assert driver.show("db0").connected
        driver.delete("db0", force=True)
    assert host.files() == []


def test_a_disk_grows(host: UserHost, driver: UserDriver) -> None:
    spec = host.spec("db0", file_disk(host.image("grows")), null_disk())
    driver.create(spec)
    os.truncate(host.image("grows"), 4 * SIZE)
    driver.resize("db0", spec.luns[0])
    driver.resize(
        "db0", replace(spec.luns[1], backstore=replace(spec.luns[1].backstore, size_bytes=2 * SIZE))
    )
    assert [lun.size_bytes for lun in driver.show("db0").luns] == [4 * SIZE, 2 * SIZE]
    with pytest.raises(NotFoundError):
        driver.resize("db0", replace(spec.luns[0], lun=7))
    with pytest.raises(NotFoundError):
        driver.resize("nobody", spec.luns[0])


def test_one_that_may_have_its_disk_later(host: UserHost, driver: UserDriver) -> None:
    """Another has it, as the source of a migration does; its target dies meanwhile, and comes again."""
    driver.create(host.spec("db1", file_disk(host.image())))
    spec = host.spec("db0", file_disk(host.image()), incoming=True)
    driver.check(spec, ())
    for _ in range(2):
        driver.create(spec)
        assert driver.show("db0").luns[0].ownership is OwnershipState.RELEASED
        os.kill(driver.show("db0").pid or 0, signal.SIGKILL)
        wait_until(lambda: driver.show("db0").state is EndpointState.DEGRADED, "its end")
    driver.create(spec)
    driver.delete("db1")
    with ScsiFrontEnd(driver.show("db0").socket or "").open() as guest:
        assert is_ready(guest, 0)
        assert driver.show("db0").luns[0].ownership is OwnershipState.HELD
        settled = replace(spec, incoming=False)
        driver.update(spec, settled)
        assert driver.show("db0").spec == settled


def test_figures(host: UserHost, driver: UserDriver) -> None:
    driver.create(host.blk())
    with BlkFrontEnd(driver.show("db0").socket or "").open() as guest:
        guest.read(0, 4096)
        assert driver.statistics("db0").luns[0].reads == 1
    (backstore,) = driver.backstores()
    assert (backstore.kind, backstore.path, backstore.used_by) == (
        "file",
        str(host.image("db0")),
        ("db0/0:0",),
    )
    for verb in (driver.statistics, driver.show):
        with pytest.raises(NotFoundError):
            verb("nobody")


def test_a_death_is_told_and_repaired(host: UserHost, driver: UserDriver) -> None:
    spec = host.spec()
    told, who = threading.Event(), []
    driver.create(spec)

    def notify(name: str) -> None:
        who.append(name)
        told.set()

    driver.watch(notify)
    os.kill(driver.show("db0").pid or 0, signal.SIGKILL)
    assert told.wait(PATIENCE_S)
    assert who == ["db0"]
    wait_until(lambda: "killed by SIGKILL" in (driver.show("db0").message or ""), "last words")
    dead = driver.list()[0]
    assert (dead.state, dead.pid, dead.connected) == (EndpointState.DEGRADED, None, False)
    with pytest.raises(NotFoundError, match="does not run"):
        driver.statistics("db0")
    driver.create(spec)
    again = driver.show("db0")
    assert (again.state, again.message) == (EndpointState.READY, None)
    told.clear()
    driver.delete("db0")
    assert not told.is_set(), "what was asked for is no news"


def test_what_is_there_can_be_told(host: UserHost, driver: UserDriver) -> None:
    report = driver.probe()
    assert report.usable
    assert {check.name for check in report.checks} == {"folder", "group", "spawner"}
    assert driver.probe_backstore(file_disk(host.image())).size_bytes == SIZE
    with pytest.raises(NotFoundError):
        driver.probe_backstore(file_disk(host.folder / "gone"))


def test_of_one_endpoint_there_is_one_target(host: UserHost, driver: UserDriver) -> None:
    """Two drivers, say one that was killed and its successor, have it started at once."""
    spec = host.spec("db0", null_disk())
    outcomes: list[BaseException | None] = []

    def create(mine: UserDriver) -> None:
        try:
            mine.create(spec)
            outcomes.append(None)
        except (BusyError, ConflictError) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=create, args=(host.driver(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None in outcomes
    wait_until(lambda: driver.show("db0").state is EndpointState.READY, "one of them")
    listening = [
        line
        for line in Path("/proc/net/unix").read_text().splitlines()
        if f"{host.places.run}/endpoint/db0.sock" in line
    ]
    assert len([line for line in listening if line.endswith("db0.sock")]) == 1


def test_sigterm_ends_a_target_whichever_thread_the_kernel_tells(host: UserHost, driver: UserDriver) -> None:
    """A host that is shut down stops all processes, tells them to end, and lets them go on."""
    driver.create(host.spec())
    pid = driver.show("db0").pid or 0
    main, *others = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    assert main == pid
    tell = ctypes.CDLL(None).tgkill
    assert any(tell(pid, other, signal.SIGTERM) == 0 for other in others)  # one may just have ended
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the target's end")
    assert not os.path.exists(driver.show("db0").socket or "")
