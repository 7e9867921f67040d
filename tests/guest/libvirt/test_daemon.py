"""A daemon and a guest that runs: whatever one dies in, whatever the other does late, however often."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from ringway.errors import BusyError, TimedOutError
from ringway.testing.daemon import Daemon
from ringway.testing.domain import DomainGuest
from ringway.testing.waiting import wait_until

from ..conftest import Count
from .bench import Bench, disks, files, read, started, write

MIB: Final = 1 << 20
ENDPOINTS: Final = {"db0": "scsi", "db1": "blk"}
ATTACH: Final = "/1.0/guests/web0/endpoints"
MEMORY_MARGIN: Final = 8 * MIB  #: what a daemon may grow by, whatever it did
THREADS_MARGIN: Final = 4  #: of pools that had not all been needed at once


@pytest.fixture
def daemon(run_dir: Path, web0: DomainGuest) -> Iterator[Daemon]:
    """One with an endpoint for each device, and a port 'p0'."""
    daemon = Daemon(run_dir / "d")
    uri = web0.libvirtd.uri
    daemon.configure(f'[lio]\nenabled = false\n[guests]\nenabled = true\nuri = "{uri}"\n')
    with daemon:
        daemon.start()
        for name, device in ENDPOINTS.items():
            lun = {"target": 0, "lun": 0, "backstore": {"kind": "ram", "size_bytes": MIB}}
            daemon.ask("POST", "/1.0/endpoints", {"name": name, "device": device, "luns": [lun]})
        daemon.ask("POST", "/1.0/ports", {"name": "p0", "switch": "external"})
        yield daemon
        for thing in ("ports/p0", *(f"endpoints/{name}" for name in ENDPOINTS)):
            daemon.ask("DELETE", f"/1.0/{thing}?force=1")


def attached(daemon: Daemon) -> list[tuple[str, bool, bool]]:
    """What the guest has by the daemon's words: names, whether now, whether at its next start."""
    found = daemon.ask("GET", "/1.0/guests/web0")["attachments"]
    return [(one["endpoint"], one["live"], one["persistent"]) for one in found]


# It dies


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("db0", "attachment.begun"),
        ("db0", "guest.connected"),
        ("db0", "guest.live"),
        ("db1", "guest.live"),
        ("db0", "attachment.made"),
        ("db1", "attachment.made"),
        ("db0", "attachment.confirmed"),
    ],
)
def test_an_attachment_that_the_daemon_dies_in_is_whole_or_nothing(
    daemon: Daemon, bench: Bench, web0: DomainGuest, name: str, point: str
) -> None:
    before = bench.documents("web0")
    daemon.die_at(point, "POST", ATTACH, {"endpoint": name})
    whole = point == "attachment.confirmed"
    wait_until(lambda: attached(daemon) == [(name, True, True)] * whole, "the next daemon to settle it")
    disks(web0, int(whole))
    if not whole:
        assert bench.remains("web0") == []
        assert bench.documents("web0") == before
    again = daemon.ask("POST", ATTACH, {"endpoint": name})
    assert (again["live"], again["persistent"]) == (True, True)
    [disk] = disks(web0, 1)
    write(web0, disk, point)
    assert read(web0, disk) == point
    daemon.ask("DELETE", f"{ATTACH}/{name}")
    assert bench.remains("web0") == []


@pytest.mark.parametrize("point", ["attachment.going", "attachment.gone"])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_detachment_that_the_daemon_dies_in_leaves_guest_and_daemon_in_agreement(
    daemon: Daemon, bench: Bench, web0: DomainGuest, name: str, point: str
) -> None:
    daemon.ask("POST", ATTACH, {"endpoint": name})
    disks(web0, 1)
    daemon.die_at(point, "DELETE", f"{ATTACH}/{name}")
    there = point == "attachment.going"  # nobody was told, and nothing was done
    assert attached(daemon) == [(name, True, True)] * there
    disks(web0, int(there))
    assert bool(bench.remains("web0")) is there
    if there:
        with pytest.raises(BusyError):
            daemon.ask("DELETE", f"/1.0/endpoints/{name}")


