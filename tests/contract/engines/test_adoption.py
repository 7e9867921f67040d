"""Hosts that run targetcli today: what it made is taken over in place, and its file is read and written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.engine.lio import LioDriver, read_saveconfig, write_saveconfig
from ringway.errors import BusyError, ConflictError, NotFoundError, UsageError
from ringway.model import EndpointSpec, EndpointState, EngineKind, Protection, SpecKind
from ringway.testing.fake_kernel import FakeKernel

from .bench import MIB, Bench, disk, ram

WWPN = "naa.5001405000000abc"
NEXUS = "naa.5001405000000def"


def write(kernel: FakeKernel, path: str, text: str) -> None:
    (kernel.configfs / path).write_text(text)


def snapshot(kernel: FakeKernel) -> dict[str, str | None]:
    """Every folder, and every attribute that can be read."""
    return dict(_walk(kernel.configfs))


def _walk(root: Path) -> Iterator[tuple[str, str | None]]:
    for folder, _, names in os.walk(root):
        yield folder, None
        for name in names:
            path = Path(folder, name)
            if path.stat().st_mode & 0o400:
                try:
                    yield str(path), path.read_text()
                except OSError as error:
                    yield str(path), error.strerror


def make_store(kernel: FakeKernel, path: str, control: str, serial: str) -> None:
    os.makedirs(kernel.configfs / path)
    write(kernel, f"{path}/control", control)
    write(kernel, f"{path}/wwn/vpd_unit_serial", serial)
    write(kernel, f"{path}/enable", "1")


def make_port(kernel: FakeKernel, *devices: str, tag: int = 1, nexus: str = NEXUS) -> None:
    """As rtslib lays one out: portal group 1, aliases for links."""
    group = f"vhost/{WWPN}/tpgt_{tag}"
    os.makedirs(kernel.configfs / group)
    write(kernel, f"{group}/nexus", nexus)
    write(kernel, f"{group}/attrib/fabric_prot_type", "1")
    for number, device in enumerate(devices):
        os.mkdir(kernel.configfs / f"{group}/lun/lun_{number}")
        (kernel.configfs / f"{group}/lun/lun_{number}/e15c7251b{number}").symlink_to(kernel.configfs / device)


@pytest.fixture
def theirs(lio: Bench, kernel: FakeKernel) -> Bench:
    """An endpoint of targetcli's, with a file and a RAM disk."""
    (kernel.configfs / "vhost").mkdir(exist_ok=True)
    image = lio.image("theirs.img", 2 * MIB)
    make_store(kernel, "core/fileio_0/disk1", f"fd_dev_name={image},fd_dev_size={2 * MIB}", "serial-1")
    make_store(kernel, "core/rd_mcp_7/r0", "rd_pages=256,rd_nullio=1", "serial-2")
    write(kernel, "core/fileio_0/disk1/attrib/emulate_tpu", "1")
    make_port(kernel, "core/fileio_0/disk1", "core/rd_mcp_7/r0")
    return lio


def driver_of(bench: Bench) -> LioDriver:
    assert isinstance(bench.driver, LioDriver)
    return bench.driver


def test_adoption_changes_nothing(theirs: Bench, kernel: FakeKernel) -> None:
    before = snapshot(kernel)
    (spec,) = driver_of(theirs).adopt()
    assert (spec.name, spec.wwpn, spec.nexus, spec.protection) == (WWPN, WWPN, NEXUS, Protection.TYPE1)
    file, memory = (lun.backstore for lun in spec.luns)
    assert [(lun.target, lun.lun) for lun in spec.luns] == [(1, 0), (1, 1)]
    assert (file.name, file.serial, file.size_bytes) == ("disk1", "serial-1", None)
    assert file.attributes == {"emulate_3pc": "1", "emulate_tpu": "1", "emulate_write_cache": "0"}
    assert (memory.kind, memory.size_bytes, memory.serial) == (SpecKind.NULL, MIB, "serial-2")
    assert theirs.driver.resolve(spec) == spec
    theirs.driver.check(spec, ())
    theirs.driver.create(spec)
    assert snapshot(kernel) == before
    assert theirs.driver.show(WWPN).state is EndpointState.READY
    assert not any(store.foreign for store in theirs.driver.backstores())


