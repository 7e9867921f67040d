"""``ringway demo``: a new disk, a real guest that boots on it, and proof that what it wrote is there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from ringway.cli import live
from ringway.cli.signals import as_ctrl_c
from ringway.cli.story import Story
from ringway.errors import ConflictError, GuestError, RingwayError
from ringway.model import TargetStatistics
from ringway.target.backstore import create_image
from ringway.testing.guest import Job, LinuxGuest
from ringway.testing.kernel import find_kernel
from ringway.testing.qemu import find_qemu, vhost_user_blk, vhost_user_scsi
from ringway.testing.target import ServedTarget
from ringway.units import format_count, format_duration, format_rate, format_size, parse_size

_LOOK_S: Final = 0.5
_IMAGE: Final = "disk.img"
_MIN_DISK: Final = 256 << 20
_FIO: Final = (
    "fio --name=demo --filename={disk} --direct=1 --bs=64k --iodepth=16 --ioengine={engine} --size={size} "
    "--verify=crc32c --verify_fatal=1 --randrepeat=1 --output-format=terse --output=/dev/null"
)
_BLOCK: Final = 1 << 20


@click.command(short_help="Boot a real guest on a new disk, and show what happens.")
@click.option("--device", type=click.Choice(["scsi", "blk"]), default="scsi", show_default=True)
@click.option("--size", default="1G", show_default=True, help="Size of the new disk.")
@click.option("--data", default="64M", show_default=True, help="How much the guest writes and verifies.")
@click.option(
    "--keep", type=click.Path(file_okay=False), help="Put the disk into this directory, and leave it there."
)
def demo(*, device: str, size: str, data: str, keep: str | None) -> None:
    """Make a disk, serve it, boot a Linux guest under QEMU on it, and let the guest prove that it works.

    The guest runs in software emulation: no KVM, no root and no hugepages are needed, and the figures say
    nothing about speed (ringway bench does).
    """
    size_bytes, data_bytes = parse_size(size), parse_size(data)
    if size_bytes < _MIN_DISK or data_bytes > size_bytes // 2 or data_bytes < _BLOCK:
        raise click.BadParameter(
            "the disk needs 256M or more, and the data at least 1M and at most half of it"
        )
    story = Story(sys.stdout)
    with as_ctrl_c(), _directory(keep) as directory:
        statistics = _play(story, device, directory / _IMAGE, size_bytes, data_bytes)
        story.close(
            live.summary_table(statistics, "What the target did"), f"in {format_duration(story.elapsed_s)}"
        )
        if keep is not None:
            click.echo(f"The disk is still there: {directory / 'disk.img'}")


def _play(story: Story, device: str, image: Path, size: int, data: int) -> TargetStatistics:
    """The story itself. :raises RingwayError: something is not as it should be."""
    with story.step("Check this host") as done:
        kernel, qemu = find_kernel(), find_qemu()
        done(f"guest kernel {kernel.release}, {os.path.basename(qemu)}")
    with contextlib.ExitStack() as stack:
        with story.step(f"Serve a new disk over vhost-user-{device}") as done:
            create_image(str(image), size)
            served = stack.enter_context(ServedTarget(image.parent, "--device", device, image.name))
            info = served.info()
            done(f"{format_size(size)} in {image.name}, all of it a hole; pid {info.pid}, {info.io_engine}")
        with story.step("Boot a Linux guest on it") as done:
            connect = vhost_user_scsi if device == "scsi" else vhost_user_blk
            guest = stack.enter_context(LinuxGuest(connect(Path(served.socket)), kernel=kernel))
            done(f"Linux {guest.run('uname -r').strip()}")
        disk = _find(story, guest)
        _write_and_verify(story, guest, served, disk, data)
        digest = _file_system(story, guest, served, disk, data)
        statistics = served.statistics()
        _crash(story, guest, served, disk, data)
        with story.step("Shut the guest and the target down") as done:
            guest.qemu.quit()
            if served.stop() != 0:
                raise RingwayError("the target did not end well")
            done("both ended with status 0")
    with story.step("Look into the image from this host") as done:
        _compare(image, digest)
        used = format_size(image.stat().st_blocks * 512)
        done(f"the first MiB that the guest saw is the image's; {used} of {format_size(size)} are in use")
    return statistics


def _find(story: Story, guest: LinuxGuest) -> str:
    """:returns: the disk's device node in the guest."""
    with story.step("Find the disk in the guest") as done:
        guest.settle()
        name = guest.run("lsblk -dno NAME | grep -E '^(sd|vd)' | head -1").strip()
        if not name:
            raise GuestError("the guest finds no disk")
        done(guest.run(f"lsblk -dno NAME,SIZE,VENDOR,MODEL,SERIAL,LOG-SEC /dev/{name}").strip())
        story.detail(guest.run("ls /dev/disk/by-id"))
        return f"/dev/{name}"


