"""Domains with a boot sector, nested in the guest that these tests run in."""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
import tty
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ringway.errors import GuestError
from ringway.guest.catalogue import Catalogue
from ringway.guest.fresh import fresh
from ringway.guest.libvirt import LibvirtHypervisor
from ringway.guest.mapping_files import read_all
from ringway.model import GuestSpec
from ringway.testing.libvirtd import Libvirtd

from .engine import MIB

#: An emulated guest in an emulated guest, on a machine that is busy otherwise.
SLOW_S: Final = 300.0

#: SeaBIOS tells of each disk that it finds there, with what INQUIRY said.
_BIOS_LOG: Final = """\
    <serial type='file'>
      <source path='{path}'/>
      <target type='isa-debug'><model name='isa-debugcon'/></target>
      <address type='isa' iobase='0x402'/>
    </serial>
  </devices>"""


class NestedGuest:
    """A domain of 64 MiB that boots from its first disk. A context manager that defines and removes it.

    :param mappings: its disks, as users write them. :param volumes: where their bytes are.
    :param shared_memory: as vhost-user needs it.
    """

    def __init__(
        self,
        libvirtd: Libvirtd,
        name: str,
        folder: Path,
        *mappings: str,
        volumes: dict[str, str] | None = None,
        shared_memory: bool = False,
    ) -> None:
        self.name = name
        self._libvirtd = libvirtd
        self._bios = folder / f"{name}.bios"
        self._console: int | None = None
        wanted = GuestSpec(name=name, memory_bytes=64 * MIB, block_devices=read_all(mappings))
        made = fresh(wanted, Catalogue(volumes, resolvers={}), lambda _: "", kvm=False)
        if shared_memory:
            made.document.share_memory()
        self.xml: Final = made.document.xml.replace("  </devices>", _BIOS_LOG.format(path=self._bios), 1)

    def __enter__(self) -> Self:
        with contextlib.closing(LibvirtHypervisor(self._libvirtd.uri)) as hypervisor:
            hypervisor.define(self.xml)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"{self.bios()[-2000:]}\n{self._libvirtd.guest_log(self.name)[-2000:]}")
        for verb in ("destroy", "undefine"):
            with contextlib.suppress(GuestError):
                self._libvirtd.virsh(verb, self.name, timeout_s=SLOW_S)
        if self._console is not None:
            os.close(self._console)

    def start(self) -> None:
        """Start it, from its persistent definition."""
        self._libvirtd.virsh("start", self.name, timeout_s=SLOW_S)
        found = re.search(r"<serial type='pty'>\s*<source path='([^']*)'", self.live_xml())
        assert found is not None
        self._console = os.open(found[1], os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._console)

    def stop(self) -> None:
        """Pull the plug; its definition stays."""
        self._libvirtd.virsh("destroy", self.name, timeout_s=SLOW_S)

    def live_xml(self) -> str:
        """Of the guest that runs."""
        return self._libvirtd.virsh("dumpxml", self.name, timeout_s=SLOW_S)

    def wait_dots(self, count: int) -> None:
        """Wait until its boot sector has said so many. :raises GuestError: it did not in time."""
        assert self._console is not None
        seen, deadline = 0, time.monotonic() + SLOW_S
        while seen < count:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._console], [], [], left)[0]:
                raise GuestError(f"the boot sector said {seen} dots, not {count}")
            seen += os.read(self._console, 4096).count(b".")

    def bios(self) -> str:
        """What SeaBIOS said."""
        return self._bios.read_text(errors="replace") if self._bios.exists() else ""
