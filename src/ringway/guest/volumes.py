"""Where the bytes of a mapping are: a catalogue of volumes, and what can be told of each.

A volume is looked for among those that the caller names (``--volume id=path``), then among a host's
backstores, then by resolvers that other packages register under the entry point group ``ringway.volumes``. An
id that is a path from the root stands for itself.

Nothing is made here but by :func:`make`. The format of an image is never guessed: a guest could write the
head of another format into its raw disk, and read whatever file that names at its next start.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from ringway.errors import BackstoreError, ConflictError, NotFoundError, RingwayError, UsageError
from ringway.formats import HEAD_BYTES, format_of
from ringway.model import BackstoreInfo, BlockDevice, DiskType, VolumeSource
from ringway.units import format_size

GROUP: Final = "ringway.volumes"
RAW, QCOW2 = "raw", "qcow2"
_FORMATS: Final = (RAW, QCOW2)
_SECTOR: Final = 512
_QCOW2_SIZE: Final = slice(24, 32)  #: big endian, in bytes
_SYS: Final = Path("/sys/dev/block")
_VOLUME_HINT: Final = "write it as web0=/dev/vg0/web0 or web0=/srv/web0.qcow2,format=qcow2,readonly"
_MEDIA: Final = (DiskType.CDROM, DiskType.FLOPPY)


class Volume(Struct, frozen=True, kw_only=True):
    """A place with a disk's bytes, on this host.

    :param block: a block device; otherwise a file.
    :param scsi: why the guest's SCSI commands cannot be sent to it; ``None``: they can.
    :param size_bytes: of the disk in it; ``None``: it could not be told.
    :param new: it is not there yet: :func:`make` makes it.
    """

    path: str
    format: str = RAW
    block: bool = False
    scsi: str | None = "it is a file"
    size_bytes: int | None = None
    readonly: bool = False
    new: bool = False


class Resolver(Protocol):
    """What an entry point of the group ``ringway.volumes`` is: a callable of these manners."""

    def __call__(self, device: BlockDevice, /) -> Volume | None:
        """Find, or bring to this host, what a mapping names.

        It may be asked again for the same mapping, and answers alike.

        :returns: ``None`` if the volume is none of its own.
        :raises RingwayError: it is its own, and cannot be had.
        """


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
        self._resolvers = resolvers

    def find(self, device: BlockDevice, name: str) -> Volume:
        """Say where a mapping's bytes are, or will be.

        :param name: what a new volume is called.
        :raises NotFoundError: nobody knows the volume, or it is not there.
        :raises UsageError: this host cannot make such a disk.
        """
        _check_possible(device)
        found = self._find(device, name)
        if found is None:
            raise _unknown(device)
        _check_size(device, found)
        return found

    def _find(self, device: BlockDevice, name: str) -> Volume | None:
        if device.source is VolumeSource.BLANK:
            return self._in_pool(device, name) or self._resolved(device)
        if device.source is VolumeSource.VOLUME or (
            device.source is VolumeSource.IMAGE and device.kind in _MEDIA
        ):
            return self._known(device) or self._resolved(device)
        return self._resolved(device)

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
        _check_from_root(folder)
        path = Path(folder, f"{name}.raw")
        if not path.parent.is_dir():
            raise NotFoundError(f"there is no folder {path.parent} for new volumes", hint="make it first")
        if path.exists():
            raise ConflictError(
                f"{path} is there already", hint=f"name it with --volume, as source=volume,id={name}"
            )
        return Volume(path=str(path), size_bytes=device.size_bytes, new=True)

    def _resolved(self, device: BlockDevice) -> Volume | None:
        resolvers = installed() if self._resolvers is None else self._resolvers
        found = (_ask(name, resolver, device) for name, resolver in resolvers.items())
        return next((volume for volume in found if volume is not None), None)


def installed() -> dict[str, Resolver]:
    """The resolvers that packages brought, by name. :raises BackstoreError: one cannot be loaded."""
    found = dict[str, Resolver]()
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            found[entry.name] = entry.load()
        except Exception as error:
            raise BackstoreError(
                f"the volume resolver '{entry.name}' cannot be loaded: {error!r}",
                hint="install its package again, or remove it",
            ) from error
    return found


def backstores_of(found: Iterable[BackstoreInfo]) -> Backstores:
    """Look backstores up by their names, then by their serial numbers."""
    every = tuple(found)
    by_serial = {each.serial: each for each in every if each.serial}
    by_name = {each.name: each for each in every}
    return lambda name: by_name.get(name) or by_serial.get(name)


def parse_volume(text: str) -> tuple[str, str]:
    """Read ``ID=PATH[,format=raw|qcow2][,readonly]``; a comma in the path is written twice.

    :returns: id, and the rest for :class:`Catalogue`, with the path from the root.
    :raises UsageError: no such form.
    """
    name, equals, place = text.partition("=")
    if not equals or not name or not place:
        raise UsageError(f"'{text}' is no volume", hint=_VOLUME_HINT)
    path, image_format, readonly = _parse_place(place)
    options = [f",format={image_format}" if image_format else "", ",readonly" if readonly else ""]
    return name, os.path.abspath(path).replace(",", ",,") + "".join(options)


def parse_pool(text: str) -> tuple[str, str]:
    """Read ``[TYPE=]FOLDER``. :returns: type, folder from the root. :raises UsageError: no such form."""
    kind, equals, folder = text.partition("=")
    if not (folder if equals else kind):
        raise UsageError(f"'{text}' names no folder", hint="write it as /srv/volumes or fast=/srv/nvme")
    return (kind, os.path.abspath(folder)) if equals else ("", os.path.abspath(kind))


def look(text: str, name: str, *, readonly: bool = False) -> Volume:
    """Look at a volume. Nothing is opened that could block, and nothing changed.

    :param text: ``PATH[,format=raw|qcow2][,readonly]``.
    :param name: the volume's, for messages.
    :raises NotFoundError: it is not there.
    :raises UsageError: it is neither a file nor a block device, or of another format than is said.
    """
    path, image_format, marked = _parse_place(text)
    _check_from_root(path)
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "check the path, and what is mounted there"
        raise NotFoundError(f"volume '{name}' is not at {path}: {reason}", hint=hint) from error
    block = stat.S_ISBLK(status.st_mode)
    if not block and not stat.S_ISREG(status.st_mode):
        raise UsageError(f"volume '{name}': {path} is neither a file nor a block device", hint=_VOLUME_HINT)
    head = _head(path)
    said = image_format or RAW
    _check_format(path, name, head, image_format)
    return Volume(
        path=path,
        format=said,
        block=block,
        scsi=no_scsi(_SYS / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
        if block
        else "it is a file",
        size_bytes=_size(status, head, said),
        readonly=readonly or marked,
    )


def make(volume: Volume) -> int:
    """Make a new volume: a file of zeros that takes no space yet. What is there already stays as it is.

    :returns: its inode, by which :func:`unmake` knows it.
    :raises ConflictError: something else is there. :raises BackstoreError: it cannot be made.
    """
    try:
        fd = os.open(volume.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConflictError(f"{volume.path} is there already", hint="move it away first") from error
    except OSError as error:
        raise BackstoreError(f"cannot make {volume.path}: {error.strerror}") from error
    try:
        os.truncate(fd, volume.size_bytes or 0)
        return os.fstat(fd).st_ino
    except OSError as error:
        os.unlink(volume.path)
        raise BackstoreError(f"cannot make {volume.path}: {error.strerror}") from error
    finally:
        os.close(fd)


def unmake(path: str, inode: int | None) -> None:
    """Take back a :func:`make`; what is not there is fine. What is another's stays, and so does a file that
    has data: somebody uses it by now, and an inode may be another file's.

    :param inode: ``None``: whether it came to be made is not known.
    :raises BackstoreError: it cannot be removed.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode) and inode in (None, status.st_ino) and _is_empty(path):
            os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BackstoreError(f"cannot remove {path}: {error.strerror}") from error


