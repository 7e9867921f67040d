"""A domain's XML, edited in place."""

from __future__ import annotations

import difflib
from typing import Final

from ringway.errors import ConflictError, NotFoundError, UsageError
from ringway.guest.aliases import endpoint_alias, port_alias, spoken, volume_alias
from ringway.guest.base import Wish
from ringway.guest.document import facts, memory, overrides
from ringway.guest.document.boot import make_room
from ringway.guest.document.disks import (
    MappedVolume,
    check_disk,
    disk_element,
    disk_target,
    disks_of,
    mapped_volumes,
)
from ringway.guest.document.drives import (
    DriveAddress,
    ScsiControllerInfo,
    check_lanes,
    controller_element,
    place_on_sata,
    place_on_scsi,
    scsi_controllers,
)
from ringway.guest.document.endpoints import (
    Attached,
    attached_endpoints,
    endpoint_element,
    endpoint_override,
    place_of,
)
from ringway.guest.document.facts import Chipset, alias_of, devices_of, each_device
from ringway.guest.document.names import free_name
from ringway.guest.document.pci import (
    PciAddress,
    addresses,
    has_express,
)
from ringway.guest.document.pci import (
    port_element as pcie_port_element,
)
from ringway.guest.document.ports import Plugged, mac_addresses, plugged_ports, port_element, port_override
from ringway.guest.document.tree import Element, insert, parse, remove, text_of, text_of_part
from ringway.guest.faces import DiskFace, ScsiController
from ringway.model import DiskBus, GuestDisk, PortSpec, mac_of

_NAMED: Final = "a disk goes by its tag, or else by its volume's id: give it another tag"


