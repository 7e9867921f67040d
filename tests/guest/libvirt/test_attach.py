"""A guest that runs gets an endpoint, uses it, and loses it."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace

from ringway.errors import BusyError, ConflictError, NotFoundError, TimedOutError, UsageError
from ringway.guest.base import GuestEventKind, Wish
from ringway.model import AttachmentState, Face
from ringway.testing.domain import DomainGuest
from ringway.testing.waiting import PATIENCE_S, wait_until

from ..serving import both_devices, make_image
from .bench import Bench, disks, read, started, write


@both_devices
def test_a_disk_comes_and_goes(bench: Bench, web0: DomainGuest, device: str) -> None:
    bench.target("db0", device)
    info = bench.attach("web0", "db0", device)
    assert (info.live, info.persistent, info.state) == (True, True, AttachmentState.ATTACHED)
    assert info.migratable is (device == "blk")
    [disk] = disks(web0, 1)
    write(web0, disk, f"by {device}")
    assert bench.hypervisor.show("web0").attachments[0].address == info.address
    bench.detach("web0", "db0")
    disks(web0, 0)
    assert bench.hypervisor.show("web0").attachments == ()
    assert bench.remains("web0") == []
    assert bench.aliases("web0") == []
    assert bench.image("db0").read_bytes()[:4096].rstrip() == f"by {device}".encode()


def test_what_was_attached_is_there_after_the_next_start(bench: Bench, web0: DomainGuest) -> None:
    """Both disks in a guest that starts with them; both leave it while it runs."""
    contents = {"sda": "of scsi", "vda": "of blk"}
    for name, device in (("db0", "scsi"), ("db1", "blk")):
        bench.target(name, device)
        bench.attach("web0", name, device)
    for disk in disks(web0, 2):
        write(web0, disk, contents[disk.removeprefix("/dev/")])
    addresses = {each.endpoint: each.address for each in bench.hypervisor.show("web0").attachments}
    web0.stop_domain()
    web0.start_domain()
    web0.wait_ready()
    found = {each.endpoint: each for each in bench.hypervisor.show("web0").attachments}
    assert {name: each.address for name, each in found.items()} == addresses
    assert [each.face for each in found.values()] == [Face.VHOST_USER_SCSI, Face.VHOST_USER_BLK]
    assert all(each.live and each.persistent and each.migratable for each in found.values())
    assert {disk.removeprefix("/dev/"): read(web0, disk) for disk in disks(web0, 2)} == contents
    for name in found:
        bench.detach("web0", name)
    disks(web0, 0)
    assert bench.remains("web0") == []


def test_what_one_guest_wrote_is_there_in_the_next(bench: Bench, web0: DomainGuest) -> None:
    """Attach, write, detach, attach elsewhere, verify; and the same on the way back."""
    names = {"db0": "scsi", "db1": "blk"}
    for name, device in names.items():
        bench.target(name, device)
    with DomainGuest(bench.libvirtd, "web1", bench.folder) as web1:
        for guest, other, before in ((web0, web1, ""), (web1, web0, "by web0"), (web0, web1, "by web1")):
            for name, device in names.items():
                bench.attach(guest.name, name, device)
                with pytest.raises(BusyError, match="somebody is connected"):
                    bench.attach(other.name, name, device)
            for disk in disks(guest, len(names)):
                assert read(guest, disk).rstrip("\0") == before
                write(guest, disk, f"by {guest.name}")
            for name in names:
                bench.detach(guest.name, name)
            disks(guest, 0)
        assert bench.remains("web0") == bench.remains("web1") == []


def test_a_lun_that_is_added_to_the_endpoint_reaches_the_guest(bench: Bench, web0: DomainGuest) -> None:
    target = bench.target("db0")
    bench.attach("web0", "db0")
    disks(web0, 1)
    target.add_lun(1, make_image(bench.folder / "second.img"))
    disks(web0, 2)
    target.remove_lun(1)
    disks(web0, 1)
    bench.detach("web0", "db0")


def test_attaching_again_changes_nothing(bench: Bench, web0: DomainGuest) -> None:
    bench.target("db0")
    first = bench.attach("web0", "db0")
    before = bench.documents(web0.name)
    assert bench.attach("web0", "db0") == first
    assert bench.documents("web0") == before
    bench.detach("web0", "db0")
    bench.detach("web0", "db0")


@both_devices
def test_attaching_again_with_another_wish_is_refused(bench: Bench, web0: DomainGuest, device: str) -> None:
    """Nothing of it is ignored in silence; what is not asked for may be as it is."""
    bench.target("db0", device)
    first = bench.attach("web0", "db0", device)
    before = bench.documents(web0.name)
    wish = bench.wish("db0", device)
    with pytest.raises(ConflictError, match=r"its next start with boot order unset, not 1") as caught:
        bench.hypervisor.attach("web0", replace(wish, boot_order=1), live=True, persistent=True)
    assert caught.value.hint == "detach it first: ringway guest detach web0 db0"
    for live in (True, False):
        for verb in (bench.hypervisor.attach, bench.hypervisor.check):
            with pytest.raises(ConflictError, match=r"queues \w+, not 7"):
                verb("web0", replace(wish, queues=7), live=live, persistent=not live)
    usual = replace(wish, queues=7, queues_asked=False)
    assert bench.hypervisor.attach("web0", usual, live=True, persistent=True) == first
    assert bench.documents("web0") == before


@both_devices
def test_what_is_attached_is_looked_at_as_it_is_attached(
    bench: Bench, web0: DomainGuest, device: str
) -> None:
    """Nothing would change, and somebody is connected, who is nobody else."""
    bench.target("db0", device)
    bench.attach("web0", "db0", device)
    wish = bench.wish("db0", device)
    assert bench.hypervisor.check(web0.name, wish, live=True, persistent=True) == ()


@both_devices
def test_a_boot_order_is_the_next_starts(bench: Bench, web0: DomainGuest, device: str) -> None:
    """libvirt names kinds of devices in ``<os>``, beside which a device has no order of its own."""
    assert "<boot dev='hd'/>" in bench.documents(web0.name)
    bench.target("db0", device)
    wish = replace(bench.wish("db0", device), boot_order=1)
    with pytest.raises(UsageError, match="no boot order of one's own"):
        bench.hypervisor.attach("web0", wish, live=True, persistent=False)
    info = bench.hypervisor.attach("web0", wish, live=True, persistent=True)
    assert (info.live, info.persistent) == (True, True)
    assert "boot order: from the guest's next start on" in (info.message or "")
    disks(web0, 1)
    kept = bench.hypervisor.document("web0", persistent=True)
    assert [each.boot_order for each in kept.attachments()] == [1]
    assert "<boot dev=" not in kept.xml
    assert bench.hypervisor.show("web0").attachments == (info,)
    assert bench.hypervisor.attach("web0", wish, live=True, persistent=True) == info


def test_halves_by_themselves(bench: Bench, web0: DomainGuest) -> None:
    """Live alone, then persistent alone: they meet at one address."""
    bench.target("db0")
    wish = bench.wish("db0")
    live = bench.hypervisor.attach("web0", wish, live=True, persistent=False)
    assert (live.live, live.persistent) == (True, False)
    both = bench.hypervisor.attach("web0", wish, live=False, persistent=True)
    assert (both.live, both.persistent, both.address) == (True, True, live.address)
    bench.hypervisor.detach("web0", "db0", live=True, persistent=False, timeout_s=PATIENCE_S)
    rest = bench.hypervisor.show(web0.name).attachments[0]
    assert (rest.live, rest.persistent, rest.migratable) == (False, True, True)
    bench.detach("web0", "db0")


@both_devices
def test_a_guest_that_does_not_let_go(bench: Bench, web0: DomainGuest, device: str) -> None:
    """It stands still. It is told, nothing else changes, and the request stands."""
    bench.target("db0", device)
    alias = bench.attach("web0", "db0", device).alias
    disks(web0, 1)
    bench.libvirtd.virsh("suspend", "web0")
    try:
        with pytest.raises(TimedOutError, match="asked to let endpoint 'db0' go") as caught:
            bench.detach("web0", "db0", timeout_s=1)
        assert caught.value.hint
        [info] = bench.hypervisor.show("web0").attachments
        assert (info.state, info.live, info.persistent) == (AttachmentState.DETACHING, True, True)
        bench.hypervisor.detach("web0", "db0", live=False, persistent=True, timeout_s=1)
        [alone] = bench.hypervisor.show("web0").attachments
        assert "next start" not in (alone.message or "")
        again = bench.attach("web0", "db0", device)
        assert (again.state, again.live, again.persistent) == (AttachmentState.DETACHING, True, True)
        assert "was asked to let it go" in (again.message or "")
    finally:
        bench.libvirtd.virsh("resume", "web0")
    bench.wait_event(GuestEventKind.DEVICE_REMOVED, alias)
    wait_until(lambda: not bench.hypervisor.show("web0").attachments[0].live, "libvirt hears of it, too")
    [rest] = bench.hypervisor.show("web0").attachments
    assert (rest.state, rest.live, rest.message) == (AttachmentState.ATTACHED, False, None)
    bench.detach("web0", "db0")
    assert bench.remains("web0") == []
    assert bench.hypervisor.show("web0").attachments == ()


@both_devices
@pytest.mark.parametrize("persistent", [False, True], ids=["live", "both"])
def test_a_guest_that_lets_go_late_can_have_it_again(
    bench: Bench, web0: DomainGuest, device: str, persistent: bool
) -> None:
    """Nobody waits for it any more; what QEMU has left of it is in nobody's way."""
    bench.target("db0", device)
    wish = bench.wish("db0", device)
    for _ in range(2):
        alias = bench.hypervisor.attach("web0", wish, live=True, persistent=persistent).alias
        disks(web0, 1)
        release_late(bench, alias)
        disks(web0, 0)
    left = [f"chr-vu-{alias}"] if device == "scsi" else []
    wait_until(lambda: bench.remains("web0") == left, "libvirt to clear away what is its own")
    bench.hypervisor.tidy("web0")
    assert bench.remains("web0") == []
    for guest in ("web0", "nobody", bench.define("idle").name):
        bench.hypervisor.tidy(guest)