# The guest is late


def test_a_device_that_is_let_go_late_is_free_for_another_guest(
    daemon: Daemon, bench: Bench, web0: DomainGuest
) -> None:
    """Nobody waits for it any more, but the daemon hears of it."""
    daemon.ask("POST", ATTACH, {"endpoint": "db0", "persistent": False})
    disks(web0, 1)
    ask_in_vain(daemon, bench, "db0")
    bench.libvirtd.virsh("resume", "web0")
    wait_until(lambda: bench.remains("web0") == [], "the daemon to take away the connection")
    assert attached(daemon) == []
    wait_until(lambda: not daemon.ask("GET", "/1.0/endpoints/db0")["connected"], "nobody to be connected")
    with started(bench.define("other")):
        assert daemon.ask("POST", "/1.0/guests/other/endpoints", {"endpoint": "db0"})["live"]


def test_a_device_that_is_let_go_while_there_is_no_daemon_is_free_for_the_next(
    daemon: Daemon, bench: Bench, web0: DomainGuest
) -> None:
    daemon.ask("POST", ATTACH, {"endpoint": "db0"})
    disks(web0, 1)
    ask_in_vain(daemon, bench, "db0")
    daemon.stop()
    bench.libvirtd.virsh("resume", "web0")
    disks(web0, 0)
    left = ["chr-vu-ua-ringway-db0"]
    wait_until(lambda: bench.remains("web0") == left, "QEMU to let the device go")
    daemon.start()
    wait_until(lambda: bench.remains("web0") == [], "the daemon to take away the connection")
    assert attached(daemon) == [("db0", False, True)]
    assert daemon.ask("POST", ATTACH, {"endpoint": "db0"})["live"]
    disks(web0, 1)


def ask_in_vain(daemon: Daemon, bench: Bench, name: str) -> None:
    """Ask the guest for something while it stands still."""
    bench.libvirtd.virsh("suspend", "web0")
    with pytest.raises(TimedOutError):
        daemon.ask("DELETE", f"{ATTACH}/{name}?timeout=0.5")


# Again and again


def test_many_attachments_leave_nothing(
    daemon: Daemon, bench: Bench, web0: DomainGuest, count: Count
) -> None:
    """Files of all that take part; threads and memory of the daemon; devices, connections and documents."""

    def cycle() -> None:
        for name in ENDPOINTS:
            daemon.ask("POST", ATTACH, {"endpoint": name})
        daemon.ask("POST", "/1.0/guests/web0/ports", {"port": "p0", "live": False})
        disks(web0, 2)
        for name in ENDPOINTS:
            daemon.ask("DELETE", f"{ATTACH}/{name}")
        daemon.ask("DELETE", "/1.0/guests/web0/ports/p0")
        disks(web0, 0)

    for _ in range(3):  # what is kept of it grows at first: threads of pools, caches, what is told
        cycle()
    targets = [daemon.ask("GET", f"/1.0/endpoints/{name}")["pid"] for name in ENDPOINTS]
    pids = (daemon.pid, web0.pid, bench.libvirtd.pid, *targets)
    before, documents = {pid: files(pid) for pid in pids}, bench.documents("web0")
    memory, threads = status(daemon.pid, "VmRSS") * 1024, status(daemon.pid, "Threads")
    for _ in range(count(4, 100)):
        cycle()
    wait_until(lambda: not grown(before), "the last files to be closed")
    assert status(daemon.pid, "Threads") <= threads + THREADS_MARGIN
    assert status(daemon.pid, "VmRSS") * 1024 <= memory + MEMORY_MARGIN
    assert bench.documents("web0") == documents
    assert bench.remains("web0") == []


def grown(before: Mapping[int, int]) -> dict[int, int]:
    """The processes that have more files open than they had."""
    return {pid: now for pid, number in before.items() if (now := files(pid)) > number}


def status(pid: int, field: str) -> int:
    """A number of what the kernel says of a process; of memory in KiB."""
    match = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])
