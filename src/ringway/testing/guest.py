"""A Linux guest that runs shell commands for a test or a demonstration."""

from __future__ import annotations

import abc
import base64
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from ringway.errors import GuestError
from ringway.testing import initramfs
from ringway.testing.kernel import Kernel, command_line, find_kernel
from ringway.testing.qemu import Qemu, QemuGuest, machine
from ringway.testing.stream import Stream

BOOT_TIMEOUT_S = 300.0
COMMAND_TIMEOUT_S = 300.0

# Numbers of requests are unique in this process, so that a guest that moved between two QEMUs cannot mix them
# up.
_numbers = itertools.count(1)

#: What no guest gets over, but for the one that emulation makes (see :func:`.kernel.command_line`).
_OOPS = re.compile(rb"(Oops|BUG|Kernel panic)(?!: int3|[^\n]*Fatal exception)[^\n]*")
_UDEV = """\
[ -e /run/udev/control ] || {
    /usr/lib/systemd/systemd-udevd --daemon --resolve-names=never
    udevadm trigger --type=subsystems --action=add
    udevadm trigger --type=devices --subsystem-match=block --subsystem-match=scsi --action=add
}
udevadm settle --timeout=240
"""


class Output(NamedTuple):
    """What a command left behind: its exit status, and output and error output as they were interleaved."""

    status: int
    text: str


class Shell(abc.ABC):
    """What every Linux guest of ours is: an agent that runs one command at a time.

    :meth:`start` is for what has to go on meanwhile.
    """

    @property
    @abc.abstractmethod
    def agent(self) -> Stream:
        """The way to the agent of :mod:`~ringway.testing.initramfs`."""

    @property
    @abc.abstractmethod
    def console(self) -> Stream:
        """What the kernel says."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Say what a person needs to see after a failure."""

    def wait_ready(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Wait until a guest that boots, or boots again, takes commands.

        :raises GuestError: it does not in time.
        """
        try:
            self.agent.wait_for(rb"ready\n", timeout_s)
        except GuestError as error:
            raise GuestError(f"the guest did not boot: {error}\n{self.describe()}") from error
        if oops := _OOPS.search(self.console.collected()):
            raise GuestError(f"the guest booted after '{oops[0].decode()}'\n{self.describe()}")

    def try_run(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> Output:
        """Run a shell script in the guest and return what came of it, whatever its exit status.

        :raises GuestError: it did not end in time, or the guest is gone.
        """
        number = next(_numbers)
        try:
            self._send(number, command)
            return self._receive(number, timeout_s)
        except GuestError as error:
            raise GuestError(f"{command}: {error}\n{self.describe()}") from error

    def run(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a shell script in the guest and return its output.

        :raises GuestError: its exit status is not 0 (the message holds the output), or as :meth:`try_run`.
        """
        output = self.try_run(command, timeout_s=timeout_s)
        if output.status != 0:
            raise GuestError(f"{command}: exit status {output.status} in the guest\n{output.text}")
        return output.text

    def start(self, command: str) -> Job:
        """Run a shell script in the background."""
        number = next(_numbers)
        script = base64.b64encode(command.encode()).decode()
        place = f"/run/job.{number}"
        self.run(
            f"echo {script} | base64 -d >{place}.script\n"
            f"( sh {place}.script >{place}.output 2>&1 </dev/null\n"
            f"echo $? >{place}.status; mv {place}.status {place} ) &"
        )
        return Job(self, place)

    def settle(self) -> None:
        """Wait until udev has named every disk below ``/dev/disk``; the first call starts it."""
        self.run(_UDEV)

    def _send(self, number: int, command: str) -> None:
        self.agent.write(b"%d %s\n" % (number, base64.b64encode(command.encode())))

    def _receive(self, number: int, timeout_s: float) -> Output:
        status, size = self.agent.wait_for(rb"reply %d (\d+) (\d+)\n" % number, timeout_s).groups()
        return Output(int(status), self.agent.take(int(size), timeout_s).decode("utf-8", "replace"))


class LinuxGuest(Shell, QemuGuest):
    """A Debian kernel under QEMU whose root file system is in memory; it answers commands over a virtio port.

    Entering it as a context manager waits until the guest answers.

    :param devices: QEMU arguments of the disks to test.
    :param incoming: start as the destination of a migration; the guest answers once that has completed.
    :param parameters: further kernel parameters.
    :param kernel: what to boot; the newest that is unpacked, if not given.
    :param build: makes the kernel's first root file system, which starts the agent at last.
    """

    def __init__(
        self,
        devices: Sequence[str] = (),
        *,
        memory_mib: int = 512,
        cpus: int = 1,
        incoming: bool = False,
        parameters: Sequence[str] = (),
        kernel: Kernel | None = None,
        build: Callable[[Kernel], Path] = initramfs.build,
    ) -> None:
        kernel = kernel or find_kernel()
        boot = ["-kernel", str(kernel.vmlinux()), "-initrd", str(build(kernel))]
        self._incoming = incoming
        self.qemu = Qemu(
            [
                *machine(memory_mib=memory_mib, cpus=cpus),
                *("-serial", "chardev:console"),
                *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,nr=1"),
                *boot,
                *("-append", command_line(parameters)),
                *(("-incoming", "defer") if incoming else ()),
                *devices,
            ],
            streams=("console", "agent"),
        )

    def __enter__(self) -> Self:
        if not self._incoming:
            self.wait_ready()
        return self

    @property
    def agent(self) -> Stream:
        """QEMU's stream of that name."""
        return self.qemu.streams["agent"]

    @property
    def console(self) -> Stream:
        """Of the first serial port."""
        return self.qemu.console

    def describe(self) -> str:
        """QEMU's own words."""
        return self.qemu.describe()

    def reset(self) -> None:
        """Press the reset button and wait for the guest to come back, its memory forgotten."""
        self.qemu.reset()
        self.wait_ready()


@dataclass(frozen=True, slots=True)
class Job:
    """A script that runs in the background of a guest."""

    guest: Shell
    place: str

    def on(self, guest: Shell) -> Job:
        """Return the same job in the QEMU that its guest has migrated to."""
        return replace(self, guest=guest)

    def running(self) -> bool:
        """Tell whether it has not ended."""
        return self.guest.try_run(f"[ ! -e {self.place} ]").status == 0

    def wait(self, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Wait for its end and return its output.

        :raises GuestError: its exit status is not 0 (the message holds the output), or it did not end in
            time.
        """
        self.guest.run(f"while [ ! -e {self.place} ]; do usleep 20000; done", timeout_s=timeout_s)
        return self.guest.run(f"cat {self.place}.output; exit $(cat {self.place})")