def test_adoption_while_a_guest_is_there(theirs: Bench, kernel: FakeKernel) -> None:
    kernel.attach(WWPN)
    (spec,) = driver_of(theirs).adopt((WWPN,))
    before = snapshot(kernel)
    theirs.driver.create(spec)
    assert snapshot(kernel) == before
    assert theirs.driver.show(WWPN).connected is True


@pytest.mark.parametrize("changed", [False, True])
def test_what_is_taken_back_is_foreign_again(theirs: Bench, kernel: FakeKernel, changed: bool) -> None:
    before = snapshot(kernel)
    (spec,) = driver_of(theirs).adopt()
    theirs.driver.create(spec)
    if changed:
        theirs.driver.update(spec, replace(spec, luns=spec.luns[:1]))
        theirs.restart()
        before = snapshot(kernel)
    theirs.driver.take_back(WWPN)
    theirs.driver.take_back(WWPN)
    assert snapshot(kernel) == before
    assert [info.state for info in theirs.driver.list()] == [EndpointState.FOREIGN]
    assert all(store.foreign for store in theirs.driver.backstores())
    assert list(theirs.folder.glob("run/lio/*")) == []


def test_a_disk_of_others_is_theirs_alone(theirs: Bench) -> None:
    image = theirs.folder / "theirs.img"
    alias = theirs.folder / "alias.img"
    os.link(image, alias)
    for engine in EngineKind:
        spec = EndpointSpec(name="b", engine=engine, luns=(disk(str(alias)),))
        with pytest.raises(BusyError, match="fileio_0/disk1") as refused:
            theirs.driver.check_foreign(spec)
        assert "--adopt" in (refused.value.hint or "")
    theirs.driver.check_foreign(theirs.spec("c", disk(theirs.image("free.img"))))
    (adopted,) = driver_of(theirs).adopt()
    theirs.driver.check_foreign(adopted)
    with pytest.raises(BusyError):
        theirs.driver.check_foreign(replace(adopted, luns=(disk(str(image), 5, target=1),)))
    theirs.driver.create(adopted)
    theirs.restart()
    theirs.driver.check_foreign(adopted)


def test_what_we_serve_is_not_of_others(lio: Bench) -> None:
    spec = lio.create("db0", disk(lio.image("a.img")), disk(lio.image("b.img"), 1))
    lio.restart()
    lio.driver.check_foreign(spec)
    lio.driver.delete("db0")
    lio.driver.check_foreign(spec)


def test_what_was_adopted_goes_and_comes_as_it_was(theirs: Bench, kernel: FakeKernel) -> None:
    (spec,) = driver_of(theirs).adopt()
    theirs.driver.create(spec)
    theirs.restart()
    theirs.driver.delete(WWPN)
    assert theirs.driver.backstores() == ()
    theirs.driver.create(spec)
    info = theirs.driver.show(WWPN)
    assert [(lun.target, lun.lun, lun.serial, lun.size_bytes) for lun in info.luns] == [
        (1, 0, "serial-1", 2 * MIB),
        (1, 1, "serial-2", MIB),
    ]
    (device,) = (kernel.configfs / "core").glob("fileio_*/disk1")
    assert (device / "attrib/emulate_tpu").read_text() == "1\n"
    assert "Mode: O_DSYNC" in (device / "info").read_text()
    assert (kernel.configfs / f"vhost/{WWPN}/tpgt_1/nexus").read_text().strip() == NEXUS


def test_luns_are_added_to_what_was_adopted(theirs: Bench) -> None:
    (old,) = driver_of(theirs).adopt()
    theirs.driver.create(old)
    new = theirs.driver.resolve(replace(old, luns=(old.luns[0], ram(5, target=1))))
    theirs.driver.update(old, new)
    assert [(lun.target, lun.lun) for lun in theirs.driver.show(WWPN).luns] == [(1, 0), (1, 5)]
    assert len(theirs.driver.backstores()) == 2


def test_what_cannot_be_kept_is_not_adopted(theirs: Bench, kernel: FakeKernel) -> None:
    make_port(kernel, tag=2, nexus="naa.5001405000000fff")
    with pytest.raises(ConflictError, match="nexus"):
        driver_of(theirs).adopt()
    with pytest.raises(NotFoundError):
        driver_of(theirs).adopt(("naa.5001405000000000",))
    theirs.create("ours", ram(), wwpn="naa.5001405000000001")
    with pytest.raises(ConflictError, match="ours"):
        driver_of(theirs).adopt(("naa.5001405000000001",))


