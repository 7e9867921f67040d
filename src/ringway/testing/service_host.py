"""A guest in which systemd runs services: a Debian kernel, and this host's own root with its systemd.

All that it writes goes to a disk of its own, so that a reboot finds it as it was left and this host never
sees it. Services of this host are not started there.
"""

from __future__ import annotations

import os
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from ringway.errors import GuestError
from ringway.testing import host_root
from ringway.testing.guest import BOOT_TIMEOUT_S, LinuxGuest
from ringway.testing.initramfs import AGENT
from ringway.testing.kernel import Kernel

SYSTEMD: Final = Path("/lib/systemd/systemd")
#: The console has what goes wrong, and what is said after the journal has ended.
_PARAMETERS: Final = ("systemd.show_status=error", "loglevel=6")
_DISK_BYTES: Final = 1 << 30
#: Of systemd's own: what a machine needs that somebody sits at, or that takes its time in software emulation.
_MASKED: Final = (
    *("dbus.service", "dbus.socket", "getty.target", "systemd-logind.service", "systemd-firstboot.service"),
    *("systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket"),
    *("systemd-udev-trigger.service", "systemd-random-seed.service", "systemd-repart.service"),
    *("systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "systemd-machine-id-commit.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-pcrphase.service"),
    *("systemd-pcrphase-sysinit.service", "systemd-ask-password-console.path", "kmod-static-nodes.service"),
    *("systemd-ask-password-wall.path", "systemd-tmpfiles-clean.timer", "systemd-initctl.socket"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-tracing.mount", "systemd-hwdb-update.service"),
    *("ldconfig.service", "systemd-update-done.service", "systemd-journal-catalog-update.service"),
)
_AGENT_UNIT: Final = """\
[Unit]
Description=Commands from outside, until the very end
DefaultDependencies=no
After=basic.target
[Service]
Environment=HOME=/root
ExecStart=BUSYBOX sh /run/agent
Restart=always
"""
#: What this host has enabled, its journal and its passwords are gone, and nothing says that it is a
#: container. What lies in /tmp stays: this tree may.
_PREPARE: Final = f"""\
if [ ! -e /layer/prepared ]; then
    rm -rf /new/etc/systemd /new/etc/fstab /new/etc/init.d /new/etc/rc?.d /new/var/log/journal /new/.dockerenv
    rm -f /new/etc/shadow* /new/etc/gshadow* /new/etc/.pwd.lock && echo 'root:*:::::::' >/new/etc/shadow
    mkdir -p /new/etc/systemd/system /new/etc/tmpfiles.d /new/var/log/journal
    ln -sf /dev/null /new/etc/tmpfiles.d/tmp.conf
    : >/layer/prepared
fi
mkdir -p /new/run/systemd/system/multi-user.target.wants
for unit in {" ".join(_MASKED)}; do ln -s /dev/null /new/run/systemd/system/$unit; done
echo '{_AGENT_UNIT}' >/new/run/systemd/system/agent.service
ln -s ../agent.service /new/run/systemd/system/multi-user.target.wants/agent.service
"""
_START: Final = host_root.Start(
    name="service-root",
    early=("virtio_blk", "ext4", "crc32c_generic", "crc32c_intel"),
    layer="-t ext4 /dev/vda",
    prepare=_PREPARE,
    program=str(SYSTEMD),
    agent=AGENT,
)


class ServiceHost(LinuxGuest):
    """A guest that has booted when it takes commands. A context manager, as :class:`LinuxGuest` is.

    :param disk: an image for all that it writes; made and formatted if it does not exist.
    """

    def __init__(self, disk: Path, *, memory_mib: int = 1024, cpus: int = 2) -> None:
        if not SYSTEMD.exists():
            raise GuestError(
                f"{SYSTEMD} is not installed", hint="run `make system`, or apt-get install systemd"
            )
        devices = [*host_root.export(), *host_root.disk(disk, _DISK_BYTES)]
        super().__init__(devices, memory_mib=memory_mib, cpus=cpus, parameters=_PARAMETERS, build=_build)

    def reboot(self, timeout_s: float = BOOT_TIMEOUT_S) -> Self:
        """Restart it in an orderly way, services first, and wait for it to come back."""
        self.run("systemctl reboot")
        self.wait_ready(timeout_s)
        return self

    def install_programs(self) -> None:
        """Put the programs of this project where a package would; they run this very tree, as anybody."""
        for place in (sys.executable, os.path.realpath(sys.executable), __file__):
            self.run(f"chmod a+x {shlex.join(map(str, Path(place).parents))}")
        for name, text in _programs():
            self.run(f"cat >/usr/bin/{name} <<'END'\n{text}END\nchmod 755 /usr/bin/{name}")


def _build(kernel: Kernel) -> Path:
    return host_root.build(kernel, _START)


def _programs() -> Iterator[tuple[str, str]]:
    """Names and contents, from what the project says of its programs."""
    sources = Path(__file__).parents[2]
    project = tomllib.loads((sources.parent / "pyproject.toml").read_text())["project"]
    for name, entry in project["scripts"].items():
        module, function = entry.split(":")
        code = f"import sys; from {module} import {function}; sys.argv[0] = '{name}'; sys.exit({function}())"
        yield name, f'#!/bin/sh\nPYTHONPATH={sources} exec {sys.executable} -c "{code}" "$@"\n'
