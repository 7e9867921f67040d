"""Backstores in the kernel: make, set, read and remove one. ``core/PLUGIN_N/NAME``, one adapter each, as
other tools lay them out.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from ringway import holders
from ringway.engine.lio.configfs import Configfs
from ringway.engine.lio.reservations import kept_registrations
from ringway.engine.lio.scsi_devices import scsi_address
from ringway.engine.lio.settings import Settings
from ringway.errors import BusyError, ConflictError, NotFoundError, RingwayError, UsageError
from ringway.model import BackstoreSpec, SpecKind

PAGE: Final = 4096
KINDS: Final = {"iblock": "block", "fileio": "file", "rd_mcp": "ram", "pscsi": "pscsi", "user": "user"}
#: What is set unless the specification says otherwise. EXTENDED COPY reaches every LUN of the host, other
#: guests' too (CVE-2020-28374).
DEFAULTS: Final = {"emulate_3pc": "0"}
_BARE: Final = ("pscsi", "user")  #: plug-ins that pass commands on, and have few attributes
_BARE_PATHS: Final = tuple(f"core/{plugin}" for plugin in _BARE)
_TRIES: Final = 3
_SERIAL: Final = "T10 VPD Unit Serial Number:"

Undo = Callable[[Callable[[], object]], object]
"""Takes what shall be done if the rest fails."""


@dataclass(frozen=True, slots=True)
class Found:
    """A backstore as it is in the kernel.

    :param path: relative to ``target``.
    :param medium: a file's, device's or handler's name; ``None`` for memory.
    """

    path: str
    plugin: str
    name: str
    enabled: bool
    medium: str | None = None
    size_bytes: int | None = None
    block_size: int | None = None
    serial: str | None = None
    readonly: bool = False
    null: bool = False
    direct: bool = False
    write_through: bool = False  #: a file without a volatile write cache

    @property
    def kind(self) -> str:
        """As users know it: block, file, ram, null, pscsi, user."""
        return "null" if self.null else KINDS.get(self.plugin, self.plugin)


def plugin_of(spec: BackstoreSpec) -> str:
    """:returns: the kernel's plug-in for it. :raises NotFoundError: there is nothing at its path."""
    match spec.kind:
        case SpecKind.RAM | SpecKind.NULL:
            return "rd_mcp"
        case SpecKind.PSCSI:
            return "pscsi"
        case SpecKind.TCMU:
            return "user"
    assert spec.path is not None
    try:
        return "iblock" if stat.S_ISBLK(os.stat(spec.path).st_mode) else "fileio"
    except OSError as error:
        raise NotFoundError(
            f"'{spec.path}' cannot be looked at: {error.strerror}", hint="check the path"
        ) from error


def usual_place(plugin: str, name: str) -> str:
    """Where we put a backstore. It follows from its name: nobody has to look for a free number."""
    return f"core/{plugin}_{zlib.crc32(name.encode()) & 0x7FFFFFFF}/{name}"


