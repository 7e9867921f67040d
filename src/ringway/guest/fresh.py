"""A guest that is not there yet: a whole domain, made from a specification.

A q35 machine with SeaBIOS, a serial console, an entropy source, disks on a virtio-scsi controller or on
endpoints, and vhost-user ports. What is not said here is libvirt's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from lxml import etree
from msgspec import Struct

from ringway.errors import ConflictError, UsageError
from ringway.guest.catalogue import Catalogue
from ringway.guest.document import Document, ScsiController
from ringway.guest.document.overrides import NAMESPACE
from ringway.guest.layout import (
    Disk,
    Endpoints,
    Service,
    add_disks,
    add_endpoints,
    bootable,
    check_apart,
    endpoints,
    lay_out,
)
from ringway.guest.vifs import add_ports
from ringway.model import MAX_QUEUES, DiskBus, EngineKind, GuestSpec, Via

_PORTS: Final = 12  #: PCI Express ports; what its first devices leave is for hot-plug
_DOMAIN: Final = """\
<domain type='{type}'>
  <name>{name}</name>{uuid}
  <memory unit='KiB'>{memory_kib}</memory>
  <vcpu>{vcpus}</vcpu>{iothreads}
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
  </os>
  <features>
    <acpi/>
    <apic/>
  </features>
  <cpu mode='{cpu}'/>
  <devices>
    <serial type='pty'/>
    <console type='pty'>
      <target type='serial'/>
    </console>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
    </rng>
  </devices>
</domain>
"""


class Put(Struct, frozen=True, kw_only=True):
    """What was put into a document, and what has to be there before its guest starts."""

    elements: tuple[str, ...]
    disks: tuple[Disk, ...]  #: their volumes may be new
    endpoints: Endpoints


class Fresh(Struct, frozen=True, kw_only=True):
    """A new domain, and what has to be there before it starts."""

    document: Document
    disks: tuple[Disk, ...]
    endpoints: Endpoints


def bare(spec: GuestSpec, *, kvm: bool = True, uuid: str | None = None) -> Document:
    """The domain without its disks and ports.

    :param kvm: or QEMU emulates the CPU. :param uuid: libvirt's choice if ``None``.
    """
    threads = f"\n  <iothreads>{spec.iothreads}</iothreads>" if spec.iothreads else ""
    return Document(
        _DOMAIN.format(
            type="kvm" if kvm else "qemu",
            cpu="host-passthrough" if kvm else "maximum",
            name=spec.name,
            uuid=f"\n  <uuid>{uuid}</uuid>" if uuid else "",
            memory_kib=-(-spec.memory_bytes // 1024),
            vcpus=spec.vcpus,
            iothreads=threads,
        )
    )


def fresh(
    spec: GuestSpec,
    catalogue: Catalogue,
    socket: Callable[[str], str],
    *,
    name: str | None = None,
    wwpns: Mapping[str, str] | None = None,
    kvm: bool = True,
    uuid: str | None = None,
) -> Fresh:
    """Make a whole domain. Nothing on this host is touched.

    :param socket: where an endpoint's socket is.
    :param name: of its endpoint; the guest's if ``None``.
    :param wwpns: of endpoints that are there; others get names of their own.
    :param uuid: the guest's; libvirt's choice if ``None``.
    :raises RingwayError: as the parts say.
    """
    disks = lay_out(bootable(spec.block_devices), catalogue.find, spec.name)
    return draw(spec, disks, socket, name=name, wwpns=wwpns, kvm=kvm, uuid=uuid)


def draw(
    spec: GuestSpec,
    disks: tuple[Disk, ...],
    socket: Callable[[str], str],
    *,
    name: str | None = None,
    wwpns: Mapping[str, str] | None = None,
    kvm: bool = True,
    uuid: str | None = None,
) -> Fresh:
    """The same, of disks whose volumes are known: what the specification says of them is not looked at."""
    document = bare(spec, kvm=kvm, uuid=uuid)
    document.add_hot_plug_ports(_PORTS)
    check_apart(disks)
    put_in = _put(document, spec, disks, socket, name, wwpns)
    return Fresh(document=document, disks=disks, endpoints=put_in.endpoints)


def put(
    document: Document,
    spec: GuestSpec,
    catalogue: Catalogue,
    socket: Callable[[str], str],
    *,
    name: str | None = None,
) -> Put:
    """Put a specification's disks and ports into a document; all else that it says is not looked at.

    :param socket: as for :func:`fresh`, and so is ``name``.
    :raises RingwayError: as the parts say; the document may hold some of them.
    """
    disks = lay_out(spec.block_devices, catalogue.find, document.name, document.disks())
    check_apart(disks, document.disks())
    return _put(document, spec, disks, socket, name)


def _put(
    document: Document,
    spec: GuestSpec,
    disks: tuple[Disk, ...],
    socket: Callable[[str], str],
    name: str | None,
    wwpns: Mapping[str, str] | None = None,
) -> Put:
    if spec.via is Via.QEMU:
        served = Endpoints(specs=(), wishes=())
        before = len(document.controllers())
        elements = add_disks(document, disks, controller(spec))
        _refuse_idle(spec, disks, controllers=len(document.controllers()) - before)
    else:
        _refuse_threads(spec, disks)
        service = Service(
            name=name or document.name,
            socket=socket,
            engine=spec.engine or EngineKind.USER,
            queues=_queues(document, spec),
            guest=document.uuid or document.name,
            wwpns=wwpns or {},
        )
        served = endpoints(disks, service)
        _refuse_twice(document, served)
        elements = add_endpoints(document, served.wishes)
    elements += add_ports(document, spec.ports)
    return Put(elements=elements, disks=disks, endpoints=served)


def _refuse_twice(document: Document, served: Endpoints) -> None:
    """:raises ConflictError: the guest has an endpoint of the name already."""
    there = {found.endpoint for found in document.attachments()}
    if twice := [wish.endpoint for wish in served.wishes if wish.endpoint in there]:
        raise ConflictError(
            f"guest '{document.name}' has endpoint '{twice[0]}' already",
            hint="name the new one with --endpoint",
        )


def _queues(document: Document, spec: GuestSpec) -> int | None:
    """Of its endpoints; ``None``: QEMU chooses those of the kernel's."""
    usual = None if spec.engine is EngineKind.LIO else document.vcpus
    queues = spec.queues or usual
    return None if queues is None else min(queues, MAX_QUEUES)


