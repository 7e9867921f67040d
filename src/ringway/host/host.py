"""A host: what it has, and how it is changed. Everything that the API says comes from here."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from msgspec.structs import replace

import ringway
from ringway.engine.base import Driver
from ringway.errors import NotFoundError, RingwayError, error_from_code
from ringway.guest.base import Hypervisor
from ringway.host import plans, probe, specs, transfer
from ringway.host.actual import Actual
from ringway.host.attachments import Attachments
from ringway.host.changes import Change as SpecChange
from ringway.host.changes import Changes
from ringway.host.config import DaemonConfig
from ringway.host.creations import Creation, Creations
from ringway.host.desired import Desired
from ringway.host.disks import Disks
from ringway.host.events import Events
from ringway.host.health import Health
from ringway.host.holdings import Holding
from ringway.host.hypervisors import Guests
from ringway.host.operations import Operation, Operations
from ringway.host.plain import PlainDisks
from ringway.host.plugs import Plugs, WantedPort
from ringway.host.ports import Ports
from ringway.host.reconcile import Reconciler
from ringway.host.restarts import Restarts
from ringway.host.rows import R, Rows
from ringway.host.specs import Address
from ringway.host.store import Store
from ringway.host.strangers import Strangers
from ringway.host.surroundings import Surroundings
from ringway.host.switches import Switches
from ringway.host.transfer import Format, Import
from ringway.model import (
    API_VERSION,
    Action,
    AttachSpec,
    BackstoreInfo,
    BackstoreSpec,
    Change,
    DiskSpec,
    EndpointInfo,
    EndpointSpec,
    EndpointState,
    EngineKind,
    EngineReport,
    GuestInfo,
    GuestSpec,
    HostConfig,
    HostInfo,
    Plan,
    PlugSpec,
    PortSpec,
    TargetStatistics,
)
from ringway.net.base import Switch

_NOWHERE: Final = Path("/nonexistent")
_NO_SWITCHES: Final[Mapping[str, Switch]] = MappingProxyType({})


class Host:
    """All of one host. Made and used in one event loop; changes are operations that go on by themselves.

    :param drivers: the engines of this host.
    :param store: its desired state; stays the caller's.
    :param guards: engines that are not run here, and are asked which disks they serve.
    :param restarts: the file that restarts are counted in.
    :param hypervisor: who runs guests here. :param switches: what ports are of, by name.
    :param sockets: the folder of the user engine's sockets.
    """

    def __init__(
        self,
        drivers: Mapping[EngineKind, Driver],
        store: Store,
        config: DaemonConfig,
        *,
        guards: tuple[Driver, ...] = (),
        restarts: Path | None = None,
        hypervisor: Hypervisor | None = None,
        switches: Mapping[str, Switch] = _NO_SWITCHES,
        sockets: Path = _NOWHERE,
    ) -> None:
        self.events = Events()
        self.operations = Operations(self.events)
        self.desired = Desired(store)
        self.actual = Actual(drivers, store.folder, guards)
        self.health = Health(Restarts(restarts))
        self.strangers = Strangers(self.desired, self.actual, self.events)
        self.guests = Guests(hypervisor)
        self.disks = Disks(self.desired, self.actual, self.guests)
        self._changes = Changes(
            self.desired,
            self.actual,
            self.strangers,
            self.health,
            self.events,
            self._wake,
            self._release,
            self.disks,
        )
        self.reconciler = Reconciler(
            self.desired,
            self.actual,
            self._changes,
            self.strangers,
            self.health,
            self.events,
            every_s=config.reconcile_s,
            parallel=config.parallel,
        )
        locks, rows = self._changes.locks, self._rows
        self.switches = Switches(switches)
        around = (self.guests, locks, self.events)
        self.attachments = Attachments(
            rows("attachment", Holding, store), *around, self.desired, self.endpoint
        )
        self.plain = PlainDisks(*around, self.disks, self.backstores)
        ports = rows("port", WantedPort, store)
        self.plugs = Plugs(rows("plug", Holding, store), *around, ports, self.switches)
        self.ports = Ports(ports, self.switches, self.plugs, locks, self.events)
        self.creations = Creations(rows("creation", Creation, store), self, self._changes, sockets, locks)
        self._surroundings = Surroundings(
            self.guests,
            self.switches,
            self.creations,
            (self.attachments, self.plugs),
            self.ports,
            self.events,
        )
        self._parallel = config.parallel
        self._began = time.monotonic()

    def _rows(self, table: str, kind: type[R], store: Store) -> Rows[R]:
        return Rows(store.table(table, kind), self.desired.write, self._changes.locks)

    def _wake(self, name: str) -> None:
        self.reconciler.wake(name)

    async def _release(self, name: str, *, force: bool) -> None:
        await self.attachments.release(name, force=force)

    async def start(self) -> None:
        """Make actual what is desired, and keep it so. :returns: when each endpoint had its turn."""
        for driver in self.actual.drivers.values():
            driver.watch(self._wake)
        await self.reconciler.start()
        await self._surroundings.start()

    async def close(self) -> bool:
        """End what can be ended, finish the rest. Endpoints stay as they are.

        :returns: whether all has ended. What hangs does so in a thread, and the next daemon finds half of it.
        """
        self.events.close()
        await self._surroundings.stop()
        ended = await self.operations.close()
        ended = await self._surroundings.close() and ended
        ended = await self.reconciler.close() and ended
        if ended:
            self.actual.close()
            self.desired.close()
        return ended

    # What there is

    async def info(self, *, read_only: bool) -> HostInfo:
        """The daemon, its host, and what the engines can do here."""
        reports = await self.reports()
        return HostInfo(
            ringway=ringway.__version__,
            api=API_VERSION,
            pid=os.getpid(),
            hostname=socket.gethostname(),
            kernel=platform.release(),
            uptime_s=round(time.monotonic() - self._began, 3),
            read_only=read_only,
            engines=reports,
            checks=(*await self.guests.probe(), *await self.switches.probe()),
            endpoints=len(self.desired),
            degraded=self.degraded(),
        )

    async def reports(self) -> tuple[EngineReport, ...]:
        """What each engine can do on this host, asked now."""
        drivers = self.actual.drivers.values()
        return tuple(await asyncio.gather(*(self.actual.ask(driver.probe) for driver in drivers)))

    def _views(self) -> list[EndpointInfo]:
        return [
            self.health.view(wanted, self.actual.seen(wanted.spec.engine, wanted.name))
            for wanted in self.desired.all()
        ]

    def degraded(self) -> int:
        """How many endpoints do not run as they should, as far as was seen."""
        return sum(view.state is EndpointState.DEGRADED for view in self._views())

    async def endpoints(self) -> tuple[EndpointInfo, ...]:
        """All endpoints, by name; behind ours those that were lost, and foreign ones. Seen within the last
        second.
        """
        await self.actual.refresh_if_old()
        ours = {wanted.spec.wwpn for wanted in self.desired.all()}  # one may have been taken over since
        foreign = (info for info in self.actual.foreign() if info.wwpn not in ours)
        lost = sorted(self.strangers.all(), key=lambda info: info.name)
        return (*self._views(), *lost, *sorted(foreign, key=lambda info: info.name))

    async def endpoint(self, name: str) -> EndpointInfo:
        """One endpoint as it is now. :raises NotFoundError: there is none."""
        if (wanted := self.desired.find(name)) is None:
            return await self._unknown(name)
        kind = wanted.spec.engine
        info = await self.actual.look(kind, name) if kind in self.actual.drivers else None
        return self.health.view(wanted, info)

    async def _unknown(self, name: str) -> EndpointInfo:
        """One that is foreign, or was lost. :raises NotFoundError: it is neither."""
        await self.actual.refresh_if_old()
        if (lost := self.strangers.find(name)) is not None:
            return lost
        found = next((info for info in self.actual.foreign() if info.name == name), None)
        if found is None:
            self.desired.get(name)
            raise NotFoundError(f"there is no endpoint '{name}'")
        return await self.actual.ask(self.actual.driver(found.engine).show, name)

    async def statistics(self, name: str) -> TargetStatistics:
        """Counters since the endpoint's start. :raises NotFoundError: there is none, or it does not run."""
        kind = (await self.endpoint(name)).engine
        return await self.actual.ask(self.actual.driver(kind).statistics, name)

    async def backstores(self) -> tuple[BackstoreInfo, ...]:
        """All that is mapped now, by name."""
        found = await self.actual.backstores()
        return tuple(sorted(found, key=lambda info: (info.foreign, info.name)))

    async def probe(self, spec: BackstoreSpec) -> BackstoreInfo:
        """Look at a disk that nobody serves yet. :raises RingwayError: why it could not be served."""
        kind = probe.engine_for(spec, self.actual.drivers)
        driver = self.actual.driver(kind)
        others = tuple(wanted.spec for wanted in self.desired.all())
        resolved = await self.actual.ask(driver.resolve, probe.endpoint_of(spec, kind))
        await self.actual.check(resolved, others)
        await self.disks.refuse_opened(resolved, resolved.luns)
        return await self.actual.ask(probe.look, spec, kind)

    # Changes

    def create(self, spec: EndpointSpec) -> Operation:
        """Begin to make an endpoint. The operation's result: EndpointInfo."""
        return self._begin("create", spec.name, lambda operation: self._changes.create(operation, spec))

    def update(self, name: str, change: SpecChange, *, force: bool = False) -> Operation:
        """Begin to change an endpoint. The operation's result: EndpointInfo."""
        self.desired.get(name)
        return self._begin(
            "update", name, lambda operation: self._changes.update(operation, name, change, force=force)
        )

    def resize(self, name: str, address: Address, size_bytes: int | None) -> Operation:
        """Begin to look at a LUN's size again. The operation's result: EndpointInfo."""
        specs.lun_of(self.desired.get(name).spec, address)
        return self._begin(
            "resize", name, lambda operation: self._changes.resize(operation, name, address, size_bytes)
        )

    def delete(self, name: str, *, force: bool = False) -> Operation:
        """Begin to remove an endpoint. The operation has no result."""
        self.desired.get(name)
        return self._begin(
            "delete", name, lambda operation: self._changes.delete(operation, name, force=force)
        )

    # Guests and ports

    def view(self, guest: GuestInfo) -> GuestInfo:
        """A guest, with what is known here of what it has."""
        return self.plugs.view(self.attachments.view(guest))

    def create_guest(self, spec: GuestSpec) -> Operation:
        """Begin to make a guest, with its disks and ports. The operation's result: GuestInfo."""
        return self.operations.start(
            f"create guest {spec.name}",
            lambda operation: self.creations.create(operation, spec),
            f"guest/{spec.name}",
        )

    def attach(self, guest: str, spec: AttachSpec) -> Operation:
        """Begin to give a guest an endpoint. The operation's result: AttachmentInfo."""
        return self.operations.start(
            f"attach endpoint {spec.endpoint} to guest {guest}",
            lambda operation: self.attachments.give(operation, guest, spec),
            f"guest/{guest}",
            f"endpoint/{spec.endpoint}",
        )

    def detach(
        self, guest: str, endpoint: str, *, live: bool, persistent: bool, timeout_s: float
    ) -> Operation:
        """Begin to take an endpoint from a guest. The operation has no result."""
        return self.operations.start(
            f"detach endpoint {endpoint} from guest {guest}",
            lambda operation: self.attachments.take(
                operation, guest, endpoint, live=live, persistent=persistent, timeout_s=timeout_s
            ),
            f"guest/{guest}",
            f"endpoint/{endpoint}",
        )

    def attach_disk(self, guest: str, spec: DiskSpec) -> Operation:
        """Begin to give a guest a plain disk. The operation's result: GuestDisk."""
        return self.operations.start(
            f"attach disk {spec.block_device} to guest {guest}",
            lambda operation: self.plain.give(operation, guest, spec),
            f"guest/{guest}",
        )

    def detach_disk(
        self, guest: str, disk: str, *, live: bool, persistent: bool, timeout_s: float
    ) -> Operation:
        """Begin to take a plain disk from a guest. The operation has no result."""
        return self.operations.start(
            f"detach disk {disk} from guest {guest}",
            lambda operation: self.plain.take(
                operation, guest, disk, live=live, persistent=persistent, timeout_s=timeout_s
            ),
            f"guest/{guest}",
        )

    def plug(self, guest: str, plug: PlugSpec) -> Operation:
        """Begin to give a guest a port. The operation's result: PlugInfo."""
        return self.operations.start(
            f"plug port {plug.port} into guest {guest}",
            lambda operation: self.plugs.give(operation, guest, plug),
            f"guest/{guest}",
            f"port/{plug.port}",
        )

    def unplug(self, guest: str, port: str, *, live: bool, persistent: bool, timeout_s: float) -> Operation:
        """Begin to take a port from a guest. The operation has no result."""
        return self.operations.start(
            f"unplug port {port} from guest {guest}",
            lambda operation: self.plugs.take(
                operation, guest, port, live=live, persistent=persistent, timeout_s=timeout_s
            ),
            f"guest/{guest}",
            f"port/{port}",
        )

    def create_port(self, spec: PortSpec) -> Operation:
        """Begin to make a port. The operation's result: PortInfo."""
        return self.operations.start(
            f"create port {spec.name}",
            lambda operation: self.ports.create(operation, spec),
            f"port/{spec.name}",
        )

    def delete_port(self, name: str, *, force: bool = False) -> Operation:
        """Begin to remove a port. The operation has no result."""
        return self.operations.start(
            f"delete port {name}",
            lambda operation: self.ports.delete(operation, name, force=force),
            f"port/{name}",
        )

    def _begin(self, verb: str, name: str, work: Any, within: Operation | None = None) -> Operation:
        return self.operations.start(f"{verb} endpoint {name}", work, f"endpoint/{name}", within=within)

    # Plans

    async def plan_creation(self, spec: EndpointSpec) -> Plan:
        """What :meth:`create` would do. :raises RingwayError: why it could not."""
        resolved = await self._changes.check(spec)
        details = specs.description(resolved)
        return Plan(changes=(Change(action=Action.CREATE, object=f"endpoint/{spec.name}", details=details),))

    def plan_update(self, name: str, change: SpecChange) -> Plan:
        """What :meth:`update` would do."""
        new = change(self.desired.get(name).spec)
        return self.plan(HostConfig(endpoint=(new,)), prune=False)

    def plan_deletion(self, name: str, *, force: bool = False) -> Plan:
        """What :meth:`delete` would do. :raises BusyError: a guest has it."""
        wanted = self.desired.get(name)
        if not force:
            self.attachments.refuse_held(name)
        details = (f"{len(wanted.spec.luns)} LUNs",)
        return Plan(changes=(Change(action=Action.DELETE, object=f"endpoint/{name}", details=details),))

    def plan(self, config: HostConfig, *, prune: bool, notes: tuple[str, ...] = ()) -> Plan:
        """What a file would change."""
        present = {wanted.name: wanted.spec for wanted in self.desired.all()}
        return replace(plans.plan(present, config, prune=prune), notes=notes)

    def apply(
        self, config: HostConfig, *, prune: bool, force: bool = False, notes: tuple[str, ...] = ()
    ) -> Operation:
        """Begin to make a file true: each endpoint changes as a whole, or not at all.

        :param force: what goes does so even while a guest uses it.

        The operation's result: the Plan that was carried out. Whoever cancels it keeps what is done.
        """
        plan = self.plan(config, prune=prune, notes=notes)
        count = sum(change.action is not Action.KEEP for change in plan.changes)
        return self.operations.start(
            f"apply {count} changes", lambda operation: self._apply(operation, plan, config, force)
        )

    async def _apply(self, operation: Operation, plan: Plan, config: HostConfig, force: bool) -> Plan:
        wanted = {spec.name: spec for spec in config.endpoint}
        limit, done, failed = asyncio.Semaphore(self._parallel), 0, dict[str, RingwayError]()
        total = sum(len(step) for step in plans.steps(plan))

        async def make(change: Change) -> None:
            nonlocal done
            async with limit:
                part = self._part(operation, change, wanted.get(change.name), force)
                await part.ended()
            if part.error is not None:
                failed[change.name] = part.error
            done += 1
            operation.step(done / total, f"{done} of {total} endpoints")

        for step in plans.steps(plan):
            await asyncio.gather(*(make(change) for change in step))
        _raise_failures(failed)
        return plan

    def _part(self, whole: Operation, change: Change, spec: EndpointSpec | None, force: bool) -> Operation:
        name, changes = change.name, self._changes

        async def work(part: Operation) -> None:
            if spec is None:
                await changes.delete(part, name, force=force)
            elif change.action is Action.CREATE:
                await changes.create(part, spec)
            else:
                await changes.update(part, name, lambda _old: spec, force=force)

        return self._begin(change.action, name, work, within=whole)

    # Files

    def export(self) -> HostConfig:
        """All that is wanted, as a file for :meth:`apply`."""
        return HostConfig(endpoint=tuple(w.spec for w in self.desired.all() if w.deletion is None))

    async def write(self, form: Format) -> bytes:
        """The same, written down."""
        return await self.actual.ask(transfer.write, self.export(), form)

    async def read(self, text: bytes, *, adopt: bool) -> Import:
        """Read targetcli's file, for :meth:`apply`. :raises UsageError: it is none."""
        driver = self.actual.driver(EngineKind.LIO)
        return await self.actual.ask(transfer.read, text, driver, adopt=adopt)


def _raise_failures(failed: Mapping[str, RingwayError]) -> None:
    """:raises RingwayError: as the first that failed, with all names."""
    if not failed:
        return
    name, first = next(iter(failed.items()))
    more = f" (and {len(failed) - 1} more: {', '.join(sorted(failed))})" if len(failed) > 1 else ""
    message = f"endpoint '{name}': {first.message}{more}"
    raise error_from_code(first.code, message, hint=first.hint) from first