def test_tidying_takes_no_connection_that_has_a_device(bench: Bench, web0: DomainGuest) -> None:
    for name, device in (("db0", "scsi"), ("db1", "blk")):
        bench.target(name, device)
        bench.attach("web0", name, device)
    before = bench.remains("web0")
    bench.hypervisor.tidy("web0")
    assert bench.remains("web0") == before
    for disk in disks(web0, 2):
        write(web0, disk, "still there")


def release_late(bench: Bench, alias: str) -> None:
    """Have the guest 'web0' let a device go when nobody waits for it any more."""
    bench.libvirtd.virsh("suspend", "web0")
    try:
        with pytest.raises(TimedOutError):
            bench.hypervisor.detach("web0", "db0", live=True, persistent=True, timeout_s=0.5)
    finally:
        bench.libvirtd.virsh("resume", "web0")
    bench.wait_event(GuestEventKind.DEVICE_REMOVED, alias)
    wait_until(
        lambda: not any(each.live for each in bench.hypervisor.show("web0").attachments),
        "libvirt to hear of it as well",
    )


@both_devices
def test_when_the_second_half_fails_the_first_is_undone(bench: Bench, web0: DomainGuest, device: str) -> None:
    """Somebody gave the socket to the guest's next start by another name."""
    bench.target("db0", device)
    other = Wish(endpoint="other", face=Face.VHOST_USER_BLK, socket=str(bench.folder / "db0.sock"))
    bench.hypervisor.attach("web0", other, live=False, persistent=True)
    before = bench.documents("web0")
    with pytest.raises(ConflictError, match=r"db0\.sock already"):
        bench.attach("web0", "db0", device)
    disks(web0, 0)
    assert bench.documents("web0") == before
    assert bench.remains("web0") == []
    bench.detach("web0", "other")


