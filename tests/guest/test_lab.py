"""The guest lab itself, on QEMU's own disks: what it says of a target can be believed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.testing import initramfs
from ringway.testing.bootsector import BootSectorGuest, Copy, Load, Verdict, install
from ringway.testing.fuse import Mount
from ringway.testing.guest import LinuxGuest
from ringway.testing.qemu import emulated_scsi, migrate, vhost_user_blk
from ringway.testing.small_host import SmallHost, connect
from ringway.testing.sockets import wait_for_socket
from ringway.testing.uefi import UefiGuest, write_disk
from ringway.testing.waiting import PATIENCE_S, wait_until

BOOT = "bootindex=0"
WWN = 0x5000C500A1B2C3D4
MIB = 1 << 20


@pytest.fixture
def image(run_dir: Path) -> Path:
    """Return an image of 1 MiB with nothing repeated in it."""
    path = run_dir / "disk.img"
    path.write_bytes(os.urandom(MIB))
    return path


@contextmanager
def storage_daemon(image: Path, path: Path) -> Iterator[None]:
    """Serve an image with QEMU's own vhost-user-blk back end, the peer that nobody here wrote."""
    export = f"vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={path},num-queues=2"
    blockdev = f"driver=raw,node-name=d,file.driver=file,file.filename={image}"
    daemon = subprocess.Popen(["qemu-storage-daemon", "--blockdev", blockdev, "--export", export])
    try:
        wait_for_socket(path)
        yield
    finally:
        daemon.kill()
        daemon.wait()


# -- boot sectors
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [Copy(), Copy(source=10, target=300, sectors=127)], ids=str)
def test_a_boot_sector_copies(image: Path, program: Copy) -> None:
    before = image.read_bytes()
    install(image, program)
    with BootSectorGuest(emulated_scsi(image, options=BOOT)) as guest:
        assert guest.wait() is Verdict.OK
    begin, length = program.target * 512, program.sectors * 512
    expected = program.expected(before[program.source * 512 :][:length])
    after = image.read_bytes()
    assert after[begin : begin + length] == expected
    assert after[begin + length :] == before[begin + length :]


@pytest.mark.parametrize("load", [Load(passes=3), Load(blocks=1, sectors=127, passes=2)], ids=str)
def test_a_load_ends_after_its_passes(image: Path, load: Load) -> None:
    install(image, load)
    with BootSectorGuest(emulated_scsi(image, options=BOOT)) as guest:
        assert guest.wait() is Verdict.OK
        assert guest.passes() == load.passes
    load.verify(image, load.passes)
    with pytest.raises(GuestError, match="block 0"):
        load.verify(image, load.passes + 1)


def test_a_load_ends_when_told(image: Path) -> None:
    load = Load()
    install(image, load)
    with BootSectorGuest(emulated_scsi(image, options=BOOT)) as guest:
        guest.wait_passes(2)
        guest.stop()
        assert guest.wait() is Verdict.OK
        load.verify(image, guest.passes())


def test_a_load_notices_a_lost_write(image: Path) -> None:
    """Something else overwrites a block again and again: that falls between write and read at some point."""
    load = Load(blocks=2)
    install(image, load)
    with BootSectorGuest(emulated_scsi(image, options=BOOT)) as guest, image.open("r+b", buffering=0) as file:
        while guest.qemu.alive():
            os.pwrite(file.fileno(), bytes(512), load.first * 512)
        assert guest.wait() is Verdict.MISMATCH


def test_a_load_notices_an_error(image: Path) -> None:
    install(image, Load())
    broken = image.with_name("rules")
    broken.write_text('[inject-error]\nevent = "pwritev"\nerrno = "5"\n')
    blkdebug = f"file.driver=blkdebug,file.config={broken},file.image.driver=file,file.image.filename"
    devices = emulated_scsi(image, options=f"{BOOT},werror=report")
    with BootSectorGuest([a.replace("file.driver=file,file.filename", blkdebug) for a in devices]) as guest:
        with pytest.raises(GuestError, match="IO_ERROR after 0 passes"):
            guest.wait_passes(1)
        assert guest.wait() is Verdict.IO_ERROR


