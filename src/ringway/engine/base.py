"""The verbs that both engines have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ringway.model import (
    BackstoreInfo,
    EndpointInfo,
    EndpointSpec,
    EngineKind,
    EngineReport,
    LunSpec,
    TargetStatistics,
)

Notify = Callable[[str], None]
"""Called with an endpoint's name when it may have changed by itself; from any thread, and it must not
block."""


class Driver(Protocol):
    """One engine on this host.

    Calls block; they come from many threads, at most one at a time for each endpoint. The specifications
    that
    they get are whole: names and serials were chosen by :meth:`resolve`, once. Nothing here remembers a
    desired
    state: that is the host's.
    """

    @property
    def kind(self) -> EngineKind:
        """Which engine it is."""

    def probe(self) -> EngineReport:
        """Say what this host lets the engine do. Never raises."""

    def resolve(self, spec: EndpointSpec) -> EndpointSpec:
        """Choose what ``spec`` leaves open (WWPN, nexus, serials, names of backstores), so that it can be
        kept.

        The same choice for the same specification is not promised; what was set is never changed.

        :raises UsageError: this engine cannot serve such an endpoint, on any host.
        """

    def check(self, spec: EndpointSpec, others: tuple[EndpointSpec, ...]) -> None:
        """Refuse what would fail: a device that is missing, busy, mounted, too small, or used by one of
        ``others``.

        :param others: all other endpoints that are wanted on this host, of both engines.
        :raises RingwayError: with who holds it, and what to do.
        """

    def check_foreign(self, spec: EndpointSpec, *, restoring: bool = False) -> None:
        """Refuse disks that others serve by this engine's means, whichever engine ``spec`` is for.

        :param restoring: it was there before, so what lies where we put it is its own; many come at once, and
            a look of the last second will do.
        :raises BusyError: with what serves it; what :meth:`create` would take over is no reason.
        """

    def create(self, spec: EndpointSpec) -> None:
        """Make the host have this endpoint, from nothing or from a part of it.

        Doing it again changes nothing. :raises RingwayError: it could not; nothing is left of what this
        call made.
        """

    def update(self, old: EndpointSpec, new: EndpointSpec, *, force: bool = False) -> None:
        """Change a running endpoint from one specification into another, guests attached: LUNs come, go and
        are limited.

        :param force: take a LUN away even where a guest is not asked first, and uses it now.
        :raises UsageError: what differs cannot be changed while it runs.
        :raises BusyError: a LUN shall go that a guest uses; nothing was changed.
        :raises RingwayError: it could not; the endpoint is as ``old`` says again, as far as the host allows.
        """

    def delete(self, name: str, *, force: bool = False) -> None:
        """Leave nothing behind. An endpoint that is not there is fine.

        :param force: even while a guest uses it.
        :raises BusyError: a guest uses it; nothing was changed.
        """

    def take_back(self, name: str) -> None:
        """Undo a :meth:`create` that came to nothing: as :meth:`delete`, but what others had made before
        stays, and is theirs again.

        :raises BusyError: a guest uses what was made; nothing was changed.
        """

    def resize(self, name: str, lun: LunSpec) -> None:
        """Look at a LUN's size again and tell the guest, as far as the engine can.

        :raises RingwayError: it has shrunk to nothing, or is not there.
        """

    def list(self) -> tuple[EndpointInfo, ...]:
        """All that is on the host now, ours or foreign. Cheap enough for once a second."""

    def show(self, name: str) -> EndpointInfo:
        """One of :meth:`list`, with all that can be told. :raises NotFoundError: it is not there."""

    def backstores(self) -> tuple[BackstoreInfo, ...]:
        """All that is mapped now, ours or foreign."""

    def statistics(self, name: str) -> TargetStatistics:
        """Counters since the endpoint's start; an engine that measures no latencies leaves their histograms
        empty. :raises NotFoundError: it is not there.
        """

    def watch(self, notify: Notify) -> None:
        """Tell of endpoints that change by themselves (a target died), until :meth:`close`."""

    def close(self) -> None:
        """Let go of threads and files; endpoints stay as they are."""
