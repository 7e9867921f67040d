"""What only the kernel engine does."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from ringway.engine.lio import LioDriver, Settings
from ringway.errors import (
    BackstoreError,
    BusyError,
    ConflictError,
    DegradedError,
    NotFoundError,
    RingwayError,
    UsageError,
)
from ringway.model import (
    BackstoreSpec,
    EndpointSpec,
    EndpointState,
    EngineKind,
    LunSpec,
    Protection,
    SpecKind,
)
from ringway.testing.fake_kernel import FakeKernel

from .bench import MIB, Bench, disk, ram

WWPN = "naa.6001405000000abc"


def tree(kernel: FakeKernel) -> set[str]:
    """All folders below the kernel's target, but for those that are always there."""
    found = (str(Path(folder).relative_to(kernel.configfs)) for folder, _, _ in os.walk(kernel.configfs))
    return {path for path in found if path.startswith(("core/", "vhost/")) and "alua" not in path} - {
        "vhost/discovery_auth"
    }


def value(kernel: FakeKernel, path: str) -> str:
    return (kernel.configfs / path).read_text().strip()


def device_of(kernel: FakeKernel, wwpn: str, target: int = 0, lun: int = 0) -> str:
    """The device that a LUN maps, as a path below the target."""
    folder = kernel.configfs / f"vhost/{wwpn}/tpgt_{target}/lun/lun_{lun}"
    link = next(entry for entry in folder.iterdir() if entry.is_symlink())
    return "core/" + os.readlink(link).partition("/core/")[2]


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


def test_an_attribute_that_the_kernel_has_not(lio: Bench, kernel: FakeKernel) -> None:
    with pytest.raises(UsageError, match="emulate_tea") as caught:
        lio.create("db0", ram(attributes={"emulate_tea": "1"}))
    assert "emulate_tpu" in (caught.value.hint or "")
    assert tree(kernel) == set()


def test_the_kernels_own_reason_is_in_the_error(lio: Bench, kernel: FakeKernel) -> None:
    with pytest.raises(RingwayError) as caught:
        lio.create("db0", ram(attributes={"emulate_tpu": "1"}))
    assert "emulate_tpu" in str(caught.value)
    assert "stays 0" in str(caught.value)
    assert "Generic Block Discard not supported" in str(caught.value)
    assert tree(kernel) == set()


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


def test_reservations_that_cannot_be_read_stop_the_disk(lio: Bench, kernel: FakeKernel) -> None:
    (kernel.dbroot / "pr").mkdir(parents=True, exist_ok=True)
    (kernel.dbroot / "pr" / "aptpl_abc").write_text("PR_REG_START: 0\ninitiator_node=x\n")
    with pytest.raises(BackstoreError, match="aptpl_abc"):
        lio.create("db0", ram(serial="abc"))
    assert tree(kernel) == set()


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


def test_a_backstore_is_shared(lio: Bench, kernel: FakeKernel) -> None:
    shared = BackstoreSpec(SpecKind.PATH, path=lio.image(), name="quorum", serial="q")
    lio.create("db0", LunSpec(0, 0, shared), LunSpec(0, 1, shared))
    lio.create("db1", LunSpec(0, 0, shared))
    assert [store.used_by for store in lio.driver.backstores()] == [("db0/0:0", "db0/0:1", "db1/0:0")]
    lio.driver.delete("db0")
    assert [store.used_by for store in lio.driver.backstores()] == [("db1/0:0",)]
    lio.driver.delete("db1")
    assert tree(kernel) == set()


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


def test_counters(lio: Bench, kernel: FakeKernel) -> None:
    lio.create("db0", ram(0), ram(1), wwpn=WWPN)
    kernel.use(WWPN, 0, 1, commands=12, read=5 * MIB, written=3 * MIB)
    idle, busy = lio.driver.statistics("db0").luns
    assert (idle.other, idle.read_bytes) == (0, 0)
    assert (busy.other, busy.read_bytes, busy.write_bytes) == (12, 5 * MIB, 3 * MIB)


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


def test_watching_ends(lio: Bench) -> None:
    lio.driver.watch(lambda _: None)
    lio.driver.close()
    assert "lio-watch" not in {thread.name for thread in threading.enumerate()}


def test_a_module_that_is_absent_is_named_with_its_package(tmp_path: Path) -> None:
    with FakeKernel(tmp_path, modules=("target_core_mod",)) as kernel:
        driver = LioDriver(Settings(kernel.configfs, kernel.sysfs, tmp_path / "run", kernel.kmsg, ("false",)))
        report = driver.probe()
        assert not report.usable
        assert {check.name for check in report.checks if not check.ok} >= {"vhost_scsi"}
        spec = driver.resolve(EndpointSpec(name="db0", engine=EngineKind.LIO, luns=(ram(),)))
        with pytest.raises(NotFoundError, match="vhost_scsi") as caught:
            driver.create(spec)
        assert "install" in (caught.value.hint or "")
        assert driver.list() == ()
        kernel.load("vhost_scsi")
        driver.create(spec)
        assert [info.name for info in driver.list()] == ["db0"]


