"""A resolver of volumes that are files of a store, and are linked to where a guest has them.

It stands for one that logs in to a storage network: a link is what a connection would be. Installed beside
Ringway (``pip install ./examples/volume-resolver``) it is asked for what nobody else knows::

    ringway guest create web0 --block-device id=files:root,source=volume
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ringway.errors import BackstoreError, NotFoundError
from ringway.guest.volumes import Volume, look
from ringway.model import BlockDevice

_PREFIX = "files:"


class FilesResolver:
    """Each guest's links lie in a folder of its own, so one guest's release takes nothing from another."""

    def __init__(self) -> None:
        self._store = Path(os.environ.get("FILES_VOLUMES", "/srv/files-volumes"))
        self._links = Path(os.environ.get("FILES_LINKS", "/run/files-volumes"))

    def find(self, device: BlockDevice) -> Volume | None:
        """Look into the store; nothing is linked yet."""
        return None if _name_of(device) is None else _look(self._image(device), device)

    def connect(self, device: BlockDevice, guest: str) -> Volume:
        """Link it; a link that is there is the same."""
        image, link = self._image(device), self._link(device, guest)
        _look(image, device)
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                link.symlink_to(image)
        except OSError as error:
            raise BackstoreError(f"cannot make {link}: {error.strerror}") from error
        return _look(link, device)

    def release(self, device: BlockDevice, guest: str) -> None:
        """Remove the link, and the guest's folder with its last."""
        link = self._link(device, guest)
        try:
            link.unlink(missing_ok=True)
        except OSError as error:
            raise BackstoreError(f"cannot remove {link}: {error.strerror}") from error
        with contextlib.suppress(OSError):
            link.parent.rmdir()

    def _image(self, device: BlockDevice) -> Path:
        return self._store / f"{_name_of(device)}.img"

    def _link(self, device: BlockDevice, guest: str) -> Path:
        return self._links / guest / f"{_name_of(device)}.img"


def _name_of(device: BlockDevice) -> str | None:
    """A volume's name in the store; ``None`` if it is not of the store."""
    prefix, name = (device.id or "")[: len(_PREFIX)], (device.id or "")[len(_PREFIX) :]
    return name if prefix == _PREFIX and name and "/" not in name else None


def _look(path: Path, device: BlockDevice) -> Volume:
    """:raises NotFoundError: the store has none of that name."""
    if not path.is_file():
        raise NotFoundError(f"the store has no volume '{device}'", hint=f"see: ls {path.parent}")
    return look(str(path).replace(",", ",,"), str(device))
