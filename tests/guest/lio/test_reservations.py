"""Persistent reservations outlive what the kernel forgets, and the same with rtslib, where they do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from ringway.model import BackstoreSpec, EndpointSpec, LunSpec, SpecKind
from ringway.testing import configfs
from ringway.testing.real_kernel import REGISTER, RESERVE, registered_keys, reservation, reserve_out
from ringway.testing.vhost_scsi import VhostScsiFrontEnd

from . import cdb
from .conftest import RTSLIB
from .engine import driver, endpoint, front_end, image

KEY: Final = 0xABC1
WRITE_EXCLUSIVE: Final = 1
GOOD: Final = 0
CONFLICT: Final = 0x18


def write(guest: VhostScsiFrontEnd) -> int:
    """Write a block. :returns: the status."""
    return guest.command(cdb.write(0, 1), data_out=bytes(512)).status


def reserve(guest: VhostScsiFrontEnd) -> None:
    """Register with APTPL, and reserve for this nexus alone."""
    registered = reserve_out(guest, REGISTER, target=guest.tag, new_key=KEY, aptpl=True)
    assert registered.status == GOOD, registered
    assert reserve_out(guest, RESERVE, target=guest.tag, key=KEY, kind=WRITE_EXCLUSIVE).status == GOOD


def forget(runtime: Path) -> None:
    """Do to the kernel and to the records what a reboot does."""
    configfs.clear()
    shutil.rmtree(runtime)


def shared(tmp_path: Path) -> tuple[EndpointSpec, EndpointSpec]:
    """Two endpoints of one disk, each with a nexus of its own."""
    engine = driver(tmp_path)
    disk = BackstoreSpec(SpecKind.PATH, path=str(image(tmp_path)), name="quorum", serial=tmp_path.name)
    ours = endpoint(engine, "db0", LunSpec(0, 0, disk))
    other = endpoint(engine, "db1", LunSpec(0, 0, disk))
    assert ours.nexus != other.nexus
    return ours, other


def test_a_reservation_survives(tmp_path: Path) -> None:
    ours, other = shared(tmp_path)
    with front_end(ours) as guest, front_end(other) as rival:
        reserve(guest)
        assert (write(guest), write(rival)) == (GOOD, CONFLICT)
    forget(tmp_path / "run")
    engine = driver(tmp_path)
    engine.create(other)
    engine.create(ours)
    with front_end(ours) as guest, front_end(other) as rival:
        assert registered_keys(guest, target=0) == [KEY]
        assert reservation(rival, target=0) == (KEY, WRITE_EXCLUSIVE)
        assert (write(rival), write(guest)) == (CONFLICT, GOOD)


def test_another_nexus_does_not_get_it(tmp_path: Path) -> None:
    """The kernel gives a registration back to the initiator that had it: so the nexus has to be kept."""
    ours, other = shared(tmp_path)
    with front_end(ours) as guest:
        reserve(guest)
    forget(tmp_path / "run")
    engine = driver(tmp_path)
    stranger = replace(ours, nexus="naa.50014050000000ff")
    engine.create(stranger)
    engine.create(other)
    with front_end(stranger) as guest:
        assert registered_keys(guest, target=0) == []


_SAVE: Final = """\
import sys
from rtslib_fb import FabricModule, FileIOStorageObject, LUN, RTSRoot, TPG, Target
disk = FileIOStorageObject("quorum", sys.argv[1], size=1 << 20, wwn=sys.argv[2])
for wwpn in sys.argv[4:]:
    LUN(TPG(Target(FabricModule("vhost"), wwpn), 1), 0, disk)
RTSRoot().save_to_file(sys.argv[3])
"""
_RESTORE: Final = """\
import sys
from rtslib_fb import RTSRoot
root = RTSRoot()
root.clear_existing(confirm=True)
assert root.restore_from_file(sys.argv[1]) == []
"""


def rtslib(program: str, *words: str) -> None:
    """Run a program that uses it."""
    environment = {**os.environ, "PYTHONPATH": os.environ[RTSLIB]}
    subprocess.run([sys.executable, "-c", program, *words], env=environment, check=True)


def test_with_rtslib_it_is_lost(tmp_path: Path) -> None:
    """The control: the tests above would see it."""
    if RTSLIB not in os.environ:
        pytest.skip("rtslib-fb could not be fetched from PyPI")
    wwpns = ("naa.5001405000000a01", "naa.5001405000000a02")
    saved = str(tmp_path / "saveconfig.json")
    rtslib(_SAVE, str(image(tmp_path)), "3b5c6a52-0000-4000-8000-000000000a01", saved, *wwpns)
    with VhostScsiFrontEnd(wwpns[0]).open() as guest, VhostScsiFrontEnd(wwpns[1]).open() as rival:
        reserve(guest)
        assert (write(guest), write(rival)) == (GOOD, CONFLICT)
    nexus = (configfs.VhostEndpoint(wwpns[0]).group / "nexus").read_text()
    rtslib(_RESTORE, saved)
    assert len(json.loads(Path(saved).read_text())["targets"]) == 2
    assert (configfs.VhostEndpoint(wwpns[0]).group / "nexus").read_text() != nexus
    with VhostScsiFrontEnd(wwpns[0]).open() as guest, VhostScsiFrontEnd(wwpns[1]).open() as rival:
        guest.settle()
        rival.settle()
        assert registered_keys(guest, target=1) == []
        assert write(rival) == GOOD
