"""A Linux guest as a domain of a :class:`~ringway.testing.libvirtd.Libvirtd`."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from xml.sax.saxutils import escape, quoteattr

from ringway.errors import GuestError
from ringway.testing import initramfs
from ringway.testing.guest import Shell
from ringway.testing.kernel import command_line, find_kernel
from ringway.testing.libvirtd import Libvirtd
from ringway.testing.stream import Stream
from ringway.testing.waiting import PATIENCE_S

MIGRATE_S: Final = 300.0
SHARED_MEMORY: Final = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
_STREAMS: Final = ("console", "agent")

#: As :mod:`~ringway.testing.qemu` starts its own; root ports stay free for what is plugged in later.
_DOMAIN: Final = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>{cpus}</vcpu>
  {backing}
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{parameters}</cmdline>
  </os>
  <features><acpi/><vmport state='off'/><tcg><tb-cache unit='MiB'>256</tb-cache></tcg></features>
  <cpu mode='maximum'>
    <feature policy='disable' name='la57'/><feature policy='disable' name='smap'/>
    <feature policy='disable' name='smep'/><feature policy='disable' name='pku'/>
  </cpu>
  <devices>
    <controller type='usb' model='none'/>
    {ports}
    <serial type='unix'><source mode='connect' path={console}/><target port='0'/></serial>
    <channel type='unix'><source mode='connect' path={agent}/><target type='virtio' name='agent'/></channel>
    <memballoon model='none'/>
    {devices}
  </devices>
  {extra}
</domain>
"""


class DomainGuest(Shell):
    """A domain that boots the tests' kernel, and answers commands over a virtio port.

    A context manager: entering it defines the domain, starts it and waits until it answers; leaving it
    removes it.

    :param devices: further elements of its ``<devices>``.
    :param extra: further elements of the domain.
    :param ports: PCI Express ports; each takes one device, some are taken by the guest's own.
    :param machine: ``q35``, or ``pc``, which has one PCI bus and no ports.
    :param backing: the memory's element; what vhost-user needs, if not given.
    """

    def __init__(
        self,
        libvirtd: Libvirtd,
        name: str,
        folder: Path,
        *,
        devices: str = "",
        extra: str = "",
        memory_mib: int = 512,
        cpus: int = 1,
        ports: int = 8,
        machine: str = "q35",
        backing: str = SHARED_MEMORY,
        parameters: Sequence[str] = (),
    ) -> None:
        kernel = find_kernel()
        self.libvirtd = libvirtd
        self.name = name
        self._paths = {stream: folder / f"{name}.{stream}" for stream in _STREAMS}
        self._streams: dict[str, Stream] = {}
        self._initrd = _kept(initramfs.build(kernel), folder / f"{name}.initrd")
        self.xml = _DOMAIN.format(
            name=name,
            memory_mib=memory_mib,
            cpus=cpus,
            backing=backing,
            kernel=escape(str(kernel.vmlinux())),
            initrd=escape(str(self._initrd)),
            parameters=escape(command_line(parameters)),
            ports="".join(
                f"<controller type='pci' index='{index}' model='pcie-root-port'/>"
                for index in range(1, ports + 1)
                if machine == "q35"
            ),
            machine=machine,
            devices=devices,
            extra=extra,
            **{stream: quoteattr(str(path)) for stream, path in self._paths.items()},
        )

    @property
    def console(self) -> Stream:
        return self._streams["console"]

    @property
    def agent(self) -> Stream:
        """The domain's channel of that name."""
        return self._streams["agent"]

    @property
    def pid(self) -> int:
        """Of its QEMU. :raises GuestError: it does not run."""
        return self.libvirtd.guest_pid(self.name)

    def __enter__(self) -> Self:
        self.define()
        try:
            self.start_domain()
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.describe())
        self.close()

    def define(self) -> None:
        """Tell libvirt of it. :raises GuestError: libvirt does not take it."""
        path = self._paths["agent"].with_suffix(".xml")
        path.write_text(self.xml)
        self.libvirtd.virsh("define", "--validate", str(path))

    def start_domain(self) -> None:
        """Start it, from its persistent definition; :meth:`wait_ready` tells when it has booted."""
        self._hang_up()
        self._streams = self._met(lambda: self.libvirtd.virsh("start", self.name))

    def migrate(self, to: Libvirtd, *options: str) -> None:
        """Have libvirt move it, while it runs, with its definition.

        :param options: of ``virsh migrate``.
        :raises GuestError: it stays where it is.
        """
        command = ["migrate", "--live", "--p2p", "--persistent", "--undefinesource", *options]
        streams = self._met(
            lambda: self.libvirtd.virsh(*command, self.name, to.remote_uri, timeout_s=MIGRATE_S)
        )
        self._hang_up()
        self.libvirtd, self._streams = to, streams

    def _met(self, start: Callable[[], object]) -> dict[str, Stream]:
        """Have a QEMU started. :returns: its streams."""
        with contextlib.ExitStack() as stack:
            doors = {name: stack.enter_context(_Door(path)) for name, path in self._paths.items()}
            start()
            streams = {name: Stream(name, door.accept()) for name, door in doors.items()}
        for stream in streams.values():
            stream.start()
        return streams

    def stop_domain(self) -> None:
        """Pull the plug; its definition stays."""
        self.libvirtd.virsh("destroy", self.name)

    def reset(self) -> None:
        """Press the reset button and wait for the guest to come back, its memory forgotten."""
        self.libvirtd.virsh("reset", self.name)
        self.wait_ready()

    def close(self) -> None:
        """Remove the domain; again is fine."""
        for verb in ("destroy", "undefine"):
            with contextlib.suppress(GuestError):
                self.libvirtd.virsh(verb, self.name)
        self._hang_up()
        self._initrd.unlink(missing_ok=True)

    def describe(self) -> str:
        """The ends of its streams, and of QEMU's log."""
        parts = [f"--- QEMU\n{self.libvirtd.guest_log(self.name)[-3000:]}"]
        parts += [f"--- {name}\n{stream.tail()}" for name, stream in self._streams.items()]
        return "\n".join(parts)

    def _hang_up(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams = {}


def _kept(image: Path, place: Path) -> Path:
    """Keep a root file system for every start to come: it goes as soon as this host's tools make another."""
    place.unlink(missing_ok=True)
    try:
        place.hardlink_to(image)
    except OSError:  # another file system
        shutil.copyfile(image, place)
    return place


class _Door:
    """A socket at which QEMU will connect; open until it did."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(PATIENCE_S)

    def __enter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._listener.listen(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def accept(self) -> socket.socket:
        """:raises GuestError: QEMU does not come."""
        try:
            connection, _ = self._listener.accept()
        except TimeoutError as error:
            raise GuestError(f"QEMU does not connect to {self._path}") from error
        connection.settimeout(None)
        return connection
