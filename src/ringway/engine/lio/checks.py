"""What would fail, or do harm, on this host: found before anything is made."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from typing import Final

from ringway import holders
from ringway.engine.lio.backstores import device_size, served_size
from ringway.errors import (
    BackstoreError,
    BusyError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    UsageError,
)
from ringway.formats import HEAD_BYTES, format_of
from ringway.media import Identity, identify
from ringway.model import BackstoreSpec, EndpointSpec, EngineKind, LunSpec, SpecKind

_OFD_GETLK: Final = 36
_FLOCK: Final = struct.Struct("hhqqi4x")
_REMEMBERED_S: Final = 10.0


class Identities:
    """What paths lead to; remembered for some seconds, for each create compares with all other endpoints."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Identity | None]] = {}

    def of(self, path: str) -> Identity | None:
        """``None`` when there is nothing."""
        now_s = time.monotonic()
        when_s, identity = self._known.get(path, (-_REMEMBERED_S, None))
        if now_s - when_s >= _REMEMBERED_S:
            identity = identify(path)
            self._known[path] = (now_s, identity)
        return identity

    def forget(self) -> None:
        """Let go of what is too old to be used."""
        limit_s = time.monotonic() - _REMEMBERED_S
        self._known = {path: known for path, known in self._known.items() if known[0] > limit_s}


def check_names(spec: EndpointSpec, others: tuple[EndpointSpec, ...]) -> None:
    """:raises ConflictError: another endpoint has the WWPN, or a backstore of the same name that is
    another.
    """
    stores = {lun.backstore.name: lun.backstore for lun in spec.luns}
    for other in others:
        if other.wwpn == spec.wwpn and other.wwpn is not None:
            raise ConflictError(
                f"endpoint '{other.name}' has the WWPN {spec.wwpn}", hint="leave out the WWPN: one is chosen"
            )
        if other.engine is EngineKind.LIO:
            for lun in other.luns:
                mine = stores.get(lun.backstore.name)
                if mine is not None and mine != lun.backstore:
                    raise ConflictError(
                        f"endpoint '{other.name}' has a backstore '{mine.name}' that is another",
                        hint="describe it alike to share it, or take another name",
                    )


def check_sharing(spec: EndpointSpec, others: tuple[EndpointSpec, ...], identities: Identities) -> None:
    """:raises BusyError: a file or device is used twice, which is no way to share one."""
    mine: dict[Identity, LunSpec] = {}
    for lun in _on_paths(spec):
        assert lun.backstore.path is not None
        identity = identify(lun.backstore.path)
        if identity is None:
            continue
        first = mine.setdefault(identity, lun)
        if first.backstore.name != lun.backstore.name:
            raise BusyError(
                f"'{lun.backstore}' is LUN {first.target}:{first.lun} of the same endpoint",
                holder=f"endpoint {spec.name}",
                hint="to show one disk at two addresses, name both backstores alike",
            )
    if mine:
        for other in others:
            _refuse_shared(other, mine, identities)


def _refuse_shared(other: EndpointSpec, mine: dict[Identity, LunSpec], identities: Identities) -> None:
    for lun in _on_paths(other):
        assert lun.backstore.path is not None
        found = mine.get(identities.of(lun.backstore.path) or (-1, 0, 0))
        if found is None or found.backstore == lun.backstore:
            continue
        if found.backstore.readonly and lun.backstore.readonly:
            continue
        raise BusyError(
            f"'{found.backstore}' is LUN {lun.target}:{lun.lun} of endpoint '{other.name}'",
            holder=f"endpoint {other.name}",
            hint=f"remove it there first: ringway lun remove {other.name} {lun.target}:{lun.lun}",
        )


def _on_paths(spec: EndpointSpec) -> Iterator[LunSpec]:
    yield from (lun for lun in spec.luns if lun.backstore.kind in (SpecKind.PATH, SpecKind.PSCSI))


