"""Documents that libvirt starts guests from, with its driver in virsh: no daemon, nothing that stays.

A boot sector on the disk that is to boot first reads, inverts and writes: what a guest did to a disk is seen
in the file behind it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.guest.base import Wish
from ringway.guest.document import (
    DiskFace,
    DiskSource,
    Document,
    ScsiController,
    validate,
)
from ringway.model import Face
from ringway.testing.bootsector import Copy, install
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import PATIENCE_S, wait_until

from .serving import MIB

_END = "end-of-answer"
_PROGRAM = Copy(source=10, target=300, sectors=127)
#: Guests run as root, who owns what tests make; nothing of this host is labelled, confined or counted.
_QEMU_CONF = """user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
_DOMAIN = """<domain type='qemu'>
  <name>first</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
  </features>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class Virsh:
    """virsh with QEMU's driver in it. A context manager; its guest ends with it.

    :param root: a folder for the driver's configuration and state, with a short path.
    """

    def __init__(self, root: Path) -> None:
        (root / "etc").mkdir(parents=True)
        (root / "etc" / "qemu.conf").write_text(_QEMU_CONF)
        self._root = root
        self._process = subprocess.Popen(
            ["stdbuf", "-oL", "virsh", "-q", "-c", f"qemu:///embed?root={root}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
        )

    def __enter__(self) -> Virsh:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("destroy first\nquit\n", timeout=PATIENCE_S)

    def run(self, command: str) -> str:
        """Return what a command prints."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\necho {_END}\necho\n")
        self._process.stdin.flush()
        lines = iter(self._process.stdout.readline, "")
        return "".join(_until_end(lines))

    def start(self, document: Document) -> str:
        """Start a guest. :returns: its document as libvirt has it now."""
        file = self._root / "first.xml"
        file.write_text(document.xml)
        answer = self.run(f"create {file}")
        assert "error:" not in answer, answer
        return self.run("dumpxml first")


def _until_end(lines: Iterator[str]) -> Iterator[str]:
    """What is printed, without the commands themselves; virsh begins no line for them."""
    for line in lines:
        answer, _, _ = line.partition("virsh # ")
        if answer == _END:
            return
        yield answer


@pytest.fixture
def virsh(run_dir: Path) -> Iterator[Virsh]:
    """Return a virsh with its own driver."""
    with Virsh(run_dir / "l") as virsh:
        yield virsh


def _image(path: Path) -> tuple[Path, Callable[[], bool]]:
    """An image with a program on it, and whether it has run."""
    data = os.urandom(MIB)
    path.write_bytes(data)
    install(path, _PROGRAM)
    expected = _PROGRAM.expected(data[_PROGRAM.source * 512 :][: _PROGRAM.sectors * 512])

    def has_run() -> bool:
        return path.read_bytes()[_PROGRAM.target * 512 :][: len(expected)] == expected

    return path, has_run


@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize("face", [Face.VHOST_USER_SCSI, Face.VHOST_USER_BLK])
def test_a_guest_boots_from_an_endpoint(run_dir: Path, virsh: Virsh, face: Face, machine: str) -> None:
    device = "scsi" if face is Face.VHOST_USER_SCSI else "blk"
    image, has_run = _image(run_dir / "disk.img")
    other, other_has_run = _image(run_dir / "other.img")
    with (
        ServedTarget(run_dir, "--queues", "2", "--device", device, image, name="a") as first,
        ServedTarget(run_dir, "--device", "scsi", other, name="b") as second,
    ):
        document = Document(_DOMAIN.format(machine=machine))
        document.share_memory()
        document.add_endpoint(
            Wish(endpoint="other", face=Face.VHOST_USER_SCSI, socket=second.socket, boot_order=1)
        )
        document.add_endpoint(Wish(endpoint="db.0", face=face, socket=first.socket, queues=2, boot_order=1))
        validate(document.xml)
        live = Document(virsh.start(document))
        wait_until(has_run, "the boot sector's write")
        assert not other_has_run()
    assert [(found.endpoint, found.face, found.queues) for found in live.attachments()] == [
        ("other", Face.VHOST_USER_SCSI, None),
        ("db.0", face, 2),
    ]
    assert live.shares_memory
    places = {found.address for found in live.attachments()}
    assert None not in places


def test_a_guest_boots_from_a_plain_disk_on_virtio_scsi(run_dir: Path, virsh: Virsh) -> None:
    image, has_run = _image(run_dir / "disk.img")
    document = Document(_DOMAIN.format(machine="q35"))
    for number in range(17):
        path = run_dir / f"{number}.img"
        path.write_bytes(bytes(MIB))
        document.add_disk(DiskFace(volume=str(number), source=DiskSource.FILE, path=str(path)))
    disk = DiskFace(volume="boot", source=DiskSource.FILE, path=str(image), boot_order=1, cache="none")
    document.add_disk(disk, ScsiController(queues=2))
    virsh.start(document)
    wait_until(has_run, "the boot sector's write")
    tree = virsh.run("qemu-monitor-command first --hmp info qtree")
    assert tree.count('dev: virtio-scsi-pci, id "scsi0"') == 1
    assert tree.count("dev: scsi-hd") == 18
    assert "lsi" not in tree


def test_a_plain_disk_is_attached_as_it_is_put_into_the_document(run_dir: Path, virsh: Virsh) -> None:
    """Controller and disk, in that order; what the guest has then is what the document says."""
    document = Document(_DOMAIN.format(machine="q35"))
    document.add_hot_plug_ports(2)
    live = Document(virsh.start(document))
    for name in ("a", "b"):
        (run_dir / name).write_bytes(bytes(MIB))
        face = DiskFace(volume=name, source=DiskSource.FILE, path=str(run_dir / name), serial=f"s-{name}")
        for number, element in enumerate(live.add_disk(face, ScsiController(queues=2))):
            file = run_dir / f"{name}{number}.xml"
            file.write_text(element)
            assert "error:" not in virsh.run(f"attach-device first {file} --live")
    now = Document(virsh.run("dumpxml first"))
    assert all(each.address is not None for each in now.volumes()), "where libvirt put the controller"
    assert tuple(replace(each, address=None) for each in now.volumes()) == live.volumes()
    assert [(each.index, each.virtio, each.disks) for each in now.controllers()] == [(0, True, 2)]
    (run_dir / "a.xml").write_text(now.remove(now.volumes()[0].alias))
    assert "error:" not in virsh.run(f"detach-device first {run_dir / 'a.xml'} --live")
