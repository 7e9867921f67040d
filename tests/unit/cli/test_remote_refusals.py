"""What the commands that ask the daemon say when it cannot be asked, or would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Run
from .daemon import FakeDaemon

ASKING = [
    ("endpoint", "list"),
    ("endpoint", "create", "db0"),
    ("lun", "list"),
    ("backstore", "list"),
    ("operation", "list"),
    ("host", "info"),
    ("config", "export"),
    ("monitor",),
    ("top", "--once"),
    ("shell", "ls"),
]


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_a_daemon_that_is_not_there(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    missing = run(
        words[0],
        *(["--socket", tmp_path / "x"] if words[0] == "shell" else []),
        *words[1:],
        *([] if words[0] == "shell" else ["--socket", tmp_path / "x"]),
    )
    assert (missing.status, missing.out) == (4, "")
    assert "ringwayd is not there" in missing.err
    assert "systemctl start ringwayd" in missing.err


def test_a_socket_that_only_shows(db0: FakeDaemon, run: Run) -> None:
    db0.read_only = True
    refused = run("endpoint", "delete", "db0")
    assert (refused.status, refused.err) == (4, "error: this socket only shows\nhint: use api.sock\n")
    assert "read-only" in run("host", "info").out


WRONG = [
    (("endpoint", "create", "a/b"), "cannot be an endpoint's name"),
    (("endpoint", "create", "x" * 64), "cannot be an endpoint's name"),
    (("endpoint", "create", "a", "--lun", "disk.img"), "is not a LUN"),
    (("endpoint", "create", "a", "--lun", "0=a", "--lun", "0:0=b"), "the same target and LUN"),
    (("endpoint", "create", "a", "--lun", "99999=a"), "out of range"),
    (("endpoint", "create", "a", "--wwpn", "5001405"), "is no NAA name"),
    (("endpoint", "create", "a", "--nexus", "naa.xyz"), "is no NAA name"),
    (("endpoint", "create", "a", "--cpus", "3-1"), "no list of CPUs"),
    (("endpoint", "create", "a", "--queues", "0"), "--queues"),
    (("endpoint", "create", "a", "--timeout", "soon"), "is not a duration"),
    (("endpoint", "set", "a"), "nothing to set"),
    (("endpoint", "list", "-o", "xml"), "xml"),
    (("endpoint", "fly"), "fly"),
    (("lun", "limit", "a", "0"), "no limit to set"),
    (("lun", "limit", "a", "0", "--none", "--iops", "3"), "no limit to set"),
    (("lun", "limit", "a", "0", "--burst", "2h"), "burst_s is 7200.0, and has to be 60.0 at most"),
    (("lun", "limit", "a", "0", "--iops", "many"), "no number of requests"),
    (("lun", "add", "a", "0=d,name=a/b"), "not possible"),
    (("lun", "remove", "a", "x"), "not the address of a LUN"),
    (("port", "create", "p/0"), "name is 'p/0', and has to be made of letters"),
    (("port", "create", "p0", "--mac", "5254"), "'5254' is no MAC address"),
    (("port", "create", "p0", "--queues", "0"), "--queues"),
    (("port", "create", "p0", "--mode", "both"), "'client', 'server'"),
    (("port", "create", "p0", "--option", "bridge"), "names no value"),
    (("port", "create", "p0", "--option", "a=1", "--option", "a=2"), "'a' is given twice"),
    (("guest", "plug", "web", "p/0"), "port is 'p/0', and has to be made of letters"),
    (("guest", "attach", "web", "d/0"), "endpoint is 'd/0', and has to be made of letters"),
    (("plan", "missing.toml"), "cannot be read"),
    (("plan", "/dev/zero"), "more than 16 MiB"),
    (("completion", "tcsh"), "tcsh"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_bad_input_never_reaches_the_daemon(
    daemon: FakeDaemon, run: Run, words: tuple[str, ...], message: str
) -> None:
    refused = run(*words)
    assert (refused.status, refused.out) == (2, "")
    assert message in refused.err
    assert "hint:" in refused.err
    assert not [asked for asked in daemon.asked if not asked.startswith("GET")]


VIRSHS = [
    (("guest", "rm", "web0"), "virsh undefine web0"),
    (("guest", "start", "web0", "--now"), "virsh start web0"),
    (("guest", "stop"), "virsh shutdown GUEST"),
]


@pytest.mark.parametrize(("words", "meant"), VIRSHS)
def test_what_is_done_with_guests_themselves_is_virshs(run: Run, words: tuple[str, ...], meant: str) -> None:
    refused = run(*words)
    assert (refused.status, refused.out) == (2, "")
    assert refused.err == f"error: ringway guest has no {words[1]}\nhint: it is: {meant}\n"
