"""A first root file system that hands over to this host's own: whatever runs here runs in the guest as well.

The host's root comes over 9p, read-only, under a layer in memory, so that the guest may write anywhere and
nothing of it reaches the host. Modules of the guest's kernel lie below ``/lib/modules`` with what busybox's
``modprobe`` wants, which the kernel calls too when it misses one.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ringway.testing.cpio import Archive
from ringway.testing.initramfs import AGENT, find_program
from ringway.testing.kernel import Kernel, Module

MOUNT_TAG: Final = "hostroot"

#: Loaded before the host's root can be seen, in this order.
_EARLY: Final = ("virtio_pci", "virtio_console", "netfs", "9pnet", "9pnet_virtio", "9p", "overlay")
#: There for ``modprobe``: what a kernel target, its backstores and a disk to keep things on are made of.
MODULES: Final = (
    "target_core_mod",
    "target_core_file",
    "target_core_iblock",
    "target_core_pscsi",
    "target_core_user",
    "tcm_loop",
    "vhost_scsi",
    "iscsi_target_mod",
    "scsi_debug",
    "sd_mod",
    "sg",
    "loop",
    "null_blk",
    "virtio_blk",
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
    "crct10dif_pclmul",
)

_INIT: Final = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in {early}; do insmod /modules/$module.ko; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro {tag} /host
mount {layer} /layer
mkdir -p /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work,xino=off overlay /new
mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
mount -t tmpfs tmpfs /new/run
mkdir -p /new/lib/modules/{release} /new/dev/shm /new/dev/pts /new/usr/local/sbin
cp /modules/* /new/lib/modules/{release}/
cp /agent /new/run/agent
ln -sf /proc/self/fd /new/dev/fd
for applet in {applets}; do ln -sf BUSYBOX /new/usr/local/sbin/$applet; done
ln -sf BUSYBOX /new/usr/sbin/modprobe
echo "127.0.0.1 localhost" >/new/etc/hosts
{prepare}
exec switch_root /new {program}
"""
#: What the agent and the kernel call and a host need not have.
_APPLETS: Final = ("usleep", "insmod", "rmmod", "lsmod", "ifconfig", "reboot")

_SETTLE: Final = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
ifconfig lo up
modprobe configfs
mount -t configfs configfs /sys/kernel/config
mount -t debugfs debugfs /sys/kernel/debug
"""


class Start(NamedTuple):
    """How a guest goes on once it can see this host's root.

    :ivar name: of the image. :ivar early: modules that ``layer`` needs besides.
    :ivar layer: what ``mount`` is told of the layer that takes all writes.
    :ivar prepare: lines of shell that change the root, which is at ``/new``, before anything of it runs.
    :ivar program: what becomes its process 1. :ivar agent: what ``/run/agent`` has there.

    In ``prepare`` and ``program`` the word ``BUSYBOX`` stands for the path of this host's.
    """

    name: str
    early: tuple[str, ...]
    layer: str
    prepare: str
    program: str
    agent: str


#: Nothing but commands from outside; the layer is in memory.
AGENT_ALONE: Final = Start(
    "host-root", (), "-t tmpfs -o size=90% tmpfs", "", "BUSYBOX sh /run/agent", _SETTLE + AGENT
)


def build(kernel: Kernel, start: Start = AGENT_ALONE) -> Path:
    """Return the image for a kernel, kept beside it until this module or busybox changes.

    :raises GuestError: busybox or a module is missing on this host; the hint names the way to get it.
    """
    busybox = find_program("busybox", "busybox-static")
    image = kernel.folder / f"{start.name}.{_digest(busybox, start)}"
    if not image.exists():
        partial = image.with_name(f".{image.name}.{os.getpid()}")
        partial.write_bytes(_archive(kernel, busybox, start).packed())
        partial.rename(image)
        for other in image.parent.glob(f"{start.name}.*"):
            if other != image:
                other.unlink(missing_ok=True)
    return image


def export() -> list[str]:
    """Arguments of QEMU that give this host's root to the guest, for reading."""
    place = "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"
    return ["-fsdev", place, "-device", f"virtio-9p-pci,fsdev=root,mount_tag={MOUNT_TAG}"]


def disk(image: Path, size_bytes: int) -> list[str]:
    """Arguments of QEMU for a disk, ``/dev/vda``: a file, made and formatted if it does not exist."""
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(size_bytes)
        subprocess.run([find_program("mkfs.ext4", "e2fsprogs"), "-qF", image], check=True)
    drive = f"driver=raw,node-name=kept,file.driver=file,file.filename={image}"
    return ["-blockdev", drive, "-device", "virtio-blk-pci,drive=kept"]


def _archive(kernel: Kernel, busybox: Path, start: Start) -> Archive:
    archive = Archive()
    archive.file(str(busybox), busybox.read_bytes(), mode=0o755)
    for applet in ("sh", "mount", "insmod", "mkdir", "cp", "ln", "echo", "rm", "chmod", "switch_root"):
        archive.link(f"bin/{applet}", str(busybox))
    for folder in ("proc", "sys", "host", "layer", "new", "dev"):
        archive.folder(folder)
    early = kernel.modules((*_EARLY, *start.early))
    modules = {module.name: module for module in (*early, *kernel.modules(MODULES))}.values()
    for module in modules:
        archive.file(f"modules/{module.name}.ko", module.content)
    archive.file("modules/modules.dep", _lines(_dependencies(modules)))
    archive.file("modules/modules.alias", _lines(_aliases(modules)))
    archive.file("agent", start.agent.encode(), mode=0o755)
    archive.file("init", _init(kernel, busybox, early, start).encode(), mode=0o755)
    return archive


def _init(kernel: Kernel, busybox: Path, early: Sequence[Module], start: Start) -> str:
    script = _INIT.format(
        early=" ".join(module.name for module in early),
        tag=MOUNT_TAG,
        layer=start.layer,
        release=kernel.release,
        applets=" ".join(_APPLETS),
        prepare=start.prepare,
        program=start.program,
    )
    return script.replace("BUSYBOX", str(busybox))


def _dependencies(modules: Iterable[Module]) -> Iterator[str]:
    """Lines of ``modules.dep``: all that a module needs, nearest first."""
    known = {module.name: module for module in modules}
    for module in known.values():
        yield f"{module.name}.ko: " + " ".join(f"{name}.ko" for name in _closure(module, known))


def _closure(module: Module, known: dict[str, Module]) -> list[str]:
    found: dict[str, None] = {}
    for name in (depended.replace("-", "_") for depended in module.depends):
        if name in known:
            found |= dict.fromkeys((name, *_closure(known[name], known)))
    return list(found)


def _aliases(modules: Iterable[Module]) -> Iterator[str]:
    for module in modules:
        for alias in re.findall(rb"\0alias=([^\0]*)\0", module.content.replace(b"\0", b"\0\0")):
            yield f"alias {alias.decode()} {module.name}"


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _digest(busybox: Path, start: Start) -> str:
    """Return a name for what goes in, apart from the kernel's: its sources here, and busybox."""
    contents = (_INIT, str(start), str(_EARLY), str(MODULES), str(_APPLETS))
    parts = (*contents, str(busybox), str(busybox.stat().st_mtime_ns))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
