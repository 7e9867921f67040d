"""Start a fake kernel, and play the guest at it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

from ringway.errors import GuestError
from ringway.testing.fuse import unmount

STOP_S: Final = 10.0
MODULES: Final = ("target_core_mod", "vhost_scsi")


class FakeKernel:
    """A fake kernel that is mounted at ``folder/sys`` for as long as the context lasts.

    It ends with the process that started it, however that ends.

    :param folder: must exist; the kernel's files of reservations lie in ``folder/target``.
    :raises GuestError: it cannot be mounted here (it needs root and /dev/fuse).
    """

    def __init__(self, folder: Path, *, modules: tuple[str, ...] = MODULES) -> None:
        self.sysfs = folder / "sys"
        self.dbroot = folder / "target"
        self._modules = modules
        self._process: subprocess.Popen[str] | None = None

    @property
    def configfs(self) -> Path:
        """What ``/sys/kernel/config/target`` is to a real one."""
        return self.sysfs / "kernel" / "config" / "target"

    @property
    def kmsg(self) -> Path:
        """What ``/dev/kmsg`` is to a real one."""
        return self.sysfs / "fake" / "kmsg"

    def __enter__(self) -> Self:
        self.sysfs.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "ringway.testing.fake_kernel", str(self.sysfs)]
        options = ["--dbroot", str(self.dbroot), "--modules", ",".join(self._modules), "--stop-with-stdin"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*command, *options], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            assert self._process.stderr is not None
            reason = self._process.stderr.read().strip().rpartition("\n")[2]
            self.__exit__()
            raise GuestError(f"no fake kernel: {reason}", hint="it needs root and /dev/fuse")
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        assert process is not None
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        unmount(self.sysfs)  # one that was killed could not do so itself
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()

    def reboot(self) -> None:
        """Forget everything but the files of reservations."""
        self.__exit__()
        self.__enter__()

    def attach(self, wwpn: str) -> None:
        """A guest comes. :raises OSError: ENODEV: it cannot."""
        self._tell("attach", wwpn)

    def detach(self, wwpn: str) -> None:
        """The guest goes."""
        self._tell("detach", wwpn)

    def use(self, wwpn: str, target: int, lun: int, *, commands: int, read: int, written: int) -> None:
        """The guest does I/O; sizes in bytes."""
        self._tell("io", f"{wwpn} {target} {lun} {commands} {read} {written}")

    def register(self, wwpn: str, target: int, lun: int, *, key: int, type_: int) -> None:
        """The guest registers a key with APTPL, and reserves unless ``type_`` is 0."""
        self._tell("register", f"{wwpn} {target} {lun} {key} {type_}")

    def load(self, module: str) -> None:
        """A module is loaded."""
        self._tell("load", module)

    def _tell(self, what: str, text: str) -> None:
        fd = os.open(self.sysfs / "fake" / what, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
