"""A guest that is not there yet: a whole domain, made from a specification.

A q35 machine with SeaBIOS, a serial console, an entropy source, disks on a virtio-scsi controller or on
endpoints, and vhost-user ports. What is not said here is libvirt's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from ringway.guest.document import Document, ScsiController
from ringway.guest.layout import Disk, Endpoints, add_disks, add_endpoints, bootable, endpoints, lay_out
from ringway.guest.vifs import add_ports
from ringway.guest.volumes import Catalogue
from ringway.model import GuestSpec, Via

_DOMAIN: Final = """\
<domain type='{type}'>
  <name>{name}</name>
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


class Fresh(Struct, frozen=True, kw_only=True):
    """A new domain, and what has to be there before it starts."""

    document: Document
    disks: tuple[Disk, ...]  #: their volumes may be new
    endpoints: Endpoints


def bare(spec: GuestSpec, *, kvm: bool = True) -> Document:
    """The domain without its disks and ports. :param kvm: or QEMU emulates the CPU."""
    threads = f"\n  <iothreads>{spec.iothreads}</iothreads>" if spec.iothreads else ""
    return Document(
        _DOMAIN.format(
            type="kvm" if kvm else "qemu",
            cpu="host-passthrough" if kvm else "maximum",
            name=spec.name,
            memory_kib=-(-spec.memory_bytes // 1024),
            vcpus=spec.vcpus,
            iothreads=threads,
        )
    )


def fresh(spec: GuestSpec, catalogue: Catalogue, socket: Callable[[str], str], *, kvm: bool = True) -> Fresh:
    """Make a whole domain. Nothing on this host is touched.

    :param socket: where an endpoint's socket is.
    :raises RingwayError: as the parts say.
    """
    document = bare(spec, kvm=kvm)
    disks = lay_out(bootable(spec.block_devices), catalogue.find, spec.name)
    served = served_by(spec.via, disks, spec.name, spec.vcpus, socket)
    if spec.via is Via.ENDPOINT:
        add_endpoints(document, served.faces)
    else:
        add_disks(document, disks, controller(spec))
    add_ports(document, spec.ports)
    return Fresh(document=document, disks=disks, endpoints=served)


def controller(spec: GuestSpec) -> ScsiController:
    """A virtio-scsi controller with the guest's I/O threads."""
    return ScsiController(iothreads=tuple(range(1, spec.iothreads + 1)))


def served_by(
    via: Via, disks: Sequence[Disk], name: str, vcpus: int, socket: Callable[[str], str]
) -> Endpoints:
    """The endpoints of disks; none where QEMU serves them. A queue for each vCPU."""
    if via is Via.QEMU:
        return Endpoints(specs=(), faces=())
    return endpoints(disks, name, vcpus, socket)
