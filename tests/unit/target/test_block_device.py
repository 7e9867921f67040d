"""Block devices, as loop devices show them: sizes, sectors, limits, and who else uses them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringway import holders
from ringway.errors import BackstoreError, BusyError, PermissionDeniedError
from ringway.model import BackstoreSpec, SpecKind, StoreKind
from ringway.target import kernel
from ringway.target.backstore import open_backstore
from ringway.testing.waiting import PATIENCE_S

from .conftest import MIB, Spawn

Attach = Callable[..., Path]


@pytest.fixture
def attach(image: Path) -> Iterator[Attach]:
    """Attach the image to a loop device with given ``losetup`` options."""
    losetup = shutil.which("losetup", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if losetup is None or os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices need root, losetup and /dev/loop-control")
    devices: list[Path] = []

    def run(*options: str) -> Path:
        command = [losetup, "--find", "--show", *options, str(image)]
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S)
        devices.append(Path(result.stdout.strip()))
        return devices[-1]

    yield run
    for device in devices:
        subprocess.run([losetup, "--detach", str(device)], check=True, timeout=PATIENCE_S)


@pytest.fixture
def mounted(attach: Attach, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A device with a mounted file system, and where it is mounted."""
    device, folder = attach(), tmp_path / "mount point"
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-qF", str(device)], check=True, timeout=PATIENCE_S)
    subprocess.run(["mount", str(device), str(folder)], check=True, timeout=PATIENCE_S)
    yield device, folder
    subprocess.run(["umount", str(folder)], check=True, timeout=PATIENCE_S)


def spec(
    device: Path, *, readonly: bool = False, force: bool = False, block: int | None = None
) -> BackstoreSpec:
    return BackstoreSpec(SpecKind.PATH, str(device), readonly=readonly, force=force, block_size=block)


def test_a_device_has_a_size(attach: Attach) -> None:
    """Its inode's size is zero: the size is asked for by ioctl."""
    store = open_backstore(spec(attach()))
    assert store.kind is StoreKind.BLOCK
    assert store.geometry.size_bytes == 16 * MIB
    assert store.geometry.block_size == 512
    assert store.geometry.discard_granularity > 0
    store.store.write(0, b"x" * 512)
    assert store.store.read(0, 512) == b"x" * 512
    store.close()


def test_a_device_is_ours_alone(attach: Attach) -> None:
    device = attach()
    store = open_backstore(spec(device))
    with pytest.raises(BusyError):
        open_backstore(spec(device))
    with pytest.raises(OSError, match="busy"):
        os.open(device, os.O_RDONLY | os.O_EXCL)
    store.close()
    open_backstore(spec(device)).close()


def test_readers_of_a_device_let_each_other_in_and_no_writer(attach: Attach) -> None:
    """They claimed nothing: a second target could write under a guest that was told of a read-only disk."""
    device = attach()
    one, two = (open_backstore(spec(device, readonly=True)) for _ in range(2))
    with pytest.raises(BusyError):
        open_backstore(spec(device))
    one.close()
    two.close()
    writer = open_backstore(spec(device))
    with pytest.raises(BusyError):
        open_backstore(spec(device, readonly=True))
    writer.close()
    open_backstore(spec(device, readonly=True)).close()


def test_who_forces_a_device_is_on_their_own(attach: Attach) -> None:
    device = attach()
    one, two = (open_backstore(spec(device, force=True)) for _ in range(2))
    assert one.ownership.held
    assert two.ownership.held
    one.close()
    two.close()