class Backstores:
    """Makes and removes them. Any thread may call, one at a time for each name."""

    def __init__(self, fs: Configfs, settings: Settings) -> None:
        self._fs = fs
        self._settings = settings

    def make(self, spec: BackstoreSpec, undo: Undo) -> str:
        """Have it, from nothing or from a part of it. Reservations that the kernel kept are given back to it.

        :returns: its path. :raises RingwayError: it cannot be; what was made is in ``undo``.
        """
        assert spec.name is not None
        if spec.kind is SpecKind.TCMU:
            return self._handler(spec)
        plugin = plugin_of(spec)
        path = usual_place(plugin, spec.name)
        if not self._make_folder(path, undo):
            if self._is_complete(path):
                self.check_same(spec, path)
                self._retune(spec, path)
                return path
            self._fs.remove(path)  # a crash left it half made
            self._make_folder(path, undo)
        self._configure(spec, plugin, path)
        return path

    def _is_complete(self, path: str) -> bool:
        """Whether nothing is left to be set: what is set last says so."""
        marked = self._fs.read_or(f"{path}/udev_path").strip()
        return bool(marked) and self._fs.read_or(f"{path}/enable") == "1"

    def _retune(self, spec: BackstoreSpec, path: str) -> None:
        """Set what a change had not come to, as far as the kernel lets a mapped disk be changed."""
        usual = {} if path.startswith(_BARE_PATHS) else DEFAULTS
        for name, value in (usual | spec.attributes).items():
            if self._fs.read_or(f"{path}/attrib/{name}", value) != value:
                with contextlib.suppress(RingwayError):
                    self.set_attributes(path, {name: value})

    def check_same(self, spec: BackstoreSpec, path: str) -> None:
        """:raises ConflictError: what is there is another disk."""
        found = self.read(path)
        wanted = spec.path if spec.kind is SpecKind.PATH else None
        if wanted is not None and found.medium != wanted and not _same_file(wanted, found.medium):
            raise ConflictError(
                f"a backstore '{spec.name}' exists in the kernel with '{found.medium}', not '{wanted}'",
                hint="delete it, or give this disk another name",
            )
        if spec.serial is not None and found.serial != spec.serial and found.plugin not in _BARE:
            raise ConflictError(
                f"a backstore '{spec.name}' exists in the kernel with serial number '{found.serial}'",
                hint="delete it, or give this disk another name",
            )

    def remove(self, path: str) -> bool:
        """Remove it unless something maps it. :returns: whether it is gone."""
        gone = self._fs.remove_if_unused(path)
        if gone:
            self._fs.remove_if_unused(os.path.dirname(path))
        return gone

    def resize(self, path: str, size_bytes: int) -> None:
        """Tell the kernel the new size of a file; it looks at devices itself."""
        self._fs.write(f"{path}/control", f"fd_dev_size={size_bytes}")

    def set_attributes(self, path: str, attributes: dict[str, str]) -> None:
        """Set attributes of a device that is there.

        :raises UsageError: this kernel has no such attribute. :raises RingwayError: it does not take the
        value.
        """
        for name, value in attributes.items():
            try:
                self._fs.write(f"{path}/attrib/{name}", value)
            except NotFoundError as error:
                known = ", ".join(sorted(self._fs.names(f"{path}/attrib")))
                raise UsageError(
                    f"this kernel has no attribute '{name}' for such a backstore", hint=f"it has {known}"
                ) from error
            except RingwayError as error:
                raise type(error)(
                    f"attribute '{name}' stays {self._fs.read_or(f'{path}/attrib/{name}', 'unknown')}: "
                    f"{error.message}",
                    hint=error.hint,
                ) from error

    def read(self, path: str) -> Found:
        """What the kernel says of a device. Nothing is asked of the disk itself."""
        hba, _, name = path.removeprefix("core/").partition("/")
        plugin = hba.rpartition("_")[0]
        info = self._fs.read_or(f"{path}/info")
        medium, size_bytes = _medium_and_size(plugin, info)
        serial = self._fs.read_or(f"{path}/wwn/vpd_unit_serial").removeprefix(_SERIAL).strip()
        return Found(
            path=path,
            plugin=plugin,
            name=name,
            enabled=self._fs.read_or(f"{path}/enable") == "1",
            medium=medium,
            size_bytes=size_bytes if size_bytes is not None else device_size(medium),
            block_size=self._fs.read_int(f"{path}/attrib/block_size") or None,
            serial=serial or None,
            readonly=_is_readonly(plugin, info),
            null="nullio: 1" in info,
            direct="Async: 1" in info,
            write_through=plugin == "fileio" and "Mode: O_DSYNC" in info,
        )

    def medium(self, path: str) -> tuple[str | None, bool]:
        """The file or device of a backstore, and whether it is only read: less than :meth:`read`."""
        plugin = path.removeprefix("core/").partition("/")[0].rpartition("_")[0]
        info = self._fs.read_or(f"{path}/info")
        return _medium_and_size(plugin, info)[0], _is_readonly(plugin, info)

    def _handler(self, spec: BackstoreSpec) -> str:
        """A device of a user-space handler is its handler's: we map it, and no more."""
        for hba in self._fs.names("core"):
            path = f"core/{hba}/{spec.path}"
            if hba.startswith("user_") and self._fs.read_or(f"{path}/enable") == "1":
                return path
        raise NotFoundError(
            f"there is no user-space backstore '{spec.path}' in the kernel",
            hint="its handler has to make it first",
        )

    def _make_folder(self, path: str, undo: Undo) -> bool:
        """Make adapter and device. Two names may share an adapter, of which one may be going just now."""
        hba = os.path.dirname(path)
        for attempt in range(_TRIES):
            if self._fs.make(hba):
                undo(lambda: self._fs.remove_if_unused(hba))
            try:
                made = self._fs.make(path)
            except NotFoundError:
                if attempt == _TRIES - 1:
                    raise
            else:
                if made:
                    undo(lambda: self._fs.remove(path))
                return made
        raise AssertionError("unreachable")

    def _configure(self, spec: BackstoreSpec, plugin: str, path: str) -> None:
        self._fs.write(f"{path}/control", self._parameters(spec, plugin))
        if plugin in _BARE:
            self._fs.write(f"{path}/udev_path", str(spec))
        if spec.serial is not None:
            self._fs.write(f"{path}/wwn/vpd_unit_serial", spec.serial)
        fresh = not os.path.exists(f"{spec.path}.protection")
        self._enable(spec, path)
        if plugin in _BARE:
            self.set_attributes(path, spec.attributes)
            return
        for name, value in DEFAULTS.items():
            if name not in spec.attributes:
                with contextlib.suppress(NotFoundError):  # an old kernel
                    self._fs.write(f"{path}/attrib/{name}", value)
        if spec.block_size is not None:
            self.set_attributes(path, {"block_size": str(spec.block_size)})
        self.set_attributes(path, spec.attributes)
        if plugin == "fileio" and fresh and spec.attributes.get("pi_prot_type", "0") != "0":
            self.set_attributes(path, {"pi_prot_format": "1"})
        if spec.serial is not None:
            self._give_back(path, spec.serial)
        self._fs.write(f"{path}/udev_path", str(spec))

    def _enable(self, spec: BackstoreSpec, path: str) -> None:
        """:raises BusyError: somebody has the device for itself; with who, if that can be told."""
        try:
            self._fs.write(f"{path}/enable", "1")
        except BusyError as error:
            assert spec.path is not None
            user = holders.device_user(os.stat(spec.path).st_rdev)
            raise BusyError(
                f"'{spec}' is {user}" if user else f"'{spec}' is in use: {error.message}",
                holder=user,
                hint="unmount or detach it first; another target may have it, too",
            ) from error

    @functools.cached_property
    def _dbroot(self) -> str:
        """Where reservations are kept; it cannot change while there are backstores."""
        return self._fs.read_or("dbroot", "/var/target")

    def _give_back(self, path: str, serial: str) -> None:
        """Hand the device its reservations, while it is not mapped yet."""
        for registration in kept_registrations(self._dbroot, serial):
            self._fs.write(f"{path}/pr/res_aptpl_metadata", registration)

    def _parameters(self, spec: BackstoreSpec, plugin: str) -> str:
        """The text for ``control``."""
        match plugin:
            case "iblock":
                return f"udev_path={spec.path},readonly={int(spec.readonly)}"
            case "fileio":
                # The page cache is a volatile write cache, and guests are told so: they flush. One who does
                # not want that has each write on the disk before it is answered.
                mode = "" if spec.attributes.get("emulate_write_cache") == "0" else ",fd_buffered_io=1"
                mode += ",fd_async_io=1" if spec.direct else ""
                return f"fd_dev_name={spec.path},fd_dev_size={served_size(spec)}{mode}"
            case "rd_mcp":
                nullio = int(spec.kind is SpecKind.NULL)
                return f"rd_pages={(spec.size_bytes or 0) // PAGE},rd_nullio={nullio}"
        assert spec.path is not None
        host, channel, target, lun = scsi_address(spec.path, self._settings.sysfs)
        return f"scsi_host_id={host},scsi_channel_id={channel},scsi_target_id={target},scsi_lun_id={lun}"


