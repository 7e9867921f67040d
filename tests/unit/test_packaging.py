"""What is installed beside the programs: units, users, folders, and the board."""

from __future__ import annotations

import asyncio
import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ringway.api import doors, metrics
from ringway.host import places
from ringway.host.config import ApiConfig, DaemonConfig
from ringway.host.host import Host
from ringway.host.store import Store
from ringway.model import EndpointSpec, EngineKind, LunSpec
from ringway.notation import parse_backstore
from ringway.testing.engine import MemoryDriver, World
from ringway.testing.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "packaging" / "systemd"
BOARD = ROOT / "packaging" / "grafana" / "ringway.json"
UNITS = sorted(path for path in SYSTEMD.iterdir() if path.suffix in (".service", ".socket"))


def run(*command: str) -> str:
    """Run a tool of systemd's. :returns: all that it said."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}: apt-get install systemd")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    said = run("systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS))
    assert not [line for line in said.splitlines() if "ringway" in line], said


def test_groups_and_folders_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", str(SYSTEMD / "ringway.sysusers"))
    groups = {line.split(":")[0] for line in (tmp_path / "etc" / "group").read_text().splitlines()}
    assert groups >= {ApiConfig().admin_group, ApiConfig().read_group}
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create", str(SYSTEMD / "ringway.tmpfiles"))
    assert (tmp_path / "run" / "ringway" / "endpoint").is_dir()


def _section(name: str, section: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(SYSTEMD / name)
    return dict(parser[section])


def test_units_say_what_the_daemon_says() -> None:
    where = places.of_system()
    for name, path, group in (
        ("ringway.socket", where.api, ApiConfig().admin_group),
        ("ringway-ro.socket", where.read_only, ApiConfig().read_group),
    ):
        section = _section(name, "Socket")
        assert section["ListenStream"] == str(path)
        assert section["FileDescriptorName"] in doors.NAMES
        assert (section["SocketGroup"], section["SocketMode"]) == (group, "0660")
    assert str(where.run / "spawner.sock") in _section("ringway-spawner.service", "Service")["ExecStart"]
    for name in ("ringwayd.service", "ringway-spawner.service"):
        service = _section(name, "Service")
        assert service["KillMode"] == "process"
        assert (service["RuntimeDirectory"], service["RuntimeDirectoryPreserve"]) == ("ringway", "yes")


async def _metrics(folder: Path) -> str:
    with Store(folder / "state.db") as store:
        host = Host({EngineKind.USER: MemoryDriver(World())}, store, DaemonConfig())
        await host.start()
        spec = EndpointSpec(name="a", luns=(LunSpec(0, 0, parse_backstore("ram:1M")),))
        await host.create(spec).ended()
        text = await metrics.text(host)
        await host.close()
    return text.decode()


def _expressions(board: Any) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


def test_the_board_asks_for_what_there_is(tmp_path: Path) -> None:
    told = asyncio.run(_metrics(tmp_path))
    names = set(re.findall(r"^(ringway\w*)", told, re.MULTILINE))
    expressions = _expressions(json.loads(BOARD.read_text()))
    asked = {name for expression in expressions for name in re.findall(r"\bringway_\w+", expression)}
    assert asked
    assert asked <= names
    families = set(re.findall(r"^# TYPE (ringway_(?:lun|endpoint)\w*?)(?:_total)? ", told, re.MULTILINE))
    assert all(any(name.startswith(family) for name in asked) for family in families)
