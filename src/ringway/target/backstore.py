"""Open what a disk is made of: a file, a block device, memory, nothing.

Whatever is wrong with it is said before anything is touched, in a sentence and with a hint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from typing import NoReturn

from ringway import _core, holders
from ringway.digest import sha256
from ringway.errors import (
    BackstoreError,
    BusyError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    UsageError,
)
from ringway.formats import HEAD_BYTES, format_of
from ringway.model import BackstoreSpec, Mapped, SpecKind, StoreKind
from ringway.target import host, kernel
from ringway.target.medium import Geometry, Medium, examine, memory_medium
from ringway.target.ownership import Claim, DeviceClaim, FileClaim, NoClaim, Ownership
from ringway.units import format_size


def serial_of(spec: BackstoreSpec, target: int, lun: int, real_path: str | None = None) -> str:
    """:returns: the given serial number, else one of the image's real path, or of a memory disk's address.

    :param real_path: of the image, for who cannot look any more.
    """
    if spec.serial is not None:
        return spec.serial
    image = None if spec.path is None else real_path or os.path.realpath(spec.path)
    where = f"{spec}:{target}:{lun}" if image is None else image
    return sha256(os.fsencode(where)).hex()[:16]


class Backstore:
    """An open backstore: its store, its geometry, and who owns it.

    Made by :func:`open_backstore`. The file descriptor is its own.
    """

    def __init__(self, spec: BackstoreSpec, fd: int | None, medium: Medium, ownership: Ownership) -> None:
        self.spec = spec
        self.name = str(spec)
        self.ownership = ownership
        self.store = _make_store(spec, fd, medium)
        self._fd = fd
        self._medium = medium
        self._reloading = threading.Lock()  # held for as long as a file system takes to answer
        self._closing = threading.Lock()  # guards the file; held for a moment
        self._real_path = None if spec.path is None else os.path.realpath(spec.path)

    @property
    def geometry(self) -> Geometry:
        """Its sizes and limits now."""
        return self._medium.geometry

    @property
    def kind(self) -> StoreKind:
        """``block``, ``file``, ``ram`` or ``null``."""
        return self._medium.kind

    @property
    def mapped(self) -> bool:
        """Whether a file is served by loads and stores."""
        return self._medium.mapped

    @property
    def direct(self) -> bool:
        """Whether the page cache is bypassed."""
        return self._medium.direct

    @property
    def readonly(self) -> bool:
        """Whether guests may not write."""
        return self.spec.readonly

    def serial(self, target: int, lun: int) -> str:
        """The serial number that the guest sees: the given one, else one that follows from path or address.

        The same image under the same path keeps its serial number, whatever endpoint or host serves it.
        """
        return serial_of(self.spec, target, lun, self._real_path)

    def reload(self, *, size_bytes: int | None = None, fd: int | None = None) -> bool:
        """Look at the size again, and make a new ``store`` when it changed.

        On failure the store, its size, its file and the claim on that stay as they are. It takes as long as
        the file system does to answer, and another reload of this backstore waits for it.

        A new file is claimed before it is used. The claim on the old one stays, for requests that still use
        the old store: once they have ended, ``ownership.drop_old`` gives it up.

        :param size_bytes: of a null disk.
        :param fd: an open file that replaces the present one; its caller keeps its own.
        :returns: whether ``store`` is a new one.
        :raises UsageError: a size that this kind cannot take.
        :raises ConflictError: ``fd`` is of another file, or the backstore was closed meanwhile.
        :raises PermissionDeniedError: ``fd`` is not open as guests use it.
        :raises BackstoreError: the new size cannot be served, or ``fd`` cannot be claimed.
        """
        with self._reloading:
            if self.spec.path is None:
                return self._renew(
                    None, memory_medium(self.spec, self.kind, self._new_memory_size(size_bytes))
                )
            if size_bytes is not None:
                raise UsageError(
                    f"'{self.name}' has a size of its own", hint="change it first, then leave out the size"
                )
            with contextlib.ExitStack() as undo:
                new = self._dup_of(fd)
                undo.callback(os.close, new)
                if fd is not None:
                    _check_access(self.spec, new)
                changed = self._renew(new, examine(self.spec, new))
                if changed:
                    undo.pop_all()
            return changed

    def forget_cached(self) -> None:
        """Drop clean pages from the page cache: another host may have written since they were read."""
        if self._fd is not None and not self.mapped:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Give up ownership and close the file.

        The core closes its own copies when the last request is done.
        """
        with self._closing:
            fd, self._fd = self._fd, None
        self.ownership.close()
        if fd is not None:
            os.close(fd)

    def _new_memory_size(self, size_bytes: int | None) -> int:
        if self.kind is StoreKind.RAM or size_bytes is None:
            raise UsageError(
                f"a {self.kind} disk keeps its size", hint="only a file, a device or null:SIZE can change"
            )
        return size_bytes

    def _dup_of(self, fd: int | None) -> int:
        """A duplicate of the file that is to be served from now on, the present one's without another.

        :raises ConflictError: it is not of this backstore, or that is closed.
        """
        with self._closing:
            if self._fd is None:
                raise ConflictError(f"'{self.name}' is closed")
            old = os.dup(self._fd)
        try:
            if fd is not None and not os.path.samestat(os.fstat(fd), os.fstat(old)):
                raise ConflictError(f"the file that came with the request is not '{self.name}'")
            return os.dup(old if fd is None else fd)
        finally:
            os.close(old)

    def _renew(self, fd: int | None, medium: Medium) -> bool:
        """Make a new store for a new size; its file is this object's from then on."""
        if medium.geometry.size_bytes == self.geometry.size_bytes:
            return False
        store = _make_store(self.spec, fd, medium)
        with self._closing:
            if fd is not None:
                if self._fd is None:
                    raise ConflictError(f"'{self.name}' is closed")
                self.ownership.follow(fd)
            fd, self._fd = self._fd, fd
            self.store, self._medium = store, medium
        if fd is not None:
            os.close(fd)
        return True


