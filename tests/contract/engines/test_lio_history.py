"""Any history of an engine's host: what is wanted is there, and nothing else."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from ringway.engine.lio import LioDriver, Settings
from ringway.errors import BusyError, DegradedError, GuestError
from ringway.model import BackstoreSpec, EndpointSpec, EndpointState, EngineKind, LunSpec, LunStatus, SpecKind
from ringway.testing.fake_kernel import FakeKernel
from ringway.testing.kernel_target import INSIDE

from .bench import MIB, ram

names = st.sampled_from(["a", "b", "c"])
numbers = st.integers(0, 2)


class Host(RuleBasedStateMachine):
    """A host that wants endpoints, with guests that come and go, a daemon that restarts, and reboots."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ringway-"))
        self.kernel = FakeKernel(self.folder)
        self.kernel.__enter__()
        self.image = self.folder / "shared.img"
        self.image.touch()
        os.truncate(self.image, MIB)
        self.wanted: dict[str, EndpointSpec] = {}
        self.guests: set[str] = set()
        self.start()

    def start(self) -> None:
        """The daemon comes up."""
        kernel = self.kernel
        places = Settings(kernel.configfs, kernel.sysfs, self.folder / "run", kernel.kmsg, ("false",))
        self.driver = LioDriver(places)

    def teardown(self) -> None:
        """The host goes."""
        self.driver.close()
        self.kernel.__exit__()
        shutil.rmtree(self.folder)

    def shared(self, lun: int, target: int = 0) -> LunSpec:
        """A disk that several endpoints map."""
        return LunSpec(
            target, lun, BackstoreSpec(SpecKind.PATH, path=str(self.image), name="shared", serial="s")
        )

    @rule(name=names, group=numbers, with_shared=st.booleans())
    def create(self, name: str, group: int, with_shared: bool) -> None:
        """One that is wanted already is made again, which changes nothing."""
        luns = (ram(0, target=group), *((self.shared(1, group),) if with_shared else ()))
        spec = self.wanted.get(name) or self.driver.resolve(
            EndpointSpec(name=name, engine=EngineKind.LIO, luns=luns)
        )
        self.driver.create(spec)
        self.wanted[name] = spec

    @precondition(lambda self: self.wanted)
    @rule(data=st.data(), lun=numbers, force=st.booleans())
    def toggle_lun(self, data: st.DataObject, lun: int, force: bool) -> None:
        """A LUN comes or goes; it does not go from a guest without force."""
        name = data.draw(st.sampled_from(sorted(self.wanted)))
        old = self.wanted[name]
        target = old.luns[0].target if old.luns else 0
        there = [one for one in old.luns if (one.target, one.lun) == (target, lun)]
        if there:
            new = replace(old, luns=tuple(one for one in old.luns if one not in there))
        else:
            new = self.driver.resolve(replace(old, luns=(*old.luns, ram(lun, target=target))))
        if there and name in self.guests and not force:
            with pytest.raises(BusyError):
                self.driver.update(old, new)
        elif {one.target for one in new.luns} or target == 0:
            self.driver.update(old, new, force=force)
            self.wanted[name] = new

    @precondition(lambda self: self.wanted)
    @rule(data=st.data(), force=st.booleans())
    def delete(self, data: st.DataObject, force: bool) -> None:
        """One that a guest uses stays, or loses its disks and goes when the guest does."""
        name = data.draw(st.sampled_from(sorted(self.wanted)))
        if name in self.guests:
            with pytest.raises(DegradedError if force else BusyError):
                self.driver.delete(name, force=force)
            if not force:
                return
            self.leave(name)
        self.driver.delete(name)
        del self.wanted[name]

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def guest(self, data: st.DataObject) -> None:
        """A guest comes, or goes."""
        name = data.draw(st.sampled_from(sorted(self.wanted)))
        if name in self.guests:
            self.leave(name)
        else:
            wwpn = self.wanted[name].wwpn
            assert wwpn is not None
            self.kernel.attach(wwpn)
            self.guests.add(name)

    def leave(self, name: str) -> None:
        """A guest goes."""
        wwpn = self.wanted[name].wwpn
        assert wwpn is not None
        self.kernel.detach(wwpn)
        self.guests.discard(name)

    @rule()
    def restart(self) -> None:
        """The daemon goes and comes back."""
        self.driver.close()
        self.start()

    @rule()
    def reboot(self) -> None:
        """The kernel forgets all, and the daemon makes it anew."""
        self.driver.close()
        self.kernel.reboot()
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        self.guests.clear()
        self.start()
        for spec in self.wanted.values():
            self.driver.create(spec)

    @rule()
    def look(self) -> None:
        """The watcher has a round."""
        self.driver.look_again(lambda _: None)

    @invariant()
    def all_is_there_and_nothing_else(self) -> None:
        """As the driver says, and as the kernel's tree is."""
        assert {info.name for info in self.driver.list()} == self.wanted.keys()
        for name, spec in self.wanted.items():
            info = self.driver.show(name)
            assert (info.state, info.connected) == (EndpointState.READY, name in self.guests)
            assert {(lun.target, lun.lun) for lun in info.luns} == {
                (lun.target, lun.lun) for lun in spec.luns
            }
        stores = {lun.backstore.name for spec in self.wanted.values() for lun in spec.luns}
        assert sorted(store.name for store in self.driver.backstores()) == sorted(filter(None, stores))
        ports = {path.name for path in (self.kernel.configfs / "vhost").glob("naa.*")}
        assert ports == {spec.wwpn for spec in self.wanted.values()}
        assert len(list((self.kernel.configfs / "core").glob("*_*"))) == len(stores)


def addresses(luns: Sequence[LunSpec | LunStatus]) -> set[tuple[int, int]]:
    """Targets and LUNs."""
    return {(lun.target, lun.lun) for lun in luns}


@pytest.mark.timeout(600)
def test_any_history(tmp_path: Path, count: Callable[[int, int], int]) -> None:
    if INSIDE in os.environ:
        pytest.skip("a fake that is no use where there is a real one")
    try:
        with FakeKernel(tmp_path):
            pass
    except GuestError as error:
        pytest.skip(f"{error}: {error.hint}")
    run_state_machine_as_test(
        Host,
        settings=settings(max_examples=count(10, 300), stateful_step_count=30, database=None),
    )
