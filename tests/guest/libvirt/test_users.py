"""libvirt runs QEMU as a user of its own, as it does on all distributions: a group's rights are enough."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import BusyError, ConflictError, NotFoundError, RingwayError
from ringway.guest.base import Wish
from ringway.guest.document import Document
from ringway.guest.fresh import bare
from ringway.model import GuestSpec, GuestState, PortMode, PortSpec
from ringway.testing.daemon import Daemon
from ringway.testing.libvirtd import Libvirtd
from ringway.testing.waiting import PATIENCE_S, wait_until

from ..serving import MIB
from .bench import Bench

USER, GROUP = (
    "libvirt-qemu",
    "kvm",
)  #: Debian's; QEMU of one who may not use /dev/kvm is never fit for libvirt
UID, GID = pwd.getpwnam(USER).pw_uid, grp.getgrnam(GROUP).gr_gid
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts QEMU as somebody else")


@pytest.fixture(scope="module", params=[0, 1], ids=["plain", "dynamic-ownership"])
def libvirtd(request: pytest.FixtureRequest, capabilities: Path) -> Iterator[Libvirtd]:
    """One whose guests run as another user, who may get to its folder."""
    with tempfile.TemporaryDirectory(prefix="rw-") as name:
        os.chmod(name, 0o755)
        qemu = {"user": USER, "group": GROUP, "dynamic_ownership": request.param}
        with Libvirtd(Path(name), cache=capabilities, qemu=qemu) as daemon:
            yield daemon


@pytest.fixture
def bench(libvirtd: Libvirtd, run_dir: Path) -> Iterator[Bench]:
    """In a folder that gives its group to all sockets, and that others may not pass."""
    os.chown(run_dir, 0, GID)
    os.chmod(run_dir, 0o2750)
    with Bench(libvirtd, run_dir) as bench, contextlib.ExitStack() as stack:
        stack.callback(forget, libvirtd)
        yield bench


def forget(libvirtd: Libvirtd) -> None:
    """Remove the guest 'web'."""
    for verb in ("destroy", "undefine"):
        with contextlib.suppress(RingwayError):
            libvirtd.virsh(verb, "web")


def web(*wishes: Wish) -> Document:
    """A guest without disks but these, which runs its firmware."""
    document = bare(GuestSpec(name="web", memory_bytes=64 * MIB, emulate=True), kvm=False)
    document.add_hot_plug_ports(8)
    document.share_memory()
    for wish in wishes:
        document.add_endpoint(wish)
    return document


def run(bench: Bench, *wishes: Wish) -> None:
    """Make the guest 'web', and start it."""
    bench.hypervisor.define(web(*wishes).xml)
    bench.hypervisor.start("web")


def port(bench: Bench, mode: PortMode) -> PortSpec:
    """A port of the guest."""
    return PortSpec(name="p0", mac="52:54:00:12:34:56", socket=str(bench.folder / "p0.sock"), mode=mode)


@contextlib.contextmanager
def starting(libvirtd: Libvirtd) -> Iterator[threading.Thread]:
    """Somebody starts the guest 'web', and waits for that. It is ended here, if it does not come."""

    def start() -> None:
        with contextlib.suppress(RingwayError):
            libvirtd.virsh("start", "web")

    thread = threading.Thread(target=start)
    thread.start()
    try:
        yield thread
    finally:
        with contextlib.suppress(RingwayError):
            libvirtd.virsh("destroy", "web")
        thread.join()


def test_endpoints_of_a_group_at_the_start_and_while_it_runs(bench: Bench) -> None:
    for name, device in (("db0", "scsi"), ("db1", "blk"), ("db2", "scsi"), ("db3", "blk")):
        bench.target(name, device)
    run(bench, bench.wish("db0"), bench.wish("db1", "blk"))
    assert os.stat(f"/proc/{bench.libvirtd.guest_pid('web')}").st_uid == UID
    bench.attach("web", "db2")
    bench.attach("web", "db3", "blk")
    found = bench.hypervisor.show("web").attachments
    assert [(each.endpoint, each.live, each.persistent) for each in found] == [
        (f"db{number}", True, True) for number in range(4)
    ]
    sockets = [os.stat(bench.folder / f"db{number}.sock") for number in range(4)]
    assert {(stat.S_IMODE(each.st_mode), each.st_uid, each.st_gid) for each in sockets} == {(0o660, 0, GID)}


def test_a_guest_that_would_wait_for_a_socket_is_not_started(bench: Bench) -> None:
    """QEMU tries for ever, and nothing of libvirt's ends that."""
    wish = bench.wish("db0")
    with pytest.raises(NotFoundError, match="nobody listens"):
        run(bench, wish)
    bench.target("db0")
    os.chmod(wish.socket or "", 0o600)
    with pytest.raises(ConflictError, match=f"QEMU runs as {USER}, who may not write") as caught:
        bench.hypervisor.start("web")
    assert f"chgrp {GROUP}" in (caught.value.hint or "")
    assert bench.hypervisor.show("web").state is GuestState.SHUT_OFF
    bench.detach("web", "db0")
    bench.hypervisor.start("web")
    for live, persistent in ((True, False), (False, True)):
        with pytest.raises(ConflictError, match="who may not write"):
            bench.hypervisor.attach("web", wish, live=live, persistent=persistent)
    assert bench.remains("web") == []