def _is_empty(path: str) -> bool:
    """Whether a file is nothing but a hole."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return True
        raise
    finally:
        os.close(fd)
    return False


def _parse_place(text: str) -> tuple[str, str | None, bool]:
    """Path, format if it is said, and whether it is read-only."""
    path, *options = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    image_format, readonly = None, False
    for option in options:
        key, _, value = option.partition("=")
        if key == "format" and value in _FORMATS:
            image_format = value
        elif option == "readonly":
            readonly = True
        else:
            raise UsageError(f"'{option}' is not an option of a volume", hint=_VOLUME_HINT)
    if not path:
        raise UsageError("a volume without a path", hint=_VOLUME_HINT)
    return path, image_format, readonly


def _check_from_root(path: str) -> None:
    """:raises UsageError: who reads it may be in another folder than who wrote it."""
    if not path.startswith("/"):
        raise UsageError(f"'{path}' is no path from the root", hint="write it as /srv/volumes/web0.img")


def _head(path: str) -> bytes:
    """The first bytes of an image; none where they may not be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_QCOW2_SIZE.stop) or b""
    except OSError:
        return b""


def _check_format(path: str, name: str, head: bytes, said: str | None) -> None:
    """:raises UsageError: an image is not what it is said to be."""
    found = format_of(head[:HEAD_BYTES])
    if said is None and found is not None:
        raise UsageError(
            f"volume '{name}': {path} begins like a {found} image, and a guest would be given its bytes",
            hint=f"say --volume {name}={path},format={found if found in _FORMATS else RAW}",
        )
    if said == QCOW2 and head and found != QCOW2:
        raise UsageError(f"volume '{name}': {path} is no qcow2 image", hint="leave format=qcow2 away")


