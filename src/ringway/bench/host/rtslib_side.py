"""rtslib's side, in the guest: what a program does that uses it as its documentation shows.

    python rtslib_side.py ENDPOINTS

Run by an interpreter that finds rtslib and this package.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Final

import rtslib_fb

from ringway.bench.host.figures import RTSLIB, JobCutError, measured
from ringway.bench.host.names import DISK_BYTES, backstore, wwpn
from ringway.testing import configfs

_SAVED: Final = "/run/rtslib.json"
_RESTORE: Final = "restore"


def main(endpoints: int) -> None:
    """Do each job once, with so many endpoints."""
    root = rtslib_fb.RTSRoot()
    with measured(RTSLIB, "create", endpoints):
        fill(endpoints)
    with measured(RTSLIB, "save", endpoints):
        root.save_to_file(_SAVED)
    with measured(RTSLIB, "list", endpoints):
        found = [(lun.lun, lun.storage_object.name, lun.parent_tpg.parent_target.wwn) for lun in root.luns]
    assert len(found) == endpoints
    with contextlib.suppress(JobCutError), measured(RTSLIB, "delete", endpoints):
        for number in range(endpoints):
            _delete(number)
    configfs.clear()  # what it was not waited for
    subprocess.run(
        [sys.executable, "-m", "ringway.bench.host.rtslib_side", str(endpoints), _RESTORE], check=True
    )
    Path(_SAVED).unlink()


def restore(endpoints: int) -> None:
    """Restore what was saved, in a process that has done nothing else: rtslib remembers what it made."""
    root = rtslib_fb.RTSRoot()
    with contextlib.suppress(JobCutError), measured(RTSLIB, "restore", endpoints):
        assert root.restore_from_file(_SAVED) == []


def fill(endpoints: int) -> None:
    """Make so many."""
    for number in range(endpoints):
        _create(number)


def _create(number: int) -> None:
    disk = rtslib_fb.RDMCPStorageObject(backstore(number), size=DISK_BYTES)
    target = rtslib_fb.Target(rtslib_fb.FabricModule("vhost"), wwpn(number))
    rtslib_fb.LUN(rtslib_fb.TPG(target, 1), 0, disk)


def _delete(number: int) -> None:
    rtslib_fb.RDMCPStorageObject(backstore(number)).delete()
    rtslib_fb.Target(rtslib_fb.FabricModule("vhost"), wwpn(number), mode="lookup").delete()


if __name__ == "__main__":
    (restore if _RESTORE in sys.argv else main)(int(sys.argv[1]))
