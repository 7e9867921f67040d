"""A domain's XML, edited in place."""

from __future__ import annotations

import difflib

from ringway.errors import ConflictError, NotFoundError
from ringway.guest.aliases import endpoint_alias
from ringway.guest.document import facts, memory, overrides
from ringway.guest.document.endpoints import (
    Attached,
    ForeignDevice,
    attached_endpoints,
    endpoint_element,
    endpoint_override,
    foreign_devices,
    place_of,
)
from ringway.guest.document.faces import EndpointFace
from ringway.guest.document.facts import Chipset, alias_of, devices_of, each_device
from ringway.guest.document.names import free_name
from ringway.guest.document.tree import Element, insert, parse, remove, text_of, text_of_part


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

    # Devices

    def attachments(self) -> tuple[Attached, ...]:
        """Our endpoints in it."""
        return tuple(attached_endpoints(self._root))

    def foreign_devices(self) -> tuple[ForeignDevice, ...]:
        """Devices of vhost and vhost-user that others put there."""
        return tuple(foreign_devices(self._root))

    def add_endpoint(self, face: EndpointFace) -> tuple[str, ...]:
        """Give the guest an endpoint.

        :returns: the device for libvirt's attachDevice. It has no override, without which ``VHOST_USER_SCSI``
            is vhost-user-blk: libvirt does not hot-plug that one.
        :raises ConflictError: the guest has this endpoint, its socket or its WWPN.
        :raises UsageError: libvirt cannot be told such a face.
        """
        alias = endpoint_alias(face.endpoint)
        element = endpoint_element(face, free_name(self._root, "vd"))
        self._check_new(alias, element)
        insert(devices_of(self._root), element)
        if properties := endpoint_override(face):
            overrides.override(self._root, alias, properties)
        return (text_of_part(element),)

    def element(self, alias: str) -> str:
        """The device of an alias, for libvirt's detachDevice. :raises NotFoundError: there is none."""
        return text_of_part(self._device(alias))

    def remove(self, alias: str) -> str:
        """Take out the device of an alias, and what is overridden of it.

        :returns: the device, as :meth:`element`.
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
        raise NotFoundError(f"guest '{self.name}' has no device '{alias}'")

    def _check_new(self, alias: str, element: Element) -> None:
        place = place_of(element)
        for device in each_device(self._root):
            if alias_of(device) == alias:
                raise ConflictError(f"guest '{self.name}' has a device '{alias}' already")
            if place is not None and place_of(device) == place:
                raise ConflictError(f"a {device.tag!s} of guest '{self.name}' has {place} already")


def difference(before: str, after: str) -> str:
    """A unified diff of two texts; empty if they are alike."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return "".join(difflib.unified_diff(old, new, "before", "after"))
