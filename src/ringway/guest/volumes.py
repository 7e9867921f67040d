"""Places with a disk's bytes: what can be told of each, and new ones.

Nothing is made here but by :func:`make`. The format of an image is never guessed: a guest could write the
head of another format into its raw disk, and read whatever file that names at its next start.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from msgspec import Struct

from ringway.errors import BackstoreError, ConflictError, NotFoundError, UsageError
from ringway.formats import HEAD_BYTES, format_of
from ringway.model import BlockDevice
from ringway.units import format_size

RAW, QCOW2 = "raw", "qcow2"
_FORMATS: Final = (RAW, QCOW2)
_SECTOR: Final = 512
_QCOW2_SIZE: Final = slice(24, 32)  #: big endian, in bytes
_SYS: Final = Path("/sys/dev/block")
_VOLUME_HINT: Final = "write it as web0=/dev/vg0/web0 or web0=/srv/web0.qcow2,format=qcow2,readonly"


class Volume(Struct, frozen=True, kw_only=True):
    """A place with a disk's bytes, on this host.

    :param block: a block device; otherwise a file.
    :param scsi: why the guest's SCSI commands cannot be sent to it; ``None``: they can.
    :param size_bytes: of the disk in it; ``None``: it could not be told.
    :param new: it is not there yet: :func:`make` makes it.
    :param resolver: who has to bring it to this host, by name; until then the path is where it will be, as
        far as that can be told.
    """

    path: str
    format: str = RAW
    block: bool = False
    scsi: str | None = "it is a file"
    size_bytes: int | None = None
    readonly: bool = False
    new: bool = False
    resolver: str | None = None


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
    check_from_root(path)
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


def check_from_root(path: str) -> None:
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


def check_size(device: BlockDevice, volume: Volume) -> None:
    """:raises UsageError: a volume is smaller than its mapping says."""
    wanted, found = device.size_bytes, volume.size_bytes
    if wanted is not None and found is not None and found < wanted:
        raise UsageError(
            f"'{device}' has {format_size(found)}, and its mapping says {format_size(wanted)}",
            hint="leave the size away, or make the volume larger first",
        )