def test_a_disk_without_a_program_is_no_success(image: Path) -> None:
    with BootSectorGuest(emulated_scsi(image, options=BOOT)) as guest:
        guest.qemu.qmp.execute("quit")
        with pytest.raises(GuestError, match="no verdict"):
            guest.wait()


def test_a_boot_sector_runs_on_a_vhost_user_disk(image: Path, run_dir: Path) -> None:
    load = Load(passes=5)
    install(image, load)
    socket = run_dir / "blk.sock"
    with storage_daemon(image, socket), BootSectorGuest(vhost_user_blk(socket, options=BOOT)) as guest:
        assert guest.wait() is Verdict.OK
    load.verify(image, load.passes)


def test_a_load_goes_on_through_a_migration(image: Path, run_dir: Path) -> None:
    load = Load()
    install(image, load)
    devices = emulated_scsi(image, options=BOOT)
    with BootSectorGuest(devices) as source, BootSectorGuest(devices, incoming=True) as destination:
        source.wait_passes(2)
        migrate(source.qemu, destination.qemu)
        destination.wait_passes(2)
        destination.stop()
        assert destination.wait() is Verdict.OK
        load.verify(image, source.passes() + destination.passes())


# -- UEFI
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_uefi_firmware_boots(run_dir: Path, block_bytes: int) -> None:
    image = run_dir / "esp.img"
    write_disk(image, block_bytes=block_bytes)
    blocks = f"logical_block_size={block_bytes},physical_block_size=4096"
    with UefiGuest(emulated_scsi(image, options=f"{BOOT},{blocks}")) as guest:
        guest.wait_booted()


# -- Linux
# -------------------------------------------------------------------------------------------------------


def test_linux_uses_a_disk(run_dir: Path) -> None:
    """One boot for all that the lab promises of a Linux guest, because a boot takes seconds."""
    image = run_dir / "disk.img"
    image.touch()
    os.truncate(image, 64 * MIB)
    with LinuxGuest(emulated_scsi(image, options=f"serial=LAB1,wwn={WWN:#x}"), cpus=2) as guest:
        for check in (_names, _tools, _files, _verifies, _tells_failure, _works_in_background, _resets):
            check(guest)


def _names(guest: LinuxGuest) -> None:
    guest.settle()
    names = guest.run("ls /dev/disk/by-id").split()
    assert names == [f"scsi-3{WWN:x}", f"wwn-{WWN:#x}"]
    assert "LAB1" in guest.run("sg_vpd --page=sn /dev/sda")
    assert guest.run("nproc") == "2\n"


def _tools(guest: LinuxGuest) -> None:
    """Each tool finds its libraries: the dynamic linker's own failure is status 127."""
    for command in initramfs.COMMANDS:
        assert guest.try_run(f"{command} --version").status != 127, command


def _files(guest: LinuxGuest) -> None:
    guest.run("mkfs.ext4 -q /dev/sda && mount /dev/sda /mnt && seq 10000 >/mnt/numbers && umount /mnt")
    guest.run("mount -o ro /dev/sda /mnt && seq 10000 | cmp - /mnt/numbers && umount /mnt")


def _verifies(guest: LinuxGuest) -> None:
    options = "--rw=randwrite --bs=4k --size=1M --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c"
    guest.run(f"fio --name=verify --filename=/dev/sda {options}")


def _tells_failure(guest: LinuxGuest) -> None:
    assert guest.try_run("echo out; echo err >&2; exit 7") == (7, "out\nerr\n")
    with pytest.raises(GuestError, match=r"exit status 3 in the guest\nwhy"):
        guest.run("echo why; exit 3")
    with pytest.raises(GuestError, match="in time"):
        guest.run("sleep 1", timeout_s=0.01)
    assert guest.run("echo still here") == "still here\n"


