"""Booting from the target: SeaBIOS and UEFI firmware bring virtio drivers of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ringway.testing.bootsector import BootSectorGuest, Copy, Load, Verdict, install
from ringway.testing.uefi import UefiGuest, write_disk

from .serving import MIB, Target, both_devices


@pytest.fixture
def image(run_dir: Path) -> Path:
    """Return an image of 1 MiB with nothing repeated in it."""
    path = run_dir / "disk.img"
    path.write_bytes(os.urandom(MIB))
    return path


@both_devices
@pytest.mark.parametrize("program", [Copy(), Copy(source=10, target=300, sectors=127)], ids=str)
def test_a_boot_sector_reads_and_writes(image: Path, run_dir: Path, device: str, program: Copy) -> None:
    before = image.read_bytes()
    install(image, program)
    booted = image.read_bytes()
    with (
        Target(run_dir, image, device=device) as target,
        BootSectorGuest(target.devices()) as guest,
    ):
        assert guest.wait() is Verdict.OK
    begin, length = program.target * 512, program.sectors * 512
    expected = program.expected(before[program.source * 512 :][:length])
    assert image.read_bytes() == booted[:begin] + expected + booted[begin + length :]


@both_devices
@pytest.mark.parametrize(
    ("disk", "arguments"),
    [
        ("disk.img", ["--io-engine", "epoll"]),
        ("disk.img", ["--poll", "interrupt"]),
        ("disk.img", ["--poll", "poll"]),
        ("disk.img,mapped=on", []),
        ("disk.img,direct", []),
        ("disk.img", ["--queues", "4", "--workers", "2"]),
    ],
)
def test_a_boot_sector_runs_however_it_is_served(
    image: Path, run_dir: Path, device: str, disk: str, arguments: list[str]
) -> None:
    load = Load(passes=3)
    install(image, load)
    with (
        Target(run_dir, disk, *arguments, device=device) as target,
        BootSectorGuest(target.devices()) as guest,
    ):
        assert guest.wait() is Verdict.OK
        assert target.stop() == 0
    load.verify(image, load.passes)


@both_devices
@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_uefi_firmware_boots(run_dir: Path, device: str, block_bytes: int) -> None:
    image = run_dir / "esp.img"
    write_disk(image, block_bytes=block_bytes)
    with (
        Target(run_dir, f"{image},block-size={block_bytes}", device=device) as target,
        UefiGuest(target.devices()) as guest,
    ):
        guest.wait_booted()
