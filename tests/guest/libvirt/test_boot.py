"""A Linux that SeaBIOS boots from a volume: a mapping describes the disk with loader, kernel and files."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import RingwayError
from ringway.testing.daemon import Daemon
from ringway.testing.domain import DomainGuest
from ringway.testing.kernel import find_kernel
from ringway.testing.libvirtd import Libvirtd
from ringway.testing.volume import PARTITION_BYTES, write_volume

from ..operator import CreatedGuest, Operator

#: As the wiki has it.
MAPPING = "id=vol0,source=volume,dest=volume,bus=virtio-scsi,bootindex=0"
VENDORS = {"qemu": "QEMU", "endpoint": "RINGWAY"}


@pytest.fixture
def operator(libvirtd: Libvirtd, run_dir: Path) -> Iterator[Operator]:
    with Daemon(run_dir / "d") as daemon:
        daemon.configure(f'[lio]\nenabled = false\n[guests]\nenabled = true\nuri = "{libvirtd.uri}"\n')
        daemon.start()
        yield Operator(daemon)
        with contextlib.suppress(RingwayError):  # there is one if it served the disk
            daemon.ask("DELETE", "/1.0/endpoints/vm0?force=1")


@pytest.fixture
def volume(run_dir: Path) -> Path:
    image = run_dir / "root.img"
    write_volume(image, find_kernel())
    return image


@contextlib.contextmanager
def booted(operator: Operator, libvirtd: Libvirtd, volume: Path, *words: str) -> Iterator[DomainGuest]:
    """A guest 'vm0' that boots from the volume."""
    operator.do(
        *("guest", "create", "vm0", "--no-start", "--emulate", "--memory", "512M"),
        *("--block-device", MAPPING, "--volume", f"vol0={volume}", *words),
    )
    with CreatedGuest(libvirtd, "vm0", volume.parent) as guest:
        yield guest


def check_boot(guest: DomainGuest, vendor: str) -> None:
    """It has one disk, which is the volume: its kernel came from there, and so does all else there is."""
    assert "<kernel>" not in guest.libvirtd.virsh("dumpxml", guest.name)
    assert "BOOT_IMAGE=/boot/vmlinuz" in guest.run("cat /proc/cmdline")
    assert guest.run("ls /sys/block").split() == ["sda"]
    assert guest.run("tail -c +5 /sys/block/sda/device/vpd_pg80") == "vol0"
    assert guest.run("cat /sys/block/sda/device/vendor").strip() == vendor
    guest.run(
        "mount -t ext4 /dev/sda1 /mnt && ls /mnt/boot/vmlinuz && echo ours >/mnt/written && umount /mnt"
    )


def written(volume: Path) -> str:
    """What a guest wrote there."""
    command = ["debugfs", "-R", "cat /written", f"{volume}?offset={PARTITION_BYTES}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("via", ["qemu", "endpoint"])
def test_a_linux_boots_from_a_volume_by_the_wikis_string(
    operator: Operator, libvirtd: Libvirtd, volume: Path, via: str
) -> None:
    with booted(operator, libvirtd, volume, "--via", via) as guest:
        check_boot(guest, VENDORS[via])
    assert written(volume) == "ours\n"