def _works_in_background(guest: LinuxGuest) -> None:
    job = guest.start("while [ ! -e /run/go ]; do usleep 10000; done; echo went; exit $(cat /run/go)")
    assert job.running()
    guest.run("echo 5 >/run/new; mv /run/new /run/go")
    with pytest.raises(GuestError, match=r"exit status 5 in the guest\nwent"):
        job.wait()
    assert not job.running()


def _resets(guest: LinuxGuest) -> None:
    guest.run("touch /run/before")
    guest.reset()
    assert guest.try_run("[ -e /run/before ]").status == 1


def test_linux_goes_on_through_a_migration(run_dir: Path) -> None:
    image = run_dir / "disk.img"
    image.touch()
    os.truncate(image, 16 * MIB)
    devices = emulated_scsi(image)
    with LinuxGuest(devices) as source, LinuxGuest(devices, incoming=True) as destination:
        job = source.start("while [ ! -e /run/go ]; do usleep 10000; done; cat /run/go")
        migrate(source.qemu, destination.qemu)
        destination.run("echo moved >/dev/sda; head -c 6 /dev/sda >/run/new; mv /run/new /run/go")
        assert job.on(destination).wait() == "moved\n"


# -- failures
# ----------------------------------------------------------------------------------------------------


def test_a_guest_that_panicked_before_it_was_ready_is_told_of() -> None:
    """It boots again by itself, which would hide that; once it is ready it stays as it is."""
    with LinuxGuest() as guest:
        assert guest.run("cat /proc/sys/kernel/panic /proc/sys/kernel/panic_on_oops").split() == ["0", "0"]
        guest.start("sleep 1; echo 1 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger")
        with pytest.raises(GuestError, match="booted after 'Kernel panic - not syncing: sysrq triggered"):
            guest.wait_ready()


def test_a_qemu_that_does_not_start_says_why() -> None:
    with pytest.raises(GuestError, match="no-such-device"):
        BootSectorGuest(["-device", "no-such-device"])


def test_a_failure_shows_the_console(image: Path) -> None:
    def provoke() -> None:
        with BootSectorGuest(emulated_scsi(image)) as guest:
            guest.qemu.console.wait_for(b"never", 0.01)

    assert "--- console" in _notes(provoke)


def _notes(action: Callable[[], None]) -> str:
    with pytest.raises(GuestError) as caught:
        action()
    return "\n".join(caught.value.__notes__)


# -- hosts of one's own
# ------------------------------------------------------------------------------------------------


def test_small_hosts_are_apart_and_reach_each_other(run_dir: Path) -> None:
    here = run_dir / "here"
    for name in ("left", "right", "here"):
        (run_dir / name).mkdir()
    with ExitStack() as stack:
        left, right = (
            stack.enter_context(SmallHost(name, {run_dir / name: here})) for name in ("left", "right")
        )
        connect(left, right)
        for host in (left, right):
            host.run("sh", "-c", f"cat /proc/sys/kernel/hostname >{here}/name")
        sleeper = left.popen(["sleep", "600"])
        wait_until(lambda: "sleep" in left.run("ps", "-A"), "the sleeper")
        assert "sleep" not in right.run("ps", "-A")
        with pytest.raises(GuestError, match="Connection refused"):  # by a kernel that was reached
            right.run(sys.executable, "-c", "import socket; socket.create_connection(('left', 1), 60)")
    assert sleeper.returncode == -signal.SIGKILL
    assert [(run_dir / name / "name").read_text() for name in ("left", "right")] == ["left\n", "right\n"]
    assert list(here.iterdir()) == []


def test_a_small_host_keeps_no_file_system_that_others_end(run_dir: Path) -> None:
    """A copy of a mount in its namespace would."""
    mount = Mount(run_dir, lambda _request: None)
    server = threading.Thread(target=mount.serve, daemon=True)
    server.start()
    with SmallHost("here"):
        subprocess.run(["umount", "--lazy", run_dir], check=True)
        server.join(PATIENCE_S)
        assert not server.is_alive()
    mount.close()
