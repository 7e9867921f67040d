"""The kernel engine, and guests that are attached: what they see, and what they keep from happening."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ringway.engine.lio import LioDriver
from ringway.errors import BusyError, ConflictError, DegradedError, RingwayError
from ringway.testing.fake_kernel import FakeKernel

from .bench import Bench, disk, ram
from .configfs import WWPN, device_of, tree, value


def test_an_endpoint_with_a_guest_is_not_deleted(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.create("db0", ram(0), ram(1), wwpn=WWPN)
    assert lio.driver.show("db0").connected is False
    before = tree(kernel)
    lio.attach(spec)
    assert lio.driver.show("db0").connected is True
    with pytest.raises(BusyError, match="attached"):
        lio.driver.delete("db0")
    with pytest.raises(BusyError, match="attached"):
        lio.driver.update(spec, replace(spec, luns=spec.luns[:1]))
    assert tree(kernel) == before
    assert lio.driver.show("db0").connected is True
    lio.detach(spec)
    lio.driver.delete("db0")
    assert tree(kernel) == set()


def test_attachment_is_seen_without_luns(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.driver.resolve(replace(lio.spec("db0"), luns=(), wwpn=WWPN))
    lio.driver.create(spec)
    before = tree(kernel)
    assert lio.driver.show("db0").connected is False
    lio.attach(spec)
    assert lio.driver.show("db0").connected is True
    assert tree(kernel) == before


def test_force_takes_the_disks_away(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.create("db0", ram(0), ram(1), wwpn=WWPN)
    lio.attach(spec)
    fewer = replace(spec, luns=spec.luns[:1])
    lio.driver.update(spec, fewer, force=True)
    with pytest.raises(DegradedError, match="db0"):
        lio.driver.delete("db0", force=True)
    assert lio.driver.backstores() == ()
    lio.detach(spec)
    lio.driver.delete("db0", force=True)
    assert tree(kernel) == set()


def test_a_lun_is_added_while_a_guest_is_there(lio: Bench) -> None:
    spec = lio.create("db0", ram(0))
    lio.attach(spec)
    more = lio.driver.resolve(replace(spec, luns=(*spec.luns, ram(1))))
    lio.driver.update(spec, more)
    assert [lun.lun for lun in lio.driver.show("db0").luns] == [0, 1]
    far = lio.driver.resolve(replace(more, luns=(*more.luns, ram(0, target=1))))
    with pytest.raises(ConflictError, match="target 1"):
        lio.driver.update(more, far)


def test_watch_tells_of_guests_and_of_what_others_changed(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.create("db0", ram(), wwpn=WWPN)
    assert isinstance(lio.driver, LioDriver)
    told: list[str] = []
    lio.driver.look_again(told.append)
    lio.driver.look_again(told.append)
    assert told == []
    lio.attach(spec)
    lio.driver.look_again(told.append)
    assert told == ["db0"]
    assert lio.driver.list()[0].connected is True
    (kernel.configfs / f"vhost/{WWPN}/tpgt_0/lun/lun_0/db0:0:0").unlink()
    lio.driver.look_again(told.append)
    assert told == ["db0", "db0"]


def test_attributes_change_while_a_guest_is_there(lio: Bench, kernel: FakeKernel) -> None:
    old = lio.create("db0", disk(lio.image(), attributes={"emulate_tpu": "1", "emulate_caw": "0"}), wwpn=WWPN)
    lio.attach(old)
    device = device_of(kernel, WWPN)
    store = replace(old.luns[0].backstore, attributes={"emulate_tpu": "0", "emulate_3pc": "1"})
    new = replace(old, luns=(replace(old.luns[0], backstore=store),))
    lio.driver.update(old, new)
    names = ("emulate_tpu", "emulate_caw", "emulate_3pc")
    assert [value(kernel, f"{device}/attrib/{name}") for name in names] == ["0", "1", "1"]
    bad = replace(store, attributes={"emulate_caw": "0", "emulate_tas": "0"})
    with pytest.raises(RingwayError, match=r"emulate_tas.*while export_count is 1"):
        lio.driver.update(new, replace(new, luns=(replace(new.luns[0], backstore=bad),)))
    assert [value(kernel, f"{device}/attrib/{name}") for name in names] == ["0", "1", "1"]
