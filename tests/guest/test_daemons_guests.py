"""A daemon and its guests: a real libvirt, and a daemon that dies while it changes a domain."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringway.errors import BusyError, ConflictError, GuestError, RingwayError
from ringway.testing.daemon import Daemon
from ringway.testing.libvirtd import Libvirtd
from ringway.testing.waiting import wait_until

MIB = 1 << 20
DB0 = {"name": "db0", "luns": [{"target": 0, "lun": 0, "backstore": {"kind": "ram", "size_bytes": MIB}}]}
PORT = {"name": "p0", "switch": "external"}
GUEST = {"name": "web", "memory_bytes": 64 * MIB, "emulate": True, "start": False}
BOTH = {"fix_memory": True}


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    """One for all tests here."""
    with Libvirtd(tmp_path_factory.mktemp("l")) as found:
        yield found


@pytest.fixture
def daemon(run_dir: Path, libvirtd: Libvirtd) -> Iterator[Daemon]:
    """One that has a guest 'web', which does not run, an endpoint 'db0' and a port 'p0'."""
    daemon = Daemon(run_dir / "d")
    daemon.configure(f'[lio]\nenabled = false\n[guests]\nenabled = true\nuri = "{libvirtd.uri}"\n')
    daemon.start()
    try:
        daemon.ask("POST", "/1.0/endpoints", DB0)
        daemon.ask("POST", "/1.0/ports", PORT)
        daemon.ask("POST", "/1.0/guests", GUEST)
        yield daemon
        daemon.ask("DELETE", "/1.0/endpoints/db0?force=1")
        daemon.ask("DELETE", "/1.0/ports/p0?force=1")
        daemon.stop()
    finally:
        daemon.__exit__(None, None, None)
        libvirtd.virsh("undefine", "web")


def web(daemon: Daemon) -> tuple[list[str], list[str]]:
    """What the guest has: endpoints and ports."""
    found = daemon.ask("GET", "/1.0/guests/web")
    return [one["endpoint"] for one in found["attachments"]], [one["port"] for one in found["ports"]]


@pytest.mark.parametrize("point", ["attachment.begun", "attachment.made", "attachment.confirmed"])
def test_an_attachment_that_the_daemon_dies_in_is_whole_or_nothing(
    daemon: Daemon, libvirtd: Libvirtd, point: str
) -> None:
    daemon.die_at(point, "POST", "/1.0/guests/web/endpoints", {"endpoint": "db0", **BOTH})
    endpoints, _ = web(daemon)
    assert endpoints == (["db0"] if point == "attachment.confirmed" else [])
    assert ("ua-ringway-db0" in libvirtd.virsh("dumpxml", "web")) is bool(endpoints)
    if endpoints:
        with pytest.raises(BusyError, match="attached to guest 'web'"):
            daemon.ask("DELETE", "/1.0/endpoints/db0")
    assert daemon.ask("POST", "/1.0/guests/web/endpoints", {"endpoint": "db0", **BOTH})["persistent"]


@pytest.mark.parametrize("point", ["attachment.going", "attachment.gone"])
def test_a_detachment_that_the_daemon_dies_in_leaves_domain_and_host_in_agreement(
    daemon: Daemon, libvirtd: Libvirtd, point: str
) -> None:
    daemon.ask("POST", "/1.0/guests/web/endpoints", {"endpoint": "db0", **BOTH})
    daemon.die_at(point, "DELETE", "/1.0/guests/web/endpoints/db0")
    endpoints, _ = web(daemon)
    assert ("ua-ringway-db0" in libvirtd.virsh("dumpxml", "web")) is bool(endpoints)
    if endpoints:
        daemon.ask("DELETE", "/1.0/guests/web/endpoints/db0")
    daemon.ask("DELETE", "/1.0/endpoints/db0")
    daemon.ask("POST", "/1.0/endpoints", DB0)


@pytest.mark.parametrize("point", ["plug.begun", "plug.made"])
def test_a_plug_that_the_daemon_dies_in_is_nothing(daemon: Daemon, libvirtd: Libvirtd, point: str) -> None:
    daemon.ask("POST", "/1.0/guests/web/endpoints", {"endpoint": "db0", **BOTH})  # its memory is shared now
    daemon.die_at(point, "POST", "/1.0/guests/web/ports", {"port": "p0"})
    assert web(daemon) == (["db0"], [])
    assert daemon.ask("GET", "/1.0/ports/p0")["guest"] is None
    assert "p0.sock" not in libvirtd.virsh("dumpxml", "web")
    assert daemon.ask("POST", "/1.0/guests/web/ports", {"port": "p0"})["guest"] == "web"
    assert web(daemon) == (["db0"], ["p0"])


def test_a_port_and_memory_that_is_not_shared(daemon: Daemon) -> None:
    """What changed of the guest is shown, as it is of an endpoint; a program has it in the answer."""
    plug = [sys.executable, "-m", "ringway", "guest", "plug", "web", "p0", "--fix-memory"]
    environment = {**os.environ, "RINGWAY_SOCKET": str(daemon.api)}
    done = subprocess.run(plug, env=environment, capture_output=True, text=True, check=True)
    assert "note: its memory is shared from its next start on:" in done.stderr
    assert "+    <access mode='shared'/>" in done.stderr
    assert "shared" not in done.stdout
    again = daemon.ask("POST", "/1.0/guests/web/ports", {"port": "p0", **BOTH})
    assert (again["guest"], again["persistent"], again["message"]) == ("web", True, None)


@pytest.mark.parametrize("point", ["disk.promised", "disk.made"])
def test_a_plain_disk_that_the_daemon_dies_with_is_what_the_domain_says(
    daemon: Daemon, libvirtd: Libvirtd, tmp_path: Path, point: str
) -> None:
    """There is no row: asking again does what is missing, and takes what is there."""
    image = tmp_path / "v1.img"
    image.write_bytes(bytes(MIB))
    disk = {"block_device": {"id": "v1", "bus": "scsi"}, "volumes": {"v1": str(image)}}
    daemon.die_at(point, "POST", "/1.0/guests/web/disks", disk)
    xml = libvirtd.virsh("dumpxml", "web")
    assert ("ua-ringway-volume-v1" in xml) is (point == "disk.made")
    given = daemon.ask("POST", "/1.0/guests/web/disks", disk)
    assert (given["target"], given["live"], given["persistent"]) == ("sda", False, True)
    assert daemon.ask("GET", "/1.0/guests/web")["disks"] == [given]
    if point == "disk.made":
        assert libvirtd.virsh("dumpxml", "web") == xml
    daemon.ask("DELETE", "/1.0/guests/web/disks/v1")
    assert daemon.ask("GET", "/1.0/guests/web")["disks"] == []


def test_what_virsh_takes_away_is_free_again(daemon: Daemon, libvirtd: Libvirtd) -> None:
    before = libvirtd.virsh("dumpxml", "web")
    daemon.ask("POST", "/1.0/guests/web/endpoints", {"endpoint": "db0", **BOTH})
    with pytest.raises(BusyError):
        daemon.ask("DELETE", "/1.0/endpoints/db0")
    old = daemon.folder / "web.xml"
    old.write_text(before)
    libvirtd.virsh("define", str(old))
    wait_until(lambda: not web(daemon)[0], "the guest to be looked at")
    daemon.ask("DELETE", "/1.0/endpoints/db0")
    daemon.ask("POST", "/1.0/endpoints", DB0)


@pytest.fixture
def mail(daemon: Daemon, libvirtd: Libvirtd, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A guest to be made: an endpoint serves it a disk that is there and one that is new; two ports, one of
    which is there."""
    (tmp_path / "root.img").write_bytes(bytes(MIB))
    (tmp_path / "pool").mkdir()
    try:
        yield {
            "name": "mail",
            "memory_bytes": 64 * MIB,
            "emulate": True,
            "via": "endpoint",
            "block_devices": [
                {"id": "root", "boot_index": 0},
                {"source": "blank", "size_bytes": MIB},
            ],
            "volumes": {"root": str(tmp_path / "root.img")},
            "pools": {"": str(tmp_path / "pool")},
            "ports": [PORT, {"name": "p1", "switch": "external", "mode": "client"}],
            "start": False,
        }
    finally:
        for verb in ("destroy", "undefine"):
            with contextlib.suppress(GuestError):
                libvirtd.virsh(verb, "mail")
        for path in ("endpoints/mail", "ports/p1"):
            with contextlib.suppress(RingwayError, OSError):
                daemon.ask("DELETE", f"/1.0/{path}?force=1")