def same_disk(one: BackstoreSpec, other: BackstoreSpec) -> bool:
    """Whether two describe one disk, whatever its attributes."""
    return replace(one, attributes={}, force=False) == replace(other, attributes={}, force=False)


def served_size(spec: BackstoreSpec) -> int:
    """Bytes of a file that are served: what the specification says, else all of it."""
    assert spec.path is not None
    return spec.size_bytes if spec.size_bytes is not None else os.stat(spec.path).st_size


def _same_file(one: str, other: str | None) -> bool:
    try:
        return other is not None and os.path.samefile(one, other)
    except OSError:
        return False


def device_size(medium: str | None) -> int | None:
    """Bytes of a block device, from a look that opens nothing; ``None``: it is none, or cannot be told."""
    if medium is None:
        return None
    try:
        status = os.stat(medium)
    except OSError:
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    try:
        with open(f"/sys/dev/block/{number}/size", encoding="ascii") as file:
            return int(file.read()) * 512
    except (OSError, ValueError):
        return None


_MEDIA: Final = {
    "iblock": re.compile(r"UDEV PATH: (.*?)(?: readonly)?(?: exclusive: \d)?\s*$", re.MULTILINE),
    "fileio": re.compile(r"File: (.*?)  Size: (\d+)"),
    "rd_mcp": re.compile(r"PAGES/PAGE_SIZE: ()(\d+)\*"),
    "user": re.compile(r"Config: (.*?) Size: (\d+)"),
}


def _is_readonly(plugin: str, info: str) -> bool:
    return plugin == "iblock" and " readonly" in info.partition("UDEV PATH: ")[2]


def _medium_and_size(plugin: str, info: str) -> tuple[str | None, int | None]:
    """Read a device's ``info``: its medium, and its size where it says so."""
    pattern = _MEDIA.get(plugin)
    match = pattern.search(info) if pattern else None
    if match is None:
        return None, None
    size = int(match[2]) if match.lastindex == 2 else None
    if plugin == "rd_mcp":
        return None, (size or 0) * PAGE
    return match[1] or None, size
