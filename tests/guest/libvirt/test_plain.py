"""A guest that runs gets a plain disk, uses it, and loses it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import ConflictError, GuestError, RingwayError, TimedOutError, UsageError
from ringway.guest.base import GuestEventKind
from ringway.guest.document import DiskFace, DiskSource
from ringway.model import AttachmentState, DiskBus, DiskType, GuestDisk
from ringway.testing.domain import DomainGuest
from ringway.testing.waiting import PATIENCE_S

from ..serving import make_image
from .bench import Bench, disks, read, started, write

BUSES = pytest.mark.parametrize("bus", [DiskBus.SCSI, DiskBus.VIRTIO])


@pytest.fixture
def guest(web0: DomainGuest, bench: Bench) -> Iterator[DomainGuest]:
    """The guest that runs for all tests, without plain disks before and after."""
    yield web0
    for disk in bench.hypervisor.show("web0").disks:
        if disk.volume is not None:
            detach(bench, disk.volume)


def face(bench: Bench, name: str = "v1", bus: DiskBus = DiskBus.SCSI, **fields: object) -> DiskFace:
    """A disk on a file of the test's own."""
    image = bench.folder / f"{name}.img"
    if not image.exists():
        make_image(image)
    whole = {"volume": name, "source": DiskSource.FILE, "path": str(image), "bus": bus, **fields}
    return DiskFace(**whole)  # type: ignore[arg-type]


def attach(bench: Bench, disk: DiskFace, guest: str = "web0") -> GuestDisk:
    return bench.hypervisor.attach_disk(guest, disk, live=True, persistent=True)


def detach(bench: Bench, volume: str, guest: str = "web0", timeout_s: float = PATIENCE_S) -> None:
    bench.hypervisor.detach_disk(guest, volume, live=True, persistent=True, timeout_s=timeout_s)


def ours(bench: Bench, guest: str = "web0") -> list[GuestDisk]:
    return [disk for disk in bench.hypervisor.show(guest).disks if disk.volume is not None]


@BUSES
def test_a_disk_comes_goes_and_comes_elsewhere(
    bench: Bench, guest: DomainGuest, bus: DiskBus, folder: Path
) -> None:
    disk = face(bench, bus=bus, serial="v1")
    info = attach(bench, disk)
    assert (info.live, info.persistent, info.state) == (True, True, AttachmentState.ATTACHED)
    assert ours(bench) == [info]
    [seen] = disks(guest, 1)
    assert seen == f"/dev/{info.target}"
    write(guest, seen, f"by {bus}")
    detach(bench, "v1")
    disks(guest, 0)
    assert ours(bench) == []
    assert bench.remains("web0") == bench.aliases("web0") == []
    with DomainGuest(bench.libvirtd, "web1", folder, backing="") as other:  # it needs no shared memory
        attach(bench, disk, "web1")
        assert read(other, *disks(other, 1)) == f"by {bus}"
        detach(bench, "v1", "web1")
        disks(other, 0)
    assert Path(str(disk.path)).read_bytes()[:4096].rstrip() == f"by {bus}".encode()


def test_disks_share_a_controller_and_keep_their_places_over_a_start(
    bench: Bench, guest: DomainGuest
) -> None:
    infos = [attach(bench, face(bench, name, serial=name)) for name in ("v1", "v2", "v3")]
    assert [info.target for info in infos] == ["sda", "sdb", "sdc"]
    for disk in disks(guest, 3):
        write(guest, disk, f"of {disk}")
    kept = bench.hypervisor.document("web0", persistent=True)
    live = bench.hypervisor.document("web0", persistent=False)
    assert kept.volumes() == live.volumes()
    assert [each.model for each in live.controllers()] == ["virtio-scsi"]
    before = places(guest)
    guest.stop_domain()
    guest.start_domain()
    guest.wait_ready()
    assert places(guest) == before
    assert [info.target for info in ours(bench)] == ["sda", "sdb", "sdc"]


def places(guest: DomainGuest) -> dict[str, str]:
    """What is on each disk, by its controller's PCI address and its unit: letters are Linux's own."""
    found = {}
    for disk in disks(guest, 3):
        path = guest.run(f"readlink -f /sys/block/{disk.removeprefix('/dev/')}/device").strip()
        found[re.sub("/virtio.*:", "/", path)] = read(guest, disk)
    assert len(found) == 3
    return found


def test_attaching_again_changes_nothing_and_another_wish_is_refused(
    bench: Bench, guest: DomainGuest
) -> None:
    disk = face(bench)
    first = attach(bench, disk)
    before = bench.documents("web0")
    assert attach(bench, disk) == first
    assert bench.hypervisor.check("web0", disk, live=True, persistent=True) == ()
    others = {
        "source": replace(disk, path=face(bench, "v2").path),
        "bus virtio": replace(disk, bus=DiskBus.VIRTIO),
        "target sda, not sdx": replace(disk, target="sdx"),
        "the right to write": replace(disk, readonly=True),
        "boot order unset, not 1": replace(disk, boot_order=1),
    }
    for words, other in others.items():
        with pytest.raises(ConflictError, match=words.removesuffix(" virtio")):
            attach(bench, other)
    assert bench.documents("web0") == before
    detach(bench, "v1")
    detach(bench, "v1")  # what is not there is fine


