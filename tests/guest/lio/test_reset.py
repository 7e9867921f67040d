"""A host's reset takes everything out of the kernel; its daemon puts it back, reservations as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from ringway.testing.daemon import Daemon
from ringway.testing.kernel_target import KEPT
from ringway.testing.real_kernel import REGISTER, RESERVE, registered_keys, reservation, reserve_out
from ringway.testing.vhost_scsi import VhostScsiFrontEnd

from . import cdb
from .engine import image

FOLDER: Final = Path(KEPT) / "reset"
#: Of the daemon: what a reset takes away, and a disk at KEPT does not.
RUNTIME: Final = Path("/run/reset")
KEY: Final = 0xD15C
DATA: Final = bytes(range(256)) * 16


def daemon() -> Daemon:
    """Make the host's daemon; what it keeps outlives a reset, and what is at run time does not."""
    RUNTIME.mkdir()
    found = Daemon(FOLDER)
    found.configure("[lio]\nenabled = true\n[user]\nenabled = false\n")
    if not (FOLDER / "run").is_symlink():
        (FOLDER / "run").symlink_to(RUNTIME)
    return found


def guest_of(info: dict[str, Any]) -> VhostScsiFrontEnd:
    """Attach to an endpoint, of which a daemon tells."""
    return VhostScsiFrontEnd(info["wwpn"], tag=0).open()


def test_an_endpoint_is_made_before_the_reset() -> None:
    with daemon() as host:
        disk = {"kind": "path", "path": str(image(FOLDER))}
        lun = {"target": 0, "lun": 0, "backstore": disk}
        host.start()
        info = host.ask("POST", "/1.0/endpoints", {"name": "db0", "engine": "lio", "luns": [lun]})
        with guest_of(info) as guest:
            assert guest.command(cdb.write(8, 8), data_out=DATA).status == 0
            assert guest.command(cdb.SYNCHRONIZE_CACHE).status == 0
            assert reserve_out(guest, REGISTER, target=0, new_key=KEY, aptpl=True).status == 0
            assert reserve_out(guest, RESERVE, target=0, key=KEY, kind=1).status == 0


@pytest.mark.after_reset
def test_it_is_as_it_was_after_the_reset() -> None:
    with daemon() as host:
        host.start()
        (info,) = host.ask("GET", "/1.0/endpoints")
        assert (info["name"], info["state"]) == ("db0", "ready")
        with guest_of(info) as guest:
            assert guest.command(cdb.read(8, 8), data_in=4096).data == DATA
            assert registered_keys(guest, target=0) == [KEY]
            assert reservation(guest, target=0) == (KEY, 1)
        host.ask("DELETE", "/1.0/endpoints/db0")
        assert host.ask("GET", "/1.0/endpoints") == []
