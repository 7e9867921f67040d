"""The kernel engine makes whole what was cut off, and leaves nothing behind, whoever else is at work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from msgspec.structs import replace

from ringway.engine.lio import LioDriver, Settings
from ringway.errors import ConflictError, RingwayError
from ringway.model import BackstoreSpec, EndpointState, LunSpec, SpecKind
from ringway.testing.fake_kernel import FakeKernel
from ringway.testing.waiting import PATIENCE_S

from .bench import Bench, disk, ram
from .configfs import WWPN, device_of, tree, value


def test_foreign_objects_are_shown_and_left_alone(lio: Bench, kernel: FakeKernel) -> None:
    other = LioDriver(Settings(kernel.configfs, kernel.sysfs, lio.folder / "other", kernel.kmsg, ("false",)))
    other.create(other.resolve(lio.spec("theirs", ram(), wwpn=WWPN)))
    before = tree(kernel)
    info = lio.driver.show(WWPN)
    assert (info.name, info.state, info.spec) == (WWPN, EndpointState.FOREIGN, None)
    assert [store.foreign for store in lio.driver.backstores()] == [True]
    lio.create("ours")
    lio.driver.delete(WWPN, force=True)
    lio.driver.delete("theirs", force=True)
    with pytest.raises(ConflictError, match="not Ringway's"):
        lio.create("db1", ram(), wwpn=WWPN)
    lio.driver.delete("ours")
    assert tree(kernel) == before


def test_what_a_crash_left_is_made_whole(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.create("db0", ram(0), ram(1), wwpn=WWPN)
    for path in (f"vhost/{WWPN}/tpgt_0/lun/lun_1/db0:0:1",):
        (kernel.configfs / path).unlink()
    assert lio.driver.show("db0").state is EndpointState.DEGRADED
    assert "0:1" in (lio.driver.show("db0").message or "")
    lio.driver.create(spec)
    assert lio.driver.show("db0").state is EndpointState.READY


def test_a_device_that_was_never_enabled_is_made_anew(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.create("db0", ram(), wwpn=WWPN)
    device = device_of(kernel, WWPN)
    lio.driver.delete("db0")
    os.makedirs(kernel.configfs / device)
    lio.driver.create(spec)
    assert value(kernel, f"{device}/enable") == "1"


def test_half_a_record_goes_with_its_endpoint(lio: Bench) -> None:
    lio.create("db0", ram())
    folder = lio.folder / "run" / "lio"
    for name in ("db0", "never"):
        (folder / f".{name}.new").write_text("{")
        lio.driver.delete(name)
    assert list(folder.iterdir()) == []


def test_what_others_put_into_an_endpoint_goes_with_it(lio: Bench, kernel: FakeKernel) -> None:
    lio.create("db0", ram(), wwpn=WWPN)
    (kernel.configfs / f"vhost/{WWPN}/tpgt_0/lun/lun_9").mkdir()
    (kernel.configfs / f"vhost/{WWPN}/tpgt_7").mkdir()
    lio.driver.delete("db0")
    assert tree(kernel) == set()


def test_an_update_that_fails_in_the_kernel_gives_back_what_it_took(lio: Bench, kernel: FakeKernel) -> None:
    old = lio.create("db0", ram(0), ram(1), wwpn=WWPN)
    before = tree(kernel)
    bad = lio.driver.resolve(
        replace(old, luns=(ram(0, attributes={"emulate_tpu": "1"}, name="other"), ram(2)))
    )
    with pytest.raises(RingwayError, match="emulate_tpu"):
        lio.driver.update(old, bad)
    assert tree(kernel) == before
    assert lio.driver.show("db0").state is EndpointState.READY


CUT_OFF = """
import os, sys, msgspec
from pathlib import Path
from ringway.engine.lio import LioDriver, Settings
from ringway.engine.lio.configfs import Configfs
from ringway.model import EndpointSpec
left = int(sys.argv[1])
def cut(verb):
    def call(*args):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return verb(*args)
    return call
for name in ("make", "write", "link", "remove", "unlink", "remove_if_unused"):
    setattr(Configfs, name, cut(getattr(Configfs, name)))
driver = LioDriver(Settings(*map(Path, sys.argv[2:6]), ("false",)))
spec = msgspec.json.decode(sys.argv[7], type=EndpointSpec)
if sys.argv[6] == "create":
    driver.create(spec)
elif sys.argv[6] == "delete":
    driver.delete(spec.name)