def test_qemu_and_we_keep_each_other_from_a_device(attach: Attach, qemu_io: str, spawn: Spawn) -> None:
    """It opens no device exclusively, and we had no locks: both wrote."""
    device = attach()
    store = open_backstore(spec(device))
    command = [qemu_io, "-f", "raw", "-c", "write 0 512", f"host_device:{device}"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert " lock" in refused.stdout + refused.stderr
    store.close()
    process = spawn([qemu_io, "-f", "raw", f"host_device:{device}"])
    assert process.stdout is not None
    assert process.stdout.read(8) == b"qemu-io>"
    with pytest.raises(BusyError) as caught:
        open_backstore(spec(device))
    assert caught.value.holder == f"pid {process.pid} (qemu-io)"
    process.communicate()
    open_backstore(spec(device)).close()


def test_a_mounted_device_is_refused_unless_forced(mounted: tuple[Path, Path]) -> None:
    device, folder = mounted
    for readonly in (False, True):
        with pytest.raises(BusyError, match=f"is mounted at {folder}") as caught:
            open_backstore(spec(device, readonly=readonly))
        assert "--force" in str(caught.value.hint)
    store = open_backstore(spec(device, force=True))
    assert store.ownership.held
    store.close()


def test_a_device_that_another_holds_exclusively(attach: Attach) -> None:
    device = attach()
    fd = os.open(device, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(BusyError):
            open_backstore(spec(device))
        open_backstore(spec(device, readonly=True)).close()
    finally:
        os.close(fd)


def test_an_image_that_a_loop_device_serves_is_refused(attach: Attach, image: Path) -> None:
    device = attach()
    with pytest.raises(BusyError, match=f"attached as {device}"):
        open_backstore(spec(image))


def test_blocks_smaller_than_the_devices_own_are_refused(attach: Attach) -> None:
    device = attach("--sector-size", "4096")
    store = open_backstore(spec(device))
    assert store.geometry.block_size == 4096
    store.close()
    with pytest.raises(BackstoreError, match="its own have 4096") as caught:
        open_backstore(spec(device, block=512))
    assert "block-size=4096" in str(caught.value.hint)


def test_a_read_only_device_is_served_read_only(attach: Attach) -> None:
    device = attach("--read-only")
    with pytest.raises(PermissionDeniedError) as caught:
        open_backstore(spec(device))
    assert "readonly" in str(caught.value.hint)
    open_backstore(spec(device, readonly=True)).close()


def test_direct_io_to_a_device(attach: Attach) -> None:
    store = open_backstore(BackstoreSpec(SpecKind.PATH, str(attach()), direct=True))
    assert store.direct
    store.store.write(4096, b"d" * 4096, fua=True)
    assert store.store.read(4096, 4096) == b"d" * 4096
    store.close()


def test_a_device_that_nobody_uses_has_no_user(attach: Attach) -> None:
    assert holders.device_user(attach().stat().st_rdev) is None


def test_a_disk_is_in_use_when_its_partition_is(attach: Attach, tmp_path: Path) -> None:
    device, folder = attach("--partscan"), tmp_path / "mnt"
    subprocess.run(["addpart", str(device), "1", "2048", "8192"], check=True, timeout=PATIENCE_S)
    folder.mkdir()
    partition = tmp_path / "partition"  # a node of its own: /dev need not be managed here
    major, minor = Path(f"/sys/class/block/{device.name}p1/dev").read_text().split(":")
    os.mknod(partition, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
    subprocess.run(["mkfs.ext4", "-qF", str(partition)], check=True, timeout=PATIENCE_S)
    subprocess.run(["mount", str(partition), str(folder)], check=True, timeout=PATIENCE_S)
    try:
        for busy in (device, partition):
            with pytest.raises(BusyError, match=f"is mounted at {folder}"):
                open_backstore(spec(busy))
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=PATIENCE_S)
    store = open_backstore(spec(partition))
    assert store.geometry.size_bytes == 4 * MIB
    assert store.geometry.discard_granularity > 0, "the limits are the whole disk's"
    store.close()


def test_a_device_that_is_opened_anew_stays_ours(attach: Attach, image: Path) -> None:
    """The locks go to the file that is served; there cannot be two exclusive opens, and there is no gap."""
    device = attach()
    store = open_backstore(spec(device))
    os.truncate(image, 32 * MIB)
    subprocess.run(["losetup", "--set-capacity", str(device)], check=True, timeout=PATIENCE_S)
    with open(device, "r+b") as same:
        assert store.reload(fd=same.fileno())
        store.ownership.drop_old()
        assert not kernel.ofd_is_locked_by_others(same.fileno(), 201), "it has the lock itself"
        with pytest.raises(BusyError):
            open_backstore(spec(device))
        with pytest.raises(OSError, match="busy"):
            os.open(device, os.O_RDONLY | os.O_EXCL)
        store.ownership.release()
        store.ownership.acquire()
        store.close()
        open_backstore(spec(device)).close()
