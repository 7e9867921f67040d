"""What a host may rely on, whichever engine it has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

from ringway.errors import BusyError, NotFoundError, RingwayError, UsageError
from ringway.model import EndpointState

from .bench import MIB, Bench, disk, ram


def test_probe_says_what_there_is(bench: Bench) -> None:
    report = bench.driver.probe()
    assert report.engine is bench.engine
    assert report.usable
    assert {"file", "ram", "null"} & set(report.backstores)


def test_resolve_chooses_once_and_changes_nothing_that_was_set(bench: Bench) -> None:
    spec = bench.spec("db0", ram(), wwpn="naa.5001405000000abc")
    assert spec.wwpn == "naa.5001405000000abc"
    assert all(lun.backstore.serial for lun in spec.luns)
    assert bench.driver.resolve(spec) == spec


def test_an_endpoint_comes_and_goes(bench: Bench) -> None:
    spec = bench.create("db0", ram(), disk(bench.image(), 1))
    info = bench.driver.show("db0")
    assert (info.name, info.state, info.wwpn) == ("db0", EndpointState.READY, spec.wwpn)
    assert [(lun.target, lun.lun, lun.kind, lun.size_bytes) for lun in info.luns] == [
        (0, 0, "ram", MIB),
        (0, 1, "file", MIB),
    ]
    assert [lun.serial for lun in info.luns] == [lun.backstore.serial for lun in spec.luns]
    assert bench.names() == {"db0"}
    assert {store.used_by for store in bench.driver.backstores()} == {("db0/0:0",), ("db0/0:1",)}
    bench.driver.delete("db0")
    assert bench.names() == set()
    assert bench.driver.backstores() == ()
    with pytest.raises(NotFoundError):
        bench.driver.show("db0")


def test_to_create_again_changes_nothing(bench: Bench) -> None:
    spec = bench.create("db0", ram())
    before = bench.driver.show("db0")
    bench.driver.create(spec)
    assert bench.driver.show("db0") == before


def test_to_delete_what_is_not_there_is_fine(bench: Bench) -> None:
    bench.driver.delete("nobody")
    bench.create("db0")
    bench.driver.delete("db0")
    bench.driver.delete("db0")


def test_an_endpoint_without_luns(bench: Bench) -> None:
    spec = bench.driver.resolve(replace(bench.spec("db0"), luns=()))
    bench.driver.create(spec)
    assert bench.driver.show("db0").luns == ()
    bench.driver.delete("db0")
    assert bench.names() == set()


def test_luns_come_and_go(bench: Bench) -> None:
    old = bench.create("db0", ram(0))
    more = bench.driver.resolve(replace(old, luns=(*old.luns, ram(1), disk(bench.image(), 2))))
    bench.driver.update(old, more)
    assert [lun.lun for lun in bench.driver.show("db0").luns] == [0, 1, 2]
    fewer = replace(more, luns=more.luns[2:])
    bench.driver.update(more, fewer)
    assert [lun.lun for lun in bench.driver.show("db0").luns] == [2]
    assert len(bench.driver.backstores()) == 1
    bench.driver.delete("db0")
    assert bench.driver.backstores() == ()


def test_what_cannot_change_is_refused(bench: Bench) -> None:
    old = bench.create("db0")
    with pytest.raises(UsageError, match="wwpn"):
        bench.driver.update(old, replace(old, wwpn="naa.5001405000000001"))
    assert bench.driver.show("db0").state is EndpointState.READY


def test_an_update_that_fails_leaves_what_was(bench: Bench) -> None:
    old = bench.create("db0", ram(0))
    missing = bench.driver.resolve(replace(old, luns=(ram(1), disk(str(bench.folder / "none"), 2))))
    with pytest.raises(NotFoundError):
        bench.driver.update(old, missing)
    assert bench.driver.show("db0").state is EndpointState.READY
    assert [lun.lun for lun in bench.driver.show("db0").luns] == [0]


def test_an_endpoint_outlives_the_daemon(bench: Bench) -> None:
    spec = bench.create("db0", ram(), disk(bench.image(), 1))
    before = bench.driver.show("db0")
    bench.restart()
    assert bench.names() == {"db0"}
    bench.driver.create(spec)
    assert bench.driver.show("db0") == before
    bench.driver.delete("db0")
    assert bench.names() == set()


def test_an_endpoint_is_made_again_after_a_reboot(bench: Bench) -> None:
    spec = bench.create("db0", disk(bench.image()))
    before = bench.driver.show("db0")
    bench.driver.close()
    bench.reboot()
    bench.restart()
    assert bench.names() == set()
    bench.driver.create(spec)
    assert bench.driver.show("db0").luns == before.luns
    assert bench.driver.show("db0").wwpn == spec.wwpn


def test_a_create_that_fails_leaves_nothing(bench: Bench) -> None:
    spec = bench.spec("db0", ram(0), disk(bench.image(), 1))
    (bench.folder / "disk.img").unlink()
    with pytest.raises(NotFoundError, match=r"disk\.img"):
        bench.driver.create(spec)
    assert bench.names() == set()
    assert bench.driver.backstores() == ()
    assert not (bench.folder / "disk.img").exists()


@pytest.mark.parametrize("size_bytes", [0, 1000])
def test_a_file_that_is_no_disk_is_refused(bench: Bench, size_bytes: int) -> None:
    path = bench.image(size_bytes=size_bytes)
    with pytest.raises(RingwayError) as caught:
        bench.create("db0", disk(path))
    assert caught.value.hint
    assert path in str(caught.value)
    assert bench.names() == set()


def test_a_file_is_served_once(bench: Bench) -> None:
    path = bench.image()
    bench.create("db0", disk(path))
    with pytest.raises(BusyError, match="db0") as caught:
        bench.create("db1", disk(path))
    assert caught.value.holder == "endpoint db0"
    (bench.folder / "alias").symlink_to(path)
    with pytest.raises(BusyError, match="db0"):
        bench.create("db1", disk(str(bench.folder / "alias")))
    assert bench.names() == {"db0"}


def test_a_wwpn_is_used_once(bench: Bench) -> None:
    spec = bench.create("db0")
    with pytest.raises(RingwayError, match="db0"):
        bench.create("db1", ram(), wwpn=spec.wwpn)


def test_a_file_can_grow(bench: Bench) -> None:
    path = bench.image()
    spec = bench.create("db0", disk(path))
    with open(path, "r+b") as file:
        file.truncate(2 * MIB)
    bench.driver.resize("db0", spec.luns[0])
    assert bench.driver.show("db0").luns[0].size_bytes == 2 * MIB


def test_endpoints_are_made_at_once(bench: Bench) -> None:
    specs = [bench.spec(f"db{number}", ram(0), ram(1)) for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(bench.driver.create, specs))
        assert bench.names() == {spec.name for spec in specs}
        list(pool.map(lambda spec: bench.driver.delete(spec.name), specs))
    assert bench.names() == set()
    assert bench.driver.backstores() == ()


def test_statistics_are_of_the_luns(bench: Bench) -> None:
    bench.create("db0", ram(0), ram(3))
    statistics = bench.driver.statistics("db0")
    assert [(lun.target, lun.lun) for lun in statistics.luns] == [(0, 0), (0, 3)]
    assert statistics.uptime_s >= 0
    with pytest.raises(NotFoundError):
        bench.driver.statistics("nobody")