def _refuse_idle(spec: GuestSpec, disks: Sequence[Disk], *, controllers: int) -> None:
    """Refuse queues and I/O threads that nothing has which was made, and an engine that serves nothing.

    :param controllers: that were made. :raises UsageError: there are some.
    """
    if spec.engine is not None:
        raise UsageError("an engine is of endpoints", hint="say --via endpoint as well")
    if controllers or any(disk.mapping.place is DiskBus.VIRTIO for disk in disks):
        return
    there = any(disk.mapping.place is DiskBus.SCSI for disk in disks)
    why = "the disks go to a controller that is there" if there else "no new disk is on bus scsi or virtio"
    for given, what in ((spec.queues, "queues"), (spec.iothreads, "I/O threads")):
        if given:
            raise UsageError(
                f"the {what} are of nobody: {why}",
                hint="leave them away; virsh edit changes what is there" if there else "leave them away",
            )


def _refuse_threads(spec: GuestSpec, disks: Sequence[Disk]) -> None:
    """:raises UsageError: queues of no endpoint, or QEMU's threads where an endpoint serves the disks."""
    if spec.iothreads:
        raise UsageError(
            "an endpoint's disks have no I/O threads of QEMU's",
            hint="leave them away; an endpoint's own are its workers: ringway endpoint set --workers",
        )
    if spec.queues and not disks:
        raise UsageError("queues of an endpoint, and no disk for one", hint="leave them away")


def controller(spec: GuestSpec) -> ScsiController:
    """How virtio-scsi controllers of the guest are made, and its disks of bus virtio."""
    return ScsiController(queues=spec.queues, iothreads=tuple(range(1, spec.iothreads + 1)))


def surroundings(document: Document) -> tuple[str, ...]:
    """What a domain needs besides its devices for ours: shared memory, overrides."""
    root = etree.fromstring(document.xml.encode())
    found = (root.find("memoryBacking"), root.find(f"{{{NAMESPACE}}}override"))
    return tuple(
        etree.tostring(element, encoding="unicode", with_tail=False)
        for element in found
        if element is not None
    )
