"""Desired state on disk: SQLite, one row an endpoint. What was written is there after a power cut.

Calls block; they come from one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import Struct

from ringway.errors import ConflictError, RingwayError
from ringway.host.migrations import SCRIPTS
from ringway.model import EndpointSpec

APPLICATION: Final = 0x52_57_41_59  #: "RWAY", which file(1) and we know the file by
T = TypeVar("T", bound=Struct)
_FULL_HINT: Final = "make room on the file system of the daemon's state, then try again; nothing was changed"


class Deletion(StrEnum):
    """How an endpoint goes."""

    WANTED = "wanted"
    FORCED = "forced"  #: even while a guest uses it


class Wanted(Struct, frozen=True, kw_only=True):
    """One endpoint of the desired state.

    ``applied`` is what its engine confirmed last: ``None`` until its creation was acknowledged, another than
    ``spec`` while a change is under way. ``made_for`` is the UUID of the guest whose creation made it.
    """

    spec: EndpointSpec
    applied: EndpointSpec | None = None
    generation: int = 1
    deletion: Deletion | None = None
    created: str = ""
    made_for: str | None = None

    @property
    def name(self) -> str:
        return self.spec.name


class Store:
    """The file. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open it, and bring its tables up to date.

        :raises ConflictError: it is another program's, or a newer Ringway's.
        :raises RingwayError: it cannot be read or written.
        """
        with _errors_of(path):
            self._path = path
            self._db = _connect(path)
            try:
                _prepare(self._db, path)
            except BaseException:
                self._db.close()
                raise

    @property
    def folder(self) -> str:
        """Where it lies, alone with what belongs to it."""
        return str(self._path.parent)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it. Idempotent."""
        self._db.close()

    def load(self) -> tuple[Wanted, ...]:
        """All rows, by name. :raises RingwayError: one cannot be understood; it is named."""
        with _errors_of(self._path):
            rows = self._db.execute(
                "SELECT name, spec, applied, generation, deletion, created, made_for FROM endpoint "
                "ORDER BY name"
            ).fetchall()
        return tuple(_wanted(*row) for row in rows)

    def insert(self, wanted: Wanted) -> None:
        """Add a row. :raises ConflictError: its name or WWPN is taken."""
        self._change(
            "INSERT INTO endpoint "
            "(spec, applied, generation, deletion, created, made_for, engine, wwpn, name) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            wanted,
        )

    def update(self, wanted: Wanted) -> None:
        """Replace a row. :raises ConflictError: its WWPN is taken."""
        self._change(
            "UPDATE endpoint SET spec = ?, applied = ?, generation = ?, deletion = ?, created = ?, "
            "made_for = ?, engine = ?, wwpn = ? WHERE name = ?",
            wanted,
        )

    def delete(self, name: str) -> None:
        """Remove a row, if it is there."""
        with self._transaction():
            self._db.execute("DELETE FROM endpoint WHERE name = ?", (name,))

    def table(self, name: str, kind: type[T]) -> Table[T]:
        """Another table, of documents of one kind."""
        return Table(self, name, kind)

    def _change(self, statement: str, wanted: Wanted) -> None:
        spec, applied = wanted.spec, wanted.applied
        row = (
            _json(spec),
            _json(applied) if applied is not None else None,
            wanted.generation,
            wanted.deletion,
            wanted.created,
            wanted.made_for,
            spec.engine,
            spec.wwpn,
            spec.name,
        )
        with self._transaction():
            self._db.execute(statement, row)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _errors_of(self._path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield


class Table(Generic[T]):
    """Documents by name, in a table of the store."""

    def __init__(self, store: Store, name: str, kind: type[T]) -> None:
        self.name: Final = name
        self._store = store
        self._kind = kind

    def load(self) -> dict[str, T]:
        """All documents. :raises RingwayError: one cannot be understood; it is named."""
        with _errors_of(self._store._path):
            rows = self._store._db.execute(f"SELECT name, document FROM {self.name} ORDER BY name").fetchall()
        return {name: self._decoded(name, document) for name, document in rows}

    def put(self, name: str, document: T) -> None:
        """Write one down, or replace it."""
        with self._store._transaction():
            self._store._db.execute(
                f"INSERT OR REPLACE INTO {self.name} (name, document) VALUES (?, ?)",
                (name, msgspec.json.encode(document).decode()),
            )

    def delete(self, name: str) -> None:
        """Remove one, if it is there."""
        with self._store._transaction():
            self._store._db.execute(f"DELETE FROM {self.name} WHERE name = ?", (name,))

    def _decoded(self, name: str, document: str) -> T:
        try:
            return msgspec.json.decode(document, type=self._kind)
        except (msgspec.MsgspecError, RingwayError) as error:
            raise RingwayError(f"the stored {self.name} '{name}' cannot be understood: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    """Nobody but the daemon's user may read it."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not ours, then run the scripts that the file has not seen, each with its version."""
    application, version = _pragma(db, "application_id"), _pragma(db, "user_version")
    if application not in (0, APPLICATION) or (application == 0 and _tables(db)):
        raise ConflictError(f"'{path}' belongs to another program", hint="move it out of the way")
    if version > len(SCRIPTS):
        raise ConflictError(
            f"'{path}' was written by a newer Ringway (format {version}, and this one knows {len(SCRIPTS)})",
            hint="install that version again, or move the file out of the way",
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    for number, script in enumerate(SCRIPTS[version:], start=version + 1):
        db.executescript(
            f"BEGIN IMMEDIATE; {script} PRAGMA application_id = {APPLICATION}; "
            f"PRAGMA user_version = {number}; COMMIT;"
        )


def _pragma(db: sqlite3.Connection, name: str) -> int:
    value: int = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _tables(db: sqlite3.Connection) -> int:
    count: int = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return count


def _json(spec: EndpointSpec) -> str:
    return msgspec.json.encode(spec).decode()


def _wanted(name: str, spec: str, applied: str | None, *rest: Any) -> Wanted:
    generation, deletion, created, made_for = rest
    try:
        return Wanted(
            spec=msgspec.json.decode(spec, type=EndpointSpec),
            applied=msgspec.json.decode(applied, type=EndpointSpec) if applied is not None else None,
            generation=generation,
            deletion=Deletion(deletion) if deletion is not None else None,
            created=created,
            made_for=made_for,
        )
    except (msgspec.MsgspecError, RingwayError) as error:
        raise RingwayError(f"the stored endpoint '{name}' cannot be understood: {error}") from error


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Say in our words what SQLite refused."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise ConflictError("another endpoint has this name or WWPN", hint="take another one") from error
    except sqlite3.DatabaseError as error:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        hint = _FULL_HINT if full else "look at the file and its file system; restore it from a backup"
        raise RingwayError(f"'{path}': {error}", hint=hint) from error
