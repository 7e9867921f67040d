"""A guest with a kernel target: a Debian kernel with LIO and vhost-scsi, in which this host's Python runs.

Its root is this host's, with a layer in memory over it: the interpreter, the virtual environment and the
sources are found at the same paths as here. What it writes is forgotten with it, unless it goes to the disk
that is mounted at :data:`KEPT`, which outlives a reset.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ringway.testing import host_root
from ringway.testing.guest import BOOT_TIMEOUT_S, COMMAND_TIMEOUT_S, LinuxGuest

#: Set in the environment of what runs in such a guest.
INSIDE: Final = "RINGWAY_INSIDE"
#: A folder that outlives a reset, when the guest was given a disk for it.
KEPT: Final = "/mnt/kept"
_KEPT_BYTES: Final = 64 << 20

_MOUNT_KEPT: Final = f"modprobe virtio_blk; modprobe ext4; mkdir -p {KEPT} && mount /dev/vda {KEPT}"


class KernelTarget(LinuxGuest):
    """A guest whose root file system is this host's. A context manager, as :class:`LinuxGuest` is.

    :param kept: an image for what shall outlive a reset; made and formatted if it does not exist.
    :param environment: of all that runs in the guest.
    """

    def __init__(
        self,
        *,
        kept: Path | None = None,
        memory_mib: int = 1024,
        cpus: int = 2,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._kept = kept
        own = {INSIDE: "1", "PYTHONPATH": _sources(), "PYTHONDONTWRITEBYTECODE": "1"}
        self._environment = {**own, **(environment or {})}
        devices = [*host_root.export(), *([] if kept is None else host_root.disk(kept, _KEPT_BYTES))]
        super().__init__(devices, memory_mib=memory_mib, cpus=cpus, build=host_root.build)

    def wait_ready(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """As :meth:`LinuxGuest.wait_ready`; modules of the kernel target are there for ``modprobe``."""
        super().wait_ready(timeout_s)
        if self._kept:
            self.run(_MOUNT_KEPT)

    def command(self, *words: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a program in this project's environment and return its output.

        :raises GuestError: as :meth:`LinuxGuest.run`.
        """
        return self.run(self.line(words), timeout_s=timeout_s)

    def python(self, code: str, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a piece of Python as a program of its own and return its output.

        :raises GuestError: it ended with an exception; the message holds the traceback.
        """
        return self.command(sys.executable, "-c", code, *arguments, timeout_s=timeout_s)

    def line(self, words: Sequence[str], *, folder: Path | None = None) -> str:
        """Return the line of shell that runs a program in this project's environment.

        :param folder: where it runs; by default the one that this process is in.
        """
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in self._environment.items())
        return f"cd {shlex.quote(str(folder or Path.cwd()))} && {settings} {shlex.join(words)}"


def _sources() -> str:
    """The folder that this package is in."""
    return str(Path(__file__).parents[2])
