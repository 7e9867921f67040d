"""libvirt's guests on devices of a kernel: SCSI disks that are passed through, and vhost-scsi endpoints."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import BusyError, GuestError, TimedOutError
from ringway.guest.base import Wish
from ringway.guest.libvirt import LibvirtHypervisor
from ringway.model import AttachmentState, EndpointSpec, Face
from ringway.testing.bootsector import LetGo, Load, Program, install
from ringway.testing.configfs import ROOT
from ringway.testing.daemon import Daemon
from ringway.testing.libvirtd import Libvirtd

from ..operator import Operator
from .engine import MIB, driver, endpoint, lun
from .nested import SLOW_S, NestedGuest

WORK = Load(blocks=4)
CONFIG = """\
[lio]
enabled = true
[user]
enabled = false
[guests]
enabled = true
uri = "{uri}"
"""


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory, capabilities: Path) -> Iterator[Libvirtd]:
    with Libvirtd(tmp_path_factory.mktemp("libvirt"), cache=capabilities) as daemon:
        yield daemon


@pytest.fixture
def hypervisor(libvirtd: Libvirtd) -> Iterator[LibvirtHypervisor]:
    with contextlib.closing(LibvirtHypervisor(libvirtd.uri)) as found:
        yield found


@pytest.fixture
def scsi_disk() -> Path:
    """A SCSI disk of 8 MiB of the kernel's."""
    subprocess.run(["modprobe", "-a", "sd_mod", "sg"], check=True)
    subprocess.run(["modprobe", "scsi_debug", "dev_size_mb=8"], check=True)
    found = next(Path("/sys/bus/pseudo/drivers/scsi_debug").glob("adapter0/host*/target*/*:0/block/sd*"))
    return Path("/dev") / found.name


def bootable(path: Path, program: Program) -> Path:
    """Make an image of 1 MiB with a program."""
    path.write_bytes(bytes(MIB))
    install(path, program)
    return path


def wish(spec: EndpointSpec, **more: int) -> Wish:
    """The endpoint, as a guest's vhost-scsi device."""
    return Wish(endpoint=spec.name, face=Face.VHOST_SCSI, wwpn=spec.wwpn, **more)  # type: ignore[arg-type]


def test_a_guest_boots_from_a_scsi_disk_that_is_passed_through(
    libvirtd: Libvirtd, scsi_disk: Path, tmp_path: Path
) -> None:
    """By the wiki's string. INQUIRY is answered by the disk itself, and its blocks are read and written."""
    scsi_disk.write_bytes(bytes(MIB))
    install(scsi_disk, WORK)
    os.sync()
    text = "id=v1,source=volume,dest=volume,bus=virtio-scsi,type=lun,bootindex=0"
    with NestedGuest(libvirtd, "web0", tmp_path, text, volumes={"v1": str(scsi_disk)}) as guest:
        guest.start()
        guest.wait_dots(2)
        assert "vendor='Linux' product='scsi_debug'" in guest.bios()
        assert "device='lun'" in guest.live_xml()
        guest.stop()
        WORK.check_whole(scsi_disk, 2)


def test_a_guest_boots_from_an_endpoint_of_the_kernels(
    libvirtd: Libvirtd, hypervisor: LibvirtHypervisor, tmp_path: Path
) -> None:
    """It stays on this host, and keeps the endpoint until it lets go or ends."""
    engine, disk = driver(tmp_path), bootable(tmp_path / "disk.img", WORK)
    other = bootable(tmp_path / "other.img", LetGo())
    spec = endpoint(engine, "db0", lun(disk))
    with NestedGuest(libvirtd, "web0", tmp_path, f"id={other},source=volume") as guest:
        attached = hypervisor.attach("web0", wish(spec, boot_order=1), live=False, persistent=True)
        assert (attached.live, attached.persistent, attached.migratable) == (False, True, False)
        assert "does not move" in (attached.message or "")
        guest.start()
        guest.wait_dots(2)
        assert "vendor='LIO-ORG'" in guest.bios()
        assert engine.show("db0").connected
        with pytest.raises(GuestError, match="vhost-scsi does not support migration"):
            libvirtd.virsh("migrate", "web0", libvirtd.uri, timeout_s=SLOW_S)
        with pytest.raises(BusyError):
            engine.delete("db0")
        with pytest.raises(TimedOutError, match="asked to let"):
            hypervisor.detach("web0", "db0", live=True, persistent=True, timeout_s=0.5)
        (found,) = hypervisor.show("web0").attachments
        assert (found.state, found.live, found.persistent) == (AttachmentState.DETACHING, True, True)
        guest.stop()
        WORK.check_whole(disk, 2)
        hypervisor.detach("web0", "db0", live=True, persistent=True, timeout_s=0.5)
        assert hypervisor.show("web0").attachments == ()
        engine.delete("db0")


def test_the_daemon_gives_a_running_guest_an_endpoint_of_the_kernels(
    libvirtd: Libvirtd, hypervisor: LibvirtHypervisor, tmp_path: Path
) -> None:
    """By the commands that users type: at once and for its next start, kept while it is there, and taken
    away when the guest has let go."""
    boot = bootable(tmp_path / "boot.img", LetGo())
    bootable(tmp_path / "disk.img", WORK)
    with (
        Daemon(tmp_path) as daemon,
        NestedGuest(libvirtd, "web0", tmp_path, f"id={boot},source=volume") as guest,
    ):
        guest.start()
        daemon.configure(CONFIG.format(uri=libvirtd.uri))
        daemon.start()
        operator = Operator(daemon)
        operator.do("endpoint", "create", "db0", "--engine", "lio", "--lun", f"0={tmp_path}/disk.img")
        (wwpn,) = (path.name for path in (ROOT / "vhost").glob("naa.*"))
        guest.wait_dots(1)
        attach = ("guest", "attach", "web0", "db0", "--queues", "2")
        refusal = operator.refusal(*attach, "--no-persistent")
        assert "gets while it runs has no queues of one's own" in refusal
        assert "queues: from the guest's next start on" in operator.do(*attach, "--dry-run")
        (attached,) = json.loads(operator.do(*attach, "-o", "json"))
        assert "name='num_queues' type='unsigned' value='2'" in libvirtd.virsh(
            "dumpxml", "--inactive", "web0"
        )
        assert attached["face"] == "vhost-scsi"
        assert [attached[name] for name in ("live", "persistent", "migratable")] == [True, True, False]
        assert wwpn in guest.live_xml()
        assert "guest 'web0'" in operator.refusal("endpoint", "delete", "db0")
        operator.do("guest", "detach", "web0", "db0", "--release", f"{SLOW_S:g}s")
        assert wwpn not in guest.live_xml()
        assert hypervisor.show("web0").attachments == ()
        operator.do("endpoint", "delete", "db0")
    assert not list((ROOT / "vhost").glob("naa.*"))
    assert not list((ROOT / "core").glob("fileio_*"))
