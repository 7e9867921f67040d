"""The commands that ask the daemon, against one that keeps its endpoints in memory."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from ringway.cli.main import cli
from ringway.model import EndpointState, Event, HostConfig
from ringway.testing.waiting import PATIENCE_S

from .conftest import Run
from .daemon import FakeDaemon

# Endpoints


def test_an_endpoint_lives(daemon: FakeDaemon, run: Run) -> None:
    made = run("endpoint", "create", "db0", "--lun", "0=disk.img", "--queues", "2", "--poll", "poll")
    assert (made.status, made.err) == (0, "")
    spec = daemon.endpoints["db0"].spec
    assert spec is not None
    assert spec.luns[0].backstore.path == os.path.abspath("disk.img")
    assert (spec.queues, spec.poll) == (2, "poll")
    assert run("endpoint", "ls", "-q").out == "db0\n"
    assert "/run/ringway/endpoint/db0.sock" in run("endpoint", "show", "db0").out
    assert run("endpoint", "set", "db0", "--queues", "4").status == 0
    changed = daemon.endpoints["db0"].spec
    assert changed is not None
    assert (changed.queues, changed.poll, changed.luns) == (4, "poll", spec.luns)
    for incoming in (True, False):
        assert run("endpoint", "set", "db0", f"--{'' if incoming else 'no-'}incoming").status == 0
        changed = daemon.endpoints["db0"].spec
        assert changed is not None
        assert (changed.incoming, changed.queues) == (incoming, 4)
    assert run("endpoint", "wait", "db0", "--for", "ready").status == 0
    assert run("endpoint", "rm", "db0").status == 0
    assert run("endpoint", "wait", "db0", "--for", "gone").status == 0
    assert run("endpoint", "list", "-o", "json").out == "[]\n"


def test_all_formats_say_the_same(db0: FakeDaemon, run: Run) -> None:
    told = json.loads(run("endpoint", "list", "-o", "json").out)
    assert [(each["name"], each["luns"][1]["size_bytes"]) for each in told] == [("db0", 4 << 30)]
    assert msgspec.yaml.decode(run("endpoint", "list", "-o", "yaml").out) == told
    rows = csv.DictReader(io.StringIO(run("endpoint", "list", "-o", "csv").out))
    assert [(row["name"], row["luns"], row["size"]) for row in rows] == [("db0", "2", str(5 << 30))]
    assert json.loads(run("endpoint", "show", "db0", "-o", "json").out) == told[0]
    assert run("endpoint", "list", "--no-headers", "-c", "name,state,guest").out == "db0  ready  no\n"


def test_the_format_of_the_environment(db0: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGWAY_FORMAT", "csv")
    assert run("endpoint", "list", "-c", "name").out == "name\ndb0\n"


def test_a_list_is_filtered(db0: FakeDaemon, run: Run) -> None:
    assert run("endpoint", "list", "--engine", "lio", "-q").out == ""
    assert run("endpoint", "list", "--state", "ready", "-q").out == "db0\n"


def test_an_endpoint_without_disks_is_made_and_said(db0: FakeDaemon, run: Run) -> None:
    made = run("endpoint", "create", "empty", "-q")
    assert (made.status, made.out) == (0, "empty\n")
    assert made.err.startswith("warning: endpoint 'empty' has no LUNs")
    assert "ringway lun add empty 0=" in made.err
    assert run("endpoint", "create", "full", "--lun", "0=ram:1G", "-q").err == ""


def test_creating_again_is_fine_if_it_is_equal(db0: FakeDaemon, run: Run) -> None:
    again = ("endpoint", "create", "db0", "--lun", "0=/srv/db0.img", "--lun", "1=ram:4G,readonly")
    assert run(*again).status == 0
    other = run(*again, "--queues", "2")
    assert (other.status, other.err) == (6, "error: 'db0' exists and is another\nhint: take --or-update\n")
    assert run(*again, "--queues", "2", "--or-update").status == 0
    assert db0.endpoints["db0"].spec.queues == 2  # type: ignore[union-attr]


def test_several_are_deleted_and_the_first_that_fails_ends_it(db0: FakeDaemon, run: Run) -> None:
    failed = run("endpoint", "delete", "nope", "db0")
    assert (failed.status, "no endpoint 'nope'" in failed.err) == (3, True)
    assert run("endpoint", "delete", "--missing-ok", "nope", "db0", "--force").status == 0
    assert db0.asked[-1] == "DELETE /1.0/endpoints/db0?force=1&wait=0.500"


def test_what_qemu_is_told(db0: FakeDaemon, run: Run) -> None:
    out = run("endpoint", "show", "--qemu", "db0").out
    assert "-device vhost-user-scsi-pci,chardev=ringway,num_queues=1\n" in out
    run("endpoint", "create", "kernel", "--engine", "lio", "--lun", "0=/dev/vg0/x")
    assert run("endpoint", "show", "--qemu", "kernel").out == (
        "  -device vhost-scsi-pci,wwpn=naa.5001405000000001\n"
    )


def test_the_last_words_of_a_degraded_endpoint_are_shown(db0: FakeDaemon, run: Run) -> None:
    found = db0.endpoints["db0"]
    db0.endpoints["db0"] = msgspec.structs.replace(
        found, state=EndpointState.DEGRADED, message="first line\nsecond \x1b[31mline"
    )
    out = run("endpoint", "show", "db0").out
    assert "message     first line\n            second \\x1b[31mline\n" in out
    late = run("endpoint", "wait", "db0", "--timeout", "10ms")
    assert (late.status, "is degraded, and not ready" in late.err) == (5, True)
    assert run("endpoint", "wait", "db0", "--for", "degraded", "-q").out == "db0\n"


# LUNs


def test_a_disk_comes_is_limited_grows_and_goes(db0: FakeDaemon, run: Run) -> None:
    added = run("lun", "add", "db0", "2:7=null:1G", "-o", "json")
    assert json.loads(added.out)[0]["target"] == 2
    assert run("lun", "limit", "db0", "2:7", "--iops", "5k", "--bandwidth", "200M").status == 0
    assert run("lun", "limit", "db0", "2:7", "--burst", "10s", "-c", "limits", "--no-headers").out == (
        "5 k/s, 200 MiB/s, burst 10 s\n"
    )
    assert run("lun", "resize", "db0", "2:7", "--size", "2G", "-c", "size", "--no-headers").out == "2 GiB\n"
    assert run("lun", "limit", "db0", "2:7", "--none", "-c", "limits", "--no-headers").out == "-\n"
    assert run("lun", "rm", "db0", "2:7").status == 0
    assert run("lun", "list", "db0", "-q").out == "db0/0:0\ndb0/0:1\n"
    assert run("lun", "list", "-o", "csv", "-c", "endpoint,lun,size,readonly").out == (
        f"endpoint,lun,size,readonly\ndb0,0:0,{1 << 30},false\ndb0,0:1,{4 << 30},true\n"
    )


def test_a_disk_that_is_not_there(db0: FakeDaemon, run: Run) -> None:
    shown = run("lun", "show", "db0", "9")
    assert (shown.status, shown.err) == (3, "error: 'db0' has no LUN 0:9\nhint: it has 0:0, 0:1\n")
    assert run("lun", "limit", "db0", "9", "--iops", "1").status == 3


# Operations


def test_work_that_takes_long_is_waited_for(db0: FakeDaemon, run: Run) -> None:
    db0.slow = True
    assert run("endpoint", "create", "db1", "-q").out == "db1\n"
    assert [each.state for each in db0.operations] == ["done"]


def test_work_that_nobody_waits_for(db0: FakeDaemon, run: Run) -> None:
    db0.slow = True
    assert run("endpoint", "create", "db1", "--no-wait").out == "op0\n"
    assert json.loads(run("endpoint", "create", "db2", "--no-wait", "-o", "json").out)["id"] == "op1"
    assert run("operation", "list", "--running", "-q").out == "op0\nop1\n"
    assert run("operation", "wait", "op0", "-c", "state", "--no-headers").out == "done\n"
    assert "cancelled" in run("operation", "cancel", "op1").out
    assert run("operation", "wait", "op1").status == 6
    assert run("operation", "show", "nope").status == 3


def test_time_is_up_and_the_work_goes_on(db0: FakeDaemon, run: Run) -> None:
    db0.slow = True
    late = run("endpoint", "delete", "db0", "--timeout", "0s")
    assert (late.status, late.err) == (
        5,
        "error: it takes longer: delete db0\nhint: it goes on; wait for it with ringway operation wait op0\n",
    )


def test_ctrl_c_ends_the_waiting_and_not_the_work(db0: FakeDaemon) -> None:
    script = (
        "import os, signal, sys\n"
        "from ringway.cli import remote\n"
        "show = remote.Progress.__call__\n"
        "def interrupt(self, operation):\n"
        "    show(self, operation)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "remote.Progress.__call__ = interrupt\n"
        "from ringway.cli.main import main\n"
        "main()\n"
    )
    db0.slow = True
    command = [sys.executable, "-c", script, "endpoint", "delete", "db0"]
    done = subprocess.run(
        ["env", "--default-signal=INT", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == (
        "it goes on; see ringway operation wait op0, or cancel it: ringway operation cancel op0\n\n"
    )


# Plans


@pytest.mark.parametrize(
    "words",
    [
        ("endpoint", "create", "db1", "--lun", "0=ram:1G"),
        ("endpoint", "set", "db0", "--queues", "2"),
        ("endpoint", "delete", "db0"),
        ("lun", "add", "db0", "3=ram:1G"),
        ("lun", "remove", "db0", "0"),
        ("lun", "limit", "db0", "0", "--iops", "1"),
        ("lun", "resize", "db0", "0"),
    ],
)
def test_a_dry_run_changes_nothing(db0: FakeDaemon, run: Run, words: tuple[str, ...]) -> None:
    before = dict(db0.endpoints)
    planned = run(*words, "--dry-run")
    assert re.fullmatch(r"[+~-] (create|update|delete) endpoint db[01]\n    a detail\n", planned.out)
    assert db0.endpoints == before


FILE = """
[[endpoint]]
name = "db0"
luns = ["0=disks/a.img", { target = 0, lun = 1, backstore = { kind = "ram", size_bytes = 4096 } }]

