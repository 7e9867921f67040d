"""targetcli's side, in the guest: its listing, and a batch of commands that create.

What it saves, restores and deletes with is rtslib, which has a side of its own.

    python -m ringway.bench.host.targetcli_side ENDPOINTS
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ringway.bench.host import peers, rtslib_side
from ringway.bench.host.figures import TARGETCLI, JobCutError, measured
from ringway.bench.host.names import DISK_BYTES, backstore, wwpn
from ringway.testing import configfs

#: It saves everything at its end otherwise, which is a job of its own here.
_QUIET: Final = "set global auto_save_on_exit=false"


def main(endpoints: int) -> None:
    """Do both jobs once, with so many endpoints."""
    folder = peers.targetcli()
    _prepare()
    rtslib_side.fill(endpoints)
    with measured(TARGETCLI, "ls", endpoints):
        listed = _run(folder, ["ls"])
    assert listed.count("lun0 ") == endpoints, listed[-2000:]
    configfs.clear()
    with contextlib.suppress(JobCutError), measured(TARGETCLI, "create", endpoints):
        _batch(folder, (line for number in range(endpoints) for line in _create(number)))


def _prepare() -> None:
    """Give it what it does not start without: a system bus."""
    for folder in ("/run/dbus", "/root/.targetcli"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    subprocess.run(["dbus-daemon", "--system", "--fork"], check=True)


def _create(number: int) -> Iterable[str]:
    yield f"/backstores/ramdisk create name={backstore(number)} size={DISK_BYTES}"
    yield f"/vhost create {wwpn(number)}"
    yield f"/vhost/{wwpn(number)}/tpg1/luns create /backstores/ramdisk/{backstore(number)}"


def _batch(folder: Path, lines: Iterable[str]) -> None:
    _run(folder, [], "\n".join([_QUIET, *lines, "exit", ""]))


def _run(folder: Path, words: list[str], standard_input: str = "") -> str:
    command = [peers.SYSTEM_PYTHON, str(folder / "usr" / "bin" / "targetcli"), *words]
    environment = peers.targetcli_environment(folder)
    done = subprocess.run(
        command, env=environment, input=standard_input, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    main(int(sys.argv[1]))
