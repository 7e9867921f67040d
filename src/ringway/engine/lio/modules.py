"""The kernel's part: modules loaded, configfs mounted; and what this kernel can do."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ringway.engine.lio.configfs import Configfs
from ringway.engine.lio.ports import FABRIC
from ringway.engine.lio.settings import Settings
from ringway.errors import NotFoundError, PermissionDeniedError
from ringway.model import Check, DeviceKind, EngineKind, EngineReport

CORE: Final = "target_core_mod"
MODULE: Final = "vhost_scsi"
_MODPROBE_S: Final = 30.0
_PLUGINS: Final = {
    "target_core_iblock": "block",
    "target_core_file": "file",
    "target_core_pscsi": "pscsi",
    "target_core_user": "user",
}
#: From here on the kernel logs the pages that it writes for a guest: before, a migrated guest misses some.
_LOGS_PAGES: Final = (6, 16)


def kernel_version(release: str) -> tuple[int, int]:
    """:returns: the first two numbers; zeros when there are none."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


class Kernel:
    """What has to be there before anything can be made."""

    def __init__(self, settings: Settings, fs: Configfs) -> None:
        self._settings = settings
        self._fs = fs
        self._can_keep = False

    def make_ready(self) -> None:
        """Mount configfs, load the modules and begin to use the fabric, as far as that is needed.

        :raises RingwayError: it cannot be, with what to do.
        """
        if not self._fs.exists(FABRIC):
            self._make_present()
            self._fs.make(FABRIC)
        if not self._can_keep:
            with contextlib.suppress(OSError):  # the report says so; disks without reservations need none
                self._kept().mkdir(mode=0o700, parents=True, exist_ok=True)
                self._can_keep = True

    def _make_present(self) -> None:
        if not self._fs.exists("core"):
            self._mount()
            self._load(CORE)
        self._load(MODULE)
        if not self._fs.exists("core"):
            raise NotFoundError(
                f"'{self._settings.configfs}' is not there, though the kernel's target is loaded",
                hint="mount -t configfs configfs /sys/kernel/config",
            )

    def _kept(self) -> Path:
        """Where the kernel writes reservations that outlive power loss. Without it, a guest's registration
        fails: the kernel does not make the folder.
        """
        return Path(self._fs.read_or("dbroot", "/var/target")) / "pr"

    def loaded(self, module: str) -> bool:
        """Whether a module is in the kernel, loaded or built in."""
        return (self._settings.sysfs / "module" / module).exists()

    def _mount(self) -> None:
        place = self._settings.configfs.parent
        if not place.is_dir():
            self._run_modprobe("configfs")
        if place.is_dir() and not os.path.ismount(place) and not self._fs.exists("core"):
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mount(b"configfs", os.fsencode(place), b"configfs", 0, None):
                raise PermissionDeniedError(
                    f"configfs is not mounted at {place}, and cannot be: {os.strerror(ctypes.get_errno())}",
                    hint=f"as root: mount -t configfs configfs {place}",
                )

    def _load(self, module: str) -> None:
        if self.loaded(module):
            return
        said = self._run_modprobe(module)
        if not self.loaded(module):
            raise NotFoundError(
                f"the kernel has no module {module}" + (f": {said}" if said else ""),
                hint=missing_module_hint(module),
            )

    def _run_modprobe(self, module: str) -> str:
        """:returns: what it complained about."""
        command = (*self._settings.modprobe, module)
        if shutil.which(command[0]) is None:
            return f"{command[0]} is not installed"
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_MODPROBE_S)
        except subprocess.TimeoutExpired:
            return f"{command[0]} did not end within {_MODPROBE_S:.0f} s"
        return done.stderr.strip()

    def report(self) -> EngineReport:
        """Look at this host; nothing is loaded or mounted for it."""
        checks = tuple(self._checks())
        release = os.uname().release
        return EngineReport(
            engine=EngineKind.LIO,
            usable=all(check.ok for check in checks if check.name in _NEEDED),
            version=release,
            devices=(DeviceKind.SCSI,),
            backstores=("ram", "null", *self._plugins()),
            limits=False,
            resize=False,
            migration=kernel_version(release) >= _LOGS_PAGES,
            checks=checks,
        )

    def _plugins(self) -> Iterator[str]:
        for module, kind in _PLUGINS.items():
            if self.loaded(module) or self._available(module):
                yield kind

    def _checks(self) -> Iterator[Check]:
        root = os.geteuid() == 0
        yield Check(
            name="root", ok=root, detail="yes" if root else "no", hint=None if root else "run it as root"
        )
        yield from (self._module_check(module) for module in (CORE, MODULE))
        yield self._configfs_check()
        yield self._migration_check()
        yield self._reservations_check()
        yield self._parameter_check("inline_sg_cnt", "memory of each queue can be traded for speed")
        yield self._parameter_check("max_io_vqs", "most request queues of a guest")

    def _module_check(self, module: str) -> Check:
        if self.loaded(module):
            return Check(name=module, ok=True, detail="loaded")
        if self._available(module):
            return Check(name=module, ok=True, detail="available; loaded with the first endpoint")
        return Check(name=module, ok=False, detail="not there", hint=missing_module_hint(module))

    def _available(self, module: str) -> bool:
        """Whether modprobe would find it."""
        command = (*self._settings.modprobe, "-n", module)
        if shutil.which(command[0]) is None:
            return False
        try:
            return subprocess.run(command, capture_output=True, check=False, timeout=5).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def _configfs_check(self) -> Check:
        path = self._settings.configfs
        if self._fs.exists("core"):
            return Check(name="configfs", ok=True, detail=f"{path}, {self._fs.read_or('version')}")
        if self.loaded(CORE):
            return Check(
                name="configfs",
                ok=False,
                detail=f"{path} is not there",
                hint=f"mount -t configfs configfs {path.parent}",
            )
        return Check(name="configfs", ok=True, detail="mounted with the first endpoint")

    def _migration_check(self) -> Check:
        release = os.uname().release
        ok = kernel_version(release) >= _LOGS_PAGES
        return Check(
            name="migration",
            ok=ok,
            detail=f"kernel {release} {'logs' if ok else 'does not log'} the pages that it writes",
            hint=None if ok else "take Linux 6.16 or later, or --engine user for guests that shall move",
        )

    def _reservations_check(self) -> Check:
        path = self._kept()
        place = next(folder for folder in (path, *path.parents) if folder.exists())
        ok = os.access(place, os.W_OK)
        return Check(
            name="reservations",
            ok=ok,
            detail=f"{path} {'keeps them' if ok else 'cannot be written'}",
            hint=None
            if ok
            else f"make {path} writable: guests cannot register for power loss (APTPL) without it",
        )

    def _parameter_check(self, name: str, what: str) -> Check:
        path = self._settings.sysfs / "module" / MODULE / "parameters" / name
        try:
            return Check(name=name, ok=True, detail=f"{path.read_text().strip()}: {what}")
        except OSError:
            known = self.loaded(MODULE)
            detail = "this kernel does not have it" if known else f"{MODULE} is not loaded"
            return Check(name=name, ok=not known or name != "max_io_vqs", detail=detail)


_NEEDED: Final = ("root", CORE, MODULE, "configfs")


def missing_module_hint(module: str) -> str:
    """Name the package that has a module, for the distribution that this is."""
    release = os.uname().release
    names = _os_release(Path("/etc/os-release"))
    if "ubuntu" in names:
        return f"apt-get install linux-modules-extra-{release}"
    if "debian" in names:
        return (
            f"apt-get install linux-image-{_flavour(release)} (a cloud kernel has no {module}), then boot it"
        )
    if names & {"fedora", "rhel", "centos"}:
        return f"dnf install kernel-modules-extra-{release}"
    return f"install a kernel that has {module} (CONFIG_VHOST_SCSI)"


def _flavour(release: str) -> str:
    return "arm64" if release.endswith("arm64") else "amd64"


def _os_release(path: Path) -> set[str]:
    """Which distribution this is, and which ones it is like."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return set()
    values = [line.partition("=")[2] for line in lines if line.startswith(("ID=", "ID_LIKE="))]
    return {word for value in values for word in value.strip('"').split()}
