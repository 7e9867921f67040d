"""The root file system of a Linux guest: this host's tools and a kernel's modules, all in memory.

Nothing is mounted from the host, so such a guest can be migrated and needs no disk of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ringway.errors import GuestError
from ringway.testing.cpio import Archive
from ringway.testing.kernel import Kernel, Module

MODULES = (
    "virtio_scsi",
    "virtio_blk",
    "virtio_mem",
    "virtio_net",
    "sd_mod",
    "sg",
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
)

# Each command beside busybox's with the package that carries it. An applet of the same name gives way.
COMMANDS = {
    "blkdiscard": "util-linux",
    "blockdev": "util-linux",
    "dd": "coreutils",
    "e2fsck": "e2fsprogs",
    "fio": "fio",
    "lsblk": "util-linux",
    "mkfs.ext4": "e2fsprogs",
    "udevadm": "udev",
    **dict.fromkeys(
        (
            "sg_compare_and_write",
            "sg_dd",
            "sg_get_lba_status",
            "sg_inq",
            "sg_logs",
            "sg_luns",
            "sg_modes",
            "sg_opcodes",
            "sg_persist",
            "sg_prevent",
            "sg_raw",
            "sg_readcap",
            "sg_requests",
            "sg_reset",
            "sg_start",
            "sg_sync",
            "sg_turs",
            "sg_unmap",
            "sg_verify",
            "sg_vpd",
            "sg_write_same",
            "sg_write_verify",
            "sg_wr_mode",
        ),
        "sg3-utils",
    ),
}
# udev as Debian sets it up, as far as it concerns disks: the daemon, its helpers, its rules.
_UDEV_PROGRAMS = ("systemd/systemd-udevd", "udev/scsi_id", "udev/ata_id")
_UDEV_RULES = (
    "50-udev-default.rules",
    "55-scsi-sg3_id.rules",
    "58-scsi-sg3_symlink.rules",
    "60-block.rules",
    "60-persistent-storage.rules",
    "64-btrfs.rules",
)
_CONFIGURATION = ("/etc/group", "/etc/mke2fs.conf", "/etc/nsswitch.conf", "/etc/passwd")
_MERGED = ("bin", "lib", "lib64", "sbin")
_KEPT_S = 24 * 3600  #: since its last use
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"

_INIT = """\
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /dev/shm /dev/pts /tmp /root /mnt
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
ln -s /proc/self/fd /dev/fd
ln -s /proc/mounts /etc/mtab
{insmod}
exec /sbin/agent
"""

# A request is one line, "NUMBER BASE64": a script. The reply is "reply NUMBER STATUS SIZE" and SIZE bytes of
# output. While the host's end of the port is closed a read finds the end of file, so that is no reason to
# stop.
AGENT = """\
#!/bin/sh
until set -- /dev/vport*p1; [ -c "$1" ]; do usleep 10000; done
exec 3<>"$1"
echo 0 >/proc/sys/kernel/panic
echo 0 >/proc/sys/kernel/panic_on_oops
echo ready >&3
while :; do
    read -r number script <&3 || { usleep 10000; continue; }
    echo "$script" | base64 -d >/run/script
    sh /run/script >/run/output 2>&1 </dev/null 3<&-
    status=$?
    echo "reply $number $status $(stat -c %s /run/output)" >&3
    cat /run/output >&3
done
"""


def build(kernel: Kernel, modules: Sequence[str] = MODULES) -> Path:
    """Return an initramfs for a kernel, kept beside it until a package of this host changes.

    :param modules: what is loaded before the first command runs; the rest is left out.
    :raises GuestError: a tool or a module is missing on this host; the hint names the way to get it.
    """
    programs = _programs()
    image = kernel.folder / f"initramfs.{_digest(programs, modules)}"
    if not image.exists():
        partial = image.with_name(f".{image.name}.{os.getpid()}")
        partial.write_bytes(_archive(kernel, modules, programs).packed())
        partial.rename(image)
        _forget_unused(image.parent)
    image.touch()
    return image


def _archive(kernel: Kernel, modules: Sequence[str], programs: Sequence[Path]) -> Archive:
    archive = Archive()
    # The layout of every Debian since 12; programs were built with either name in them.
    for folder in _MERGED:
        archive.link(folder, f"usr/{folder}")
    _add_modules(archive, kernel.modules(modules))
    archive.file("usr/sbin/agent", AGENT.encode(), mode=0o755)
    for file in (*programs, *_libraries(programs), *_rules(), *map(Path, _CONFIGURATION)):
        if file.exists():
            archive.file(_merged(file), file.read_bytes(), mode=file.stat().st_mode & 0o777)
    _add_links(archive, programs)
    for folder in ("dev", "proc", "sys", "run", "etc"):
        archive.folder(folder)
    return archive


def _add_modules(archive: Archive, modules: Sequence[Module]) -> None:
    """Add modules and the script that loads them, in order: no index of depmod's is needed then."""
    for module in modules:
        archive.file(f"modules/{module.name}.ko", module.content)
    load = "\n".join(f"insmod /modules/{module.name}.ko" for module in modules)
    archive.file("init", _INIT.format(insmod=load).encode(), mode=0o755)


def _merged(path: Path) -> str:
    return f"usr{path}" if path.parts[1] in _MERGED else str(path)


def _add_links(archive: Archive, programs: Sequence[Path]) -> None:
    """Link each program under its name, and busybox under each applet's that nothing better has."""
    for program in programs:
        archive.link(f"usr/bin/{program.name}", str(program))
    busybox = find_program("busybox", "busybox-static")
    applets = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    for applet in applets.split():
        archive.link(f"usr/bin/{applet}", str(busybox))


def _programs() -> list[Path]:
    commands = {"busybox": "busybox-static", **COMMANDS}
    found = [find_program(command, package) for command, package in commands.items()]
    return found + [_udev_program(name) for name in _UDEV_PROGRAMS]


def find_program(command: str, package: str) -> Path:
    """Return where a command of this host is. :raises GuestError: nowhere; the hint names its package."""
    found = shutil.which(command, path=_SEARCH)
    if found is None:
        raise GuestError(f"{command} is not installed", hint=_hint(package))
    return Path(found)


def _udev_program(name: str) -> Path:
    path = Path("/usr/lib") / name
    if not path.exists():
        raise GuestError(f"{path} is not installed", hint=_hint("udev"))
    return path


def _hint(package: str) -> str:
    return f"run `make system`, or apt-get install {package}"


def _libraries(programs: Iterable[Path]) -> list[Path]:
    """Return what the programs' dynamic linker will ask for, under the names that it will use."""
    # A static program is no failure, though ldd calls it one.
    listing = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    return sorted({Path(path) for path in re.findall(r"(/\S+) \(0x", listing.stdout)})


def _rules() -> list[Path]:
    return [Path("/usr/lib/udev/rules.d") / name for name in _UDEV_RULES]


def _digest(programs: Sequence[Path], modules: Sequence[str]) -> str:
    """Return a name for what would go in: any package that comes, goes or changes makes it another.

    A copy of this file is no other file: several checkouts share what they boot.
    """
    database = Path("/var/lib/dpkg/status")
    stamps = [str(path.stat().st_mtime_ns) for path in (*programs, database) if path.exists()]
    parts = [Path(__file__).read_text(), *map(str, programs), *stamps, *modules]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _forget_unused(folder: Path) -> None:
    """Remove what older states of this host left. Somebody beside us may be about to boot from a newer one,
    or from one with other modules."""
    for image in folder.glob("initramfs.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - image.stat().st_mtime > _KEPT_S:
                image.unlink()
