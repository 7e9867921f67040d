"""Endpoints in a domain: one element for each face, and how it is found again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from ringway.errors import UsageError
from ringway.guest.aliases import Kind, endpoint_alias, owner
from ringway.guest.document.boot import BOOT_INDEX, index_of, order_of
from ringway.guest.document.faces import EndpointFace
from ringway.guest.document.facts import SMALL, alias_of, each_device, number_at
from ringway.guest.document.overrides import Value, overridden, properties_of
from ringway.guest.document.parts import check_reconnect, closing, reconnect
from ringway.guest.document.pci import PciAddress
from ringway.guest.document.tree import Element, make
from ringway.model import Face

_WWPN: Final = re.compile(r"naa\.[0-9a-fA-F]{16}")
_SCSI_DRIVER: Final = "vhost-user-scsi-pci"
_VHOST_USER: Final = (Face.VHOST_USER_SCSI, Face.VHOST_USER_BLK)


class Attached(Struct, frozen=True, kw_only=True):
    """An endpoint that is in a domain's XML."""

    endpoint: str
    alias: str
    face: Face
    socket: str | None = None
    wwpn: str | None = None
    queues: int | None = None
    boot_order: int | None = None
    address: PciAddress | None = None


class ForeignDevice(Struct, frozen=True):
    """A vhost or vhost-user device that somebody else put into the domain."""

    kind: str  #: disk, interface, hostdev, filesystem, video, …
    place: str  #: its socket or WWPN
    alias: str | None


def endpoint_element(face: EndpointFace, target: str) -> Element:
    """Make the device's element. :param target: a name that no disk has; a ``hostdev`` needs none.

    :raises UsageError: the face lacks what its element needs, or libvirt has no way to say it.
    """
    _check(face)
    return _hostdev(face) if face.face is Face.VHOST_SCSI else _disk(face, target)


def endpoint_override(face: EndpointFace) -> dict[str, Value]:
    """The properties to be overridden for a face; none if libvirt says all by itself."""
    if face.face is Face.VHOST_USER_BLK:
        return {}
    properties: dict[str, Value] = {}
    if face.face is Face.VHOST_USER_SCSI:
        properties |= {"driver": _SCSI_DRIVER, "num-queues": None, "queue-size": None}
    if face.queues is not None:
        properties["num_queues"] = face.queues
    if face.protection:
        properties["t10_pi"] = True
    if face.face is Face.VHOST_SCSI and face.boot_order is not None:
        properties[BOOT_INDEX] = index_of(face.boot_order)  # libvirt refuses <boot> in such a hostdev
    return properties


def attached_endpoints(root: Element) -> Iterator[Attached]:
    """Endpoints in the domain, by their aliases."""
    for device in each_device(root, "disk", "hostdev"):
        alias = alias_of(device)
        whose = owner(alias)
        face = _face(root, device)
        if alias and whose and whose.kind is Kind.ENDPOINT and face:
            place = place_of(device)
            yield Attached(
                endpoint=whose.name,
                alias=alias,
                face=face,
                socket=place if face in _VHOST_USER else None,
                wwpn=place if face is Face.VHOST_SCSI else None,
                queues=_queues(root, device),
                boot_order=_boot_order(root, device),
                address=PciAddress.of(device),
            )


def foreign_devices(root: Element) -> Iterator[ForeignDevice]:
    """Devices of vhost and vhost-user that are not ours."""
    for device in each_device(root):
        place = place_of(device)
        if place and owner(alias_of(device)) is None:
            yield ForeignDevice(str(device.tag), place, alias_of(device))


def place_of(device: Element) -> str | None:
    """The socket of a vhost-user device or the WWPN of a kernel's one; ``None`` for all other devices."""
    source = device.find("source")
    if source is None:
        return None
    if device.get("type") == "scsi_host":
        return source.get("wwpn")
    if device.get("type") == "vhostuser":
        return source.get("path")
    return source.get("socket")  # virtiofs, with a daemon that others started


def _check(face: EndpointFace) -> None:
    if face.face is Face.VHOST_SCSI and not _WWPN.fullmatch(face.wwpn or ""):
        raise UsageError(
            f"libvirt takes no WWPN '{face.wwpn}'", hint="it has to be naa. and 16 hexadecimal digits"
        )
    if face.face in _VHOST_USER and not (face.socket or "").startswith("/"):
        raise UsageError(f"'{face.socket}' is no socket's path: it has to begin with /")
    if face.face is Face.VHOST_USER_BLK and face.protection:
        raise UsageError("a vhost-user-blk device has no protection information")
    if face.boot_order is not None and face.boot_order < 1:
        raise UsageError("the boot order begins with 1")
    if face.queues is not None and face.queues < 1:
        raise UsageError("a device has at least one queue")
    check_reconnect(face.reconnect_s)


def _face(root: Element, device: Element) -> Face | None:
    match device.tag, device.get("type"):
        case "hostdev", "scsi_host":
            return Face.VHOST_SCSI
        case "disk", "vhostuser":
            driver = overridden(root, alias_of(device) or "").get("driver", "")
            return Face.VHOST_USER_SCSI if driver.startswith("vhost-user-scsi") else Face.VHOST_USER_BLK
        case _:
            return None


def _queues(root: Element, device: Element) -> int | None:
    text = overridden(root, alias_of(device) or "").get("num_queues", "")
    return int(text) if re.fullmatch(SMALL, text) else number_at(device, "driver", "queues")


def _boot_order(root: Element, device: Element) -> int | None:
    indices = (each for each in properties_of(root, alias_of(device)) if each.get("name") == BOOT_INDEX)
    index = next(indices, None)
    return number_at(device, "boot", "order") if index is None else order_of(index) or None


def _disk(face: EndpointFace, target: str) -> Element:
    queues = face.queues if face.face is Face.VHOST_USER_BLK else None
    return make(
        "disk",
        {"type": "vhostuser", "device": "disk"},
        make("driver", {"name": "qemu", "type": "raw", "queues": queues}),
        make("source", {"type": "unix", "path": face.socket}, reconnect(face.reconnect_s)),
        make("target", {"dev": target, "bus": "virtio"}),
        *closing(endpoint_alias(face.endpoint), face.boot_order, face.address),
    )


def _hostdev(face: EndpointFace) -> Element:
    return make(
        "hostdev",
        {"mode": "subsystem", "type": "scsi_host"},
        make("source", {"protocol": "vhost", "wwpn": face.wwpn}),
        *closing(endpoint_alias(face.endpoint), None, face.address),
    )