def _there(daemon: Daemon, libvirtd: Libvirtd, pool: Path) -> dict[str, list[str]]:
    """All that a creation makes, and what was there before."""
    return {
        "guests": sorted(libvirtd.virsh("list", "--all", "--name").split()),
        "endpoints": sorted(daemon.names()),
        "ports": sorted(port["name"] for port in daemon.ask("GET", "/1.0/ports")),
        "volumes": sorted(path.name for path in pool.iterdir()),
    }


_BEFORE = {"guests": ["web"], "endpoints": ["db0"], "ports": ["p0"], "volumes": []}
_AFTER = {
    "guests": ["mail", "web"],
    "endpoints": ["db0", "mail"],
    "ports": ["p0", "p1"],
    "volumes": ["mail-sdb.raw"],
}


@pytest.mark.parametrize(
    "point",
    [
        "creation.begun",
        "creation.volume",
        "port.begun",
        "port.made",
        "port.confirmed",
        "create.committed",
        "create.made",
        "create.acknowledged",
    ],
)
def test_a_creation_that_the_daemon_dies_in_before_there_is_a_domain_is_nothing(
    daemon: Daemon, libvirtd: Libvirtd, mail: dict[str, Any], tmp_path: Path, point: str
) -> None:
    daemon.die_at(point, "POST", "/1.0/guests", mail)
    assert _there(daemon, libvirtd, tmp_path / "pool") == _BEFORE
    assert (tmp_path / "root.img").stat().st_size == MIB
    daemon.ask("POST", "/1.0/guests", mail)
    assert _there(daemon, libvirtd, tmp_path / "pool") == _AFTER