class Document:
    """One domain's XML. What is not asked for stays as it is.

    A change that is refused changes nothing. Not for several threads at once.

    :raises UsageError: it is no XML, or no domain that QEMU runs.
    """

    def __init__(self, xml: str) -> None:
        self._root, self._source = parse(xml)
        facts.check_domain(self._root)

    @property
    def xml(self) -> str:
        """The whole text as it is now."""
        return text_of(self._root, self._source)

    # Facts

    @property
    def name(self) -> str:
        return facts.text_at(self._root, "name")

    @property
    def uuid(self) -> str | None:
        """``None`` before libvirt has given one."""
        return facts.text_at(self._root, "uuid") or None

    @property
    def machine(self) -> str:
        """``pc-q35-10.0``; empty if libvirt is to choose."""
        return facts.machine_of(self._root)

    @property
    def arch(self) -> str:
        return facts.arch_of(self._root)

    @property
    def chipset(self) -> Chipset:
        return facts.chipset_of(self._root)

    @property
    def memory_bytes(self) -> int:
        return facts.memory_bytes_of(self._root)

    @property
    def vcpus(self) -> int:
        return facts.vcpus_of(self._root)

    # Memory

    @property
    def shares_memory(self) -> bool:
        """Whether vhost-user targets can map all of the guest's memory."""
        return not self.memory_obstacles

    @property
    def memory_obstacles(self) -> tuple[str, ...]:
        """Why they cannot, a sentence each."""
        return tuple(memory.obstacles(self._root))

    def share_memory(self) -> str:
        """Make the memory shared from the guest's next start on.

        :returns: what that changes, as a unified diff; empty if it was shared before.
        """
        before = self.xml
        if not self.shares_memory:
            memory.share(self._root)
        return difference(before, self.xml)

    # PCI

    def is_free(self, address: PciAddress) -> bool:
        """Whether no device has this address; that there is such a place is not looked at."""
        return address not in addresses(self._root)

    def add_hot_plug_ports(self, count: int) -> tuple[str, ...]:
        """Give the guest's next start more ports for devices that are plugged in while it runs.

        :returns: the controllers, as they are in the document now.
        :raises UsageError: the machine has slots, and no ports.
        """
        if not has_express(self._root):
            raise UsageError(f"machine '{self.machine}' has no PCI Express ports")
        return tuple(self._add_hot_plug_port() for _ in range(count))

    def _add_hot_plug_port(self) -> str:
        port = pcie_port_element(self._root)
        insert(devices_of(self._root), port)
        return text_of_part(port)

    # Devices

    def attachments(self) -> tuple[Attached, ...]:
        """Our endpoints in it."""
        return tuple(attached_endpoints(self._root))

    def add_endpoint(self, wish: Wish, address: PciAddress | None = None) -> tuple[str, ...]:
        """Give the guest an endpoint.

        :param address: where; ``None``: libvirt chooses.
        :returns: the device for libvirt's attachDevice. It has no override, without which ``VHOST_USER_SCSI``
            is vhost-user-blk: libvirt does not hot-plug that one.
        :raises ConflictError: the guest has this endpoint, its socket or its WWPN.
        :raises UsageError: libvirt cannot be told such a wish.
        """
        alias = endpoint_alias(wish.endpoint)
        element = endpoint_element(wish, free_name(self._root, "vd"), address)
        self._check_new(alias, element)
        self._put(element, wish.boot_order)
        if properties := endpoint_override(wish):
            overrides.override(self._root, alias, properties)
        return (text_of_part(element),)

    def controllers(self) -> tuple[ScsiControllerInfo, ...]:
        """Its SCSI controllers, those that libvirt will add for a disk as well."""
        return scsi_controllers(self._root)

    def disks(self) -> tuple[GuestDisk, ...]:
        """All its disks, whoever put them there."""
        return tuple(disks_of(self._root))

    def volumes(self) -> tuple[MappedVolume, ...]:
        """Our plain disks in it."""
        return tuple(mapped_volumes(self._root))

    def ports(self) -> tuple[Plugged, ...]:
        """Our network ports in it."""
        return tuple(plugged_ports(self._root))

    def add_port(self, spec: PortSpec, address: PciAddress | None = None) -> tuple[str, ...]:
        """Give the guest a network port, of which nothing is open.

        :param address: where; ``None``: libvirt chooses.
        :returns: the interface for libvirt's attachDevice. It has no override: a guest that runs is told no
            MTU.
        :raises ConflictError: the guest has this port, its socket or its MAC address.
        :raises UsageError: its socket or its MAC address is open yet.
        """
        element, alias = port_element(spec, address), port_alias(spec.name)
        self._check_new(alias, element)
        if mac_of(spec) in mac_addresses(self._root):
            raise ConflictError(f"guest '{self.name}' has {spec.mac} already, at another interface")
        insert(devices_of(self._root), element)
        if properties := port_override(spec):
            overrides.override(self._root, alias, properties)
        return (text_of_part(element),)

    def add_scsi_controller(
        self, wanted: ScsiController, address: PciAddress | None = None
    ) -> tuple[str, ...]:
        """Give the guest one more controller of the model virtio-scsi.

        :param address: where; ``None``: libvirt chooses.
        :returns: the controller for libvirt's attachDevice.
        :raises UsageError: an I/O thread that the guest has not, or numbers that make no sense.
        """
        element = controller_element(self._root, wanted, address)
        insert(devices_of(self._root), element)
        return (text_of_part(element),)

    def has_room_for(self, face: DiskFace) -> bool:
        """Whether a plain disk needs no place on the PCI bus: it gets one on a controller that is there."""
        if face.bus is DiskBus.SCSI:
            return place_on_scsi(self._root) is not None
        return face.bus is not DiskBus.VIRTIO

    def add_disk(
        self, face: DiskFace, controller: ScsiController | None = None, address: PciAddress | None = None
    ) -> tuple[str, ...]:
        """Give the guest a plain disk.

        On bus scsi it gets the place that its face names, or the first free unit of the virtio-scsi
        controllers that are there; when all are full, or there is none, one is added.

        :param controller: how that one is to be; on bus virtio, the disk itself.
        :param address: of that one, or of a disk on bus virtio; ``None``: libvirt chooses.
        :returns: for libvirt's attachDevice, in this order: the controller, if one was added, and the disk.
        :raises ConflictError: the guest has this volume or a disk of this name, or the bus takes no more.
        :raises UsageError: libvirt or QEMU would refuse it.
        """
        controller = controller or ScsiController()
        check_disk(self._root, face)
        if face.bus is DiskBus.VIRTIO:
            check_lanes(self._root, controller)
        target = disk_target(self._root, face)
        added: tuple[str, ...] = ()
        element = disk_element(face, target, None, controller)
        self._check_new(volume_alias(face.volume), element, _NAMED)
        if face.bus is DiskBus.SCSI and place_on_scsi(self._root) is None:
            added = self.add_scsi_controller(controller, address)
        element = disk_element(face, target, self._place(face, address), controller)
        self._put(element, face.boot_order)
        return (*added, text_of_part(element))

    def _put(self, element: Element, boot_order: int | None) -> None:
        """Make it one of the devices. Its order was checked before anything was changed."""
        if boot_order is not None:
            make_room(self._root, boot_order)
        insert(devices_of(self._root), element)

    def _place(self, face: DiskFace, address: PciAddress | None) -> DriveAddress | PciAddress | None:
        match face.bus:
            case DiskBus.SCSI:
                return place_on_scsi(self._root, face.place)
            case DiskBus.SATA:
                return place_on_sata(self._root)
            case DiskBus.VIRTIO:
                return address
            case _:
                return None

    def remove(self, alias: str) -> str:
        """Take out the device of an alias, and what is overridden of it.

        :returns: the device, for libvirt's detachDevice.
        :raises NotFoundError: there is none.
        """
        element = self._device(alias)
        text = text_of_part(element)
        remove(element)
        overrides.drop(self._root, alias)
        return text

    def _device(self, alias: str) -> Element:
        for device in each_device(self._root):
            if alias_of(device) == alias:
                return device
        raise NotFoundError(f"guest '{self.name}' has no {spoken(alias)}")

    def _taken(self, device: Element, alias: str) -> str:
        """What is in the way of a new device: the same one, or what somebody gave its alias."""
        ours = {each.alias for each in self.attachments()}
        ours |= {each.alias for each in self.volumes()} | {each.alias for each in self.ports()}
        if alias in ours:
            return f"{spoken(alias)} already"
        return f"something else with the alias {alias}, in its <{device.tag!s}>"

    def _check_new(self, alias: str, element: Element, hint: str | None = None) -> None:
        place, address = place_of(element), PciAddress.of(element)
        if address is not None and not self.is_free(address):
            raise ConflictError(f"guest '{self.name}' has a device at PCI address {address} already")
        boot = element.find("boot")
        if boot is not None and int(boot.get("order", "0")) < 1:
            raise UsageError("the boot order begins with 1")
        for device in each_device(self._root):
            if alias_of(device) == alias:
                raise ConflictError(f"guest '{self.name}' has {self._taken(device, alias)}", hint=hint)
            if place is not None and place_of(device) == place:
                raise ConflictError(f"guest '{self.name}' has {place} already, in its <{device.tag!s}>")


def difference(before: str, after: str) -> str:
    """A unified diff of two texts; empty if they are alike."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return "".join(difflib.unified_diff(old, new, "before", "after"))