[[endpoint]]
name = "new"
engine = "lio"
"""


def test_a_host_is_declared(db0: FakeDaemon, run: Run, tmp_path: Path) -> None:
    run("endpoint", "create", "old")
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "host.toml").write_text(FILE)
    file = folder / "host.toml"
    assert run("plan", file).out == "~ update endpoint db0\n    2 luns\n+ create endpoint new\n    0 luns\n"
    assert run("apply", file, "--dry-run", "--prune").out.endswith("- delete endpoint old\n")
    assert run("plan", file, "--prune", "-q").out == "endpoint/db0\nendpoint/new\nendpoint/old\n"
    assert (
        run("plan", file, "-o", "csv", "--no-headers").out
        == "update,endpoint/db0,2 luns\ncreate,endpoint/new,0 luns\n"
    )
    assert set(db0.endpoints) == {"db0", "old"}
    assert run("apply", file, "--prune").out.endswith("- delete endpoint old\n")
    assert set(db0.endpoints) == {"db0", "new"}
    assert "force" not in db0.asked[-1]
    run("apply", file, "--force")
    assert "force=1" in db0.asked[-1]
    assert db0.endpoints["db0"].luns[0].path == str(folder / "disks/a.img")
    nothing = run("plan", file, "--prune")
    assert (nothing.out, nothing.err) == ("", "nothing would change\n")
    changes = json.loads(run("plan", file, "-o", "json").out)["changes"]
    assert [change["action"] for change in changes] == ["keep", "keep"]


def test_what_is_exported_is_what_is_planned(db0: FakeDaemon, run: Run, tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text(run("config", "export").out)
    assert run("plan", "host.json", "--prune").err == "nothing would change\n"
    exported = msgspec.yaml.decode(run("config", "export", "-o", "yaml").out, type=HostConfig)
    assert [spec.name for spec in exported.endpoint] == ["db0"]


def test_targetclis_configuration_is_taken_over(daemon: FakeDaemon, run: Run, tmp_path: Path) -> None:
    (tmp_path / "saveconfig.json").write_text('{"targets": []}')
    taken = run("config", "import", "saveconfig.json", "--adopt")
    assert taken.out == "+ create endpoint kernel\n    0 targets\n    adopt\n    dry_run\n"
    assert taken.err == "note: iscsi iqn.x: skipped: another fabric\n"
    assert "targets" in json.loads(run("config", "export", "--format", "targetcli").out)
    assert run("config", "import").status == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[endpoint]]\nname = 'a b'", "name"),
        ("[[endpoint]]\nname = 'a'\nspeed = 3", "speed"),
        ("[[endpoint]]\nname = 'a'\nluns = ['x']", "is not a LUN"),
        ("endpoint = 3", "endpoint"),
        ("endpoint = [3]", "a table"),
        ("[[endpoint", "is no configuration"),
        ("{", "is no configuration"),
    ],
)
def test_a_file_that_makes_no_sense(
    daemon: FakeDaemon, run: Run, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "host.toml").write_text(text)
    refused = run("apply", "host.toml")
    assert (refused.status, message in refused.err) == (2, True), refused.err
    assert daemon.asked == []


# The host


def test_the_host(db0: FakeDaemon, run: Run) -> None:
    out = run("host", "info").out
    assert "host, Linux 6.12\n" in out
    assert "  no  landlock: too old\n      hint: upgrade Linux\n" in out
    assert json.loads(run("host", "info", "-o", "json").out)["endpoints"] == 1
    assert run("host", "doctor", "--help").status == 0


def test_backstores(db0: FakeDaemon, run: Run) -> None:
    assert (
        run("backstore", "list", "--no-headers", "-c", "kind,used-by").out == "file  db0/0:0\nram   db0/0:1\n"
    )
    assert "path      /srv/x.img\n" in run("backstore", "probe", "/srv/x.img,readonly").out
    assert "db0/0:0" in run("backstore", "show", "db0-0").out
    assert run("backstore", "show", "nope").status == 3


def test_events(daemon: FakeDaemon, run: Run) -> None:
    for number, kind in enumerate(["endpoint.created", "lun.resized", "endpoint.ready"], 1):
        daemon.events.append(Event(sequence=number, time="T", kind=kind, object="endpoint/a", message="m"))
    one = run("monitor", "--count", "1")
    assert (one.status, one.out) == (0, "T  endpoint.created     endpoint/a  m\n")
    lines = run("monitor", "--kinds", "endpoint", "-o", "json")
    assert [json.loads(line)["sequence"] for line in lines.out.splitlines()] == [1, 3]
    assert (lines.status, "has ended its stream" in lines.err) == (4, True)


def test_top_of_all_disks(db0: FakeDaemon, run: Run) -> None:
    rows = json.loads(run("top", "--once", "--json", "--interval", "0.05").out)
    assert [(row["endpoint"], row["lun"]) for row in rows] == [("db0", 0), ("db0", 1)]
    assert all(row["reads_per_s"] > 0 and row["p99_ns"] == 2048 for row in rows)
    out = run("top", "--once", "--interval", "0.05").out
    assert out.splitlines()[0].split()[:3] == ["ENDPOINT", "LUN", "ENGINE"]


def test_top_of_nothing(daemon: FakeDaemon, run: Run) -> None:
    assert run("top", "--once", "--interval", "0.05").out == "there is no disk\n"


# Manners


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    for verb in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), verb)
        assert command is not None
        yield f"{name} {verb}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {verb}")


def test_every_command_and_option_is_explained() -> None:
    for name, command in commands(cli, "ringway"):
        assert command.help, name
        if name.split()[1] in (
            "endpoint",
            "lun",
            "backstore",
            "operation",
            "host",
            "config",
            "plan",
            "apply",
        ):
            silent = [
                each.name for each in command.params if isinstance(each, click.Option) and not each.help
            ]
            assert silent in ([], ["device"], ["format_"], ["output"]), name


def test_a_list_imports_no_more_than_it_needs(db0: FakeDaemon) -> None:
    heavy = (
        "rich",
        "http",
        "email",
        "asyncio",
        "ssl",
        "yaml",
        "csv",
        "ringway.scsi",
        "ringway.notation",
        "ringway._core",
        "ringway.target",
        "dataclasses",
        "subprocess",
        "urllib",
    )
    script = (
        "import sys\nfrom ringway.cli.main import exit_status, cli\n"
        "exit_status(lambda: cli.main(['endpoint', 'list', '-q'], standalone_mode=False))\n"
        f"print(*(name for name in {heavy!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout == "db0\n\n"


def test_importing_ringway_is_cheap() -> None:
    script = "import sys, ringway; print(*({'msgspec', 'click', 'ringway.client'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout == "\n"