@pytest.mark.parametrize(
    ("point", "start"),
    [
        ("creation.defined", False),
        ("creation.made", True),
        ("creation.confirmed", False),
        ("attachment.confirmed", True),
        ("plug.confirmed", False),
    ],
)
def test_a_creation_that_the_daemon_dies_in_once_there_is_a_domain_is_whole(
    daemon: Daemon, libvirtd: Libvirtd, mail: dict[str, Any], tmp_path: Path, point: str, start: bool
) -> None:
    """It would stand still with ports at which QEMU waits, when it is started."""
    if start:
        mail["ports"] = []
    daemon.die_at(point, "POST", "/1.0/guests", {**mail, "start": start})
    ports = ["p0"] if start else ["p0", "p1"]
    assert _there(daemon, libvirtd, tmp_path / "pool") == {**_AFTER, "ports": ports}
    found = daemon.ask("GET", "/1.0/guests/mail")
    assert (found["state"], [one["endpoint"] for one in found["attachments"]]) == (
        "running" if start else "shut-off",
        ["mail"],
    )
    plugged = [one["port"] for one in found["ports"]]
    assert plugged == ([] if start else ["p0", "p1"])
    with pytest.raises(BusyError, match="attached to guest 'mail'"):
        daemon.ask("DELETE", "/1.0/endpoints/mail")
    for port in plugged:
        with pytest.raises(BusyError, match="plugged into guest 'mail'"):
            daemon.ask("DELETE", f"/1.0/ports/{port}")


def test_a_creation_is_settled_when_libvirt_is_there_again(
    daemon: Daemon, libvirtd: Libvirtd, mail: dict[str, Any], tmp_path: Path
) -> None:
    daemon.stop()
    daemon.fault = "create.acknowledged:1"
    daemon.start()
    with pytest.raises((OSError, http.client.HTTPException)):
        daemon.ask("POST", "/1.0/guests", mail)
    daemon.wait_dead()
    daemon.fault = ""
    libvirtd.stop()
    daemon.start()
    assert sorted(daemon.names()) == ["db0", "mail"]  # nobody can tell whether there is a domain
    libvirtd.start()
    wait_until(lambda: sorted(daemon.names()) == ["db0"], "the end of what was begun")
    assert _there(daemon, libvirtd, tmp_path / "pool") == _BEFORE


def test_a_creation_that_is_cancelled_too_late_is_whole(
    daemon: Daemon, libvirtd: Libvirtd, mail: dict[str, Any], tmp_path: Path
) -> None:
    """Whoever cancels it at any time has the whole guest, or nothing."""
    operation = daemon.ask("POST", "/1.0/guests?wait=0", mail)
    with contextlib.suppress(ConflictError):
        daemon.ask("DELETE", f"/1.0/operations/{operation['id']}")

    def state() -> str:
        return str(daemon.ask("GET", f"/1.0/operations/{operation['id']}")["state"])

    wait_until(lambda: state() != "running", "the operation's end")
    assert state() in ("done", "cancelled")
    expected = _AFTER if state() == "done" else _BEFORE
    assert _there(daemon, libvirtd, tmp_path / "pool") == expected