@both_devices
def test_a_first_half_that_cannot_be_undone_is_told(
    bench: Bench, web0: DomainGuest, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest stands still, and has it from then on."""
    monkeypatch.setattr("ringway.guest.libvirt.hypervisor._UNDO_S", 0.5)
    bench.target("db0", device)
    other = Wish(endpoint="other", face=Face.VHOST_USER_BLK, socket=str(bench.folder / "db0.sock"))
    bench.hypervisor.attach("web0", other, live=False, persistent=True)
    bench.libvirtd.virsh("suspend", "web0")
    try:
        with pytest.raises(ConflictError) as caught:
            bench.attach("web0", "db0", device)
    finally:
        bench.libvirtd.virsh("resume", "web0")
    expected = r"db0\.sock already.*; endpoint 'db0' was not taken back: guest 'web0' was asked .* in 0.5 s"
    assert re.search(expected, caught.value.message)
    bench.detach("web0", "db0")
    bench.detach("web0", "other")
    assert bench.remains("web0") == []


def test_taking_back_removes_whatever_is_there(bench: Bench, web0: DomainGuest) -> None:
    """Each point at which somebody can have died: nothing, a connection, a device, both halves."""
    bench.target("db0")
    wish = bench.wish("db0")
    bench.detach("web0", "db0")
    backend = {
        "type": "socket",
        "data": {"addr": {"type": "unix", "data": {"path": wish.socket}}, "server": False},
    }
    bench.qmp("web0", "chardev-add", id="chr-vu-ua-ringway-db0", backend=backend)
    bench.detach("web0", "db0")
    assert bench.remains("web0") == []
    for persistent in (False, True):
        bench.hypervisor.attach("web0", wish, live=True, persistent=persistent)
        bench.detach("web0", "db0")
        bench.detach("web0", "db0")
        assert bench.remains("web0") == []
        assert bench.aliases("web0") == []
    with pytest.raises(NotFoundError):
        bench.detach("nobody", "db0")
    disks(web0, 0)


def test_a_socket_where_nobody_listens_is_no_end_of_the_guest(bench: Bench, web0: DomainGuest) -> None:
    with pytest.raises(NotFoundError, match="nobody listens"):
        bench.attach("web0", "db0")
    assert web0.run("echo lives") == "lives\n"


def test_a_socket_that_another_guest_has_is_no_end_of_the_guest(bench: Bench, web0: DomainGuest) -> None:
    """A target takes one front end; QEMU would wait for ever for its turn."""
    bench.target("db0")
    bench.attach("web0", "db0")
    again = Wish(endpoint="db1", face=Face.VHOST_USER_SCSI, socket=bench.wish("db0").socket)
    before = bench.remains("web0")
    with pytest.raises(BusyError, match="somebody is connected"):
        bench.hypervisor.attach("web0", again, live=True, persistent=False)
    assert bench.remains("web0") == before
    bench.detach("web0", "db0")


def test_a_guest_without_a_free_port(bench: Bench) -> None:
    bench.target("db0")
    with started(bench.define("full", ports=1)), pytest.raises(ConflictError, match="no free PCI") as caught:
        bench.attach("full", "db0")
    assert "pcie-root-port" in (caught.value.hint or "")


def test_a_machine_with_one_pci_bus(bench: Bench) -> None:
    """What QEMU is given past libvirt leaves the slot free at which libvirt plugs in its next device."""
    rng = bench.folder / "rng.xml"
    rng.write_text("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>")
    with DomainGuest(bench.libvirtd, "pc0", bench.folder, machine="pc") as guest:
        for name, device in (("db0", "scsi"), ("db1", "blk"), ("db2", "scsi")):
            bench.target(name, device)
            bench.attach("pc0", name, device)
        bench.libvirtd.virsh("attach-device", "pc0", str(rng), "--live", "--config")
        addresses = {each.endpoint: each.address for each in bench.hypervisor.show("pc0").attachments}
        assert addresses == {"db0": "0000:00:1f.0", "db1": "0000:00:1e.0", "db2": "0000:00:1d.0"}
        for disk in disks(guest, 3):
            write(guest, disk, "by a guest of 1996")
        bench.detach("pc0", "db0")
        disks(guest, 2)
        bench.attach("pc0", "db0")
        disks(guest, 3)
        guest.stop_domain()
        guest.start_domain()
        guest.wait_ready()
        found = bench.hypervisor.show("pc0").attachments
        assert {each.endpoint: each.address for each in found} == addresses
        assert all(each.live and each.persistent and each.migratable for each in found)
        assert {read(guest, disk) for disk in disks(guest, 3)} == {"by a guest of 1996"}
        for name in addresses:
            bench.detach("pc0", name)
        disks(guest, 0)
        assert bench.remains("pc0") == []
