"""What tests with libvirt have at hand: a hypervisor, targets, looks from inside and from below."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ringway.errors import GuestError
from ringway.guest.base import GuestEvent, GuestEventKind, Wish
from ringway.guest.libvirt import LibvirtHypervisor
from ringway.model import AttachmentInfo, Face
from ringway.testing.domain import SHARED_MEMORY, DomainGuest
from ringway.testing.guest import Shell
from ringway.testing.libvirtd import Libvirtd
from ringway.testing.waiting import PATIENCE_S, wait_until

from ..serving import Target, make_image

FACES: Final = {"scsi": Face.VHOST_USER_SCSI, "blk": Face.VHOST_USER_BLK}


class Bench:
    """A hypervisor over a libvirtd, which hears its events, and targets that end with it."""

    def __init__(self, libvirtd: Libvirtd, folder: Path) -> None:
        self.libvirtd = libvirtd
        self.folder = folder
        self.hypervisor = LibvirtHypervisor(libvirtd.uri)
        self.events: queue.Queue[GuestEvent] = queue.Queue()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.hypervisor.watch(self.events.put)
        self._stack.callback(self.hypervisor.close)
        self.wait_event(GuestEventKind.CONNECTED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def target(self, name: str, device: str = "scsi") -> Target:
        """A target with one disk, ``FOLDER/NAME.img``, that serves until the end."""
        image = make_image(self.folder / f"{name}.img")
        return self._stack.enter_context(Target(self.folder, image, device=device, name=name))

    def image(self, name: str) -> Path:
        """The disk of a target."""
        return self.folder / f"{name}.img"

    def wish(self, name: str, device: str = "scsi") -> Wish:
        """A target's endpoint, as it is asked for."""
        socket = str(self.folder / f"{name}.sock")
        return Wish(endpoint=name, face=FACES[device], socket=socket)

    def attach(self, guest: str, name: str, device: str = "scsi") -> AttachmentInfo:
        """Attach a target's endpoint to a guest that runs, and to its next start."""
        return self.hypervisor.attach(guest, self.wish(name, device), live=True, persistent=True)

    def detach(self, guest: str, name: str, timeout_s: float = PATIENCE_S) -> None:
        """Take it away again."""
        self.hypervisor.detach(guest, name, live=True, persistent=True, timeout_s=timeout_s)

    def wait_event(self, kind: GuestEventKind, alias: str = "") -> GuestEvent:
        """Wait for an event; the ones before it are forgotten. :raises GuestError: it does not come."""
        try:
            while True:
                event = self.events.get(timeout=PATIENCE_S)
                if event.kind is kind and event.alias == alias:
                    return event
        except queue.Empty as error:
            raise GuestError(f"no event {kind} {alias}") from error

    def define(
        self, name: str, *, backing: str = SHARED_MEMORY, ports: int = 8, extra: str = ""
    ) -> DomainGuest:
        """A guest that is defined, and removed at the end; it does not run."""
        guest = DomainGuest(self.libvirtd, name, self.folder, backing=backing, ports=ports, extra=extra)
        self._stack.callback(guest.close)
        guest.define()
        return guest

    # From below

    def qmp(self, guest: str, command: str, **arguments: Any) -> Any:
        """Ask QEMU, past everything that is tested. :raises GuestError: it refuses."""
        request = json.dumps({"execute": command, "arguments": arguments})
        answer = json.loads(self.libvirtd.virsh("qemu-monitor-command", guest, request))
        if "error" in answer:
            raise GuestError(answer["error"]["desc"])
        return answer["return"]

    def remains(self, guest: str) -> list[str]:
        """Devices and connections of ours that QEMU has."""
        devices = [each["name"] for each in self.qmp(guest, "qom-list", path="/machine/peripheral")]
        sockets = [each["label"] for each in self.qmp(guest, "query-chardev")]
        return sorted(name for name in (*devices, *sockets) if "ua-ringway" in name)

    def aliases(self, guest: str) -> list[str]:
        """Our devices in libvirt's documents; overrides stay in the live one until the guest's end."""
        return re.findall(r"<alias name='(ua-ringway-[^']*)'", self.documents(guest))

    def documents(self, guest: str) -> str:
        """All that libvirt knows of a guest, now and next time."""
        return "".join(self.libvirtd.virsh("dumpxml", guest, *flags) for flags in ((), ("--inactive",)))


def disks(guest: Shell, count: int) -> list[str]:
    """Wait until a guest sees so many disks. :returns: their devices. :raises TimedOutError: it does not."""
    found: list[str] = []

    def there() -> bool:
        found[:] = [f"/dev/{name}" for name in guest.run("ls /sys/block").split()]
        return len(found) == count

    wait_until(there, f"{count} disks in the guest")
    return found


def write(guest: Shell, disk: str, text: str) -> None:
    """Write through to a disk's first block."""
    guest.run(f"printf %-4096s '{text}' | dd of={disk} bs=4096 oflag=direct conv=fsync 2>/dev/null")


def read(guest: Shell, disk: str) -> str:
    """What :func:`write` wrote."""
    return guest.run(f"dd if={disk} bs=4096 count=1 iflag=direct 2>/dev/null").rstrip()


def files(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads() -> set[str]:
    """Threads of this process, by name."""
    return {thread.name for thread in threading.enumerate()}


@contextlib.contextmanager
def started(guest: DomainGuest) -> Iterator[DomainGuest]:
    """A guest that is switched on and not waited for: its firmware, and no more."""
    guest.start_domain()
    try:
        yield guest
    finally:
        guest.stop_domain()