def test_a_guest_that_waits_for_a_socket_holds_up_no_look(bench: Bench) -> None:
    """Somebody starts it past us, while its endpoint is not there. It goes on when that is."""
    target = bench.target("db0")
    bench.hypervisor.define(web(bench.wish("db0")).xml)
    target.kill()
    with starting(bench.libvirtd) as thread:

        def told() -> bool:
            [found] = bench.hypervisor.guests()
            return (found.state, found.memory_bytes) == (GuestState.OTHER, 64 * MIB) and (
                "'web' has been starting for" in (found.message or "")
            )

        wait_until(lambda: bench.libvirtd.virsh("domstate", "web").strip() == "paused", "the guest's start")
        wait_until(told, "word of a guest that starts")
        with pytest.raises(BusyError, match="has been starting for") as caught:
            bench.hypervisor.show("web")
        assert "virsh destroy web" in (caught.value.hint or "")
        for verb in (lambda: bench.attach("web", "db0"), lambda: bench.detach("web", "db0")):
            with pytest.raises(BusyError):
                verb()
        target.start()
        thread.join()
        [info] = bench.hypervisor.show("web").attachments
        assert (info.live, info.persistent) == (True, True)


def test_a_port_whose_socket_qemu_makes(bench: Bench) -> None:
    bench.hypervisor.define(web().xml)
    spec = port(bench, PortMode.SERVER)
    with pytest.raises(ConflictError, match=f"{USER}, who may not write to {bench.folder}"):
        bench.hypervisor.plug("web", spec, live=False, persistent=True)
    os.chmod(bench.folder, 0o2770)
    bench.hypervisor.plug("web", spec, live=False, persistent=True)
    made = Path(spec.socket or "")
    with starting(bench.libvirtd):
        wait_until(lambda: made.exists() and made.stat().st_uid == UID, "QEMU's socket")
        status = made.stat()
        assert status.st_gid == GID
        assert status.st_mode & stat.S_IWGRP  # a switch of that group may connect
        assert not status.st_mode & stat.S_IWOTH


def test_a_port_whose_socket_a_switch_made(bench: Bench) -> None:
    spec = port(bench, PortMode.CLIENT)
    with socket.socket(socket.AF_UNIX) as switch:
        switch.settimeout(PATIENCE_S)
        switch.bind(spec.socket or "")
        switch.listen(1)
        os.chmod(spec.socket or "", 0o600)
        bench.hypervisor.define(web().xml)
        with pytest.raises(ConflictError, match="who may not write"):
            bench.hypervisor.plug("web", spec, live=False, persistent=True)
        os.chmod(spec.socket or "", 0o660)
        bench.hypervisor.plug("web", spec, live=False, persistent=True)
        with starting(bench.libvirtd):
            connection, _ = switch.accept()
            connection.close()


def test_the_daemons_endpoints_and_folders(libvirtd: Libvirtd, run_dir: Path) -> None:
    """What its configuration says is enough: guests get their endpoints, and nobody else does."""
    os.chmod(run_dir, 0o755)
    image = run_dir / "root.img"
    image.write_bytes(bytes(8 * MIB))
    daemon = Daemon(run_dir / "d")
    daemon.configure(
        f'[user]\ngroup = "{GROUP}"\n[net]\nqemu_user = "{USER}"\n[lio]\nenabled = false\n'
        f'[guests]\nenabled = true\nuri = "{libvirtd.uri}"\n'
    )
    daemon.start()
    with daemon, contextlib.ExitStack() as stack:
        stack.callback(forget, libvirtd)
        spec = {"name": "web", "memory_bytes": 64 * MIB, "emulate": True, "via": "endpoint"}
        disk = {"id": str(image), "source": "volume", "bus": "scsi", "boot_index": 0}
        daemon.ask("POST", "/1.0/guests", {**spec, "block_devices": [disk]})
        ram = {"target": 0, "lun": 0, "backstore": {"kind": "ram", "size_bytes": MIB}}
        daemon.ask("POST", "/1.0/endpoints", {"name": "db0", "luns": [ram]})
        daemon.ask("POST", "/1.0/guests/web/endpoints", {"endpoint": "db0"})
        found = daemon.ask("GET", "/1.0/guests/web")["attachments"]
        assert [(one["endpoint"], one["live"], one["persistent"]) for one in found] == [
            ("db0", True, True),
            ("web", True, True),
        ]
        status = (run_dir / "d" / "run" / "endpoint" / "db0.sock").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, GID)
        daemon.ask("POST", "/1.0/ports", {"name": "p0"})
        assert (run_dir / "d" / "run" / "port").stat().st_gid == GID
        forget(libvirtd)
        for name in ("db0", "web"):
            daemon.ask("DELETE", f"/1.0/endpoints/{name}?force=1")