def test_a_copy_of_a_guest_is_told_of_and_has_nothing(daemon: Daemon, libvirtd: Libvirtd) -> None:
    """As ``virt-clone`` makes one: another name and UUID, and all devices with their aliases."""
    daemon.ask("POST", "/1.0/guests/web/endpoints", {"endpoint": "db0", **BOTH})
    daemon.ask("POST", "/1.0/guests/web/ports", {"port": "p0"})
    xml = libvirtd.virsh("dumpxml", "web", "--inactive")
    copy = daemon.folder / "copy.xml"
    copy.write_text(re.sub("<uuid>.*</uuid>", "", xml.replace("<name>web</name>", "<name>copy</name>")))
    with contextlib.closing(daemon.events()) as events:
        libvirtd.virsh("define", str(copy))
        told = [next(event for event in events if event["kind"] == "guest.foreign") for _ in range(2)]
    try:
        assert {event["object"] for event in told} == {"guest/copy"}
        found = daemon.ask("GET", "/1.0/guests/copy")
        for thing in (*found["attachments"], *found["ports"]):
            assert thing["state"] == "foreign"
            assert "guest 'web'" in thing["message"]
        assert web(daemon) == (["db0"], ["p0"])
        daemon.ask("DELETE", "/1.0/guests/copy/ports/p0")
        daemon.ask("DELETE", "/1.0/guests/web/ports/p0")  # for which QEMU would wait
        libvirtd.virsh("start", "web")
        with pytest.raises(GuestError, match="db0"):
            libvirtd.virsh("start", "copy")
        daemon.ask("DELETE", "/1.0/guests/copy/endpoints/db0")
        assert "ua-ringway" not in libvirtd.virsh("dumpxml", "copy")
        libvirtd.virsh("start", "copy")
        assert web(daemon) == (["db0"], [])
    finally:
        for verb, guest in (("destroy", "copy"), ("undefine", "copy"), ("destroy", "web")):
            with contextlib.suppress(GuestError):
                libvirtd.virsh(verb, guest)


@pytest.mark.parametrize("second", ["delete.committed", "delete.made", "port.going"])
def test_a_creation_that_is_undone_by_a_daemon_that_dies_as_well_is_nothing(
    daemon: Daemon, libvirtd: Libvirtd, mail: dict[str, Any], tmp_path: Path, second: str
) -> None:
    daemon.stop()
    for point in ("create.acknowledged", second):
        daemon.fault = f"{point}:1"
        if daemon.start():
            with pytest.raises((OSError, http.client.HTTPException)):
                daemon.ask("POST", "/1.0/guests", mail)
            daemon.wait_dead()
    daemon.fault = ""
    daemon.start()
    assert _there(daemon, libvirtd, tmp_path / "pool") == _BEFORE


def test_a_disk_is_an_endpoints_or_a_guests(
    daemon: Daemon, libvirtd: Libvirtd, mail: dict[str, Any], tmp_path: Path
) -> None:
    """Under whatever name: the endpoint's path is a link."""
    link = tmp_path / "link.img"
    os.link(tmp_path / "root.img", link)
    endpoint = {
        "name": "e0",
        "luns": [{"target": 0, "lun": 0, "backstore": {"kind": "path", "path": str(link)}}],
    }
    plain = {**mail, "via": "qemu", "ports": [], "block_devices": [{"id": "root"}], "start": True}
    daemon.ask("POST", "/1.0/endpoints", endpoint)
    with pytest.raises(BusyError, match="is LUN 0:0 of endpoint 'e0'") as refused:
        daemon.ask("POST", "/1.0/guests", {**plain, "start": False})
    assert "attach GUEST e0" in (refused.value.hint or "")
    daemon.ask("DELETE", "/1.0/endpoints/e0")
    daemon.ask("POST", "/1.0/guests", plain)
    with pytest.raises(BusyError):  # by QEMU's lock, or by what libvirt tells
        daemon.ask("POST", "/1.0/endpoints", endpoint)
    libvirtd.virsh("destroy", "mail")
    wait_until(lambda: daemon.ask("GET", "/1.0/guests/mail")["state"] == "shut-off", "the guest to stop")
    daemon.ask("POST", "/1.0/endpoints", endpoint)
    daemon.ask("DELETE", "/1.0/endpoints/e0")
