"""What was seen last of each target port: a list of a thousand endpoints need not read them all again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from ringway.model import EndpointInfo, EndpointSpec, EndpointState, EngineKind

_MOST_KEPT: Final = 4096


class Sightings:
    """By WWPN. Any thread may call.

    What was read while a port was being changed is never remembered: it may be half of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, EndpointInfo] = {}
        self._changing: dict[str, EndpointInfo] = {}
        self._now = 0  #: counts beginnings and ends of changes
        self._changed: dict[str, int] = {}  #: when each port changed last
        self._forgotten = 0  #: ports that are not in there may have changed until then

    @contextlib.contextmanager
    def changing(self, spec: EndpointSpec, state: EndpointState | None = None) -> Iterator[None]:
        """An endpoint is changed for as long as the block lasts.

        :param state: what it is said to be meanwhile; if it is not given, what it was before.
        """
        assert spec.wwpn is not None
        with self._lock:
            before = self._seen.get(spec.wwpn)
            outline = before if before is not None and state is None else _outline(spec, state)
            self._changing[spec.wwpn] = outline
            self._note(spec.wwpn)
        try:
            yield
        finally:
            with self._lock:
                del self._changing[spec.wwpn]
                self._note(spec.wwpn)

    def _note(self, wwpn: str) -> None:
        """Something is not as it was seen any more."""
        self._seen.pop(wwpn, None)
        self._now += 1
        if len(self._changed) >= _MOST_KEPT:
            self._changed.clear()
            self._forgotten = self._now
        self._changed[wwpn] = self._now

    @property
    def now(self) -> int:
        """To be asked before a look, for :meth:`is_fresh` and :meth:`remember`."""
        return self._now

    def is_fresh(self, wwpn: str, begin: int) -> bool:
        """Whether nothing changed since a look began."""
        with self._lock:
            return self._is_fresh(wwpn, begin)

    def _is_fresh(self, wwpn: str, begin: int) -> bool:
        return wwpn not in self._changing and self._changed.get(wwpn, self._forgotten) <= begin

    def get(self, wwpn: str) -> EndpointInfo | None:
        """What was seen last, or what is being made of it."""
        with self._lock:
            return self._changing.get(wwpn) or self._seen.get(wwpn)

    def is_changing(self, wwpn: str) -> bool:
        """Whether it is being changed now."""
        with self._lock:
            return wwpn in self._changing

    def remember(self, wwpn: str, info: EndpointInfo, begin: int) -> EndpointInfo:
        """Keep what was seen, if it is fresh. :returns: ``info``."""
        with self._lock:
            if self._is_fresh(wwpn, begin):
                self._seen[wwpn] = info
        return info

    def take_gone(self, present: set[str]) -> list[EndpointInfo]:
        """Forget ports that are there no more. :returns: what they were."""
        with self._lock:
            return [self._seen.pop(wwpn) for wwpn in self._seen.keys() - present]


def _outline(spec: EndpointSpec, state: EndpointState | None) -> EndpointInfo:
    """An endpoint of which nothing was read yet."""
    return EndpointInfo(
        name=spec.name,
        engine=EngineKind.LIO,
        device=spec.device,
        state=state or EndpointState.READY,
        wwpn=spec.wwpn,
        nexus=spec.nexus,
        spec=spec,
    )
