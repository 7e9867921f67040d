"""The store: what was written is there, what is not ours is refused, and no name or WWPN is given twice."""

from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from ringway.errors import ConflictError, RingwayError
from ringway.host import migrations
from ringway.host.holdings import Holding
from ringway.host.plugs import WantedPort
from ringway.host.rows import Stage
from ringway.host.store import APPLICATION, Deletion, Store, Wanted
from ringway.model import PortSpec

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


def _format_2(path: Path) -> sqlite3.Connection:
    """A store as it was before all rows had stages."""
    db = sqlite3.connect(path)
    db.executescript("".join(migrations.SCRIPTS[:2]))
    db.execute(f"PRAGMA application_id = {APPLICATION}")
    db.execute("PRAGMA user_version = 2")
    return db


@pytest.mark.parametrize(
    ("state", "stage"),
    [("attaching", Stage.BEGUN), ("attached", Stage.CONFIRMED), ("detaching", Stage.GOING)],
)
def test_an_older_attachment_keeps_its_guest_and_how_far_it_is(path: Path, state: str, stage: Stage) -> None:
    old = {"wish": {"endpoint": "db0"}, "guest": "u1", "name": "web", "state": state, "created": "then"}
    with _format_2(path) as db:
        db.execute("INSERT INTO attachment VALUES ('db0', ?)", (json.dumps(old),))
    db.close()
    with Store(path) as store:
        assert store.table("attachment", Holding).load() == {
            "db0": Holding(name="db0", guest="u1", guest_name="web", stage=stage, created="then")
        }


@pytest.mark.parametrize(
    ("flags", "port", "plug"),
    [
        ({}, Stage.BEGUN, None),
        ({"made": True}, Stage.CONFIRMED, None),
        ({"made": True, "deleting": True}, Stage.GOING, None),
        ({"made": True, "guest": "u1", "plugging": True}, Stage.CONFIRMED, Stage.BEGUN),
        ({"made": True, "guest": "u1"}, Stage.CONFIRMED, Stage.CONFIRMED),
    ],
    ids=["begun", "made", "deleting", "plugging", "plugged"],
)
def test_an_older_port_becomes_a_port_and_a_plug(
    path: Path, flags: dict[str, object], port: Stage, plug: Stage | None
) -> None:
    wanted = PortSpec(name="p0", mac="52:54:00:00:00:01", options={"bridge": "br0"})
    old: dict[str, object] = {"made": False, "deleting": False, "plugging": False, "created": "then"}
    old |= {"spec": msgspec.to_builtins(wanted), "guest": None, "guest_name": "web", **flags}
    with _format_2(path) as db:
        db.execute("INSERT INTO port VALUES ('p0', ?)", (json.dumps(old),))
    db.close()
    with Store(path) as store:
        assert store.table("port", WantedPort).load() == {
            "p0": WantedPort(name="p0", spec=wanted, stage=port, created="then")
        }
        plugs = store.table("plug", Holding).load()
    row = plug and Holding(name="p0", guest="u1", guest_name="web", stage=plug, created="then")
    assert plugs == ({"p0": row} if row else {})
