"""A guest that is not there yet: a whole domain, made from a specification.

A q35 machine with SeaBIOS, a serial console, an entropy source, disks on a virtio-scsi controller or on
endpoints, and vhost-user ports. What is not said here is libvirt's choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from lxml import etree
from msgspec import Struct

from ringway.guest.document import Document, ScsiController
from ringway.guest.layout import Disk, Endpoints, add_disks, add_endpoints, bootable, endpoints, lay_out
from ringway.guest.vifs import add_ports
from ringway.guest.volumes import Catalogue
from ringway.model import MAX_QUEUES, GuestSpec, Via

_QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
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
    kvm: bool = True,
    uuid: str | None = None,
) -> Fresh:
    """Make a whole domain. Nothing on this host is touched.

    :param socket: where an endpoint's socket is.
    :param name: of its endpoint; the guest's if ``None``.
    :param uuid: the guest's; libvirt's choice if ``None``.
    :raises RingwayError: as the parts say.
    """
    document = bare(spec, kvm=kvm, uuid=uuid)
    document.add_hot_plug_ports(_PORTS)
    first = msgspec.structs.replace(spec, block_devices=bootable(spec.block_devices))
    put_in = put(document, first, catalogue, socket, name=name)
    return Fresh(document=document, disks=put_in.disks, endpoints=put_in.endpoints)


def put(
    document: Document,
    spec: GuestSpec,
    catalogue: Catalogue,
    socket: Callable[[str], str],
    *,
    name: str | None = None,
) -> Put:
    """Put a specification's disks and ports into a document; all else that it says is not looked at.

    :raises RingwayError: as the parts say; the document may hold some of them.
    """
    disks = lay_out(spec.block_devices, catalogue.find, document.name, document.disks())
    queues = min(spec.queues or document.vcpus, MAX_QUEUES)
    if spec.via is Via.QEMU:
        served = Endpoints(specs=(), wishes=())
        elements = add_disks(document, disks, controller(spec))
    else:
        served = endpoints(disks, name or document.name, queues, socket)
        elements = add_endpoints(document, served.wishes)
    elements += add_ports(document, spec.ports)
    return Put(elements=elements, disks=disks, endpoints=served)


def controller(spec: GuestSpec) -> ScsiController:
    """How virtio-scsi controllers of the guest are made."""
    return ScsiController(queues=spec.queues, iothreads=tuple(range(1, spec.iothreads + 1)))


def surroundings(document: Document) -> tuple[str, ...]:
    """What a domain needs besides its devices for ours: shared memory, overrides."""
    root = etree.fromstring(document.xml.encode())
    found = (root.find("memoryBacking"), root.find(f"{{{_QEMU}}}override"))
    return tuple(
        etree.tostring(element, encoding="unicode", with_tail=False)
        for element in found
        if element is not None
    )