def test_either_half_is_completed_and_taken_by_itself(bench: Bench, guest: DomainGuest) -> None:
    """As they are left by whoever dies between the two."""
    disk = face(bench)
    live = bench.hypervisor.attach_disk("web0", disk, live=True, persistent=False)
    assert (live.live, live.persistent) == (True, False)
    both = attach(bench, disk)
    assert (both.live, both.persistent) == (True, True)
    kept, now = (bench.hypervisor.document("web0", persistent=half).volumes() for half in (True, False))
    assert kept == now
    bench.hypervisor.detach_disk("web0", "v1", live=True, persistent=False, timeout_s=PATIENCE_S)
    [rest] = ours(bench)
    assert (rest.live, rest.persistent) == (False, True)
    disks(guest, 0)
    assert attach(bench, disk).live
    bench.hypervisor.detach_disk("web0", "v1", live=False, persistent=True, timeout_s=PATIENCE_S)
    [rest] = ours(bench)
    assert (rest.live, rest.persistent) == (True, False)
    detach(bench, "v1")
    assert ours(bench) == []


def test_a_guest_that_does_not_let_go(bench: Bench, guest: DomainGuest) -> None:
    """On bus virtio, for a SCSI disk needs no consent of its guest."""
    alias = attach(bench, face(bench, bus=DiskBus.VIRTIO)).alias
    disks(guest, 1)
    bench.libvirtd.virsh("suspend", "web0")
    try:
        with pytest.raises(TimedOutError, match="asked to let volume 'v1' go"):
            detach(bench, "v1", timeout_s=1)
        [info] = ours(bench)
        assert (info.state, info.live, info.persistent) == (AttachmentState.DETACHING, True, True)
        assert "was asked to let it go" in (info.message or "")
    finally:
        bench.libvirtd.virsh("resume", "web0")
    bench.wait_event(GuestEventKind.DEVICE_REMOVED, alias or "")
    [rest] = ours(bench)
    assert (rest.state, rest.live, rest.persistent) == (AttachmentState.ATTACHED, False, True)


@BUSES
def test_when_the_second_half_fails_the_first_is_undone(
    bench: Bench, guest: DomainGuest, bus: DiskBus
) -> None:
    """Somebody took the name in the guest's next start meanwhile."""
    name = {DiskBus.SCSI: "sda", DiskBus.VIRTIO: "vda"}[bus]
    other = face(bench, "v2", bus, target=name)
    bench.hypervisor.attach_disk("web0", other, live=False, persistent=True)
    before = bench.documents("web0")
    with pytest.raises(ConflictError, match=f"has a disk '{name}' already"):
        attach(bench, face(bench, bus=bus, target=name))
    disks(guest, 0)
    assert bench.remains("web0") == []
    assert bench.libvirtd.virsh("dumpxml", "web0", "--inactive") in before


def test_a_disk_that_qemu_does_not_open_leaves_nothing(bench: Bench, folder: Path) -> None:
    """The controller that was added for it goes as well. Another QEMU has the file locked."""
    with (
        DomainGuest(bench.libvirtd, "web1", folder) as one,
        DomainGuest(bench.libvirtd, "web2", folder) as two,
    ):
        attach(bench, face(bench), "web1")
        disks(one, 1)
        before = len(bench.hypervisor.document("web2", persistent=False).controllers())
        with pytest.raises(GuestError, match="does not get volume 'v1'"):
            attach(bench, face(bench), "web2")
        disks(two, 0)
        assert ours(bench, "web2") == []
        assert len(bench.hypervisor.document("web2", persistent=False).controllers()) == before == 0


def test_what_cannot_be_plugged_in_is_for_the_next_start_alone(bench: Bench, guest: DomainGuest) -> None:
    for wrong in (
        face(bench, bus=DiskBus.SATA),
        face(bench, bus=DiskBus.IDE),
        face(bench, bus=DiskBus.FDC, device=DiskType.FLOPPY),
        face(bench, device=DiskType.CDROM),
    ):
        with pytest.raises(UsageError, match=f"guest that runs cannot be given a .*({wrong.bus}|cdrom)"):
            attach(bench, wrong)
    disk = face(bench, bus=DiskBus.SATA)
    info = bench.hypervisor.attach_disk("web0", disk, live=False, persistent=True)
    assert (info.live, info.persistent, info.bus) == (False, True, "sata")
    detach(bench, "v1")


def test_a_boot_order_is_the_next_starts(bench: Bench, guest: DomainGuest) -> None:
    info = attach(bench, face(bench, boot_order=1))
    assert "boot order: from the guest's next start on" in (info.message or "")
    [kept] = bench.hypervisor.document("web0", persistent=True).volumes()
    [live] = bench.hypervisor.document("web0", persistent=False).volumes()
    assert (kept.boot_order, live.boot_order) == (1, None)
    disks(guest, 1)


def test_a_machine_without_a_place_for_a_controller_says_so(bench: Bench) -> None:
    with started(bench.define("web3", ports=1)):
        with pytest.raises(RingwayError, match="No more available PCI slots") as caught:
            attach(bench, face(bench), "web3")
        assert "pcie-root-port" in (caught.value.hint or "")
        assert ours(bench, "web3") == []
