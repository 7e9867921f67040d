"""Whole stories by command line, with the real daemon and each engine."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys

import msgspec.yaml
import pytest

from ringway.testing.waiting import PATIENCE_S

from .conftest import Host

MIB = 1 << 20


def test_the_life_of_an_endpoint(host: Host) -> None:
    host.image("disk.img")
    made = host.create("db0", "--lun", "0=disk.img", "--lun", "1:3=ram:2M")
    assert "state       ready\n" in made
    assert f"{host.folder}/disk.img" in made
    told = json.loads(host.do("endpoint", "list", "-o", "json"))
    assert [(each["name"], each["engine"]) for each in told] == [("db0", host.plant.engine)]
    assert msgspec.yaml.decode(host.do("endpoint", "list", "-o", "yaml")) == told
    rows = csv.DictReader(io.StringIO(host.do("endpoint", "list", "-o", "csv")))
    assert [(row["name"], row["luns"], row["size"]) for row in rows] == [("db0", "2", str(3 * MIB))]
    assert host.do("lun", "list", "-q") == "db0/0:0\ndb0/1:3\n"
    assert "-device vhost-" in host.do("endpoint", "show", "db0", "--qemu")
    assert host.do("endpoint", "wait", "db0", "-q") == "db0\n"

    host.image("more.img")
    assert host.do("lun", "add", "db0", "7=more.img", "-c", "lun,size", "--no-headers") == "0:7  1 MiB\n"
    host.do("lun", "remove", "db0", "1:3")
    assert host.do("lun", "list", "db0", "-q") == "db0/0:0\ndb0/0:7\n"
    used = json.loads(host.do("backstore", "list", "-o", "json"))
    assert sorted(name for each in used for name in each["used_by"]) == ["db0/0:0", "db0/0:7"]

    host.do("endpoint", "delete", "db0")
    assert host.do("endpoint", "list", "-q") == ""
    assert host.plant.left() == []
    assert (host.folder / "disk.img").stat().st_size == MIB


def test_a_disk_grows_under_its_guest(host: Host) -> None:
    host.image("disk.img")
    host.create("db0", "--lun", "0=disk.img")
    host.image("disk.img", 2 * MIB)
    grown = host.type("lun", "resize", "db0", "0", "-c", "size", "--no-headers")
    assert (grown.status, grown.out) == (0, "2 MiB\n")
    assert ("/device/rescan" in grown.err) == (host.plant.engine == "lio")  # its guests are told by nobody
    assert host.do("lun", "list", "-o", "csv", "-c", "size", "--no-headers") == f"{2 * MIB}\n"


def test_a_disk_is_limited_and_stays_so(user_host: Host) -> None:
    user_host.image("disk.img")
    user_host.create("db0", "--lun", "0=disk.img")
    shown = user_host.do(
        "lun", "limit", "db0", "0", "--iops", "5k", "--burst", "10s", "-c", "limits", "--no-headers"
    )
    assert shown == "5 k/s, burst 10 s\n"
    user_host.do("lun", "limit", "db0", "0", "--bandwidth", "1M", "-q")
    user_host.daemon.kill()
    user_host.daemon.start()
    assert user_host.do("lun", "list", "-o", "csv", "-c", "iops,bandwidth,burst", "--no-headers") == (
        f"5000,{MIB},10.0\n"
    )
    user_host.do("lun", "limit", "db0", "0", "--none", "-q")
    assert user_host.do("lun", "list", "-c", "limits", "--no-headers") == "-\n"


def test_what_is_there_and_equal_is_done(host: Host) -> None:
    words = ("--lun", "0=ram:1M")
    first = host.create("db0", *words, "-o", "json")
    assert host.create("db0", *words, "-o", "json") == first
    again = host.type("endpoint", "create", "db0", "--engine", host.plant.engine, *words, "--lun", "1=ram:1M")
    assert (again.status, again.out) == (6, "")
    assert "db0" in again.err
    changed = json.loads(host.create("db0", *words, "--lun", "1=ram:1M", "--or-update", "-o", "json"))
    assert [lun["lun"] for lun in changed["luns"]] == [0, 1]
    assert (changed["wwpn"], changed["pid"]) == (json.loads(first)["wwpn"], json.loads(first)["pid"])


def test_a_wwpn_or_disk_of_another_is_refused(host: Host) -> None:
    host.image("disk.img")
    host.create("db0", "--lun", "0=disk.img", "--wwpn", "naa.500140512345678a")
    words = ("endpoint", "create", "db1", "--engine", host.plant.engine)
    for more in (("--wwpn", "naa.500140512345678a"), ("--lun", "0=disk.img")):
        refused = host.type(*words, *more)
        assert (refused.status, "db0" in refused.err) == (6, True), refused
    assert host.type(*words, "--lun", "0=missing.img").status == 3
    assert host.do("endpoint", "list", "-q") == "db0\n"


def test_a_dry_run_changes_nothing(host: Host) -> None:
    host.create("db0", "--lun", "0=ram:1M")
    before = host.do("endpoint", "list", "-o", "json")
    planned = host.do("lun", "add", "db0", "1=ram:1M", "--dry-run")
    assert planned.startswith("~ update endpoint db0\n    lun 0:1: add ")
    assert host.do("endpoint", "delete", "db0", "--dry-run").startswith("- delete endpoint db0\n")
    created = host.create("db1", "--dry-run")
    assert created.startswith("+ create endpoint db1\n")
    assert host.do("endpoint", "list", "-o", "json") == before


def test_a_disk_is_probed(user_host: Host) -> None:
    image = user_host.image("disk.img")
    found = json.loads(user_host.do("backstore", "probe", "disk.img", "-o", "json"))
    assert (found["kind"], found["size_bytes"], found["path"]) == ("file", MIB, str(image))
    assert user_host.type("backstore", "probe", "none.img").status == 3


def test_nobody_waits(host: Host) -> None:
    identifier = host.create("db0", "--lun", "0=ram:1M", "--no-wait").strip()
    ended = json.loads(host.do("operation", "wait", identifier, "-o", "json"))
    assert (ended["state"], ended["objects"]) == ("done", ["endpoint/db0"])
    assert identifier in host.do("operation", "list", "-q").split()
    assert host.type("operation", "cancel", identifier).status == 6
    refused = host.type(
        "endpoint", "create", "db1", "--engine", host.plant.engine, "--lun", "0=none", "--no-wait"
    )
    failed = host.type("operation", "wait", refused.out.strip())
    assert (failed.status, "none' does not exist" in failed.err) == (3, True)


FILE = """
[[endpoint]]
name = "db0"
engine = "{engine}"
luns = ["0=disk.img", "1=ram:1M"]