SAVED = {
    "fabric_modules": [],
    "storage_objects": [
        {
            "plugin": "ramdisk",
            "name": "r0",
            "size": 4194304,
            "nullio": True,
            "wwn": "b439190e",
            "alua_tpgs": [{"name": "default_tg_pt_gp", "tg_pt_gp_id": 0}],
            "attributes": {"block_size": 512, "emulate_3pc": 1, "emulate_tpu": 0, "pi_prot_type": 1},
        },
        {
            "plugin": "fileio",
            "name": "f0",
            "dev": "/srv/f0",
            "size": 1048576,
            "wwn": "x",
            "write_back": False,
            "aio": True,
        },
        {
            "plugin": "block",
            "name": "f0",
            "dev": "/dev/sdz",
            "wwn": "y",
            "readonly": True,
            "write_back": False,
        },
        {"plugin": "block", "name": "alone", "dev": "/dev/sdy", "wwn": "z", "readonly": False},
    ],
    "targets": [
        {
            "fabric": "vhost",
            "wwn": WWPN,
            "parameters": {"cmd_completion_affinity": "-1"},
            "tpgs": [
                {
                    "tag": 1,
                    "enable": True,
                    "attributes": {"fabric_prot_type": 3},
                    "portals": [],
                    "node_acls": [],
                    "luns": [
                        {"index": 0, "alias": "a", "storage_object": "/backstores/ramdisk/r0"},
                        {"index": 1, "alias": "b", "storage_object": "/backstores/fileio/f0"},
                        {"index": 2, "alias": "c", "storage_object": "/backstores/block/f0"},
                    ],
                }
            ],
        },
        {
            "fabric": "iscsi",
            "wwn": "iqn.2003-01.org.example:x",
            "tpgs": [{"tag": 1, "luns": [], "extra": {}}],
        },
        {
            "fabric": "vhost",
            "wwn": "naa.5001405000000aaa",
            "tpgs": [{"luns": [{"index": 16384, "storage_object": "/backstores/ramdisk/r0"}]}],
        },
    ],
}


def test_a_file_of_targetclis_is_read() -> None:
    found = read_saveconfig(json.dumps(SAVED))
    (spec,) = found.endpoints
    assert (spec.wwpn, spec.nexus, spec.protection) == (WWPN, None, Protection.TYPE3)
    memory, file, device = (lun.backstore for lun in spec.luns)
    assert [lun.lun for lun in spec.luns] == [0, 1, 2]
    assert (memory.kind, memory.size_bytes, memory.attributes) == (
        SpecKind.NULL,
        4194304,
        {"pi_prot_type": "1"},
    )
    assert (file.path, file.direct, file.attributes) == ("/srv/f0", True, {"emulate_write_cache": "0"})
    assert (device.path, device.readonly, device.name) == ("/dev/sdz", True, "f0:block")
    notes = "\n".join(found.notes)
    assert "iscsi iqn.2003-01.org.example:x: skipped: another fabric" in notes
    assert "LUN 16384" in notes
    assert "/backstores/block/alone: skipped" in notes
    assert "/backstores/ramdisk/r0: emulate_3pc is off now" in notes


def test_what_is_written_is_read_again(lio: Bench) -> None:
    (spec,) = read_saveconfig(json.dumps(SAVED)).endpoints
    path = lio.image("f0", MIB)
    memory, file, _ = spec.luns
    spec = lio.driver.resolve(
        replace(spec, luns=(memory, replace(file, backstore=replace(file.backstore, path=path))))
    )
    text = write_saveconfig([spec])
    (again,) = read_saveconfig(text).endpoints
    off = {"emulate_3pc": "0"}
    assert replace(again, nexus=spec.nexus) == replace(
        spec,
        luns=tuple(
            replace(lun, backstore=replace(lun.backstore, attributes=off | lun.backstore.attributes))
            for lun in spec.luns
        ),
    )


@pytest.mark.parametrize("text", ["", "[]", '{"targets": 1}', '{"storage_objects": [{"name": 1}]}'])
def test_what_is_no_such_file_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"saveconfig\.json") as caught:
        read_saveconfig(text)
    assert caught.value.hint