def open_backstore(spec: BackstoreSpec, *, claim: bool = True, fd: int | None = None) -> Backstore:
    """Open a backstore, and own it unless ``claim`` is false (an incoming migration's destination).

    On failure nothing was changed and nothing stays open.

    :param fd: an open file to serve instead of the one at ``spec.path``; its caller keeps its own.
    :raises NotFoundError: no such file.
    :raises PermissionDeniedError: it may not be opened.
    :raises BusyError: somebody else uses it; ``.holder`` says who.
    :raises BackstoreError: what is there cannot be served.
    :raises UsageError: options that contradict each other.
    """
    if spec.kind is SpecKind.PATH:
        return _open_path(spec, fd, claim)
    if spec.readonly:
        raise UsageError(f"a {spec.kind} disk cannot be read-only", hint="leave out readonly")
    ownership = Ownership(NoClaim(), str(spec))
    ownership.acquire()
    return Backstore(spec, None, memory_medium(spec, StoreKind(spec.kind), spec.size_bytes or 0), ownership)


def create_image(path: str, size_bytes: int) -> None:
    """Make a new sparse image. Nothing is left behind on failure.

    :raises ConflictError: something is there already.
    :raises NotFoundError: no such directory.
    :raises BackstoreError: no room, or the file system refuses.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660)
    except FileExistsError as error:
        raise ConflictError(
            f"'{path}' exists already", hint="leave out --create to serve it as it is"
        ) from error
    except FileNotFoundError as error:
        folder = os.path.dirname(path)
        raise NotFoundError(
            f"'{folder}' does not exist", hint=f"make it with: mkdir -p '{folder}'"
        ) from error
    except OSError as error:
        _refuse_open(path, error, writing=True)
    try:
        os.truncate(fd, size_bytes)
    except OSError as error:
        os.unlink(path)
        raise BackstoreError(
            f"'{path}' cannot be made {format_size(size_bytes)} large: {error.strerror}"
        ) from error
    finally:
        os.close(fd)


def _open_path(spec: BackstoreSpec, given: int | None, claim: bool) -> Backstore:
    """Open, own, look, in this order: what another writes may change under the eyes, and is not touched."""
    assert spec.path is not None
    if spec.mapped is Mapped.ON and spec.direct:
        raise UsageError("direct and mapped=on contradict each other", hint="take one of them")
    with contextlib.ExitStack() as undo:
        fd = open_file(spec) if given is None else os.dup(given)
        undo.callback(os.close, fd)
        # again what `open_file` asked of the path: another file may lie there by now
        _check_type(spec.path, os.fstat(fd).st_mode)
        _check_unused(spec, fd)
        _check_access(spec, fd)
        _check_format(spec, fd)
        ownership = Ownership(_claim_for(spec, fd), spec.path)
        undo.callback(ownership.close)
        if claim:
            ownership.acquire()
        backstore = Backstore(spec, fd, examine(spec, fd), ownership)
        undo.pop_all()
    return backstore


def open_file(spec: BackstoreSpec) -> int:
    """Open a path's file, after a look at what is there: opening a FIFO would wait, a tape would rewind.

    :returns: a file descriptor, of which :func:`open_backstore` asks the rest.
    :raises RingwayError: as :func:`open_backstore`.
    """
    assert spec.path is not None
    if host.is_delegated():
        raise PermissionDeniedError(
            f"this target opens no files any more, and so not '{spec}'",
            hint="send the open file along with the request, as ringway target add does",
        )
    try:
        status = os.stat(spec.path)
        _check_type(spec.path, status.st_mode)
        if stat.S_ISBLK(status.st_mode):  # one that is mounted may refuse to be opened
            _refuse_used(spec, holders.device_user(status.st_rdev))
        flags = os.O_RDONLY if spec.readonly else os.O_RDWR
        return os.open(spec.path, flags | os.O_CLOEXEC | os.O_NONBLOCK)  # `examine` clears the last one
    except OSError as error:
        _refuse_open(spec.path, error, writing=not spec.readonly)


def _check_type(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise BackstoreError(f"'{path}' is a directory", hint="name an image file or a block device")
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise BackstoreError(f"'{path}' is neither a file nor a block device", hint="name an image or a disk")


def _check_format(spec: BackstoreSpec, fd: int) -> None:
    """:raises BackstoreError: it is an image of another format; what a guest writes would destroy it. Or it
    cannot be read.
    """
    if spec.force or not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    try:
        kernel.set_status_flags(
            fd, direct=False
        )  # who sent it may have opened it so; eight bytes are too few
        head = os.pread(fd, HEAD_BYTES, 0)
    except OSError as error:
        raise BackstoreError(f"'{spec}' cannot be read: {error.strerror}") from error
    if (name := format_of(head)) is not None:
        raise BackstoreError(
            f"'{spec}' is a {name} image, and images are served as raw bytes",
            hint=f"qemu-img convert -O raw '{spec}' disk.raw; ringway serve --force takes it as bytes",
        )


def _check_unused(spec: BackstoreSpec, fd: int) -> None:
    """:raises BusyError: a mounted or held device, or an image that a loop device serves."""
    if host.is_device(fd):
        _refuse_used(spec, host.device_user(fd))
    elif not spec.readonly:
        _refuse_used(spec, host.file_user(fd))


def _refuse_used(spec: BackstoreSpec, user: str | None) -> None:
    if user is not None and not spec.force:
        raise BusyError(
            f"'{spec}' is {user}",
            holder=user,
            hint="unmount or detach it first; ringway serve --force takes it all the same, and may harm it",
        )


def _refuse_open(path: str, error: OSError, *, writing: bool) -> NoReturn:
    """Say what an open that failed means for its user."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        missing = f"'{path}' does not exist"
        raise NotFoundError(
            missing, hint=f"check the path, or make an image with: truncate -s 10G '{path}'"
        ) from error
    if error.errno in (errno.EACCES, errno.EPERM):
        verb = "written" if writing else "read"
        hint = "check its owner and mode" + (", or serve it with readonly" if writing else "")
        raise PermissionDeniedError(f"'{path}' may not be {verb}", hint=hint) from error
    if error.errno == errno.EROFS:
        raise PermissionDeniedError(f"'{path}' cannot be written", hint="serve it with readonly") from error
    raise BackstoreError(f"'{path}' cannot be opened: {error.strerror}") from error


