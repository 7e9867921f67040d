"""The shell: a tree, a line, what it stands for, and its exit status."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ringway.cli.main import cli
from ringway.cli.shell.keyboard import offers
from ringway.cli.shell.session import VERBS, Session
from ringway.cli.shell.tree import Kind, Node, draw
from ringway.cli.shell.words import is_path, resolve, spell, split, to_options
from ringway.errors import RingwayError, UsageError
from ringway.model import (
    AttachmentInfo,
    AttachmentState,
    EndpointState,
    Face,
    GuestDisk,
    GuestInfo,
    GuestState,
    PlugInfo,
    PortInfo,
    PortMode,
    PortState,
)
from ringway.testing.waiting import PATIENCE_S

from .conftest import Run
from .daemon import FakeDaemon

part = st.from_regex(r"[a-z0-9.:_-]{1,6}", fullmatch=True).filter(lambda name: name not in (".", ".."))
path = st.lists(part, max_size=4).map(tuple)


# Words


@given(here=path, there=path)
def test_a_path_leads_where_it_says(here: tuple[str, ...], there: tuple[str, ...]) -> None:
    assert resolve(spell(there), here) == there
    assert resolve("/".join(there) or ".", here) == (*here, *there)
    assert resolve("../" * len(here), here) == ()
    assert resolve("../" * 9, here) == ()
    assert is_path(spell(there))


@given(st.text())
def test_a_line_is_understood_or_refused(line: str) -> None:
    with contextlib.suppress(UsageError):
        assert all(isinstance(word, str) for word in split(line))


def test_a_line_is_split_as_a_shell_does() -> None:
    assert split("create 'a b' lun=0=x # remark") == ["create", "a b", "lun=0=x"]
    assert split("  # remark") == []
    with pytest.raises(UsageError, match="quot"):
        split("create 'a")


@given(st.lists(st.text(max_size=12)))
def test_only_known_keys_become_options(words: list[str]) -> None:
    assert to_options(words, ()) == words
    known = {"--lun", "--io-engine"}
    for word, found in zip(words, to_options(words, known), strict=True):
        assert found in (word, f"--{word}")
        assert found == word or word.partition("=")[0] in ("lun", "io-engine")


def test_values_keep_their_equals_signs() -> None:
    known = {"--lun", "--engine"}
    assert to_options(["db0", "lun=0=/a=b", "0=/x", "engine=lio"], known) == [
        "db0",
        "--lun=0=/a=b",
        "0=/x",
        "--engine=lio",
    ]


# The tree

leaves = st.builds(Node, st.just(Kind.LUN), part, st.text(max_size=30))
nodes = st.recursive(
    leaves,
    lambda below: st.builds(
        Node, st.just(Kind.LUNS), part, st.text(max_size=30), children=st.lists(below, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


def count(node: Node, depth: int | None) -> int:
    if depth == 0:
        return 1
    return 1 + sum(count(child, None if depth is None else depth - 1) for child in node.children)


@given(node=nodes, depth=st.none() | st.integers(0, 4), width=st.none() | st.integers(60, 100))
def test_a_tree_has_a_line_a_node(node: Node, depth: int | None, width: int | None) -> None:
    lines = list(draw(node, depth, width))
    assert len(lines) == count(node, depth)
    assert len({line.index("[") for line in lines if "[" not in node.name}) == 1
    assert all(line.isprintable() and line.endswith("]") for line in lines)
    assert width is None or max(map(len, lines)) <= width


def test_a_tree_looks_like_this(db0: FakeDaemon, run: Run) -> None:
    run("endpoint", "create", "web", "--engine", "lio")
    assert run("shell", "ls", "/endpoints").out == (
        "o- endpoints . [2 endpoints]\n"
        "  o- db0 ..... [ready, no guest, user scsi, naa.5001405000000001]\n"
        "  | o- luns .. [2 disks]\n"
        "  |   o- 0:0 . [/srv/db0.img, 1 GiB]\n"
        "  |   o- 0:1 . [ram, 4 GiB, readonly]\n"
        "  o- web ..... [ready, no guest, lio scsi, naa.5001405000000001]\n"
        "    o- luns .. [0 disks]\n"
    )
    assert run("shell", "ls", "/endpoints", "0").out == "o- endpoints . [2 endpoints]\n"


@pytest.fixture
def web(db0: FakeDaemon) -> FakeDaemon:
    """A guest that has an endpoint and a port, and is a copy of another with one more."""
    db0.guests = [
        GuestInfo(
            name="web",
            uuid="0" * 8,
            state=GuestState.RUNNING,
            persistent=True,
            memory_bytes=1 << 30,
            vcpus=2,
            machine="q35",
            shared_memory=True,
            attachments=(
                AttachmentInfo(
                    guest="web",
                    endpoint="db0",
                    face=Face.VHOST_USER_SCSI,
                    alias="a",
                    live=True,
                    persistent=True,
                ),
                AttachmentInfo(
                    guest="web",
                    endpoint="logs",
                    face=Face.VHOST_USER_BLK,
                    alias="b",
                    state=AttachmentState.FOREIGN,
                    persistent=True,
                    message="it is guest 'mail''s",
                ),
            ),
            ports=(PlugInfo(guest="web", port="p0", live=True),),
            disks=(
                GuestDisk(target="vda", bus="virtio", device="disk", source="/srv/root.img", live=True),
                GuestDisk(
                    target="sda", bus="scsi", device="disk", source="/srv/v1.img", volume="v1", live=True
                ),
            ),
        )
    ]
    db0.ports = [
        PortInfo(
            name="p0",
            switch="ovs",
            state=PortState.UP,
            mac="52:54:00:00:00:01",
            socket="/run/p0.sock",
            mode=PortMode.SERVER,
            guest="web",
        )
    ]
    return db0


def test_guests_and_ports_are_in_the_tree(web: FakeDaemon, run: Run) -> None:
    assert run("shell", "ls", "/guests").out == (
        "o- guests ........ [1 guest]\n"
        "  o- web ......... [running, 2 CPUs, 1 GiB]\n"
        "    o- endpoints . [2 endpoints]\n"
        "    | o- db0 ..... [attached, now and at its next start]\n"
        "    | o- logs .... [foreign, at its next start, it is guest 'mail''s]\n"
        "    o- disks ..... [1 plain disk]\n"
        "    | o- sda ..... [attached, /srv/v1.img, now]\n"
        "    o- ports ..... [1 port]\n"
        "      o- p0 ...... [attached, now]\n"
    )
    assert run("shell", "ls", "/ports").out == (
        "o- ports . [1 port]\n  o- p0 .. [up, guest web, ovs server, 52:54:00:00:00:01]\n"
    )
    session = Session(web.socket)
    endpoint = ("guests", "web", "endpoints", "db0")
    spelled = ["guest", "detach", f"--socket={web.socket}", "web", "db0", "--no-live"]
    assert session.spelled_out(endpoint, "delete", ["--no-live"]) == spelled
    disk = ("guests", "web", "disks", "v1")
    spelled = ["guest", "detach", f"--socket={web.socket}", "web", "sda"]
    assert session.spelled_out(disk, "delete", []) == spelled
    mapping = "id=v1,source=volume,bus=scsi"
    spelled = ["guest", "attach", f"--socket={web.socket}", "web", f"--block-device={mapping}"]
    assert session.spelled_out(disk[:-1], "create", [f"block-device={mapping}"]) == spelled


def test_a_host_without_libvirt_has_a_tree(db0: FakeDaemon, run: Run) -> None:
    assert "o- guests ..... [this daemon has no libvirt, and knows no guests]" in run("shell", "ls").out
    assert run("shell", "ls", "/", "0").out == "o- / . [all is well]\n"
    assert run("shell", "--socket", "/nowhere", "ls", "/guests").status == 4


def test_what_is_ill_shows_at_the_root(db0: FakeDaemon, run: Run) -> None:
    assert run("shell", "ls", "0").out == "o- / . [all is well]\n"
    db0.endpoints["db0"] = replace(db0.endpoints["db0"], state=EndpointState.DEGRADED, message="it died")
    assert run("shell", "ls", "/", "0").out == "o- / . [look at endpoints]\n"
    assert "it died" in run("shell", "ls").out


def test_a_look_asks_for_its_branch_only(db0: FakeDaemon, run: Run) -> None:
    run("shell", "ls", "/backstores")
    assert db0.asked == ["GET /1.0/backstores"]


# Lines


def shell(run: Run, monkeypatch: pytest.MonkeyPatch, *lines: str) -> tuple[int, str, str]:
    """Run lines from a file."""
    with open("lines", "w") as file:
        file.write("\n".join(lines))
    with open("lines") as file:
        monkeypatch.setattr("sys.stdin", file)
        done = run("shell")
    return done.status, done.out, done.err


def test_a_life_in_the_tree(daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = shell(
        run,
        monkeypatch,
        "# a remark",
        "",
        "cd endpoints",
        "create db0 lun=0=ram:1G engine=lio -q",
        "cd db0",
        "pwd",
        "set protection=type1 -q",
        "cd luns",
        "create 1=/srv/x.img -q",
        "cd 0:1",
        "set iops=500 -q",
        "info -c lun,iops",
        "cd ..",
        "delete 1",
        "/endpoints/naa.5001405000000001",
        "pwd",
        "cd",
        "/endpoints delete db0",
        "exit",
        "never read",
    )
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "db0",
        "/endpoints/db0",
        "db0",
        "db0/0:1",
        "db0/0:1",
        "LUN  IOPS",
        "0:1   500",
        "/endpoints/db0",
    ]
    assert daemon.endpoints == {}


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("fly", 2, "no command 'fly' here"),
        ("create", 2, "no command 'create' here"),
        ("cd nowhere", 3, "no 'nowhere' on the way to /nowhere"),
        ("cd a b", 2, "'b' is too much"),
        ("ls a b c", 2, "too much"),
        ("pwd x", 2, "too much"),
        ("/endpoints create", 2, "NAME"),
        ("/endpoints create db0 speed=3", 2, "speed=3"),
        ("/endpoints/db0 set queues=none", 2, "queues"),
        ("/endpoints delete nope", 3, "no endpoint 'nope'"),
        ("help fly", 2, "no command 'fly' here"),
        ("create 'x", 2, "quot"),
    ],
)
def test_what_is_wrong_does_not_exit_0(
    db0: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch, line: str, status: int, message: str
) -> None:
    found, out, err = shell(run, monkeypatch, "pwd", line, "pwd")
    assert (found, out) == (status, "/\n"), err
    assert message in err
    assert f"line 2 failed: {line}\n" in err
    if "'x" not in line:
        once = run("shell", *line.split())
        assert (once.status, once.out) == (status, "")


def test_help_says_what_can_be_done(db0: FakeDaemon, run: Run) -> None:
    out = run("shell", "/endpoints", "help").out
    assert out.startswith("ls ")
    assert "\ncreate   Create an endpoint.\n" in out
    assert "Usage: ringway endpoint create" in run("shell", "/endpoints", "help", "create").out
    assert "Nothing has to be saved" in run("shell", "help", "exit").out


def test_the_socket_goes_along(db0: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGWAY_SOCKET", "/nowhere")
    assert run("shell", "--socket", db0.socket, "/endpoints", "info", "-q").out == "db0\n"
    assert run("shell", "--socket", db0.socket, "/endpoints", "delete", "db0").status == 0


def test_every_verb_of_the_tree_is_a_command() -> None:
    assert set(VERBS) == set(Kind)
    for verbs in VERBS.values():
        for spelled in verbs.values():
            command: click.Command = cli
            for word in spelled.split():
                if word.isupper():
                    assert word in Kind.__members__
                    continue
                assert isinstance(command, click.Group)
                found = command.get_command(click.Context(command), word)
                assert found is not None, spelled
                command = found


# The keyboard


def offered(daemon: FakeDaemon, line: str, here: str = "/") -> Sequence[str]:
    """What TAB offers at the end of a line."""
    session = Session(daemon.socket)
    session.execute(["cd", here])
    before, _, typed = line.rpartition(" ")
    return offers(session, before, typed)


def test_tab_completes_paths_wwns_names_and_files(db0: FakeDaemon, run: Run, tmp_path: Path) -> None:
    (tmp_path / "disk.img").touch()
    (tmp_path / "disks").mkdir()
    assert offered(db0, "cd e") == ["endpoints/", "engines/"]
    assert offered(db0, "ls endpoints/") == ["endpoints/db0/", "endpoints/naa.5001405000000001/"]
    assert offered(db0, "ls naa", "/endpoints") == ["naa.5001405000000001/"]
    assert offered(db0, "/endpoints/db0/lu") == ["/endpoints/db0/luns/"]
    assert offered(db0, "de", "/endpoints") == ["delete "]
    assert offered(db0, "/endpoints de") == ["delete "]
    assert offered(db0, "delete d", "/endpoints") == ["db0 "]
    assert offered(db0, "/endpoints/db0/luns delete ") == ["0:0 ", "0:1 "]
    assert offered(db0, "create x --eng", "/endpoints") == ["--engine "]
    assert offered(db0, "create x --engine ", "/endpoints") == ["lio ", "user "]
    assert offered(db0, f"create x lun=0={tmp_path}/dis", "/endpoints") == [
        f"lun=0={tmp_path}/disk.img ",
        f"lun=0={tmp_path}/disks/",
    ]
    assert offered(db0, f"apply {tmp_path}/disk.", "/") == [f"{tmp_path}/disk.img "]


@given(line=st.text(max_size=20))
def test_tab_never_fails(line: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGWAY_SOCKET", "/nowhere")
        before, _, typed = line.rpartition(" ")
        assert isinstance(offers(Session(None), before, typed), list)


def test_a_terminal_has_a_prompt_and_goes_on_after_an_error(db0: FakeDaemon) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "RINGWAY_SOCKET": db0.socket}
    process = subprocess.Popen(
        [sys.executable, "-m", "ringway", "shell"], env=environment, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    read_until(master, "ringway:/> ")
    os.write(master, b"fly\n")
    assert "no command 'fly' here" in read_until(master, "ringway:/> ")
    os.write(master, b"cd endp\tdb\t\n")
    read_until(master, "ringway:/endpoints/db0> ")
    os.write(master, b"exit\n")
    assert process.wait(PATIENCE_S) == 0
    os.close(master)


def read_until(terminal: int, prompt: str) -> str:
    """What comes up to a prompt. :raises AssertionError: the terminal closed before."""
    said = ""
    while not said.endswith(prompt):
        with contextlib.suppress(OSError):
            piece = os.read(terminal, 4096).decode()
            said += piece
            continue
        raise AssertionError(said)
    return said


def test_errors_of_a_session_are_ours(db0: FakeDaemon) -> None:
    with pytest.raises(RingwayError):
        Session(db0.socket).execute(["cd", "/endpoints/nope"])
