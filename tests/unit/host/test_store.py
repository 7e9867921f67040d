"""The store: what was written is there, what is not ours is refused, and no name or WWPN is given twice."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import ConflictError, RingwayError
from ringway.host import migrations
from ringway.host.store import APPLICATION, Deletion, Store, Wanted

from .helpers import spec

WWPN = "naa.5000000000000001"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def test_what_was_written_is_there_again(path: Path) -> None:
    wanted = Wanted(spec=spec("db0", wwpn=WWPN), created="2026-01-01T00:00:00.000Z")
    with Store(path) as store:
        store.insert(wanted)
        changed = replace(wanted, applied=wanted.spec, generation=2, deletion=Deletion.FORCED)
        store.update(changed)
    with Store(path) as store:
        assert store.load() == (changed,)
        store.delete("db0")
        assert store.load() == ()


def test_only_its_user_may_read_it(path: Path) -> None:
    with Store(path) as store:
        store.insert(Wanted(spec=spec("a")))
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("state.db*")}
    assert modes == {0o600}


@pytest.mark.parametrize("second", [spec("a"), spec("b", wwpn=WWPN)], ids=["name", "wwpn"])
def test_no_name_or_wwpn_is_given_twice(path: Path, second: object) -> None:
    with Store(path) as store:
        store.insert(Wanted(spec=spec("a", wwpn=WWPN)))
        with pytest.raises(ConflictError):
            store.insert(Wanted(spec=second))  # type: ignore[arg-type]
        assert [wanted.name for wanted in store.load()] == ["a"]


def test_it_is_strict_and_syncs_each_commit(path: Path) -> None:
    with Store(path) as store:
        db = store._db
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(
                "INSERT INTO endpoint (name, engine, spec, generation, created) VALUES ('a','user','','x','')"
            )


def test_another_programs_file_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(ConflictError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_a_newer_format_is_refused(path: Path) -> None:
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConflictError, match="newer"):
        Store(path)


def test_what_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"x" * 8192)
    with pytest.raises(RingwayError, match="not a database"):
        Store(path)


def test_a_row_that_makes_no_sense_is_named(path: Path) -> None:
    with Store(path) as store:
        store.insert(Wanted(spec=spec("db7")))
        store._db.execute("UPDATE endpoint SET spec = '{}'")
        with pytest.raises(RingwayError, match="db7"):
            store.load()


def test_each_script_runs_once_and_a_failed_one_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(path) as store:
        store.insert(Wanted(spec=spec("a")))
    more = "ALTER TABLE endpoint ADD COLUMN note TEXT;"
    monkeypatch.setattr("ringway.host.store.SCRIPTS", (*migrations.SCRIPTS, f"{more} SELECT nonsense;"))
    with pytest.raises(RingwayError, match="nonsense"):
        Store(path)
    monkeypatch.setattr("ringway.host.store.SCRIPTS", (*migrations.SCRIPTS, more))
    for _ in range(2):
        with Store(path) as store:
            assert [wanted.name for wanted in store.load()] == ["a"]
            assert store._db.execute("PRAGMA user_version").fetchone() == (len(migrations.SCRIPTS) + 1,)
            assert store._db.execute("PRAGMA application_id").fetchone() == (APPLICATION,)
