"""What is wrong is said in a sentence, and nothing is left of what was begun."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.engine.user import UserDriver, records
from ringway.errors import (
    BackstoreError,
    BusyError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RingwayError,
    UnreachableError,
    UsageError,
)
from ringway.model import BackstoreSpec, DeviceKind, EndpointSpec, EngineKind, LunSpec, Protection, SpecKind
from ringway.testing.waiting import PATIENCE_S, wait_until

from .user_host import UserHost, file_disk, null_disk


@pytest.fixture
def host() -> Iterator[UserHost]:
    with UserHost() as host:
        yield host


@contextlib.contextmanager
def lock_of_nobody(path: Path) -> Iterator[None]:
    """An image's lock as a dead process's requests keep it: the file is open, and no process has it open."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        fd = os.open(path, os.O_RDWR)
        lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 100, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        socket.send_fds(ours, [b"x"], [fd])
        os.close(fd)
        yield


def foreign(**of: object) -> EndpointSpec:
    return EndpointSpec(name="db0", luns=(LunSpec(0, 0, null_disk()),), **of)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (foreign(nexus="naa.5001405000000001"), "initiator"),
        (foreign(protection=Protection.TYPE1), "protection"),
        (foreign(queues=0), "--queues"),
        (foreign(workers=2), "--workers"),
        (EndpointSpec(name="db0", device=DeviceKind.BLK), "exactly one disk"),
        (EndpointSpec(name="a" * 63, luns=()), None),
    ],
)
def test_what_no_host_could_serve(host: UserHost, spec: EndpointSpec, why: str | None) -> None:
    if why is None:  # the longest name that there can be: only a deep folder has no room for it
        host.first.resolve(spec)
        deep = UserDriver(host.folder / ("b" * 40))
        with pytest.raises(UsageError, match="is too long"):
            deep.resolve(spec)
        deep.close()
        return
    with pytest.raises(UsageError, match=why):
        host.first.resolve(spec)


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        (BackstoreSpec(SpecKind.PSCSI, path="/dev/sg0"), "kind 'pscsi'"),
        (BackstoreSpec(SpecKind.PATH, path="disk.img"), "not an absolute path"),
        (BackstoreSpec(SpecKind.PATH), "not an absolute path"),
        (BackstoreSpec(SpecKind.RAM), "no bytes"),
        (BackstoreSpec(SpecKind.PATH, path="/x", attributes={"emulate_tpu": "1"}), "emulate_tpu"),
    ],
)
def test_disks_that_no_host_could_serve(host: UserHost, disk: BackstoreSpec, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        host.first.resolve(EndpointSpec(name="db0", luns=(LunSpec(0, 0, disk),)))


def test_what_is_open_is_chosen_once(host: UserHost) -> None:
    disk = file_disk(host.image())
    first, second = host.spec("db0", disk, null_disk()), host.spec("db1", disk, null_disk())
    assert first.wwpn != second.wwpn
    assert first.luns[0].backstore.serial == second.luns[0].backstore.serial, "the same image"
    assert first.luns[1].backstore.serial != second.luns[1].backstore.serial, "another memory"
    assert host.first.resolve(first) == first


def test_a_device_that_is_missing(host: UserHost) -> None:
    spec = host.spec("db0", file_disk(host.folder / "gone"))
    with pytest.raises(NotFoundError, match="gone"):
        host.first.check(spec, ())
    with pytest.raises(NotFoundError, match="gone"):
        host.first.create(spec)
    assert host.files() == []


def test_an_image_of_another_format(host: UserHost) -> None:
    image = host.image()
    image.write_bytes(b"QFI\xfb" + bytes(1020))
    with pytest.raises(BackstoreError, match="qcow2"):
        host.first.check(host.spec("db0", file_disk(image)), ())


def test_a_directory(host: UserHost) -> None:
    with pytest.raises(BackstoreError, match="directory"):
        host.first.check(host.spec("db0", file_disk(host.folder)), ())


def test_a_disk_of_another_endpoint(host: UserHost) -> None:
    """By any name, of any engine, running or not."""
    link = host.folder / "link"
    link.symlink_to(host.image())
    mine, other = host.spec("db0", file_disk(link)), host.spec("db1", file_disk(host.image()))
    for engine in EngineKind:
        with pytest.raises(BusyError, match=r"LUN 0:0 of endpoint 'db1'") as refusal:
            host.first.check(mine, (replace(other, engine=engine),))
        assert refusal.value.holder == "endpoint db1"
    host.first.check(mine, (mine,))
    readers = [host.spec(name, file_disk(host.image(), readonly=True)) for name in ("db0", "db1")]
    host.first.create(readers[1])
    host.first.check(readers[0], (readers[1],))


def test_a_disk_that_is_not_there_yet_has_an_owner_all_the_same(host: UserHost) -> None:
    gone = file_disk(host.folder / "gone")
    with pytest.raises(BusyError, match="db1"):
        host.first.check(host.spec("db0", gone), (host.spec("db1", gone),))


def test_a_disk_of_somebody_else(host: UserHost) -> None:
    host.first.create(host.spec("db1", file_disk(host.image())))
    pid = host.first.show("db1").pid
    with pytest.raises(BusyError, match=f"pid {pid} \\(ringway-target\\)"):
        host.first.check(host.spec("db0", file_disk(host.image())), ())


def test_what_runs_is_no_conflict_with_itself(host: UserHost) -> None:
    spec = host.spec()
    host.first.create(spec)
    host.first.check(spec, (spec,))
    more = host.first.resolve(
        replace(spec, luns=(*spec.luns, LunSpec(0, 1, file_disk(host.folder / "gone"))))
    )
    with pytest.raises(NotFoundError, match="gone"):
        host.first.check(more, ())


def test_a_name_in_the_fabric_that_is_taken(host: UserHost) -> None:
    one = host.spec("db0", null_disk())
    with pytest.raises(ConflictError, match="'db0' has the name naa"):
        host.first.check(host.spec("db1", null_disk(), wwpn=one.wwpn), (one,))


def test_a_group_that_is_not_there(host: UserHost) -> None:
    driver = host.driver(group="no-such-group")
    with pytest.raises(NotFoundError, match="no group 'no-such-group'"):
        driver.create(host.spec())
    assert not driver.probe().usable


def test_a_folder_that_cannot_be_made(host: UserHost) -> None:
    (host.folder / "file").touch()
    driver = UserDriver(host.folder / "file" / "run")
    with pytest.raises(PermissionDeniedError, match="cannot be made"):
        driver.create(host.spec())
    assert not driver.probe().usable
    driver.close()


def test_a_spawner_that_cannot_start(host: UserHost) -> None:
    host.places.endpoints.mkdir(parents=True)
    host.places.spawner.touch()
    with pytest.raises(UnreachableError, match="exists and is not a socket"):
        host.first.create(host.spec())
    assert host.files() == []


def test_something_in_the_place_of_the_socket(host: UserHost) -> None:
    socket_path = Path(host.places.of("db0").socket)
    socket_path.mkdir(parents=True)
    with pytest.raises(ConflictError, match="is not a socket"):
        host.first.create(host.spec())
    socket_path.rmdir()
    assert host.files() == []


def test_the_last_words_of_a_target_that_dies_while_it_starts(host: UserHost) -> None:
    errors: list[RingwayError] = []

    def create() -> None:
        try:
            host.first.create(host.spec())
        except RingwayError as error:
            errors.append(error)

    with lock_of_nobody(host.image("db0")):
        starting = threading.Thread(target=create)
        starting.start()
        record = host.places.of("db0").record
        log = Path(host.places.of("db0").log)
        wait_until(lambda: records.read(record) is not None, "the record")
        wait_until(lambda: "waiting for" in log.read_text(), "the target to wait")
        found = records.read(record)
        assert found is not None
        os.kill(found.process.pid, signal.SIGKILL)
        starting.join(PATIENCE_S)
    assert "died while it started: waiting for" in errors[0].message
    assert host.files() == []


def test_who_dies_while_a_target_starts_leaves_one_that_is_found(host: UserHost) -> None:
    """The target does not need who ordered it: it comes up, and the next driver has it."""
    spec = host.spec()
    with lock_of_nobody(host.image("db0")):
        creator = os.fork()
        if creator == 0:
            host.first.create(spec)
            os._exit(0)
        wait_until(lambda: records.read(host.places.of("db0").record) is not None, "the record")
        os.kill(creator, signal.SIGKILL)
        os.waitpid(creator, 0)
    driver = host.driver()
    driver.create(spec)
    found = records.read(host.places.of("db0").record)
    assert found is not None
    assert driver.show("db0").pid == found.process.pid


def test_orders_that_make_no_sense_end_nobody(host: UserHost) -> None:
    host.first.create(host.spec())
    before = host.spawner
    for kind in ("nothing", "no file", "no order"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(host.places.spawner))
            if kind == "no file":
                client.send(b"order")
            elif kind == "no order":
                with open(os.memfd_create("order"), "wb") as file:
                    file.write(b'{"type": "nonsense"}')
                    file.flush()
                    socket.send_fds(client, [b"order"], [file.fileno()])
                assert b"failed" in client.recv(1000)
    host.first.create(host.spec("db1"))
    assert host.spawner == before
