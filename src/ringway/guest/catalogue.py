"""Where the bytes of a mapping are.

A volume is looked for among those that the caller names (``--volume id=path``), then among a host's
backstores, then by resolvers of other packages. An id that is a path from the root stands for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from ringway.errors import ConflictError, NotFoundError, RingwayError, UsageError
from ringway.guest.resolvers import Resolver, Resolvers
from ringway.guest.volumes import Volume, check_from_root, check_size, look
from ringway.model import BackstoreInfo, BlockDevice, DiskType, VolumeSource

_MEDIA: Final = (DiskType.CDROM, DiskType.FLOPPY)

Backstores = Callable[[str], BackstoreInfo | None]
"""A host's backstore of a name or serial number, if it has one."""


class Catalogue:
    """Where volumes are.

    :param named: paths by id, with options as in :func:`parse_volume`.
    :param pools: folders for new volumes, by volume type; ``""`` is for those of no type.
    :param backstores: what the daemon knows.
    :param resolvers: by name; ``None``: those that are installed.
    """

    def __init__(
        self,
        named: Mapping[str, str] | None = None,
        pools: Mapping[str, str] | None = None,
        *,
        backstores: Backstores = lambda _: None,
        resolvers: Mapping[str, Resolver] | None = None,
    ) -> None:
        self._named = named or {}
        self._pools = pools or {}
        self._backstores = backstores
        self._resolvers = Resolvers(resolvers)

    def find(self, device: BlockDevice, name: str) -> Volume:
        """Say where a mapping's bytes are, or will be. Nothing is touched.

        :param name: what a new volume is called.
        :raises NotFoundError: nobody knows the volume, or it is not there.
        :raises UsageError: this host cannot make such a disk.
        """
        _check_possible(device)
        found = self._find(device, name)
        if found is None:
            raise _unknown(device)
        check_size(device, found)
        return found

    def _find(self, device: BlockDevice, name: str) -> Volume | None:
        if device.source is VolumeSource.BLANK:
            return self._in_pool(device, name) or self._resolvers.find(device)
        if device.source is VolumeSource.VOLUME or (
            device.source is VolumeSource.IMAGE and device.kind in _MEDIA
        ):
            return self._known(device) or self._resolvers.find(device)
        return self._resolvers.find(device)

    def _known(self, device: BlockDevice) -> Volume | None:
        """A volume that is named, or a backstore; what a medium is made of is never written."""
        assert device.id is not None
        readonly = device.kind in _MEDIA
        if device.id in self._named:
            return look(self._named[device.id], device.id, readonly=readonly)
        if backstore := self._backstores(device.id):
            return look(_path_of(backstore), device.id, readonly=readonly)
        return (
            look(device.id.replace(",", ",,"), device.id, readonly=readonly) if device.id[0] == "/" else None
        )

    def _in_pool(self, device: BlockDevice, name: str) -> Volume | None:
        folder = self._pools.get(device.volume_type or "")
        if folder is None:
            return None
        check_from_root(folder)
        path = Path(folder, f"{name}.raw")
        if not path.parent.is_dir():
            raise NotFoundError(f"there is no folder {path.parent} for new volumes", hint="make it first")
        if path.exists():
            raise ConflictError(
                f"{path} is there already", hint=f"name it with --volume, as source=volume,id={name}"
            )
        return Volume(path=str(path), size_bytes=device.size_bytes, new=True)


def backstores_of(found: Iterable[BackstoreInfo]) -> Backstores:
    """Look backstores up by their names, then by their serial numbers."""
    every = tuple(found)
    by_serial = {each.serial: each for each in every if each.serial}
    by_name = {each.name: each for each in every}
    return lambda name: by_name.get(name) or by_serial.get(name)


def _path_of(backstore: BackstoreInfo) -> str:
    """:raises UsageError: it is no place that QEMU can open."""
    if backstore.kind not in ("file", "block") or backstore.path is None:
        raise UsageError(
            f"backstore '{backstore.name}' is {backstore.kind}, which QEMU cannot open",
            hint="serve it through an endpoint",
        )
    return backstore.path.replace(",", ",,")


def _check_possible(device: BlockDevice) -> None:
    """:raises UsageError: nobody on a single host does this."""
    if device.guest_format is not None:
        raise UsageError(
            f"a disk is not formatted ('{device}', {device.guest_format})",
            hint="leave the format away; the guest makes its file systems itself",
        )
    if device.delete_on_termination and device.destination != "local":
        raise UsageError(
            f"'{device}' shall be deleted with its guest, and no volume is deleted here",
            hint="leave shutdown=remove away; who keeps the volumes deletes them",
        )


def _unknown(device: BlockDevice) -> RingwayError:
    """Why nothing was found."""
    if device.source is VolumeSource.BLANK:
        kind = f" of type '{device.volume_type}'" if device.volume_type else ""
        return UsageError(
            f"there is no place for new volumes{kind}",
            hint=f"name a folder: --pool {device.volume_type + '=' if device.volume_type else ''}FOLDER",
        )
    if device.source is VolumeSource.VOLUME or device.kind in _MEDIA:
        return NotFoundError(
            f"nobody knows where {device.source} '{device.id}' is", hint=f"say --volume {device.id}=PATH"
        )
    return UsageError(
        f"no disk can be made from {device.source} '{device.id}' on this host",
        hint="copy it (qemu-img convert -O raw FROM /srv/new.raw), and give that as source=volume",
    )
