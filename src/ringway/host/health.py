"""How endpoints are doing: their deaths, and what a list says of them."""

from __future__ import annotations

import time
from typing import Final

from msgspec.structs import replace

from ringway.host.backoff import Backoff
from ringway.host.restarts import Restarts
from ringway.host.store import Wanted
from ringway.model import EndpointInfo, EndpointState

_RUNNING: Final = (EndpointState.READY, EndpointState.STARTING)


def runs(info: EndpointInfo | None) -> bool:
    """Whether an endpoint that was seen does what it should."""
    return info is not None and info.state in _RUNNING


class Health:
    """The deaths of all endpoints, in this daemon's life, and how often they were started again before."""

    def __init__(self, restarts: Restarts) -> None:
        self._of: dict[str, Backoff] = {}
        self._restarts = restarts

    def died(self, name: str, message: str | None) -> float:
        """Note a death or a failed start. :returns: seconds until the next attempt."""
        return self._of.setdefault(name, Backoff()).died(time.monotonic(), message)

    def started(self, name: str) -> None:
        """Note a restart that came off."""
        self._of.setdefault(name, Backoff()).started()
        self._restarts.count(name)

    def wait_s(self, name: str) -> float:
        """Seconds until the next attempt is due."""
        found = self._of.get(name)
        return found.wait_s(time.monotonic()) if found else 0.0

    def is_degraded(self, name: str) -> bool:
        """Whether it died too often lately."""
        found = self._of.get(name)
        return found is not None and found.is_degraded(time.monotonic())

    def is_restart_owed(self, name: str) -> bool:
        """Whether a death was noted, and no start came off since."""
        found = self._of.get(name)
        return found is not None and found.is_owed

    def forget(self, name: str) -> None:
        """It is gone, or begins anew."""
        self._of.pop(name, None)
        self._restarts.forget(name)

    def view(self, wanted: Wanted, info: EndpointInfo | None) -> EndpointInfo:
        """What is wanted and what was seen, as one object."""
        past = self._of.get(wanted.name)
        seen = info or _unseen(wanted)
        state = self._state(wanted, info)
        wrong = state in (EndpointState.DEGRADED, EndpointState.DELETING)
        return replace(
            seen,
            state=state,
            restarts=self._restarts.of(wanted.name),
            message=(past.message if past and wrong else None) or seen.message,
            generation=wanted.generation,
            spec=wanted.spec,
        )

    def _state(self, wanted: Wanted, info: EndpointInfo | None) -> EndpointState:
        if wanted.deletion is not None:
            return EndpointState.DELETING
        if wanted.applied is None:
            return EndpointState.STARTING
        if self.is_degraded(wanted.name) or (info is None and wanted.name in self._of):
            return EndpointState.DEGRADED
        if info is not None and info.state is EndpointState.LOST:  # what it is is known here
            return EndpointState.DEGRADED
        return info.state if info is not None else EndpointState.STARTING


def _unseen(wanted: Wanted) -> EndpointInfo:
    """What can be said of an endpoint that is not there."""
    spec = wanted.spec
    return EndpointInfo(
        name=spec.name,
        engine=spec.engine,
        device=spec.device,
        state=EndpointState.STARTING,
        wwpn=spec.wwpn,
        nexus=spec.nexus,
    )