else:
    driver.update(msgspec.json.decode(sys.argv[8], type=EndpointSpec), spec)
"""


@pytest.mark.parametrize("verb", ["create", "delete", "update"])
def test_a_change_that_is_cut_off_anywhere_can_be_done_again(
    lio: Bench, kernel: FakeKernel, settings: Settings, verb: str
) -> None:
    """The daemon is killed after each number of steps; the next one makes it whole, or leaves nothing."""
    places = [str(path) for path in (settings.configfs, settings.sysfs, settings.runtime, settings.kmsg)]
    old = lio.spec("db0", ram(0), disk(lio.image("old.img"), 1), wwpn=WWPN)
    luns = (ram(0, attributes={"emulate_caw": "0"}), disk(lio.image(), 1, attributes={"emulate_tpu": "1"}))
    spec = lio.driver.resolve(replace(old, luns=(*luns, ram(2, target=1))))
    status, steps = 9, 0
    while status == 9:
        lio.restart()
        if verb != "create":
            lio.driver.create(spec if verb == "delete" else old)
        texts = (msgspec.json.encode(one).decode() for one in (spec, old))
        command = [sys.executable, "-c", CUT_OFF, str(steps), *places, verb, *texts]
        status = subprocess.run(command, check=False, timeout=PATIENCE_S).returncode
        assert status in (0, 9)
        lio.restart()
        assert lio.names() <= {"db0"}
        if steps % 2:
            lio.driver.create(spec)
            assert lio.driver.show("db0").state is EndpointState.READY
            attributes = [f"{device_of(kernel, WWPN, 0, lun)}/attrib" for lun in (0, 1)]
            assert [value(kernel, f"{path}/emulate_3pc") for path in attributes] == ["0", "0"]
            assert value(kernel, f"{attributes[0]}/emulate_caw") == "0"
            assert value(kernel, f"{attributes[1]}/emulate_tpu") == "1"
            assert len(lio.driver.backstores()) == 3
        lio.driver.delete("db0")
        assert tree(kernel) == set()
        steps += 1
    assert steps > 10


@pytest.mark.timeout(1500)  # of the full count, in a guest
def test_many_change_endpoints_at_once(
    lio: Bench, kernel: FakeKernel, count: Callable[[int, int], int]
) -> None:
    """Eight clients make, change, read and delete; nothing is left, and no list shows half an endpoint."""
    image = lio.image()

    def client(number: int) -> None:
        for round_ in range(count(6, 200)):
            name = f"db{number}-{round_}"
            shared = BackstoreSpec(SpecKind.PATH, path=image, name="shared", serial="s")
            spec = lio.spec(name, ram(0), LunSpec(0, 1, shared))
            lio.driver.create(spec)
            more = lio.driver.resolve(replace(spec, luns=(*spec.luns, ram(2))))
            lio.driver.update(spec, more)
            assert [lun.lun for lun in lio.driver.show(name).luns] == [0, 1, 2]
            lio.driver.delete(name)

    with ThreadPoolExecutor(9) as pool:
        clients = [pool.submit(client, number) for number in range(8)]
        while not all(done.done() for done in clients):
            states = {info.state for info in lio.driver.list()}
            assert states <= {EndpointState.READY, EndpointState.STARTING, EndpointState.DELETING}
            lio.driver.backstores()
        for done in clients:
            done.result()
    assert tree(kernel) == set()
    assert (lio.names(), lio.driver.backstores()) == (set(), ())
    assert list((lio.folder / "run/lio").glob("*.json")) == []


def test_a_record_of_an_earlier_boot_is_not_believed(lio: Bench, kernel: FakeKernel) -> None:
    """The folder of a daemon may lie on a disk; what another tool has made since is that tool's."""
    spec = lio.create("db0", disk(lio.image()))
    record = lio.folder / "run" / "lio" / "db0.json"
    written = json.loads(record.read_text())
    record.write_text(json.dumps(written | {"boot": "another"}))
    lio.restart()
    (info,) = lio.driver.list()
    assert (info.name, info.state) == (spec.wwpn, EndpointState.FOREIGN)
    lio.driver.delete("db0", force=True)
    assert not record.exists()
    assert lio.names() == {spec.wwpn}
    lio.driver.create(spec)
    assert json.loads(record.read_text())["boot"] == written["boot"]
    lio.restart()
    assert lio.names() == {"db0"}
    lio.driver.delete("db0")
    assert lio.names() == set()
