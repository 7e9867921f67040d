"""What a Linux guest does to any disk of ours, whatever bus it is on."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ringway.errors import GuestError
from ringway.testing.guest import Job, Shell

from .serving import Target

#: Random reads and writes with checksums, then everything once more. Add file name, size and direction.
FIO_VERIFY: Final = (
    "--name=verify --direct=1 --ioengine=libaio --iodepth=16 --bsrange=4k-64k --blockalign=4k --randrepeat=1"
    " --verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=terse"
)


def check_verifies(guest: Shell, disk: str, *, size: str = "8M") -> None:
    """Write at random, with sixteen requests at a time, and verify.

    :raises GuestError: a checksum was wrong, or a request failed.
    """
    guest.run(f"fio {FIO_VERIFY} --filename={disk} --size={size} --rw=randrw")


#: The same without an end. Each round has a generation of its own (the seed) in each block of 4 KiB, beside
#: the block's place and sum: what an earlier round wrote does not pass for what this one did.
FIO_LOAD: Final = (
    "--name=load --direct=1 --ioengine=libaio --iodepth=16 --bsrange=4k-64k --blockalign=4k --rw=randrw"
    " --rwmixread=30 --verify=md5 --verify_interval=4k --verify_fatal=1 --do_verify=1 --output-format=terse"
)
_BLOCK_BYTES: Final = 4096
#: magic, kind, length, seed, offset, seconds, nanoseconds, thread, number, sum of this; MD5 of what follows.
_HEADER: Final = struct.Struct("<HHIQQIIHHI16s")
_MAGIC: Final = 0xACCA


def start_load(guest: Shell, disk: str, *, size: str = "8M") -> Job:
    """Write and verify again and again in the background, until :func:`stop_load`."""
    fio = f"fio {FIO_LOAD} --filename={disk} --size={size} --randseed=$round"
    return guest.start(f"round=1; while [ ! -e /run/stop ]; do {fio} || exit; round=$((round + 1)); done")


def check_blocks(image: Path) -> None:
    """Check each block that a load wrote, while nobody writes.

    :raises GuestError: one is not whole, or is another's.
    """
    data = image.read_bytes()
    for at in range(0, len(data), _BLOCK_BYTES):
        block = data[at : at + _BLOCK_BYTES]
        magic, _, length, _, place, *_, digest = _HEADER.unpack_from(block)
        if not any(block):
            continue
        md5 = hashlib.md5(block[_HEADER.size :], usedforsecurity=False)
        if (magic, length, place, digest) != (_MAGIC, _BLOCK_BYTES, at, md5.digest()):
            raise GuestError(f"the block at {at} is not what a load wrote there")


def stop_load(guest: Shell, *jobs: Job) -> None:
    """End loads with what they do now. :raises GuestError: one of them found an error."""
    guest.run("touch /run/stop")
    for job in jobs:
        job.on(guest).wait()


def check_file_system(guest: Shell, disk: str) -> None:
    """Make a file system, fill it, look at it through a second mount, and check it.

    :raises GuestError: something of it failed, or the file is another.
    """
    guest.run(
        "set -e\n"
        f"mkfs.ext4 -qF {disk}; mount {disk} /mnt\n"
        "head -c 8388608 /dev/urandom >/mnt/file; sha256sum /mnt/file >/tmp/sum\n"
        f"umount /mnt; mount {disk} /mnt; sha256sum -c /tmp/sum; umount /mnt\n"
        f"e2fsck -fn {disk}"
    )


def check_queues(guest: Shell, target: Target, disk: str, queues: Iterable[int]) -> None:
    """Read on each vCPU, and look that each of the target's queues had something to do."""
    before = {queue.queue: queue.requests for queue in target.statistics().queues}
    guest.run(
        "for cpu in $(seq 0 $(($(nproc) - 1))); do\n"
        f"taskset -c $cpu dd if={disk} of=/dev/null bs=4k count=8 iflag=direct || exit\ndone"
    )
    after = {queue.queue: queue.requests for queue in target.statistics().queues}
    assert [number for number in queues if after[number] == before[number]] == []


def allocated_bytes(image: Path) -> int:
    """What an image takes of the host's disk."""
    return image.stat().st_blocks * 512
