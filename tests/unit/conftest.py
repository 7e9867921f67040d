"""What the tests of the daemon and of its API share."""

from __future__ import annotations

import pytest

from ringway.testing.engine import World


@pytest.fixture
def anyio_backend() -> str:
    """The loop that the daemon runs in."""
    return "asyncio"


@pytest.fixture
def world() -> World:
    """What the engine has; it outlives hosts."""
    return World()
