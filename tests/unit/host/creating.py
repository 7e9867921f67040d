"""What goes wrong while a guest is made, for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringway.errors import RingwayError


def fail(verb: str, name: str) -> None:
    """No guest starts."""
    if verb == "start":
        raise RingwayError(f"no {name}")


def state_of(folder: Path) -> Path:
    """What is in it is no disk of a guest's."""
    (folder / "state").mkdir()
    return folder / "state"


class Death(Exception):
    """The daemon ends here; what it had begun it neither finishes nor takes back."""


def die_at(patch: pytest.MonkeyPatch, point: str) -> None:
    """Let the next passing of a point be the last thing that a creation does."""

    def reach(name: str) -> None:
        if name == point:
            raise Death

    async def nothing(*_: object) -> None:
        pass

    patch.setattr("ringway.faults.point", reach)
    patch.setattr("ringway.host.rows.Rows._try", nothing)
