"""Whatever is done at once, and wherever the daemon dies: at the end all agree, and no disk is lost.

Calls that block run where they are asked for, with turns of others before and after. So a seed is a whole
course of events, which is the same whenever it is run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from ringway.errors import ConflictError, RingwayError
from ringway.guest.base import GuestEvent, GuestEventKind
from ringway.host.calls import Calls
from ringway.host.config import DaemonConfig
from ringway.host.desired import Desired
from ringway.host.host import Host
from ringway.host.operations import Operation
from ringway.host.rows import Stage
from ringway.host.store import Store
from ringway.model import (
    AttachSpec,
    BlockDevice,
    EngineKind,
    GuestSpec,
    PlugSpec,
    PortSpec,
    Via,
    VolumeSource,
)
from ringway.testing.engine import MemoryDriver, World
from ringway.testing.hypervisor import GuestWorld, MemoryHypervisor, MemorySwitch, SwitchWorld

from .helpers import disk, spec

T = TypeVar("T")
_SEEDS: Final = 3000 if os.environ.get("RINGWAY_LONG") else 60
_ENDPOINTS: Final = ("e0", "n0")  # n0: as the endpoint of a guest that is to be made is called
_PORTS: Final = ("p0", "p1")
_FRESH: Final = ("n0", "n1")
_GUESTS: Final = ("web", "mail")
_TURNS: Final = 20_000
_FAILS: Final = 0.05


class Lives:
    """Daemons, one after the other, beside a world that outlives them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.folder = folder
        self.pool = folder / "pool"
        self.world, self.guests, self.switch = World(), GuestWorld(), SwitchWorld()
        for each in (self.world, self.guests, self.switch):
            each.before = self._perhaps_fail
        for name in _GUESTS:
            self.guests.add(name, running=self.chance.random() < 0.7)
        self.failing = True
        self.dead = False  #: the daemon of this moment: nothing of it reaches anything outside any more
        self.forced: set[str] = set()  #: things that went with force, whoever had them

    def _perhaps_fail(self, verb: str, name: str) -> None:
        if self.failing and self.chance.random() < _FAILS:
            raise RingwayError(f"no {verb} of {name}")

    async def turns(self) -> None:
        """Let others have theirs."""
        for _ in range(self.chance.randrange(1, 6)):
            await asyncio.sleep(0)

    # A life

    async def begin(self, store: Store) -> Host:
        host = Host(
            {EngineKind.USER: MemoryDriver(self.world)},
            store,
            DaemonConfig(reconcile_s=3600),
            hypervisor=MemoryHypervisor(self.guests),
            switches={"memory": MemorySwitch(self.switch)},
        )
        await host.start()
        return host

    async def live(self, store: Store, *, dies: bool) -> None:
        host = await self.begin(store)
        operations: list[Operation] = []
        for _ in range(self.chance.randrange(5, 30)):
            with contextlib.suppress(RingwayError):
                if (begun := self._act(host, operations)) is not None:
                    operations.append(begun)
            for _ in range(self.chance.choice((0, 0, 3, 20, 100))):
                await asyncio.sleep(0)
        if dies:
            await self._die()
            return
        await self._until(lambda: not host.operations.running)
        await self._settle(host)
        self.check(host)
        await host.close()

    async def _die(self) -> None:
        self.dead = True
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.dead = False

    async def call(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        """What would run on a thread."""
        await self.turns()
        if self.dead:
            raise asyncio.CancelledError
        try:
            return function(*args, **kwargs)
        finally:
            await self.turns()

    async def _until(self, condition: Callable[[], bool]) -> None:
        for _ in range(_TURNS):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("nothing moves any more")

    async def _settle(self, host: Host) -> None:
        """As it does every now and then, with nothing that fails."""
        self.failing = False
        for _ in range(2):
            await host.creations.settle()
            for holdings in (host.attachments, host.plugs):
                await holdings.settle()
            await host.ports.settle()
            await host.reconciler.compare()
        self.failing = True

    # What is done

    def _act(self, host: Host, operations: list[Operation]) -> Operation | None:
        pick = self.chance.choice
        guest, force = pick((*_GUESTS, *_GUESTS, *_FRESH)), self.chance.random() < 0.3
        both: dict[str, Any] = {"live": True, "persistent": True, "timeout_s": 1.0}
        endpoint, port = pick((*_ENDPOINTS, "n1")), pick(_PORTS)
        acts: tuple[Callable[[], Operation | None], ...] = (
            lambda: host.create(spec(pick(_ENDPOINTS), disk(0, str(self.folder / "disk")))),
            lambda: host.create(spec("e0")),
            lambda: self._delete(host, endpoint, force=force),
            lambda: host.create_port(_port(port)),
            lambda: self._delete_port(host, port, force=force),
            lambda: host.attach(guest, AttachSpec(endpoint=endpoint)),
            lambda: host.attach(guest, AttachSpec(endpoint=endpoint)),
            lambda: host.detach(guest, endpoint, **both),
            lambda: host.plug(guest, PlugSpec(port=port)),
            lambda: host.unplug(guest, port, **both),
            lambda: host.create_guest(self._fresh()),
            lambda: host.create_guest(self._fresh()),
            lambda: self._cancel(operations),
            lambda: self._stop(guest),
            lambda: self._look(host),
        )
        return pick(acts)()

    def _delete(self, host: Host, name: str, *, force: bool) -> Operation:
        if force:
            self.forced.add(f"endpoint/{name}")
        return host.delete(name, force=force)

    def _delete_port(self, host: Host, name: str, *, force: bool) -> Operation:
        if force:
            self.forced.add(f"port/{name}")
        return host.delete_port(name, force=force)

    def _fresh(self) -> GuestSpec:
        blank = BlockDevice(source=VolumeSource.BLANK, size_bytes=1 << 20)
        ports = self.chance.sample(_PORTS, self.chance.randrange(3))
        return GuestSpec(
            name=self.chance.choice(_FRESH),
            block_devices=(blank,),
            pools={"": str(self.pool)},
            ports=tuple(map(_port, ports)),
            via=Via.ENDPOINT,
            start=self.chance.random() < 0.5,
        )

    def _cancel(self, operations: list[Operation]) -> None:
        with contextlib.suppress(ConflictError, IndexError):
            self.chance.choice(operations).cancel()

    def _stop(self, name: str) -> None:
        """Somebody stops a guest, or forgets it."""
        found = self.guests.guests.get(name)
        if found is None:
            return
        found.running, found.live = False, {}
        kind = GuestEventKind.STOPPED
        if name in _FRESH:
            del self.guests.guests[name]
            kind = GuestEventKind.UNDEFINED
        self.guests.tell(GuestEvent(kind, name, uuid=found.uuid))

    def _look(self, host: Host) -> None:
        host._surroundings._begin(host._surroundings._settle(unconfirmed=True))

    # What holds

    def check(self, host: Host) -> None:
        """Desired state, the engine, the switch, domains, files and locks."""
        assert host.creations.left() == ()
        assert host._changes.locks._users == {}
        assert {one.name for one in host.desired.all()} == set(self.world.endpoints)
        ports = {f"port/{one.name}" for one in host.ports._rows.all()}
        assert ports <= {f"port/{name}" for name in self.switch.ports} <= ports | self.forced
        for one in host.desired.all():
            for lun in one.spec.luns:
                path = lun.backstore.path
                assert path is None or not path.startswith(str(self.pool)) or Path(path).exists(), path
        has: dict[str, set[str]] = {}
        for guest in self.guests.guests.values():
            things = [f"endpoint/{name}" for name in guest.kept | guest.live]
            for thing in (*things, *(f"port/{name}" for name in guest.ports)):
                has.setdefault(thing, set()).add(guest.uuid)
        rows = {f"endpoint/{row.name}": row for row in host.attachments._rows.all()}
        rows |= {f"port/{row.name}": row for row in host.plugs._rows.all()}
        assert all(row.stage is Stage.CONFIRMED for row in rows.values())
        there = {f"endpoint/{name}" for name in self.world.endpoints}
        there |= {f"port/{name}" for name in self.switch.ports}
        assert set(has) <= there | self.forced
        assert set(rows) == set(has) & there
        for thing, row in rows.items():
            assert row.guest in has[thing]
            assert len(has[thing]) == 1 or thing in self.forced


def _port(name: str) -> PortSpec:
    return PortSpec(name=name, switch="memory", mac=f"52:54:00:00:00:0{name[-1]}")


@pytest.mark.parametrize("seed", range(_SEEDS))
def test_all_agree_whatever_happens_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for folder in ("pool", "state"):
        (tmp_path / folder).mkdir()
    lives = Lives(seed, tmp_path)

    async def call(_: object, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        return await lives.call(function, *args, **kwargs)

    monkeypatch.setattr(Calls, "__call__", call)
    monkeypatch.setattr(Desired, "write", call)
    monkeypatch.setattr(asyncio, "to_thread", lives.call)
    for dies in (True, True, False):
        with Store(tmp_path / "state" / "state.db") as store:
            asyncio.run(lives.live(store, dies=dies))
