"""What is in the way of an attachment, and what happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import libvirt
import pytest
from msgspec.structs import replace

from ringway.errors import ConflictError, NotFoundError, RingwayError, UnreachableError, UsageError
from ringway.guest.base import GuestEventKind, Wish
from ringway.guest.document import Attached, Document
from ringway.guest.libvirt import LibvirtHypervisor
from ringway.guest.libvirt.additions import check_late
from ringway.guest.libvirt.confinement import Profile, confinement, profile_of
from ringway.guest.libvirt.failures import is_broken
from ringway.guest.libvirt.looks import from_next_start, late
from ringway.guest.libvirt.reach import User, check_folder, check_socket, user_of
from ringway.model import Face, GuestState, PortMode, PortSpec
from ringway.testing.domain import SHARED_MEMORY, DomainGuest
from ringway.testing.libvirtd import Libvirtd
from ringway.testing.waiting import PATIENCE_S

from ..conftest import Count
from ..serving import both_devices
from .bench import Bench, disks, files, started, threads

CONNECTION = "chr-vu-ua-ringway-db0"
NOBODY = User(uid=65534, groups=frozenset({65534}))


# libvirt that is not there, or not for long


def test_a_libvirtd_that_is_not_there(tmp_path: Path) -> None:
    hypervisor = LibvirtHypervisor(f"qemu+unix:///system?socket={tmp_path}/none")
    try:
        with pytest.raises(UnreachableError, match="libvirt does not answer") as caught:
            hypervisor.guests()
        assert "libvirtd" in (caught.value.hint or "")
        [check] = hypervisor.probe()
        assert (check.name, check.ok) == ("libvirt", False)
    finally:
        hypervisor.close()


def test_a_libvirtd_that_hangs_up_is_not_there(tmp_path: Path) -> None:
    """It is no fault of what was asked: a guest would have been left out of the list for it."""

    def hang_up() -> None:
        with door.accept()[0] as caller:
            caller.recv(1 << 16)

    path = str(tmp_path / "libvirt")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()
        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(libvirt.libvirtError, match="End of file") as caught:
            libvirt.open(f"qemu+unix:///system?socket={path}&mode=direct")
    assert is_broken(caught.value)


def test_libvirtd_is_restarted(bench: Bench, web0: DomainGuest) -> None:
    """What only QEMU knows of is found again, and can be taken away."""
    bench.target("db0")
    before = bench.attach("web0", "db0")
    bench.libvirtd.restart()
    bench.wait_event(GuestEventKind.CONNECTED)
    [after] = bench.hypervisor.show("web0").attachments
    assert (after.alias, after.address, after.live, after.migratable) == (
        before.alias,
        before.address,
        True,
        False,
    )
    bench.detach("web0", "db0")
    disks(web0, 0)
    assert bench.remains("web0") == []


def test_libvirtd_is_killed_and_comes_back(bench: Bench, web0: DomainGuest) -> None:
    bench.libvirtd.kill()
    try:
        with pytest.raises(UnreachableError):
            bench.hypervisor.show("web0")
    finally:
        bench.libvirtd.start()
    bench.wait_event(GuestEventKind.CONNECTED)
    assert bench.hypervisor.show(web0.name).state is GuestState.RUNNING


# Guests that cannot


@pytest.mark.skipif(not os.access("/dev/kvm", os.W_OK), reason="there is no /dev/kvm")
@pytest.mark.parametrize("known", [True, False], ids=["when-it-is-defined", "when-it-starts"])
def test_kvm_that_cannot_be_used(known: bool) -> None:
    """libvirt looks once what QEMU can; either way there is a way without."""
    xml = "<domain type='kvm'><name>k</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rw-")))
        libvirtd = stack.enter_context(Libvirtd(folder))
        hypervisor = stack.enter_context(contextlib.closing(LibvirtHypervisor(libvirtd.uri)))
        if not known:
            hypervisor.define(xml)
        inside = ["nsenter", "--mount", "-t", str(libvirtd.pid)]
        subprocess.run([*inside, "mount", "--bind", "/dev/null", "/dev/kvm"], check=True, timeout=PATIENCE_S)
        with pytest.raises(RingwayError, match="kvm") as refused:
            hypervisor.define(xml) if known else hypervisor.start("k")
        assert "--emulate" in (refused.value.hint or "")


def test_a_guest_that_is_not_there(bench: Bench) -> None:
    for verb in (
        lambda: bench.hypervisor.show("nobody"),
        lambda: bench.attach("nobody", "db0"),
        lambda: bench.detach("nobody", "db0"),
    ):
        with pytest.raises(NotFoundError, match="no guest 'nobody'"):
            verb()


def test_a_guest_that_does_not_run(bench: Bench) -> None:
    bench.target("db0")
    guest = bench.define("idle")
    with pytest.raises(ConflictError, match="does not run"):
        bench.attach("idle", "db0")
    info = bench.hypervisor.attach("idle", bench.wish("db0"), live=False, persistent=True)
    assert (info.live, info.persistent, info.migratable) == (False, True, True)
    with started(guest):
        [info] = bench.hypervisor.show("idle").attachments
        assert (info.live, info.persistent, info.migratable) == (True, True, True)


def test_a_transient_guest_has_no_next_start(bench: Bench) -> None:
    bench.target("db0")
    guest = bench.define("brief")
    with started(guest):
        bench.libvirtd.virsh("undefine", "brief")
        with pytest.raises(ConflictError, match="transient"):
            bench.attach("brief", "db0")
        info = bench.hypervisor.attach("brief", bench.wish("db0"), live=True, persistent=False)
        assert (info.live, info.persistent) == (True, False)
        assert not bench.hypervisor.show("brief").persistent


@both_devices
def test_memory_that_is_not_shared(bench: Bench, device: str) -> None:
    """Refused before anything; fixed for the next start, which then has the disk."""
    bench.target("db0", device)
    guest = bench.define("private", backing="")
    with started(guest):
        before = bench.documents("private")
        with pytest.raises(ConflictError, match="does not share its memory") as caught:
            bench.attach("private", "db0", device)
        assert "--fix-memory" in (caught.value.hint or "")
        assert bench.documents("private") == before
        wish = bench.wish("db0", device)
        preview = bench.hypervisor.check("private", wish, live=True, persistent=True, fix_memory=True)
        assert any("mode='shared'" in line for line in preview if line.startswith("+"))
        info = bench.hypervisor.attach("private", wish, live=True, persistent=True, fix_memory=True)
        assert (info.live, info.persistent) == (False, True)
        assert "+    <access mode='shared'/>" in (info.message or "")
    with started(guest):
        [info] = bench.hypervisor.show("private").attachments
        assert (info.live, info.message) == (True, None)


# Sockets that QEMU does not reach


def test_a_socket_that_qemus_user_does_not_reach(bench: Bench) -> None:
    """It is told before QEMU would be stuck, and what is in the way is named."""
    bench.target("db0")
    label = "<seclabel type='static' model='dac' relabel='no'><label>+65534:+65534</label></seclabel>"
    bench.define("nobodys", extra=label)
    wish = bench.wish("db0")
    with pytest.raises(ConflictError, match=rf"nobody, who may not pass {bench.folder}") as caught:
        bench.hypervisor.attach("nobodys", wish, live=False, persistent=True)
    assert str(bench.folder) in (caught.value.hint or "")
    os.chmod(bench.folder, 0o755)
    os.chmod(wish.socket or "", 0o660)
    with pytest.raises(ConflictError, match=r"may not write to .*db0\.sock"):
        bench.hypervisor.attach("nobodys", wish, live=False, persistent=True)
    os.chmod(wish.socket or "", 0o666)
    assert bench.hypervisor.attach("nobodys", wish, live=False, persistent=True).persistent


def test_reach_by_group_owner_and_list(run_dir: Path) -> None:
    path = run_dir / "socket"
    path.touch()
    os.chmod(run_dir, 0o755)
    os.chmod(path, 0o060)
    with pytest.raises(ConflictError, match="write to"):
        check_socket(str(path), NOBODY)
    os.chown(path, -1, 65534)
    check_socket(str(path), NOBODY)
    os.chown(path, 65534, -1)
    with pytest.raises(ConflictError, match="write to"):
        check_socket(str(path), NOBODY)
    check_socket(str(path), None)
    with pytest.raises(ConflictError, match=f"write to {run_dir}"):
        check_folder(str(path), NOBODY)
    with pytest.raises(NotFoundError, match="no folder"):
        check_folder(str(run_dir / "none" / "socket"), NOBODY)


def test_who_qemu_runs_as() -> None:
    domain = "<domain><seclabel type='dynamic' model='{}'><label>{}</label></seclabel></domain>"
    assert user_of(domain.format("dac", "+65534:+7")) == User(65534, frozenset({7, 65534}))
    assert user_of(domain.format("selinux", "system_u:object_r")) is None
    assert user_of(domain.format("dac", "no-such-user:+7")) is None


CONFINED = "<capabilities><host><secmodel><model>apparmor</model></secmodel></host></capabilities>"


def test_what_confines_qemu_besides(bench: Bench, tmp_path: Path) -> None:
    """What a profile lacks depends on what the kernel asks, and on what profiles are compiled for."""
    rules, features, parser = (tmp_path / name for name in ("ringway", "features", "parser.conf"))
    refused = confinement(CONFINED, rules, features, parser)
    assert (refused.ok, refused.hint) == (False, f"install packaging/apparmor/ringway as {rules}")
    (features / "network_v8").mkdir(parents=True)
    assert "no endpoints of the kernel engine" in confinement(CONFINED, rules, features, parser).detail
    (features / "network_v9").mkdir()
    (features / "network_v9" / "af_unix").touch()
    assert "wait for ever" in confinement(CONFINED, rules, features, parser).detail
    parser.write_text(f"# kept\n  policy-features={tmp_path}/older\n")
    (tmp_path / "older").write_text("network_v8 {af_mask {unix inet\n}\n}\n")
    assert "no endpoints of the kernel engine" in confinement(CONFINED, rules, features, parser).detail
    (tmp_path / "older").write_text("network_v9 {af_unix {yes\n}\n}\n")
    assert "wait for ever" in confinement(CONFINED, rules, features, parser).detail
    rules.touch()
    assert confinement(CONFINED, rules, features, parser).detail == "apparmor"
    assert confinement("<capabilities/>", tmp_path / "none").detail == "by its user alone"
    assert [check.name for check in bench.hypervisor.probe()][-1] == "confinement"


def test_selinux_holds_up_endpoints_where_it_enforces(tmp_path: Path) -> None:
    capabilities = CONFINED.replace("apparmor", "selinux")
    enforcing = tmp_path / "enforce"
    for state in ("1", ""):  # so, if it cannot be told
        enforcing.write_text(state)
        refused = confinement(capabilities, enforcing=enforcing)
        assert not refused.ok
        assert "ausearch -m avc" in (refused.hint or "")
    enforcing.write_text("0")
    permitted = confinement(capabilities, enforcing=enforcing)
    assert (permitted.ok, permitted.detail, permitted.hint) == (True, "selinux", None)


def test_the_profile_of_a_guest() -> None:
    label = "<domain><seclabel type='{}' model='{}'><label> libvirt-1 </label></seclabel></domain>"
    assert profile_of(label.format("dynamic", "apparmor"), CONFINED) == Profile("libvirt-1")
    assert profile_of(label.format("dynamic", "dac"), CONFINED) == Profile("")
    assert profile_of("<domain/>", CONFINED) == Profile("")
    assert profile_of("<domain><seclabel type='none' model='dac'/></domain>", CONFINED) == Profile("")
    assert profile_of("<domain><seclabel type='none' model='apparmor'/></domain>", CONFINED) is None
    assert profile_of("<domain><seclabel type='none'/></domain>", CONFINED) is None
    assert profile_of("<domain/>", "<capabilities/>") is None


# What libvirt heeds at a start alone


def test_queues_and_protection_of_the_kernels_device_while_a_guest_runs() -> None:
    plain = Wish(endpoint="db0", face=Face.VHOST_SCSI, wwpn="naa.5001405aa3a2c1f0")
    told = {
        plain: "",
        replace(plain, queues=2): "queues:",
        replace(plain, protection=True): "protection:",
        replace(plain, queues=2, protection=True): "queues and protection:",
    }
    for wish, words in told.items():
        assert check_late(wish, persistent=True).startswith(words)
    assert check_late(plain, persistent=False) == ""
    with pytest.raises(UsageError, match="no queues and protection of one's own"):
        check_late(replace(plain, queues=2, protection=True), persistent=False)
    ours = Wish(endpoint="db0", face=Face.VHOST_USER_SCSI, socket="/db0", queues=2, protection=True)
    assert check_late(ours, persistent=False) == ""
    assert check_late(replace(ours, boot_order=1), persistent=True).startswith("boot order:")


def test_what_waits_for_the_next_start_is_seen_later_as_well() -> None:
    plain = Attached(endpoint="db0", alias="ua-ringway-db0", face=Face.VHOST_SCSI)
    wanted = replace(plain, queues=2, protection=True, boot_order=1)
    assert from_next_start(late(plain, wanted)).startswith("boot order and queues and protection: from")
    assert from_next_start(late(None, wanted)).startswith("boot order: from")
    assert from_next_start(late(wanted, wanted)) == from_next_start(late(wanted, plain)) == ""


# Ports


def test_a_port_of_the_next_start_comes_and_goes(bench: Bench) -> None:
    port = PortSpec(name="p0", mac="52:54:00:12:34:56", socket=str(bench.folder / "p0"), mode=PortMode.SERVER)
    bench.define("ported")
    for _ in range(2):
        bench.hypervisor.plug("ported", port, live=False, persistent=True)
        (found,) = bench.hypervisor.show("ported").ports
        assert (found.port, found.live, found.persistent) == ("p0", False, True)
    for _ in range(2):
        bench.hypervisor.unplug("ported", "p0", live=True, persistent=True, timeout_s=PATIENCE_S)
        assert bench.hypervisor.show("ported").ports == ()
    assert bench.aliases("ported") == []


def test_a_port_and_memory_that_is_not_shared(bench: Bench) -> None:
    """Refused; fixed for the next start, in one go with the port."""
    guest = bench.define("private", backing="")
    path = str(bench.folder / "p0.sock")
    port = PortSpec(name="p0", mac="52:54:00:00:00:01", socket=path, mode=PortMode.SERVER)
    with pytest.raises(ConflictError, match="does not share its memory") as caught:
        bench.hypervisor.plug(guest.name, port, live=False, persistent=True)
    assert "--fix-memory" in (caught.value.hint or "")
    bench.hypervisor.plug(guest.name, port, live=False, persistent=True, fix_memory=True)
    found = bench.hypervisor.show(guest.name)
    assert ([each.port for each in found.ports], found.shared_memory) == (["p0"], True)


def test_a_port_that_is_not_whole(bench: Bench, web0: DomainGuest) -> None:
    with pytest.raises(UsageError, match="no socket"):
        bench.hypervisor.plug(web0.name, PortSpec(name="p0"), live=True, persistent=True)


# Whole guests


def test_a_guest_is_made_from_a_document(bench: Bench) -> None:
    guest = bench.define("made")
    guest.close()
    info = bench.hypervisor.define(guest.xml)
    assert (info.name, info.state, info.persistent) == ("made", GuestState.SHUT_OFF, True)
    assert isinstance(bench.hypervisor.document("made", persistent=True), Document)
    with pytest.raises(ConflictError, match="already"):
        bench.hypervisor.define(guest.xml)
    with pytest.raises(ConflictError, match="does not run"):
        bench.hypervisor.document("made", persistent=False)
    bench.hypervisor.undefine("made")
    bench.hypervisor.undefine("made")
    bench.wait_event(GuestEventKind.UNDEFINED)


def test_a_guest_that_does_not_start_says_so_and_one_that_runs_is_not_forgotten(bench: Bench) -> None:
    guest = bench.define("stuck")
    bench.hypervisor.undefine("stuck")
    bench.hypervisor.define(guest.xml.replace("<kernel>", "<kernel>/none"))
    with pytest.raises(RingwayError, match="'stuck' does not start"):
        bench.hypervisor.start("stuck")
    bench.hypervisor.undefine("stuck")
    bench.hypervisor.define(guest.xml)
    with started(guest), pytest.raises(ConflictError, match="runs"):
        bench.hypervisor.undefine("stuck")
    bench.hypervisor.undefine("stuck")
    assert "stuck" not in bench.libvirtd.virsh("list", "--all", "--name")


def test_life_is_told(bench: Bench) -> None:
    guest = bench.define("told")
    assert bench.wait_event(GuestEventKind.DEFINED).guest == "told"
    with started(guest):
        assert bench.wait_event(GuestEventKind.STARTED).guest == "told"
        assert bench.hypervisor.show("told").state is GuestState.RUNNING
    assert bench.wait_event(GuestEventKind.STOPPED).guest == "told"


# Again and again


def test_many_attachments_leave_nothing(bench: Bench, web0: DomainGuest, count: Count) -> None:
    """Files and threads of QEMU, of libvirtd and of this process; devices and connections; both documents."""
    bench.target("db0", "scsi")
    bench.target("db1", "blk")

    def cycle() -> None:
        for name, device in (("db0", "scsi"), ("db1", "blk")):
            bench.attach("web0", name, device)
        disks(web0, 2)
        for name in ("db0", "db1"):
            bench.detach("web0", name)
        disks(web0, 0)

    cycle()
    pids = (web0.pid, bench.libvirtd.pid, os.getpid())
    before = [files(pid) for pid in pids], threads(), bench.documents("web0")
    for _ in range(count(4, 50)):
        cycle()
    assert ([files(pid) for pid in pids], threads(), bench.documents("web0")) == before
    assert bench.remains("web0") == []


def test_shared_memory_is_what_a_test_guest_has(bench: Bench, web0: DomainGuest) -> None:
    assert SHARED_MEMORY in web0.xml
    assert bench.hypervisor.show("web0").shared_memory
