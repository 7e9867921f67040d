"""The changes of a host: each an operation, alone with its endpoint, on disk before the engine hears of it.

create: resolve, check, commit, make, commit again, answer. What fails or dies before the second commit is
taken back. update: check, commit with what was there before, change, commit. delete: commit that it goes,
unmake, remove the row.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from msgspec.structs import replace

from ringway import faults
from ringway.engine.base import Driver
from ringway.errors import BusyError
from ringway.host import specs
from ringway.host.actual import Actual
from ringway.host.desired import Desired
from ringway.host.disks import Disks
from ringway.host.events import Events, Kind
from ringway.host.health import Health, runs
from ringway.host.locks import Locks
from ringway.host.operations import Progress
from ringway.host.specs import Address
from ringway.host.store import Wanted
from ringway.host.strangers import Strangers
from ringway.model import EndpointInfo, EndpointSpec, EngineKind, LunSpec

_log: Final = logging.getLogger(__name__)
_FLAT_FROM: Final = 256  #: where events begin to number LUNs in another way than peripheral addressing
_FLAT: Final = 0x4000
Change = Callable[[EndpointSpec], EndpointSpec]


class Release(Protocol):
    """Lets go of what hangs on an endpoint that is to be deleted."""

    def __call__(self, name: str, *, force: bool) -> Awaitable[None]:
        """:raises BusyError: something does, and it is not forced."""


class Changes:
    """The verbs. For one event loop.

    :param wake: called with an endpoint's name when the reconciler should look at it.
    :param release: called before an endpoint is deleted.
    """

    def __init__(
        self,
        desired: Desired,
        actual: Actual,
        strangers: Strangers,
        health: Health,
        events: Events,
        wake: Callable[[str], None],
        release: Release,
        disks: Disks,
    ) -> None:
        self.locks = Locks()
        self._strangers = strangers
        self._release = release
        self._disks = disks
        self._desired = desired
        self._actual = actual
        self._health = health
        self._events = events
        self._wake = wake

    # create

    async def check(self, spec: EndpointSpec) -> EndpointSpec:
        """Do what a creation does before it changes anything. :returns: what it would create."""
        driver = self._actual.driver(spec.engine)
        self._refuse_name(spec.name)
        resolved = await self._actual.ask(driver.resolve, spec)
        with self._desired.claim(resolved) as others:
            await self._check(resolved, others)
        return resolved

    async def create(
        self, progress: Progress, spec: EndpointSpec, *, made_for: str | None = None
    ) -> EndpointInfo:
        """Make an endpoint; one that is there and equal is fine. When it fails, there is nothing of it.

        :param made_for: the UUID of the guest whose creation makes it.
        :raises ConflictError: another has its name or WWPN. :raises RingwayError: as the engine.
        """
        async with self.locks.hold(spec.name):
            if (same := self._same(spec)) is not None:
                if same.made_for not in (None, made_for):  # it is wanted for itself as well
                    same = await self._desired.put(same, made_for=None)
                return await self._view(same)
            driver = self._actual.driver(spec.engine)
            wanted = await self._admit(progress, driver, spec, made_for)
            faults.point("create.committed")
            progress.step(0.5, "making the endpoint")
            try:
                info = await self._actual.make(wanted.spec)
                faults.point("create.made")
                wanted = await self._desired.put(wanted, applied=wanted.spec)
            except BaseException:
                await self._give_up(wanted)
                raise
            faults.point("create.acknowledged")
            self._events.tell(Kind.CREATED, _thing(spec.name))
            return self._health.view(wanted, info)

    def has(self, spec: EndpointSpec) -> bool:
        """Whether :meth:`create` would find it there."""
        return self._same(spec) is not None

    def refuse_other(self, spec: EndpointSpec) -> None:
        """:raises ConflictError: another endpoint has its name."""
        if not self.has(spec):
            self._refuse_name(spec.name)

    def _same(self, spec: EndpointSpec) -> Wanted | None:
        """An endpoint that is there and is what ``spec`` asks for."""
        found = self._desired.find(spec.name)
        if found is None or found.deletion is not None or found.applied is None:
            return None
        alike = (found.spec.engine, found.spec.device) == (spec.engine, spec.device)
        return found if alike and specs.inherit(found.spec, spec) == found.spec else None

    async def _admit(
        self, progress: Progress, driver: Driver, spec: EndpointSpec, made_for: str | None
    ) -> Wanted:
        """Check a new endpoint, and write it down."""
        self._refuse_name(spec.name)
        progress.step(0.1, "checking")
        resolved = await self._actual.ask(driver.resolve, spec)
        with self._desired.claim(resolved) as others:
            await self._check(resolved, others)
            progress.cancellable(False)
            faults.point("create.checked")
            return await self._desired.insert(resolved, made_for=made_for)

    async def _check(
        self, spec: EndpointSpec, others: tuple[EndpointSpec, ...], *, had: tuple[LunSpec, ...] = ()
    ) -> None:
        """:raises RingwayError: the engine refuses, or somebody has a disk that it had not."""
        await self._actual.check(spec, others, had=had)
        known = [lun.backstore for lun in had]
        await self._disks.refuse_opened(spec, [lun for lun in spec.luns if lun.backstore not in known])

    def _refuse_name(self, name: str) -> None:
        """:raises ConflictError: an endpoint has this name."""
        self._desired.refuse_name(name)
        self._strangers.refuse_name(name)

    async def _give_up(self, wanted: Wanted) -> None:
        """Undo a creation that failed. What cannot be undone now the reconciler tries again."""
        try:
            await self.take_back(wanted)
        except Exception as error:
            _log.warning("what is left of endpoint '%s' cannot be removed yet: %s", wanted.name, error)

    async def take_back(self, wanted: Wanted) -> None:
        """Undo a creation that nobody was told of; the lock is held.

        What was there before stays, and so does what a guest uses: it is not this creation's to take.
        """
        driver = self._actual.driver(wanted.spec.engine)
        try:
            await self._actual.change(driver.take_back, wanted.name)
        except BusyError as error:
            _log.warning("endpoint '%s' was not created, and what is there stays: %s", wanted.name, error)
            self._wake(wanted.name)  # somebody uses it: it is taken in
        faults.point("create.taken-back")
        await self._desired.remove(wanted.name)
        self._actual.forget(wanted.spec.engine, wanted.name)
        self._health.forget(wanted.name)

    # update

    async def update(
        self, progress: Progress, name: str, change: Change, *, force: bool = False
    ) -> EndpointInfo:
        """Change an endpoint's specification, and the endpoint. When it fails, both are as they were.

        :param change: makes the new specification of the present one.
        :param force: LUNs may go even while a guest uses them.
        :raises BusyError: a guest does.
        """
        async with self.locks.hold(name):
            wanted = self._desired.settled(name)
            new = specs.inherit(wanted.spec, change(wanted.spec))
            if new == wanted.spec:
                return await self._view(wanted)
            progress.step(0.1, "checking")
            driver = self._actual.driver(wanted.spec.engine)
            running = runs(await self._actual.look(new.engine, name))
            changed = await self._commit(progress, driver, wanted, new)
            faults.point("update.committed")
            if running:
                await self._carry_out(progress, driver, wanted, changed, force)
            else:
                self._wake(name)
            self._events.tell(Kind.UPDATED, _thing(name), "; ".join(specs.differences(wanted.spec, new)))
            return await self._view(self._desired.get(name))

    async def _commit(self, progress: Progress, driver: Driver, wanted: Wanted, new: EndpointSpec) -> Wanted:
        """Check the new specification, and write it down beside the one that runs."""
        resolved = await self._actual.ask(driver.resolve, new)
        with self._desired.claim(resolved) as others:
            await self._check(resolved, others, had=wanted.spec.luns)
            progress.cancellable(False)
            return await self._desired.put(
                wanted, spec=resolved, generation=wanted.generation + 1, made_for=None
            )

    async def _carry_out(
        self, progress: Progress, driver: Driver, wanted: Wanted, changed: Wanted, force: bool
    ) -> None:
        progress.step(0.5, "changing the endpoint")
        try:
            await self._actual.change(driver.update, wanted.spec, changed.spec, force=force)
            faults.point("update.made")
            await self._desired.put(changed, applied=changed.spec)
        except BaseException:
            await self._desired.put(wanted)
            self._wake(wanted.name)
            raise
        faults.point("update.acknowledged")

    async def resize(
        self, progress: Progress, name: str, address: Address, size_bytes: int | None
    ) -> EndpointInfo:
        """Look at a LUN's size again, and tell the guest.

        :param size_bytes: for a LUN that has no size but the one it is told.
        :returns: as it is; with the kernel engine its message says how the guest finds out.
        """
        async with self.locks.hold(name):
            wanted = self._desired.settled(name)
            spec = specs.with_size(wanted.spec, address, size_bytes)
            progress.cancellable(False)
            driver = self._actual.driver(spec.engine)
            if runs(await self._actual.look(spec.engine, name)):
                await self._actual.change(driver.resize, name, specs.lun_of(spec, address))
            else:  # it is looked at as it starts
                self._wake(name)
            if spec != wanted.spec:
                wanted = await self._desired.put(
                    wanted, spec=spec, applied=spec, generation=wanted.generation + 1
                )
            self._events.tell(Kind.RESIZED, _thing(name), f"lun {address[0]}:{address[1]}")
            info = await self._view(wanted)
            if spec.engine is EngineKind.LIO:  # the kernel has no word for it
                return replace(info, message="\n".join(filter(None, (info.message, _untold(address)))))
            return info

    # delete

    async def delete(self, progress: Progress, name: str, *, force: bool = False) -> None:
        """Remove an endpoint, and all that belonged to it.

        :raises BusyError: a guest uses it; it is as before.
        """
        async with self.locks.hold(name):
            wanted = self._desired.get(name)
            self._actual.driver(wanted.spec.engine)  # one that is not run here removes nothing
            progress.cancellable(False)
            await self._release(name, force=force)
            faults.point("delete.begun")
            wanted = await self._desired.mark_deleted(wanted, force=force)
            faults.point("delete.committed")
            progress.step(0.3, "removing the endpoint")
            await self.finish_deletion(wanted, force=force)

    async def finish_deletion(self, wanted: Wanted, *, force: bool) -> None:
        """Remove what was marked. When the engine refuses, it is wanted again; the lock is held."""
        name = wanted.name
        try:
            driver = self._actual.driver(wanted.spec.engine)
            await self._actual.change(driver.delete, name, force=force)
        except BusyError:
            await self._desired.put(wanted, deletion=None)
            raise
        faults.point("delete.made")
        await self._desired.remove(name)
        faults.point("delete.acknowledged")
        self._actual.forget(wanted.spec.engine, name)
        self._health.forget(name)
        self._events.tell(Kind.DELETED, _thing(name))

    async def _view(self, wanted: Wanted) -> EndpointInfo:
        return self._health.view(wanted, await self._actual.look(wanted.spec.engine, wanted.name))


def _thing(name: str) -> str:
    return f"endpoint/{name}"


def _untold(address: Address) -> str:
    return f"the kernel tells no guest; in the guest, as root: {rescan(address)}"


def rescan(address: Address) -> str:
    """What a guest has to do to see a LUN's new size. :returns: a command of Linux', whatever the shell.

    A LUN past 255 has one of two numbers there: its own, by which the kernel's REPORT LUNS calls it, or that
    of flat addressing, by which its events do. Spec: SAM-5 r21, Logical unit number (LUN).
    """
    target, lun = address
    numbers = (lun,) if lun < _FLAT_FROM else (lun, _FLAT | lun)
    where = " ".join(f"/sys/class/scsi_device/*:0:{target}:{number}/device/rescan" for number in numbers)
    return f"echo 1 | tee {where}" if len(numbers) == 1 else f"echo 1 | tee $(ls {where} 2>/dev/null)"
