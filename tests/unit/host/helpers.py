"""What the tests of a host say often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from ringway.errors import RingwayError
from ringway.host.host import Host
from ringway.host.operations import Operation
from ringway.model import BackstoreSpec, EndpointSpec, EndpointState, EngineKind, LunSpec, SpecKind
from ringway.testing.engine import MemoryDriver

#: What is said when something is taken from a guest.
FROM_BOTH: Final[dict[str, Any]] = {"live": True, "persistent": True, "timeout_s": 1.0}


def ram(lun: int, size_bytes: int = 1 << 20) -> LunSpec:
    """A LUN on RAM."""
    return LunSpec(0, lun, BackstoreSpec(SpecKind.RAM, size_bytes=size_bytes))


def disk(lun: int, path: str) -> LunSpec:
    """A LUN on a path."""
    return LunSpec(0, lun, BackstoreSpec(SpecKind.PATH, path=path))


def spec(name: str, *luns: LunSpec, **more: Any) -> EndpointSpec:
    """An endpoint, with a LUN on RAM if none is named."""
    return EndpointSpec(name=name, luns=luns or (ram(0),), **more)


async def done(operation: Operation) -> Any:
    """Wait for an operation. :raises RingwayError: it failed."""
    await operation.ended()
    return operation.outcome()


def driver_of(host: Host) -> MemoryDriver:
    """The engine behind a host."""
    found = host.actual.drivers[EngineKind.USER]
    assert isinstance(found, MemoryDriver)
    return found


async def until_state(host: Host, name: str, state: EndpointState) -> None:
    """Wait for it; the test's time limit is the end."""
    while (await host.endpoint(name)).state is not state:
        await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; the test's time limit is the end."""
    while not condition():
        await asyncio.sleep(0.01)


def fail(_verb: str, _name: str) -> None:
    """What a world calls before a change that shall fail."""
    raise RingwayError("no")


class DiedError(BaseException):
    """The daemon was killed here: nothing that it still wanted to do happens."""


def die_at(name: str) -> Callable[[str], None]:
    def point(reached: str) -> None:
        if reached == name:
            raise asyncio.CancelledError

    return point
