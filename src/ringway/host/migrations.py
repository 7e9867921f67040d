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
    # What a guest has of ports comes out of the ports' rows, and all rows say in one way how far they are.
    """
    CREATE TABLE plug (name TEXT NOT NULL PRIMARY KEY, document TEXT NOT NULL) STRICT;
    INSERT INTO plug SELECT name, json_object(
        'name', name,
        'created', json_extract(document, '$.created'),
        'guest', json_extract(document, '$.guest'),
        'guest_name', json_extract(document, '$.guest_name'),
        'stage', iif(json_extract(document, '$.plugging'), 'begun', 'confirmed')
    ) FROM port WHERE json_extract(document, '$.guest') IS NOT NULL;
    UPDATE port SET document = json_object(
        'name', name,
        'created', json_extract(document, '$.created'),
        'spec', json_extract(document, '$.spec'),
        'stage', iif(json_extract(document, '$.deleting'), 'going',
            iif(json_extract(document, '$.made'), 'confirmed', 'begun'))
    );
    UPDATE attachment SET document = json_object(
        'name', name,
        'created', json_extract(document, '$.created'),
        'guest', json_extract(document, '$.guest'),
        'guest_name', json_extract(document, '$.name'),
        'stage', CASE json_extract(document, '$.state')
            WHEN 'attaching' THEN 'begun' WHEN 'detaching' THEN 'going' ELSE 'confirmed' END
    );
    """,
    """
    CREATE TABLE creation (name TEXT NOT NULL PRIMARY KEY, document TEXT NOT NULL) STRICT;
    ALTER TABLE endpoint ADD COLUMN made_for TEXT;
    """,
)
"""``applied``: the specification that the engine confirmed last, NULL until the creation was.
``deletion``: the endpoint is on its way out. ``made_for``: the UUID of the guest whose creation made it."""
