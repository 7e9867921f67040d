"""The command as its users meet it: help, errors, exit statuses, a life of `serve`, the programs."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import ringway
from ringway.cli.main import COMMANDS, cli, exit_status
from ringway.errors import BusyError, RingwayError
from ringway.testing.frontend import BlkFrontEnd, ScsiFrontEnd
from ringway.testing.waiting import PATIENCE_S

from .conftest import Run, Start

MAIN = ("-m", "ringway.cli.main")
ROOT = Path(__file__).parents[3]


def program(name: str) -> tuple[str, str]:
    return ("-c", f"from ringway.cli.program import {name}; {name}()")


# Help and errors


def test_help_lists_every_command_without_importing_any(run: Run) -> None:
    script = (
        "import sys; from ringway.cli.main import exit_status, cli\n"
        "exit_status(lambda: cli.main(['--help'], standalone_mode=False))\n"
        "print('imported:', sorted(set(sys.modules) & {'msgspec', 'rich', 'ringway._core', 'ringway.model'}))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert all(f"\n  {name} " in output for name in COMMANDS)
    assert output.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_what_the_help_says(run: Run, name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.get_short_help_str(100) == COMMANDS[name][1]
    assert run(name, "--help").status == 0


def test_the_help_of_serve_has_examples_and_every_option_a_text(run: Run) -> None:
    text = run("serve", "--help").out
    assert "ringway serve disk.img" in text
    from ringway.cli.serve import serve

    silent = [option.name for option in serve.params if isinstance(option, click.Option) and not option.help]
    assert silent == ["device"], "its choices say it all"


def test_the_version(run: Run) -> None:
    assert run("--version").out == f"ringway {ringway.__version__}\n"


def test_an_unknown_command_and_an_unknown_option_are_usage_errors(run: Run) -> None:
    assert run("fly").status == 2
    assert run("serve", "--fly").status == 2
    assert run("--fly").status == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RingwayError("x"), 1),
        (BusyError("x"), 6),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (click.UsageError("x"), 2),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_an_error_has_an_exit_status(error: BaseException, status: int) -> None:
    def fail() -> None:
        raise error

    assert exit_status(fail) == status


def test_a_reader_that_left_is_no_reason_to_complain() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *MAIN, "serve", "--help"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=PATIENCE_S)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")


def test_debug_adds_the_chain(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        try:
            raise OSError("the cause")
        except OSError as cause:
            raise BusyError("the sentence", hint="the step") from cause

    exit_status(fail)
    plain = capsys.readouterr().err
    assert plain == "error: the sentence\nhint: the step\n"
    exit_status(fail, debug=True)
    assert "the cause" in capsys.readouterr().err


# serve


def test_serve_prints_what_to_copy_and_logs_json(start: Start, image: Path, tmp_path: Path) -> None:
    serving = start(*MAIN, "serve", image.name, "--queues", "2")
    info = serving.event("ready")["info"]
    assert (info["device"], info["queues"], info["connected"]) == ("scsi", 2, False)
    with ScsiFrontEnd(tmp_path / "disk.img.sock").open() as guest:
        while guest.command(bytes(6)).status:
            pass
        guest.command(b"\x2a" + bytes(7) + b"\x01\x00", data_out=b"x" * 512)
    assert serving.stop() == 0
    summary = serving.event("summary")
    assert summary["signal"] == signal.SIGTERM
    assert summary["statistics"]["luns"][0]["write_bytes"] == 512
    assert serving.process.stdout is not None
    text = serving.process.stdout.read().decode()
    assert "path=./disk.img.sock" in text
    assert "-device vhost-user-scsi-pci,chardev=ringway,num_queues=2" in text
    assert "docs/how-to/libvirt.md" in text
    assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]
    assert image.read_bytes()[:512] == b"x" * 512


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_serve_cleanly(start: Start, number: signal.Signals, tmp_path: Path) -> None:
    serving = start(*MAIN, "serve", "null:1G")
    serving.event("ready")
    assert serving.stop(number) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_serve_sets_up_takes_the_new_image_away(
    start: Start, number: signal.Signals, tmp_path: Path
) -> None:
    """A lock on the socket's directory holds the start up, when the image is made already."""
    image, sockets = tmp_path / "new.img", tmp_path / "sockets"
    sockets.mkdir()
    with locked(sockets):
        serving = start(*MAIN, "serve", image.name, "--create", "1M", "--socket", "sockets/s")
        while not image.exists():
            assert serving.process.poll() is None
        assert serving.stop(number) == 130
    assert not image.exists()
    assert not list(sockets.iterdir())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As ``nohup ringway serve`` asks for."""
    command = ["env", "--ignore-signal=HUP", sys.executable, *MAIN, "serve", "null:1G"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert b"ready" in process.stderr.readline()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        log = process.stderr.read()
    assert json.loads(log.splitlines()[-1])["signal"] == signal.SIGTERM
    assert process.returncode == 0


def test_serve_on_a_terminal_shows_figures_for_people(tmp_path: Path) -> None:
    terminal, side = pty.openpty()
    command = ["env", "--default-signal=INT", "TERM=xterm", sys.executable, *MAIN, "serve", "null:1G"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=side, stdout=side, stderr=side)
    os.close(side)
    text = b""
    while b"waiting for a guest" not in text:
        text += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    while b"no guest came" not in text:
        text += os.read(terminal, 4096)
    assert process.wait(PATIENCE_S) == 0
    os.close(terminal)
    assert b"QEMU:" in text
    assert b'"event"' not in text


def test_serve_makes_a_new_image(start: Start, tmp_path: Path) -> None:
    serving = start(*MAIN, "serve", "--device", "blk", "--create", "1G", "new.img")
    serving.event("ready")
    with BlkFrontEnd(tmp_path / "new.img.sock").open() as guest:
        assert guest.capacity == (1 << 30) // 512
    serving.stop()
    assert (tmp_path / "new.img").stat().st_size == 1 << 30


def test_disks_of_all_kinds_at_all_addresses(start: Start, image: Path, run: Run) -> None:
    serving = start(
        *MAIN,
        "serve",
        image.name,
        *("--lun", "2=ram:4M"),
        *("--lun", "3:1=null:1T,block-size=4096"),
        "--readonly",
    )
    serving.process.wait(PATIENCE_S)
    assert serving.process.returncode == 2, "memory cannot be read-only"
    serving = start(
        *MAIN,
        "serve",
        f"{image.name},readonly",
        *("--lun", "2=ram:4M"),
        *("--lun", "3:1=null:1T,block-size=4096"),
    )
    serving.event("ready")
    luns = json.loads(run("target", "info", "disk.img.sock", "-o", "json").out)["luns"]
    assert [(lun["target"], lun["lun"], lun["kind"], lun["block_size"], lun["readonly"]) for lun in luns] == [
        (0, 0, "file", 512, True),
        (0, 2, "ram", 512, False),
        (3, 1, "null", 4096, False),
    ]


# target


def test_a_target_is_changed_by_command(start: Start, run: Run, image: Path, tmp_path: Path) -> None:
    start(*MAIN, "serve", "null:1G").event("ready")
    added = run("target", "add", "null.sock", f"1={image.name}")
    assert (added.status, added.err) == (0, "")
    assert f"file {image}" in added.out
    with open(image, "r+b") as file:
        file.truncate(32 << 20)
    assert "32 MiB" in run("target", "resize", "null.sock", "1").out
    assert "2 GiB" in run("target", "resize", "null.sock.ctl", "0", "--size", "2G").out
    assert run("target", "info", "null.sock").out.count("\n") == 4
    assert run("target", "drain", "null.sock").status == 0
    assert run("target", "remove", "null.sock", "1").status == 0
    again = run("target", "remove", "null.sock", "1")
    assert (again.status, again.err.splitlines()[0]) == (3, "error: there is no LUN 1")
    statistics = json.loads(run("target", "statistics", "null.sock", "-o", "json").out)
    assert len(statistics["queues"]) == 3
    assert run("target", "quit", "null.sock").status == 0


def test_a_target_that_is_not_there(run: Run) -> None:
    result = run("target", "info", "nothing.sock")
    assert result.status == 4
    assert "no target answers" in result.err


# doctor


def test_doctor_as_json(run: Run) -> None:
    result = run("doctor", "-o", "json")
    rows = json.loads(result.out)
    assert {row["verdict"] for row in rows} <= {"ok", "warn", "fail"}
    assert all(row["fix"] for row in rows if row["verdict"] != "ok")
    assert result.status == (7 if any(row["verdict"] == "fail" for row in rows) else 0)


def test_doctor_names_the_command_that_mends_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = run("doctor")
    assert result.status == 7
    assert re.search(r"fail +qemu +qemu-system-\S+ is not installed\n +fix: apt-get install", result.out)
    assert "1 of" in result.err


# demo


@pytest.mark.parametrize(
    "arguments", [["--size", "1M"], ["--data", "1G"], ["--data", "1K"], ["--size", "big"]]
)
def test_a_demo_that_makes_no_sense_is_refused(run: Run, arguments: list[str]) -> None:
    assert run("demo", *arguments).status == 2


def test_a_demo_replaces_no_image(run: Run, image: Path, tmp_path: Path) -> None:
    assert run("demo", "--keep", tmp_path).status == 6
    assert image.exists()


# The back-end programs


@pytest.mark.parametrize(("name", "kind"), [("scsi", "scsi"), ("blk", "block")])
def test_a_program_prints_its_capabilities_whatever_else_is_said(start: Start, name: str, kind: str) -> None:
    process = start(*program(name), "--print-capabilities", "--socket-path", "/no/such").process
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert json.loads(output)["type"] == kind


@pytest.mark.parametrize(("name", "kind"), [("scsi", "scsi"), ("blk", "block")])
def test_a_program_is_announced_by_its_file(name: str, kind: str) -> None:
    """Members as in the schema of docs/interop/vhost-user.json."""
    entry = json.loads((ROOT / "packaging" / "vhost-user" / f"50-ringway-{name}.json").read_text())
    assert entry.keys() == {"description", "type", "binary"}
    assert entry["type"] == kind
    assert Path(entry["binary"]).name == f"ringway-vhost-user-{name}"


def test_the_blk_program_serves_on_a_path_and_ends_on_sigterm(
    start: Start, image: Path, tmp_path: Path
) -> None:
    serving = start(*program("blk"), "--socket-path", "b.sock", "--blk-file", image.name, "--read-only")
    serving.event("ready")
    with BlkFrontEnd(tmp_path / "b.sock").open() as guest:
        assert guest.read(0, 512).status == 0
        assert guest.write(0, bytes(512)).status == 1
    assert serving.stop() == 0
    assert not (tmp_path / "b.sock").exists()


def test_the_scsi_program_serves_a_connected_socket_and_ends_with_it(start: Start, image: Path) -> None:
    ours, theirs = socket.socketpair()
    serving = start(
        *program("scsi"), "--fd", str(theirs.fileno()), "--lun", f"0={image.name}", pass_fds=[theirs.fileno()]
    )
    theirs.close()
    with ours, ScsiFrontEnd(ours).open() as guest:
        while guest.command(bytes(6)).status:
            pass
    assert serving.process.wait(PATIENCE_S) == 0


def test_a_program_serves_a_listening_socket(start: Start, image: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "l.sock"))
        listening.listen()
        fd = listening.fileno()
        serving = start(*program("blk"), "--fd", str(fd), "--blk-file", image.name, pass_fds=[fd])
    for _ in range(2):
        with BlkFrontEnd(tmp_path / "l.sock").open() as guest:
            assert guest.read(0, 512).status == 0
    assert serving.stop() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("blk", "--blk-file", "disk.img"),
        ("blk", "--blk-file", "disk.img", "--socket-path", "x", "--fd", "3"),
        ("blk", "--socket-path", "x"),
        ("blk", "--blk-file", "disk.img", "--fd", "99"),
        ("blk", "--blk-file", "disk.img", "--fd", "0"),
        ("scsi", "--socket-path", "x"),
        ("scsi", "--socket-path", "x", "--lun", "disk.img"),
    ],
)
def test_a_program_fails_early(start: Start, image: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    process = start(*program(arguments[0]), *arguments[1:]).process
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert b"error: " in errors
    assert b"ringway serve" not in errors  # its hints are of this program
    assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]


def test_capabilities_are_printed_whatever_else_is_asked(tmp_path: Path) -> None:
    """Spec: vhost-user, "Backend program conventions"."""
    command = [sys.executable, *program("blk")]
    run = subprocess.run(
        [*command, "--print-capabilities", "--nonsense", "--fd", "77"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE_S,
        check=True,
    )
    assert json.loads(run.stdout)["type"] == "block"


def test_an_fd_that_was_not_passed_is_refused(tmp_path: Path, image: Path) -> None:
    """Once the program's own first socket got the number, and it served itself."""
    command = [sys.executable, *program("blk")]
    run = subprocess.run(
        [*command, "--fd", "3", "--blk-file", image.name],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE_S,
        check=False,
    )
    assert run.returncode == 2
    assert "is no unix socket" in run.stderr


def every_command(command: click.Command, *names: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, with their names."""
    yield " ".join(names), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from every_command(found, *names, name)


def test_help_fits_a_terminal() -> None:
    """Of 80 columns; what is written with line breaks of its own, too."""
    wide = [
        (name, line)
        for name, command in every_command(cli, "ringway")
        for line in command.get_help(click.Context(command, info_name=name, terminal_width=80)).splitlines()
        if len(line) > 80
    ]
    assert wide == []