def _write_and_verify(story: Story, guest: LinuxGuest, served: ServedTarget, disk: str, data: int) -> None:
    fio = _FIO.format(disk=disk, size=data, engine=_engine(guest))
    with story.step(f"Write {format_size(data)} at random places") as done:
        done(_watch(story, guest.start(f"{fio} --rw=randwrite --do_verify=0 --end_fsync=1"), served))
    with story.step("Read it back and verify every block") as done:
        done(
            _watch(story, guest.start(f"{fio} --rw=randwrite --verify_only"), served)
            + "; all checksums are right"
        )


def _engine(guest: LinuxGuest) -> str:
    """What the guest's fio can do asynchronous I/O with."""
    return "libaio" if guest.try_run("fio --enghelp=libaio").status == 0 else "psync"


def _file_system(story: Story, guest: LinuxGuest, served: ServedTarget, disk: str, data: int) -> str:
    """:returns: SHA-256 of the disk's first MiB, as the guest sees it at the end."""
    count = data // _BLOCK // 2 or 1
    with story.step("Make a file system, fill it, and look at it again") as done:
        script = (
            "set -e\n"
            f"mkfs.ext4 -qF {disk}; mount {disk} /mnt\n"
            f"dd if=/dev/urandom of=/mnt/file bs=1M count={count} 2>/dev/null\n"
            "sha256sum /mnt/file >/tmp/sum\n"
            f"umount /mnt; mount {disk} /mnt; sha256sum -c /tmp/sum >/dev/null; umount /mnt\n"
            f"e2fsck -fn {disk} >/dev/null 2>&1; sync\n"
        )
        done(f"{_watch(story, guest.start(script), served)}; ext4 is clean, the file's checksum is right")
    return guest.run(f"dd if={disk} bs=1M count=1 iflag=direct 2>/dev/null | sha256sum").split()[0]


def _crash(story: Story, guest: LinuxGuest, served: ServedTarget, disk: str, data: int) -> None:
    """Kill the target under a verifying load that spares the file system's first half, and start it again."""
    with story.step("Kill the target while the guest writes, and start it again") as done:
        fio = _FIO.format(disk=disk, size=data, engine=_engine(guest))
        begin = served.statistics()
        job = guest.start(f"{fio} --rw=randwrite --offset=50% --do_verify=1")
        while live.total(served.statistics(), "writes") == live.total(begin, "writes"):
            time.sleep(0.05)
        served.kill()
        served.start()
        done(f"{_watch(story, job, served)}; QEMU came back to the new process, and no write was lost")


def _watch(story: Story, job: Job, served: ServedTarget) -> str:
    """Show figures until a job in the guest has ended. :returns: what it did, in a few words."""
    first = before = served.statistics()
    while job.running():
        time.sleep(_LOOK_S)
        after = served.statistics()
        story.figures(live.line(served.info(), before, after))
        before = after
    job.wait()
    last = served.statistics()
    requests = sum(live.total(last, name) - live.total(first, name) for name in ("reads", "writes"))
    moved = sum(live.total(last, name) - live.total(first, name) for name in ("read_bytes", "write_bytes"))
    rate = format_rate(moved / max(last.uptime_s - first.uptime_s, 1e-9))
    return f"{format_count(requests)} requests, {format_size(moved)}, {rate}"


def _compare(image: Path, digest: str) -> None:
    with open(image, "rb") as file:
        found = hashlib.sha256(file.read(_BLOCK)).hexdigest()
    if found != digest:
        raise GuestError("the image does not hold what the guest read from its disk")


@contextlib.contextmanager
def _directory(keep: str | None) -> Iterator[Path]:
    """Where the disk lies: a directory that goes away again, unless it is to be kept."""
    if keep is not None:
        os.makedirs(keep, exist_ok=True)
        if os.path.lexists(os.path.join(keep, _IMAGE)):
            raise ConflictError(
                f"there is a {_IMAGE} in '{keep}' already", hint="keep it in another directory"
            )
        yield Path(keep).absolute()
        return
    directory = tempfile.mkdtemp(prefix="ringway-demo-")
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory)
