"""What the kernel engine refuses, and what it says then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringway.engine.lio import LioDriver, Settings
from ringway.errors import BackstoreError, BusyError, NotFoundError, RingwayError, UsageError
from ringway.model import BackstoreSpec, EndpointSpec, EngineKind, LunSpec, SpecKind
from ringway.testing.fake_kernel import FakeKernel

from .bench import MIB, Bench, disk, ram
from .configfs import tree


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


def test_reservations_that_cannot_be_read_stop_the_disk(lio: Bench, kernel: FakeKernel) -> None:
    (kernel.dbroot / "pr").mkdir(parents=True, exist_ok=True)
    (kernel.dbroot / "pr" / "aptpl_abc").write_text("PR_REG_START: 0\ninitiator_node=x\n")
    with pytest.raises(BackstoreError, match="aptpl_abc"):
        lio.create("db0", ram(serial="abc"))
    assert tree(kernel) == set()


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


def test_a_record_that_cannot_be_written_is_an_error(lio: Bench, kernel: FakeKernel) -> None:
    spec = lio.spec("db0")
    (lio.folder / "run").mkdir()
    (lio.folder / "run" / "lio").write_text("in the way")
    with pytest.raises(RingwayError, match="cannot be noted") as caught:
        lio.driver.create(spec)
    assert caught.value.hint
    assert tree(kernel) == set()