def check_medium(spec: BackstoreSpec) -> None:
    """Look at a file or device as often as it is to be served: the kernel makes a file that is missing.

    :raises RingwayError: it is not there, too small, or no disk.
    """
    if spec.kind is not SpecKind.PATH:
        return
    assert spec.path is not None
    status = _status(spec.path)
    if stat.S_ISBLK(status.st_mode):
        if device_size(spec.path) == 0:
            raise BackstoreError(f"'{spec}' is a device without a medium", hint="insert or attach one first")
        return
    if not stat.S_ISREG(status.st_mode):
        raise BackstoreError(f"'{spec}' is neither a file nor a block device", hint="name an image or a disk")
    if spec.readonly:
        raise UsageError(
            f"the kernel serves files for writing only, and '{spec}' is to be read-only",
            hint="make a read-only device of it (losetup -r -f --show), or take --engine user",
        )
    _check_size(spec, status.st_size)


def _check_size(spec: BackstoreSpec, has: int) -> None:
    block = spec.block_size or 512
    size = served_size(spec)
    if size > has:
        raise BackstoreError(
            f"'{spec}' has {has} bytes, and {size} are to be served: the end of the disk would be missing",
            hint=f"if nothing was lost, make it as large again: truncate -s {size} '{spec}'",
        )
    if size == 0:
        raise BackstoreError(f"'{spec}' is empty", hint=f"give it a size, as in: truncate -s 10G '{spec}'")
    if size % block:
        raise BackstoreError(
            f"'{spec}' has {size} bytes, which is no multiple of its {block}-byte blocks",
            hint=f"make it larger with: truncate -s {-(-size // block) * block} '{spec}'",
        )


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"'{path}' does not exist",
            hint=f"check the path, or make an image with: truncate -s 10G '{path}'",
        ) from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"'{path}' may not be looked at", hint="the kernel engine needs root"
        ) from error
    except OSError as error:
        raise BackstoreError(f"'{path}' cannot be looked at: {error.strerror}") from error


def check_unused(spec: BackstoreSpec) -> None:
    """:raises BusyError: it is mounted, held, swap, a loop device's, or locked; with who does that."""
    if spec.kind is not SpecKind.PATH or spec.force:
        return
    assert spec.path is not None
    status = _status(spec.path)
    if stat.S_ISBLK(status.st_mode):
        user = holders.device_user(status.st_rdev)
    else:
        _check_format(spec)
        user = holders.file_user(status) or _locked(spec.path)
    _refuse_used(spec, user)


def check_unlocked(spec: BackstoreSpec) -> None:
    """Look at a file once more before it is served, also at a restore: the kernel heeds no locks.

    :raises BusyError: somebody has locked it.
    """
    if spec.kind is SpecKind.PATH and not spec.force:
        assert spec.path is not None
        if stat.S_ISREG(_status(spec.path).st_mode):
            _refuse_used(spec, _locked(spec.path))


def _refuse_used(spec: BackstoreSpec, user: str | None) -> None:
    if user is not None:
        raise BusyError(
            f"'{spec}' is {user}",
            holder=user,
            hint="unmount or detach it first; --force takes it all the same",
        )


def _check_format(spec: BackstoreSpec) -> None:
    """:raises BackstoreError: it is an image of another format; what a guest writes would destroy it."""
    assert spec.path is not None
    try:
        with open(spec.path, "rb") as file:
            name = format_of(file.read(HEAD_BYTES))
    except OSError as error:
        raise BackstoreError(f"'{spec}' cannot be read: {error.strerror}") from error
    if name is not None:
        raise BackstoreError(
            f"'{spec}' is a {name} image, and the kernel serves images as raw bytes",
            hint=f"qemu-img convert -O raw '{spec}' disk.raw; --force takes it as bytes",
        )


def _locked(path: str) -> str | None:
    """Who has locked a file, as QEMU and our own targets do."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EROFS:
            raise PermissionDeniedError(
                f"'{path}' cannot be written", hint="the kernel writes to it"
            ) from error
        return None
    try:
        answer = fcntl.fcntl(fd, _OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        if _FLOCK.unpack(answer)[0] == fcntl.F_UNLCK:
            return None
        return f"locked by {holders.lock_holder(fd) or 'another process'}"
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(fd)
