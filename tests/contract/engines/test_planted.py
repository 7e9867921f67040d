"""What somebody put into the runtime folder: no link is followed, nothing hangs, nothing is believed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringway.engine.user import records
from ringway.engine.user.processes import Identity
from ringway.engine.user.records import Record
from ringway.engine.user.words import last_words
from ringway.errors import RingwayError
from ringway.model import EndpointState

from .bench import Bench, ram
from .user_host import UserHost

PRECIOUS = '{"level": "error", "message": "precious"}\n'


@pytest.fixture
def host() -> Iterator[UserHost]:
    with UserHost() as host:
        yield host


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.parent / "made")


def endless(path: Path, _victim: Path) -> None:
    path.symlink_to("/dev/zero")


def fifo(path: Path, _victim: Path) -> None:
    os.mkfifo(path)


def nested(path: Path, _victim: Path) -> None:
    path.write_text('{"x":' + "[" * 100_000)


@pytest.mark.parametrize("plant", [link, dangling, endless, fifo, nested])
@pytest.mark.parametrize("suffix", [".json", ".json.new", ".log"])
def test_files_of_an_endpoint(
    host: UserHost, tmp_path: Path, suffix: str, plant: Callable[[Path, Path], None]
) -> None:
    victim, spec = tmp_path / "victim", host.spec()
    victim.write_text(PRECIOUS)
    host.places.endpoints.mkdir(parents=True)
    planted = host.places.endpoints / f"db0{suffix}"
    plant(planted, victim)
    assert host.first.list() == ()
    assert last_words(str(planted)) is None or plant is nested
    if suffix == ".log" and plant not in (nested, dangling):  # it is not written to, whatever it leads to
        with pytest.raises(RingwayError):
            host.first.create(spec)
        planted.unlink(missing_ok=True)
    elif suffix == ".log":
        planted.unlink()
    host.first.create(spec)
    assert host.first.show("db0").state is EndpointState.READY
    assert host.driver().list()[0].spec == spec
    host.driver().delete("db0")
    assert victim.read_text() == PRECIOUS
    assert not (tmp_path / "made").exists()


def test_a_record_under_another_name_is_none(host: UserHost) -> None:
    """Its endpoint would be another's."""
    host.places.endpoints.mkdir(parents=True)
    gone = Record(process=Identity(1, 1, "x"), spec=host.spec())
    records.write(str(host.places.endpoints / "other.json"), gone)
    assert host.first.list() == ()
    (host.places.endpoints / "other.json").unlink()


@pytest.mark.parametrize("plant", [link, dangling, endless, fifo, nested])
@pytest.mark.parametrize("name", ["db0.json", ".db0.new"])
def test_records_of_the_kernel_engine(
    lio: Bench, tmp_path: Path, name: str, plant: Callable[[Path, Path], None]
) -> None:
    victim, folder = tmp_path / "victim", lio.folder / "run" / "lio"
    victim.write_text(PRECIOUS)
    folder.mkdir(parents=True, exist_ok=True)
    plant(folder / name, victim)
    lio.restart()
    assert lio.names() == set()
    lio.create("db0", ram())
    lio.restart()
    assert lio.names() == {"db0"}
    lio.driver.delete("db0")
    assert victim.read_text() == PRECIOUS
    assert not (tmp_path / "made").exists()
