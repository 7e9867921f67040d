"""Switches of every kind, and Open vSwitch's database for each test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringway.errors import GuestError
from ringway.net.base import Settings, Switch
from ringway.net.drivers import open_switch
from ringway.testing.openvswitch import OpenVSwitch
from ringway.testing.waiting import PATIENCE_S

from .standin import StandIn, stand_in

EXAMPLE = Path(__file__).parents[3] / "examples" / "switch-driver"
OpenOvs = Callable[..., Switch]


@pytest.fixture
def database(run_dir: Path) -> Iterator[OpenVSwitch]:
    """A database without a switch."""
    folder = run_dir / "ovs"
    folder.mkdir()
    try:
        private = OpenVSwitch(folder)
    except GuestError as error:
        pytest.skip(f"{error}: {error.hint}")
    with private:
        yield private


@pytest.fixture
def vswitchd(database: OpenVSwitch) -> Iterator[StandIn]:
    """Who reads that database, and has read it once."""
    with stand_in(database.remote) as running:
        database.vsctl("set", "Open_vSwitch", ".", "other_config:dpdk-init=true")
        yield running


@pytest.fixture
def open_ovs(database: OpenVSwitch, run_dir: Path) -> Iterator[OpenOvs]:
    """Open drivers of that database; they are closed at the test's end."""
    opened: list[Switch] = []

    def open_it(**options: str) -> Switch:
        options = {
            "database": database.remote,
            "bridge": "br-test",
            "timeout_s": f"{PATIENCE_S:g}",
            **options,
        }
        opened.append(open_switch("ovs", Settings(folder=run_dir / "port", options=options)))
        return opened[-1]

    yield open_it
    for switch in opened:
        switch.close()


@pytest.fixture
def ovs(vswitchd: StandIn, database: OpenVSwitch, open_ovs: OpenOvs) -> Switch:
    """A switch with a bridge."""
    database.vsctl("add-br", "br-test", "--", "set", "bridge", "br-test", "datapath_type=netdev")
    return open_ovs()


@pytest.fixture(params=["external", "files", "ovs"])
def switch(request: pytest.FixtureRequest, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Switch:
    """Each kind; ``files`` is the example of a driver."""
    os.chmod(run_dir, 0o755)
    if request.param == "ovs":
        found: Switch = request.getfixturevalue("ovs")
        return found
    if request.param == "external":
        return open_switch("external", Settings(folder=run_dir / "port"))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    sys.modules.pop("ringway_switch_files", None)
    from ringway_switch_files import FilesSwitch  # type: ignore[import-not-found]

    (run_dir / "files").mkdir()
    files: Switch = FilesSwitch(Settings(folder=run_dir / "port", options={"folder": str(run_dir / "files")}))
    return files
