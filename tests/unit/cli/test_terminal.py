"""Commands on a terminal: colours, progress, completion."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from ringway.cli.main import cli
from ringway.testing.waiting import PATIENCE_S

from .conftest import Run
from .daemon import FakeDaemon

# Terminals


def on_a_terminal(*words: str, colour: bool = True) -> str:
    """What a command shows on a terminal of 80 columns."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    done = subprocess.run(
        [sys.executable, "-m", "ringway", *words],
        env=environment if colour else {**environment, "NO_COLOR": "1"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        check=False,
        timeout=PATIENCE_S,
    )
    os.close(slave)
    text = b""
    try:
        while piece := os.read(master, 65536):
            text += piece
    except OSError:  # nobody has the other side any more
        pass
    os.close(master)
    assert done.returncode in (0, 3)
    return text.decode().replace("\r\n", "\n")


def test_colours_and_widths_are_a_terminals(db0: FakeDaemon, run: Run) -> None:
    assert "\x1b[32mready" in on_a_terminal("endpoint", "list")
    assert "\x1b" not in on_a_terminal("endpoint", "list", colour=False)
    assert "\x1b" not in on_a_terminal("endpoint", "show", "nope", colour=False)
    assert "\x1b" not in run("endpoint", "list").out
    name = "x" * 60
    run("endpoint", "create", name)
    shown = on_a_terminal("endpoint", "list", colour=False)
    assert max(map(len, shown.splitlines())) == 80
    assert name in run("endpoint", "list").out


def test_a_terminal_sees_how_far_it_is(db0: FakeDaemon) -> None:
    db0.slow = True
    shown = on_a_terminal("endpoint", "create", "db1", "--lun", "0=ram:1G", "-q")
    assert "create db1  0%" in shown
    assert shown.endswith("\r\x1b[Kdb1\n")


# Completion


def offered(*words: str) -> list[str]:
    """What TAB offers for the last word."""
    items = ShellComplete(cli, {}, "ringway", "").get_completions(list(words[:-1]), words[-1])
    return [item.value for item in items]


def test_names_are_completed_from_the_daemon(db0: FakeDaemon, run: Run) -> None:
    run("endpoint", "create", "web")
    assert offered("endpoint", "show", "") == ["db0", "web"]
    assert offered("endpoint", "show", "w") == ["web"]
    assert offered("lun", "remove", "db0", "") == ["0:0", "0:1"]
    assert offered("endpoint", "show", "db0", "--out") == ["--output"]
    assert offered("end") == ["endpoint"]
    assert "--debug" in offered("--")
    db0.slow = True
    run("endpoint", "delete", "web", "--no-wait")
    assert offered("operation", "wait", "") == ["op0"]


def test_completion_of_a_silent_daemon_falls_silent(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RINGWAY_SOCKET", str(tmp_path / "none"))
    assert offered("endpoint", "show", "") == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_a_script(run: Run, shell: str) -> None:
    script = run("completion", shell).out
    assert "_RINGWAY_COMPLETE" in script
    assert "ringway" in script


def test_bash_completes(db0: FakeDaemon) -> None:
    environment = {**os.environ, "_RINGWAY_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", "from ringway.cli.entry import ringway; ringway()"],
        env={**environment, "COMP_WORDS": "ringway endpoint show d"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.stdout, done.stderr) == ("plain,db0\n", "")
