"""A host of targetcli's moves over: its file is read, and what lives in the kernel is taken over in place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..daemon.plants import Plant
from .conftest import Host, serving

WWPN = "naa.500140512345678a"


@pytest.fixture
def lio_host(lio: Plant, run_dir: Path) -> Iterator[Host]:
    """A host with the kernel engine."""
    with serving(lio, run_dir / "home") as found:
        yield found


@pytest.fixture
def foreign(lio_host: Host) -> Host:
    """With an endpoint in the kernel that nobody here remembers, and the file that describes it."""
    lio_host.image("disk.img")
    disks = ("--lun", "0=disk.img,name=disk", "--lun", "1=null:1M,name=scratch")
    lio_host.create("db0", "--wwpn", WWPN, *disks)
    saved = lio_host.do("config", "export", "--format", "targetcli")
    (lio_host.folder / "saveconfig.json").write_text(saved)
    (lio_host.folder / "before.json").write_text(lio_host.do("endpoint", "show", "db0", "-o", "json"))
    lio_host.daemon.stop()
    shutil.rmtree(lio_host.plant.folder / "state")
    shutil.rmtree(lio_host.plant.folder / "run" / "lio")
    lio_host.daemon.start()
    return lio_host


def shown(host: Host) -> dict[str, str]:
    """Names and states."""
    found = json.loads(host.do("endpoint", "list", "-o", "json"))
    return {each["name"]: each["state"] for each in found}


@pytest.mark.parametrize("words", [("saveconfig.json",), ()], ids=["by file", "all that lives"])
def test_what_lives_is_taken_over(foreign: Host, words: tuple[str, ...]) -> None:
    assert shown(foreign) == {WWPN: "foreign"}
    refused = foreign.type("endpoint", "delete", WWPN)
    assert refused.status in (3, 6)
    planned = foreign.do("config", "import", "--adopt", "--dry-run", *words)
    assert planned.startswith(f"+ create endpoint {WWPN}\n")
    assert shown(foreign) == {WWPN: "foreign"}
    assert foreign.do("config", "import", "--adopt", *words) == planned
    assert shown(foreign) == {WWPN: "ready"}

    before = json.loads((foreign.folder / "before.json").read_text())
    after = json.loads(foreign.do("endpoint", "show", WWPN, "-o", "json"))
    assert [after[name] for name in ("wwpn", "nexus")] == [before[name] for name in ("wwpn", "nexus")]
    assert [(lun["lun"], lun["serial"], lun["path"]) for lun in after["luns"]] == [
        (lun["lun"], lun["serial"], lun["path"]) for lun in before["luns"]
    ]
    foreign.daemon.kill()
    foreign.daemon.start()
    assert shown(foreign) == {WWPN: "ready"}
    again = foreign.type("config", "import", "--adopt", "saveconfig.json")
    assert (again.status, again.out) == (0, "")
    assert again.err == (f"note: {WWPN}: is endpoint '{WWPN}', and stays as it is\nnothing would change\n")
    foreign.do("endpoint", "delete", WWPN)
    assert foreign.plant.left() == []


def test_a_file_alone_touches_nothing_that_lives(foreign: Host) -> None:
    refused = foreign.type("config", "import", "saveconfig.json")
    assert (refused.status, refused.out) == (6, "")
    assert shown(foreign) == {WWPN: "foreign"}


def test_a_file_makes_what_is_not_there(lio_host: Host) -> None:
    lio_host.image("disk.img")
    lio_host.create("db0", "--wwpn", WWPN, "--lun", "0=disk.img")
    saved = lio_host.do("config", "export", "--format", "targetcli")
    lio_host.do("endpoint", "delete", "db0")
    (lio_host.folder / "saveconfig.json").write_text(saved)
    assert lio_host.do("config", "import", "saveconfig.json").startswith(f"+ create endpoint {WWPN}\n")
    assert shown(lio_host) == {WWPN: "ready"}


def test_what_is_no_such_file(lio_host: Host) -> None:
    (lio_host.folder / "bad.json").write_text('{"targets": 3}')
    refused = lio_host.type("config", "import", "bad.json")
    assert (refused.status, "no saveconfig.json" in refused.err) == (2, True)
    assert lio_host.type("config", "import").status == 2


def test_a_daemon_without_the_kernel_engine(user_host: Host) -> None:
    (user_host.folder / "saveconfig.json").write_text("{}")
    refused = user_host.type("config", "import", "saveconfig.json")
    assert (refused.status, "hint: see [lio] in" in refused.err) == (2, True)
