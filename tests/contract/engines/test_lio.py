"""What endpoints and disks of the kernel engine are in the kernel."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import BusyError, NotFoundError
from ringway.model import BackstoreSpec, LunSpec, Protection, SpecKind
from ringway.testing.fake_kernel import FakeKernel

from .bench import MIB, Bench, disk, ram
from .configfs import WWPN, device_of, tree, value


def test_a_wwpn_of_kind_6_is_kept(lio: Bench, kernel: FakeKernel) -> None:
    lio.create("db0", ram(), wwpn=WWPN)
    assert f"vhost/{WWPN}" in tree(kernel)
    lio.driver.delete("db0")
    assert tree(kernel) == set()


def test_nexus_and_serial_are_ours(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.create("db0", ram(serial="abc-1"), wwpn=WWPN, nexus="naa.5001405000000123")
    assert value(kernel, f"vhost/{WWPN}/tpgt_0/nexus") == spec.nexus
    assert value(kernel, f"{device_of(kernel, WWPN)}/wwn/vpd_unit_serial").endswith(": abc-1")


def test_targets_are_portal_groups(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.create("db0", ram(0), ram(5, target=3), wwpn=WWPN)
    assert {f"vhost/{WWPN}/tpgt_0", f"vhost/{WWPN}/tpgt_3"} <= tree(kernel)
    assert value(kernel, f"vhost/{WWPN}/tpgt_3/nexus") == spec.nexus
    lio.driver.update(spec, replace(spec, luns=spec.luns[:1]))
    assert f"vhost/{WWPN}/tpgt_3" not in tree(kernel)


@pytest.mark.parametrize(
    ("protection", "text"), [(Protection.NONE, "0"), (Protection.TYPE1, "1"), (Protection.TYPE3, "3")]
)
def test_protection(lio: Bench, kernel: FakeKernel, protection: Protection, text: str) -> None:
    lio.create("db0", ram(attributes={"pi_prot_type": text}), wwpn=WWPN, protection=protection)
    assert value(kernel, f"vhost/{WWPN}/tpgt_0/attrib/fabric_prot_type") == text
    assert value(kernel, f"{device_of(kernel, WWPN)}/attrib/pi_prot_type") == text


def test_extended_copy_is_off_unless_it_is_wanted(lio: Bench, kernel: FakeKernel) -> None:
    lio.create("db0", ram(), ram(1, attributes={"emulate_3pc": "1"}), wwpn=WWPN)
    assert value(kernel, f"{device_of(kernel, WWPN)}/attrib/emulate_3pc") == "0"
    assert value(kernel, f"{device_of(kernel, WWPN, lun=1)}/attrib/emulate_3pc") == "1"


def test_block_size_and_attributes(lio: Bench, kernel: FakeKernel) -> None:
    path = lio.image()
    lio.create("db0", disk(path, block_size=4096, attributes={"emulate_tpu": "1"}), wwpn=WWPN)
    device = device_of(kernel, WWPN)
    assert value(kernel, f"{device}/attrib/block_size") == "4096"
    assert value(kernel, f"{device}/attrib/emulate_tpu") == "1"
    assert "Mode: Buffered-WCE" in value(kernel, f"{device}/info")


def test_reservations_survive_a_reboot(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.create("db0", disk(lio.image()), wwpn=WWPN)
    kernel.register(WWPN, 0, 0, key=0xABC1, type_=5)
    lio.driver.close()
    lio.reboot()
    lio.restart()
    lio.driver.create(spec)
    pr = f"{device_of(kernel, WWPN)}/pr"
    assert f"vhost Node: {spec.nexus} Key: 0x000000000000abc1" in value(
        kernel, f"{pr}/res_pr_registered_i_pts"
    )
    assert "Registrants Only" in value(kernel, f"{pr}/res_pr_type")
    assert value(kernel, f"{pr}/res_aptpl_active") == "APTPL Bit Status: Activated"


def test_a_backstore_is_shared(lio: Bench, kernel: FakeKernel) -> None:
    shared = BackstoreSpec(SpecKind.PATH, path=lio.image(), name="quorum", serial="q")
    lio.create("db0", LunSpec(0, 0, shared), LunSpec(0, 1, shared))
    lio.create("db1", LunSpec(0, 0, shared))
    assert [store.used_by for store in lio.driver.backstores()] == [("db0/0:0", "db0/0:1", "db1/0:0")]
    lio.driver.delete("db0")
    assert [store.used_by for store in lio.driver.backstores()] == [("db1/0:0",)]
    lio.driver.delete("db1")
    assert tree(kernel) == set()


def test_counters(lio: Bench, kernel: FakeKernel) -> None:
    lio.create("db0", ram(0), ram(1), wwpn=WWPN)
    kernel.use(WWPN, 0, 1, commands=12, read=5 * MIB, written=3 * MIB)
    idle, busy = lio.driver.statistics("db0").luns
    assert (idle.other, idle.read_bytes) == (0, 0)
    assert (busy.other, busy.read_bytes, busy.write_bytes) == (12, 5 * MIB, 3 * MIB)


def test_watching_ends(lio: Bench) -> None:
    lio.driver.watch(lambda _: None)
    lio.driver.close()
    assert "lio-watch" not in {thread.name for thread in threading.enumerate()}


def test_a_block_device_comes_and_goes(lio: Bench, kernel: FakeKernel) -> None:
    """The fake opens no device, so this one need not be there."""
    if kernel.sysfs == Path("/sys"):
        pytest.skip("a real kernel opens it")
    path = str(lio.folder / "device")
    os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(240, 77))
    spec = lio.create("db0", disk(path, readonly=True), wwpn=WWPN)
    (status,) = lio.driver.show("db0").luns
    assert (status.kind, status.path, status.readonly) == ("block", path, True)
    with pytest.raises(BusyError, match="db0"):
        lio.create("db1", disk(path))
    os.unlink(path)
    lio.driver.delete("db0")
    assert tree(kernel) == set()
    with pytest.raises(NotFoundError, match="device"):
        lio.driver.create(spec)
    assert tree(kernel) == set()


def test_a_disk_moves_to_another_lun(lio: Bench) -> None:
    path = lio.image()
    old = lio.create("db0", disk(path, 0))
    new = lio.driver.resolve(replace(old, luns=(disk(path, 7),)))
    lio.driver.check(new, ())
    lio.driver.update(old, new)
    assert [lun.lun for lun in lio.driver.show("db0").luns] == [7]
    assert len(lio.driver.backstores()) == 1


def test_a_handlers_backstore_is_mapped_and_left(lio: Bench, kernel: FakeKernel) -> None:
    (kernel.configfs / "core/user_3").mkdir()
    (kernel.configfs / "core/user_3/rbd0").mkdir()
    lun = LunSpec(0, 0, BackstoreSpec(SpecKind.TCMU, path="rbd0"))
    with pytest.raises(NotFoundError, match="rbd0"):
        lio.create("db0", lun)
    (kernel.configfs / "core/user_3/rbd0/control").write_text("dev_config=rbd/pool/image,dev_size=1048576")
    (kernel.configfs / "core/user_3/rbd0/enable").write_text("1")
    lio.create("db0", lun)
    (status,) = lio.driver.show("db0").luns
    assert (status.kind, status.path, status.size_bytes) == ("user", "rbd/pool/image", MIB)
    lio.driver.delete("db0")
    assert "core/user_3/rbd0" in tree(kernel)


def test_a_scsi_device_is_passed_through(lio: Bench, kernel: FakeKernel) -> None:
    folder = kernel.sysfs / "bus/scsi/devices"
    address = next((entry.name for entry in folder.iterdir() if entry.name[0].isdigit()), None)
    if address is None:
        pytest.skip("this kernel has no SCSI device")
    lio.create("db0", LunSpec(0, 0, BackstoreSpec(SpecKind.PSCSI, path=address)), wwpn=WWPN)
    _, _, target, lun = address.split(":")
    assert f"Target ID: {target} LUN: {lun}" in value(kernel, f"{device_of(kernel, WWPN)}/info")
    lio.driver.delete("db0")
    assert tree(kernel) == set()
    with pytest.raises(NotFoundError, match="99:0:0:0"):
        lio.create("db0", LunSpec(0, 0, BackstoreSpec(SpecKind.PSCSI, path="99:0:0:0")))


def test_a_files_protection_is_formatted_once(lio: Bench) -> None:
    path = lio.image()
    spec = lio.create("db0", disk(path, attributes={"pi_prot_type": "1"}), protection=Protection.TYPE1)
    kept = Path(f"{path}.protection")
    assert kept.read_bytes() == b"\xff" * (MIB // 512 * 8)
    kept.write_bytes(b"\1" * (MIB // 512 * 8))
    lio.driver.delete("db0")
    lio.driver.create(spec)
    assert set(kept.read_bytes()) == {1}
