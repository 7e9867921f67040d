"""Change what a running endpoint serves: LUNs come and go, and what fails is undone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

from msgspec.structs import replace

from ringway.engine.user import choices
from ringway.engine.user.client import SpawnerClient
from ringway.engine.user.endpoint import Endpoint
from ringway.errors import RingwayError, UsageError
from ringway.model import (
    DeviceKind,
    Done,
    EndpointSpec,
    Limits,
    LunInfo,
    LunLimitRequest,
    LunRemoveRequest,
    LunSpec,
)

_log: Final = logging.getLogger(__name__)
_CHANGED: Final = ("luns", "incoming")  #: the latter says how its next target starts


def apply_changes(endpoint: Endpoint, new: EndpointSpec, spawner: SpawnerClient, *, force: bool) -> None:
    """Let a target serve the LUNs of ``new``, and put that down.

    :param force: take LUNs away even while a guest is connected.
    :raises UsageError: what differs cannot be changed while it runs; nothing was.
    :raises BusyError: a LUN shall go that a guest may use; nothing was changed.
    :raises RingwayError: a step failed; those before it are undone as far as the host allows.
    """
    old = endpoint.spec
    _refuse_fixed(old, new)
    gone = [lun for lun in old.luns if _bare(lun) not in map(_bare, new.luns)]
    come = [lun for lun in new.luns if _bare(lun) not in map(_bare, old.luns)]
    if old.device is DeviceKind.BLK and (gone or come):
        raise UsageError("a blk device keeps its disk", hint="take --device scsi for disks that come and go")
    if gone and not force:
        endpoint.refuse_if_used()
    endpoint.note(old, pending=new)
    undo: list[Callable[[], object]] = []
    try:
        for lun in gone:
            _remove(endpoint, lun)
            undo.append(lambda lun=lun: spawner.add(endpoint.places.control, lun))  # type: ignore[misc]
        for lun in come:
            spawner.add(endpoint.places.control, lun)
            undo.append(lambda lun=lun: _remove(endpoint, lun))  # type: ignore[misc]
        for before, after in _limited(old, new):
            _limit(endpoint, after)
            undo.append(lambda lun=before: _limit(endpoint, lun))  # type: ignore[misc]
    except BaseException:
        _undo(endpoint, undo)
        raise
    endpoint.note(new)
    with contextlib.suppress(RingwayError):
        endpoint.look()  # what is listed


def _limited(old: EndpointSpec, new: EndpointSpec) -> Iterator[tuple[LunSpec, LunSpec]]:
    """LUNs that stay, and are limited in another way: as they were, and as they shall be."""
    for before in old.luns:
        for after in new.luns:
            if _bare(before) == _bare(after) and before.limits != after.limits:
                yield before, after


def _limit(endpoint: Endpoint, lun: LunSpec) -> None:
    endpoint.ask(LunLimitRequest(lun.target, lun.lun, lun.limits), LunInfo)


def _undo(endpoint: Endpoint, steps: list[Callable[[], object]]) -> None:
    """Go back; what that comes to is put down."""
    for step in reversed(steps):
        try:
            step()
        except RingwayError as error:
            _log.error("endpoint '%s' is not as it was before: %s", endpoint.name, error)
    with contextlib.suppress(RingwayError):
        endpoint.look()


def _remove(endpoint: Endpoint, lun: LunSpec) -> None:
    endpoint.ask(LunRemoveRequest(lun.target, lun.lun), Done)


def _refuse_fixed(old: EndpointSpec, new: EndpointSpec) -> None:
    """:raises UsageError: something differs that is decided when the target starts."""
    choices.refuse_foreign(new)
    fixed = [
        field
        for field in old.__struct_fields__
        if field not in _CHANGED and getattr(old, field) != getattr(new, field)
    ]
    if fixed:
        raise UsageError(
            f"what cannot be changed while endpoint '{old.name}' runs: {', '.join(fixed)}",
            hint="delete it and create it anew; its guest has to let go of it for that",
        )


def _bare(lun: LunSpec) -> LunSpec:
    """What of a LUN its target was told when it opened it."""
    disk = replace(lun.backstore, name=None, attributes={}, force=False)
    return replace(lun, backstore=disk, limits=Limits())
