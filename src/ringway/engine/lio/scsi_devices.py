"""SCSI devices of this host, which the kernel target can pass through."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from ringway.errors import BackstoreError, NotFoundError

_ADDRESS: Final = re.compile(r"(\d+):(\d+):(\d+):(\d+)")
Address = tuple[int, int, int, int]
"""Host, channel, target, LUN."""


def scsi_address(path: str, sysfs: Path) -> Address:
    """Find the address of ``/dev/sdb``, ``/dev/sg1``, or of an address itself (``2:0:1:0``).

    :raises NotFoundError: no such device. :raises BackstoreError: it is no SCSI device.
    """
    if match := _ADDRESS.fullmatch(path):
        if not (sysfs / "bus" / "scsi" / "devices" / path).exists():
            raise NotFoundError(f"there is no SCSI device {path}", hint="lsscsi shows those that there are")
        return _numbers(match)
    try:
        status = os.stat(path)
    except OSError as error:
        raise NotFoundError(
            f"'{path}' cannot be looked at: {error.strerror}", hint="check the path"
        ) from error
    kind = "block" if stat.S_ISBLK(status.st_mode) else "char"
    device = sysfs / "dev" / kind / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" / "device"
    if found := _ADDRESS.fullmatch(device.resolve().name):
        return _numbers(found)
    raise BackstoreError(
        f"'{path}' is no SCSI device", hint="name it without pscsi, and it is served as a block device"
    )


def _numbers(match: re.Match[str]) -> Address:
    host, channel, target, lun = (int(text) for text in match.groups())
    return host, channel, target, lun