def _size(status: os.stat_result, head: bytes, image_format: str) -> int | None:
    if image_format == QCOW2:
        return int.from_bytes(head[_QCOW2_SIZE]) if len(head) == _QCOW2_SIZE.stop else None
    if not stat.S_ISBLK(status.st_mode):
        return status.st_size
    try:
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        return int((_SYS / number / "size").read_text()) * _SECTOR
    except (OSError, ValueError):
        return None


def no_scsi(device: Path) -> str | None:
    """Why the kernel sends no guest's SCSI commands to a block device; ``None``: it does.

    :param device: its folder in sysfs.
    """
    if (device / "partition").exists():
        return "it is a partition, and commands would reach the whole disk"
    if (device / "dm").is_dir():
        return (
            None if _text(device / "dm" / "uuid").startswith("mpath-") else "it is a device mapper's volume"
        )
    if not (device / "device" / "scsi_level").exists():
        return "it is no SCSI device"
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _path_of(backstore: BackstoreInfo) -> str:
    """:raises UsageError: it is no place that QEMU can open."""
    if backstore.kind not in ("file", "block") or backstore.path is None:
        raise UsageError(
            f"backstore '{backstore.name}' is {backstore.kind}, which QEMU cannot open",
            hint="serve it through an endpoint",
        )
    return backstore.path.replace(",", ",,")


def _ask(name: str, resolver: Resolver, device: BlockDevice) -> Volume | None:
    """:raises BackstoreError: the resolver broke."""
    try:
        return resolver(device)
    except RingwayError:
        raise
    except Exception as error:
        raise BackstoreError(f"the volume resolver '{name}' failed: {error!r}") from error


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


def _check_size(device: BlockDevice, volume: Volume) -> None:
    """:raises UsageError: a volume is smaller than its mapping says."""
    wanted, found = device.size_bytes, volume.size_bytes
    if wanted is not None and found is not None and found < wanted:
        raise UsageError(
            f"'{device}' has {format_size(found)}, and its mapping says {format_size(wanted)}",
            hint="leave the size away, or make the volume larger first",
        )