[[endpoint]]
name = "db1"
engine = "{engine}"
"""


def test_a_host_is_declared(host: Host) -> None:
    host.image("disk.img")
    host.create("old")
    (host.folder / "host.toml").write_text(FILE.format(engine=host.plant.engine))
    planned = host.do("plan", "--prune", "host.toml")
    steps = {tuple(line.split(maxsplit=2)) for line in planned.splitlines() if line[0] != " "}
    assert steps == {
        ("+", "create", "endpoint db0"),
        ("+", "create", "endpoint db1"),
        ("-", "delete", "endpoint old"),
    }
    assert host.do("apply", "--prune", "host.toml", "--dry-run") == planned
    assert host.do("apply", "--prune", "host.toml") == planned
    assert host.do("endpoint", "list", "-q") == "db0\ndb1\n"
    again = host.type("apply", "--prune", "host.toml")
    assert (again.status, again.out, again.err) == (0, "", "nothing would change\n")
    (host.folder / "empty.toml").touch()
    host.do("apply", "--prune", "empty.toml")
    assert host.plant.left() == []


def test_a_shell_script(host: Host) -> None:
    script = f"""
        # make one
        cd /endpoints
        create db0 lun=0=ram:1M engine={host.plant.engine} -q
        cd db0/luns
        create 1=ram:1M -q
        ls
        delete 0
        cd /
        /endpoints delete db0
    """
    out = host.do("shell", lines=script)
    assert out.splitlines()[0] == "db0"
    assert "o- 0:1 . [ram, 1 MiB" in out
    assert host.plant.left() == []
    failed = host.type("shell", lines="cd /endpoints\ndelete nope\ncreate never\n")
    assert (failed.status, "line 2 failed: delete nope" in failed.err) == (3, True)
    assert host.do("endpoint", "list", "-q") == ""
    assert host.type("shell", "cd", "/nowhere").status == 3


def test_what_died_comes_back_and_is_waited_for(host: Host) -> None:
    host.create("db0", "--lun", "0=ram:1M")
    host.plant.break_off("db0")
    seen = host.do("monitor", "--kinds", "endpoint.restarted", "--since", "0", "--count", "1", "-o", "json")
    assert json.loads(seen)["object"] == "endpoint/db0"
    assert host.do("endpoint", "wait", "db0", "-c", "name,restarts", "--no-headers").split() == ["db0", "1"]


def test_a_daemon_that_is_away_and_comes_back(host: Host) -> None:
    host.create("db0", "--lun", "0=ram:1M")
    before = host.do("endpoint", "show", "db0", "-o", "json")
    host.daemon.stop()
    missing = host.type("endpoint", "list")
    assert (missing.status, missing.out) == (4, "")
    assert "ringwayd is not there" in missing.err
    host.daemon.start()
    assert host.do("endpoint", "show", "db0", "-o", "json") == before


def test_the_socket_that_only_shows(host: Host) -> None:
    host.create("db0")
    read_only = host.daemon.api.with_name("ro.sock")
    assert host.type("endpoint", "list", "-q", socket=read_only).out == "db0\n"
    assert "read-only" in host.type("host", "info", socket=read_only).out
    refused = host.type("endpoint", "delete", "db0", socket=read_only)
    assert (refused.status, refused.out) == (4, "")
    assert "hint:" in refused.err


def test_monitor_tells_what_happens(host: Host) -> None:
    host.create("db0", "--lun", "0=ram:1M")
    host.do("lun", "add", "db0", "1=ram:1M")
    host.do("endpoint", "delete", "db0")
    lines = host.do("monitor", "--since", "0", "--kinds", "endpoint", "--count", "3", "-o", "json")
    assert [json.loads(line)["kind"] for line in lines.splitlines()] == [
        "endpoint.created",
        "endpoint.updated",
        "endpoint.deleted",
    ]


def test_top_shows_all_disks(host: Host) -> None:
    host.create("db0", "--lun", "0=ram:1M", "--lun", "1=ram:1M")
    rows = json.loads(host.do("top", "--once", "--json", "--interval", "0.05"))
    assert [(row["endpoint"], row["engine"], row["lun"], row["reads_per_s"]) for row in rows] == [
        ("db0", host.plant.engine, 0, 0),
        ("db0", host.plant.engine, 1, 0),
    ]
    assert "db0       0:0" in host.do("top", "--once", "--interval", "0.05")


def test_ctrl_c_ends_what_follows(host: Host) -> None:
    host.create("db0")
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "ringway", "monitor", "--since", "0"],
        env={**os.environ, "RINGWAY_SOCKET": str(host.daemon.api)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert b"endpoint.created" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0
    process.stdout.close()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("endpoint", "show", "nope"), 3),
        (("endpoint", "delete", "nope"), 3),
        (("endpoint", "create", "a b"), 2),
        (("endpoint", "create", "a", "--device", "blk"), 2),
        (("endpoint", "create", "a", "--lun", "0=ram:1M,emulate_nothing=1"), None),
        (("lun", "add", "nope", "0=ram:1M"), 3),
        (("operation", "show", "0123456789abcdef"), 3),
        (("config", "import", "/does/not/exist"), 2),
    ],
)
def test_what_cannot_be_is_said(host: Host, words: tuple[str, ...], status: int | None) -> None:
    engine = ("--engine", host.plant.engine) if words[:2] == ("endpoint", "create") else ()
    refused = host.type(*words, *engine)
    assert refused.status == status or (status is None and refused.status)
    assert refused.out == ""
    assert refused.err.startswith("error: ")
    assert "fault of Ringway" not in refused.err
    assert host.plant.left() == []