def test_a_comma_in_a_path_is_refused(lio: Bench) -> None:
    path = lio.image("a,b.img")
    with pytest.raises(UsageError, match="comma") as caught:
        lio.create("db0", disk(path))
    assert "link" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("lun", "what"),
    [
        (ram(16384), "16384"),
        (ram(0, size_bytes=1000), "whole pages"),
        (ram(0, size_bytes=0), "no bytes"),
        (disk("relative.img"), "absolute"),
        (disk("/x" * 200), "255"),
        (ram(0, serial="a/b"), "slash"),
        (ram(0, attributes={"../x": "1"}), "attribute"),
        (LunSpec(0, 0, BackstoreSpec(SpecKind.TCMU, path="user_0/x", serial="1")), "serial"),
    ],
)
def test_what_the_kernel_would_misread_is_refused(lio: Bench, lun: LunSpec, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        lio.create("db0", lun)
    assert caught.value.hint


def test_a_file_that_has_shrunk_is_refused_on_restore(lio: Bench) -> None:
    path = lio.image(size_bytes=2 * MIB)
    spec = lio.create("db0", disk(path, size_bytes=2 * MIB))
    lio.driver.delete("db0")
    os.truncate(path, MIB)
    with pytest.raises(BackstoreError, match="missing"):
        lio.driver.create(spec)
    assert lio.names() == set()


def test_a_file_that_somebody_has_locked_is_refused(lio: Bench) -> None:
    path = lio.image()
    script = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print(1, flush=True)\n"
        "input()"
    )
    command = [sys.executable, "-c", script, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        with pytest.raises(BusyError, match=f"pid {other.pid}"):
            lio.create("db0", disk(path))
        restored = lio.spec("db0", disk(path))
        with pytest.raises(BusyError, match=f"pid {other.pid}"):
            lio.driver.create(restored)  # as at a daemon's start
        assert lio.names() == set()
        lio.create("db0", disk(path, force=True))
        other.kill()


def test_half_a_record_goes_with_its_endpoint(lio: Bench) -> None:
    lio.create("db0", ram())
    folder = lio.folder / "run" / "lio"
    for name in ("db0", "never"):
        (folder / f".{name}.new").write_text("{")
        lio.driver.delete(name)
    assert list(folder.iterdir()) == []


def test_an_image_of_another_format_is_refused(lio: Bench) -> None:
    path = lio.image()
    with open(path, "r+b") as file:
        file.write(b"QFI\xfb")
    with pytest.raises(BackstoreError, match="qcow2"):
        lio.create("db0", disk(path))


def test_a_read_only_file_is_refused(lio: Bench) -> None:
    with pytest.raises(UsageError, match="read-only") as caught:
        lio.create("db0", disk(lio.image(), readonly=True))
    assert "losetup" in (caught.value.hint or "")


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


def test_what_others_put_into_an_endpoint_goes_with_it(lio: Bench, kernel: FakeKernel) -> None:
    lio.create("db0", ram(), wwpn=WWPN)
    (kernel.configfs / f"vhost/{WWPN}/tpgt_0/lun/lun_9").mkdir()
    (kernel.configfs / f"vhost/{WWPN}/tpgt_7").mkdir()
    lio.driver.delete("db0")
    assert tree(kernel) == set()


def test_a_mounted_device_is_refused(lio: Bench) -> None:
    lines = [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - ext4 /dev/" in line
    ]
    mounted = [line.split(" - ext4 ")[1].split()[0] for line in lines]
    if not mounted or not Path(mounted[0]).is_block_device():
        pytest.skip("nothing here is mounted from a device")
    with pytest.raises(BusyError, match="mounted at"):
        lio.create("db0", disk(mounted[0]))
    assert lio.names() == set()


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


def test_the_kernels_absence_is_an_error_with_a_hint(tmp_path: Path) -> None:
    nowhere = tmp_path / "config" / "target"
    driver = LioDriver(Settings(nowhere, tmp_path, tmp_path / "run", tmp_path / "kmsg", ("false",)))
    assert (driver.list(), driver.backstores()) == ((), ())
    assert not driver.probe().usable
    spec = driver.resolve(EndpointSpec(name="db0", engine=EngineKind.LIO, luns=(ram(),)))
    with pytest.raises(NotFoundError, match="target_core_mod") as caught:
        driver.create(spec)
    assert caught.value.hint
    driver.delete("db0")


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
        status = subprocess.run(command, check=False, timeout=30).returncode
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


@pytest.mark.timeout(300)
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


def test_a_files_protection_is_formatted_once(lio: Bench) -> None:
    path = lio.image()
    spec = lio.create("db0", disk(path, attributes={"pi_prot_type": "1"}), protection=Protection.TYPE1)
    kept = Path(f"{path}.protection")
    assert kept.read_bytes() == b"\xff" * (MIB // 512 * 8)
    kept.write_bytes(b"\1" * (MIB // 512 * 8))
    lio.driver.delete("db0")
    lio.driver.create(spec)
    assert set(kept.read_bytes()) == {1}


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


def test_a_record_that_cannot_be_written_is_an_error(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.spec("db0")
    (lio.folder / "run").mkdir()
    (lio.folder / "run" / "lio").write_text("in the way")
    with pytest.raises(RingwayError, match="cannot be noted") as caught:
        lio.driver.create(spec)
    assert caught.value.hint
    assert tree(kernel) == set()
