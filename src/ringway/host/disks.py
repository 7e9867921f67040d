"""Who has which disk: endpoints serve some, QEMU opens others. Two that write one would destroy its data.

QEMU and the user engine lock what they open, but not under all names of a device, and the kernel's target
locks nothing. So an endpoint and a guest are compared before either has a disk: by what paths lead to, not by
their names. What is being made counts from before it is checked: of two that come at once at most one has it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ringway.errors import BusyError, UnreachableError
from ringway.host.actual import Actual
from ringway.host.desired import Desired
from ringway.host.hypervisors import Guests
from ringway.media import medium
from ringway.model import (
    BackstoreInfo,
    EndpointSpec,
    EngineKind,
    GuestDisk,
    GuestInfo,
    GuestState,
    LunSpec,
    SpecKind,
)

if TYPE_CHECKING:
    from ringway.guest.layout import Disk

_log: Final = logging.getLogger(__name__)
_PATHS: Final = (SpecKind.PATH, SpecKind.PSCSI)


class Use(Struct, frozen=True, kw_only=True):
    """A disk, and who has it or shall have it."""

    path: str
    by: str
    hint: str = ""
    readonly: bool = False


class Disks:
    """Keeps endpoints and guests off each other's disks. For one event loop."""

    def __init__(self, desired: Desired, actual: Actual, guests: Guests) -> None:
        self._desired = desired
        self._actual = actual
        self._guests = guests
        self._claims: dict[object, tuple[str, tuple[Use, ...]]] = {}

    @contextlib.asynccontextmanager
    async def promised(
        self, guest: str, disks: Iterable[Disk], endpoints: Iterable[EndpointSpec], *, but: str = ""
    ) -> AsyncIterator[None]:
        """Have disks be a guest's that is made, or given them, in the block.

        :param endpoints: those that serve them; without any, QEMU does.
        :param but: the UUID of the guest, if it is there: what it has is not looked at.
        :raises BusyError: somebody else has one, and not both only read.
        """
        wanted = tuple(_of_disk(guest, disk) for disk in disks)
        own = {endpoint.name for endpoint in endpoints}
        ticket, earlier = object(), self._claimed(but=guest)
        self._claims[ticket] = guest, () if own else wanted
        try:
            await self._refuse_served(wanted, own)
            if not own:
                await self._refuse_opened(wanted, earlier, lambda other: _runs(other) and other.uuid != but)
            yield
        finally:
            del self._claims[ticket]
            self._guests.forget_recent()

    async def refuse_opened(self, spec: EndpointSpec, luns: Iterable[LunSpec]) -> None:
        """Refuse LUNs of an endpoint whose disks a guest's QEMU has opened; of the kernel's engine, which
        no lock stops, also those that a guest opens when it starts.

        :raises BusyError: with the guest that has one, unless both only read.
        """
        wanted = tuple(_of_lun(spec, lun) for lun in luns if not lun.backstore.force and _has_path(lun))
        if wanted:
            which = (lambda _: True) if spec.engine is EngineKind.LIO else _runs
            await self._refuse_opened(wanted, self._claimed(), which)

    async def _refuse_served(self, wanted: tuple[Use, ...], own: set[str]) -> None:
        """:raises BusyError: an endpoint, of ours or not, has one."""
        specs = self._desired.others(*own)
        known = {spec.name for spec in specs} | own
        found = [_of_lun(spec, lun) for spec in specs for lun in spec.luns if _has_path(lun)]
        for backstore in await self._actual.backstores(guarded=True):
            found += _of_backstore(backstore, known)
        await self._actual.ask(_refuse, wanted, found)

    async def _refuse_opened(
        self, wanted: tuple[Use, ...], claimed: list[Use], which: Callable[[GuestInfo], bool]
    ) -> None:
        """:raises BusyError: a guest has one that is there, or is being made."""
        found = list(claimed)
        for guest in await self._there():
            if which(guest):
                found += _of_guest(guest)
        await self._actual.ask(_refuse, wanted, found)

    def _claimed(self, but: str | None = None) -> list[Use]:
        """The disks of guests that are being made. :param but: not of this one."""
        return [use for guest, uses in self._claims.values() if guest != but for use in uses]

    async def _there(self) -> tuple[GuestInfo, ...]:
        """The guests; none if libvirt cannot be asked: endpoints do not wait for it, and locks are left."""
        if not self._guests.there:
            return ()
        try:
            return await self._guests.recent()
        except UnreachableError as error:
            _log.warning("which disks guests have is not known now: %s", error)
            return ()


def _refuse(wanted: Iterable[Use], found: Iterable[Use]) -> None:
    """:raises BusyError: somebody has one of these, and not both only read."""
    shall = [(medium(use.path), use) for use in wanted]
    keys = {key for key, _ in shall}
    has = [(key, use) for use in found if (key := medium(use.path)) in keys]
    for key, use in shall:
        for other, theirs in has:
            if other == key and not (use.readonly and theirs.readonly):
                raise BusyError(
                    f"'{use.path}' is {theirs.by}; two would destroy its data",
                    holder=theirs.by,
                    hint=theirs.hint,
                )


def _runs(guest: GuestInfo) -> bool:
    return guest.state is not GuestState.SHUT_OFF


def _has_path(lun: LunSpec) -> bool:
    return lun.backstore.kind in _PATHS and lun.backstore.path is not None


def _of_disk(guest: str, disk: Disk) -> Use:
    volume = disk.volume
    by = f"disk {disk.target} of guest '{guest}', which is just made or given it"
    return Use(path=volume.path, by=by, hint="wait, then look again", readonly=volume.readonly)


def _of_lun(spec: EndpointSpec, lun: LunSpec) -> Use:
    where = f"{lun.target}:{lun.lun}"
    return Use(
        path=lun.backstore.path or "",
        by=f"LUN {where} of endpoint '{spec.name}'",
        hint=f"attach that endpoint: ringway guest attach GUEST {spec.name}; or remove the disk there first: "
        f"ringway lun remove {spec.name} {where}",
        readonly=lun.backstore.readonly,
    )


def _of_backstore(backstore: BackstoreInfo, known: set[str]) -> Iterator[Use]:
    """Of what no endpoint that is known here serves: it is foreign, or was lost."""
    for user in backstore.used_by:
        if user.split("/")[0] not in known and (backstore.path or "").startswith("/"):
            yield Use(path=backstore.path or "", by=f"served by {user}", hint="delete it there first")


def _detach(guest: GuestInfo, disk: GuestDisk) -> str:
    """The command that takes a disk from its guest."""
    if disk.volume is not None:
        return f"ringway guest detach {guest.name} {disk.target}"
    return f"virsh detach-disk {guest.name} {disk.target} --persistent"


def _of_guest(guest: GuestInfo) -> Iterator[Use]:
    """Its plain disks; what is no path from the root is no file of this host."""
    runs = ", which runs" if _runs(guest) else ""
    for disk in guest.disks:
        if (disk.source or "").startswith("/"):
            yield Use(
                path=disk.source or "",
                by=f"disk {disk.target} of guest '{guest.name}'{runs}",
                hint=f"take it away there first: {_detach(guest, disk)}",
                readonly=disk.readonly,
            )
