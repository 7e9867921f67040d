"""Endpoints of ours that the store does not know as they are: it was lost, or is an old copy.

Nothing of them is ever removed for that. Who is whole is taken in; who cannot be is shown as ``lost``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from ringway.engine.base import Driver
from ringway.errors import BusyError, ConflictError, RingwayError
from ringway.host import specs
from ringway.host.actual import Actual
from ringway.host.desired import Desired
from ringway.host.events import Events, Kind
from ringway.host.health import runs
from ringway.host.store import Wanted
from ringway.media import Identity, medium
from ringway.model import EndpointInfo, EndpointSpec, EndpointState

_log: Final = logging.getLogger(__name__)


class Strangers:
    """Finds them, and takes them in. For one event loop."""

    def __init__(self, desired: Desired, actual: Actual, events: Events) -> None:
        self._desired = desired
        self._actual = actual
        self._events = events
        self._reasons: dict[str, str] = {}  #: why one cannot be taken in
        self._older: set[str] = set()  #: endpoints whose row is older than what runs

    def all(self) -> Iterator[EndpointInfo]:
        """Those without a row, as they were last seen."""
        for kind in self._actual.drivers:
            for name in sorted(self._actual.names_seen(kind) - self._desired.names()):
                if (info := self._actual.seen(kind, name)) is not None:
                    yield self._view(info)

    def _view(self, info: EndpointInfo) -> EndpointInfo:
        message = self._reasons.get(info.name) or info.message or "it is about to be taken in"
        return replace(info, state=EndpointState.LOST, message=message)

    def find(self, name: str) -> EndpointInfo | None:
        """One of them."""
        if self._desired.find(name) is not None:
            return None
        seen = (self._actual.seen(kind, name) for kind in self._actual.drivers)
        return next((self._view(info) for info in seen if info is not None), None)

    def refuse_name(self, name: str) -> None:
        """:raises ConflictError: one has this name; what it serves is not a new endpoint's to change."""
        if (found := self.find(name)) is not None:
            raise ConflictError(
                f"the host has an endpoint '{name}' that was lost: {found.message}",
                hint="take another name, or mend that first",
            )

    async def refuse_disks(self, spec: EndpointSpec) -> None:
        """:raises BusyError: one of them has a disk of an endpoint that is about to be restored."""
        if known := [info.spec for info in self.all() if info.spec is not None]:
            await self._actual.ask(_refuse_shared, spec, known)

    async def take_in(self, name: str) -> Wanted | None:
        """Want one without a row, as it is; the lock is held. :returns: its row, if it could be.

        What is wanted by others already, disks above all, is not wanted twice.
        """
        for kind, driver in self._actual.drivers.items():
            if (info := await self._actual.look(kind, name)) is not None:
                return await self._enter(driver, info, None)
        self._reasons.pop(name, None)
        return None

    async def _enter(self, driver: Driver, info: EndpointInfo, old: Wanted | None) -> Wanted | None:
        try:
            if info.spec is None or info.state is EndpointState.LOST:
                raise ConflictError(info.message or "what it serves cannot be told")
            with self._desired.claim(info.spec) as others:
                await self._check(driver, info.spec, others)
                if old is None:
                    wanted = await self._desired.insert(info.spec, confirmed=True)
                else:
                    newer = old.generation + 1
                    wanted = await self._desired.put(old, spec=info.spec, applied=info.spec, generation=newer)
        except (BusyError, ConflictError) as error:
            self._note(info.name, error)
            return None
        self._reasons.pop(info.name, None)
        self._events.tell(Kind.ADOPTED, f"endpoint/{info.name}", "the store did not know it as it is")
        return wanted

    async def _check(self, driver: Driver, spec: EndpointSpec, others: tuple[EndpointSpec, ...]) -> None:
        """:raises BusyError: somebody else has a disk of it. :raises ConflictError: or its name."""
        try:
            await self._actual.ask(driver.check, spec, others)
        except (BusyError, ConflictError):
            raise
        except RingwayError as error:  # it is tried until that is mended, as with any other
            _log.info("endpoint '%s' is taken in, though: %s", spec.name, error)

    def _note(self, name: str, error: RingwayError) -> None:
        message = f"{error.message} ({error.hint})" if error.hint else error.message
        if self._reasons.get(name) != message:
            _log.warning("endpoint '%s' is not known, stays, and cannot be taken in: %s", name, message)
        self._reasons[name] = message

    # Rows that are older than the host: the store is a copy from before

    def compare(self, wanted: Wanted) -> bool:
        """Look at a row as the daemon starts: nobody has changed it since it was confirmed.

        :returns: whether the endpoint runs otherwise than it says, and not for want of a LUN.
        """
        info = self._actual.seen(wanted.spec.engine, wanted.name)
        if _is_older(wanted, info):
            self._older.add(wanted.name)
        return wanted.name in self._older

    async def renew(self, wanted: Wanted, info: EndpointInfo | None) -> Wanted:
        """Bring a row up to what runs; the lock is held. :returns: the row.

        :raises ConflictError: another endpoint wants a disk of it, say; the endpoint is left as it runs.
        """
        if wanted.name not in self._older:
            return wanted
        if info is None or info.spec is None or specs.is_same(info.spec, wanted.spec):
            self._older.discard(wanted.name)
            return wanted
        renewed = await self._enter(self._actual.driver(wanted.spec.engine), info, wanted)
        if renewed is None:
            raise ConflictError(f"it runs otherwise than is known, and stays: {self._reasons[wanted.name]}")
        self._older.discard(wanted.name)
        return renewed


def _refuse_shared(spec: EndpointSpec, others: list[EndpointSpec]) -> None:
    wanted = _disks(spec)
    for other in others:
        if shared := wanted.keys() & _disks(other).keys():
            path = min(wanted[each] for each in shared)
            raise BusyError(
                f"'{path}' is served by endpoint '{other.name}', which the store does not know",
                holder=f"endpoint {other.name}",
                hint=f"delete '{spec.name}' to have '{other.name}' taken in",
            )


def _disks(spec: EndpointSpec) -> dict[Identity | str, str]:
    """Its paths, by where they lead to."""
    return {medium(path): path for lun in spec.luns if (path := lun.backstore.path) is not None}


def _is_older(wanted: Wanted, info: EndpointInfo | None) -> bool:
    """Whether an endpoint was changed by us, with a store that had it otherwise than this one."""
    if wanted.deletion is not None or wanted.applied != wanted.spec or not runs(info):
        return False
    assert info is not None
    return info.spec is not None and not specs.is_same(info.spec, wanted.spec)