def _check_access(spec: BackstoreSpec, fd: int) -> None:
    """:raises PermissionDeniedError: it may not be read or, where guests may write, not be written.

    :raises BackstoreError: what guests write would not go where it belongs.
    """
    if not kernel.is_readable(fd):
        raise PermissionDeniedError(f"'{spec}' is not open for reading", hint="open it for both")
    if spec.readonly:
        return
    if kernel.access_mode(fd) != os.O_RDWR:
        raise PermissionDeniedError(f"'{spec}' is not open for writing", hint="open it so, or add readonly")
    if stat.S_ISBLK(os.fstat(fd).st_mode) and kernel.is_read_only_device(fd):
        raise PermissionDeniedError(f"'{spec}' is a read-only device", hint="serve it with readonly")
    if kernel.appends(fd):
        raise BackstoreError(
            f"'{spec}' is open for appending: each write would go to its end", hint="open it without O_APPEND"
        )


def _claim_for(spec: BackstoreSpec, fd: int) -> Claim:
    """Who reads lets readers in, and no writer: what it has read would change under its guest. A device that
    is forced may be held by anybody.
    """
    if spec.readonly or not stat.S_ISBLK(os.fstat(fd).st_mode):
        return FileClaim(fd, str(spec), writable=not spec.readonly)
    return NoClaim() if spec.force else DeviceClaim(fd, str(spec))


def _make_store(spec: BackstoreSpec, fd: int | None, medium: Medium) -> _core.Store:
    """:raises BackstoreError: there is not enough memory, or it cannot be mapped."""
    size_bytes = medium.geometry.size_bytes
    try:
        if fd is None:
            return (_core.Store.ram if medium.kind is StoreKind.RAM else _core.Store.null)(size_bytes)
        return _core.Store.file(
            fd,
            size_bytes=size_bytes,
            writable=not spec.readonly,
            direct=medium.direct,
            mapped=medium.mapped,
            discard=medium.geometry.discard_granularity > 0,
            memory_align=medium.align.memory,
            offset_align=medium.align.offset,
        )
    except (OSError, MemoryError, ValueError) as error:
        hint = "take a smaller size" if fd is None else None
        raise BackstoreError(f"'{spec}' of {format_size(size_bytes)}: {error}", hint=hint) from error
