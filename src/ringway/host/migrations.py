"""The tables of the store, one script for each version of them. Scripts are added, never changed."""

from __future__ import annotations

from typing import Final

SCRIPTS: Final = (
    """
    CREATE TABLE endpoint (
        name TEXT NOT NULL PRIMARY KEY,
        engine TEXT NOT NULL,
        wwpn TEXT UNIQUE,
        spec TEXT NOT NULL,
        applied TEXT,
        generation INTEGER NOT NULL CHECK (generation > 0),
        deletion TEXT CHECK (deletion IN ('wanted', 'forced')),
        created TEXT NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE attachment (name TEXT NOT NULL PRIMARY KEY, document TEXT NOT NULL) STRICT;
    CREATE TABLE port (name TEXT NOT NULL PRIMARY KEY, document TEXT NOT NULL) STRICT;
    """,
)
"""``applied``: the specification that the engine confirmed last, NULL until the creation was.
``deletion``: the endpoint is on its way out."""
