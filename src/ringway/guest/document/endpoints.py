"""Endpoints in a domain: one element for each face, and how it is found again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from ringway.errors import UsageError
from ringway.guest.aliases import Kind, endpoint_alias, owner
from ringway.guest.base import Wish
from ringway.guest.document.boot import BOOT_INDEX, index_of, order_of
from ringway.guest.document.facts import SMALL, alias_of, each_device, number_at
from ringway.guest.document.overrides import Value, overridden, properties_of
from ringway.guest.document.parts import closing, reconnect
from ringway.guest.document.pci import PciAddress
from ringway.guest.document.tree import Element, make
from ringway.model import Face

_WWPN: Final = re.compile(r"naa\.[0-9a-fA-F]{16}")
_SCSI_DRIVER: Final = "vhost-user-scsi-pci"
_TRUE: Final = ("true", "on", "yes")
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
    protection: bool = False
    address: PciAddress | None = None


def endpoint_element(wish: Wish, target: str, address: PciAddress | None) -> Element:
    """Make the device's element. :param target: a name that no disk has; a ``hostdev`` needs none.
    :param address: ``None``: libvirt chooses.

    :raises UsageError: what its element needs is missing, or libvirt has no way to say it.
    """
    _check(wish)
    return _hostdev(wish, address) if wish.face is Face.VHOST_SCSI else _disk(wish, target, address)


def endpoint_override(wish: Wish) -> dict[str, Value]:
    """The properties to be overridden; none if libvirt says all by itself."""
    if wish.face is Face.VHOST_USER_BLK:
        return {}
    properties: dict[str, Value] = {}
    if wish.face is Face.VHOST_USER_SCSI:
        properties |= {"driver": _SCSI_DRIVER, "num-queues": None, "queue-size": None}
    if wish.queues is not None:
        properties["num_queues"] = wish.queues
    if wish.protection:
        properties["t10_pi"] = True
    if wish.face is Face.VHOST_SCSI and wish.boot_order is not None:
        properties[BOOT_INDEX] = index_of(wish.boot_order)  # libvirt refuses <boot> in such a hostdev
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
                protection=overridden(root, alias).get("t10_pi") in _TRUE,
                address=PciAddress.of(device),
            )


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


def _check(wish: Wish) -> None:
    if wish.face is Face.VHOST_SCSI and not _WWPN.fullmatch(wish.wwpn or ""):
        raise UsageError(
            f"libvirt takes no WWPN '{wish.wwpn}'", hint="it has to be naa. and 16 hexadecimal digits"
        )
    if wish.face in _VHOST_USER and not (wish.socket or "").startswith("/"):
        raise UsageError(f"'{wish.socket}' is no socket's path: it has to begin with /")
    if wish.face is Face.VHOST_USER_BLK and wish.protection:
        raise UsageError("a vhost-user-blk device has no protection information")
    if wish.boot_order is not None and wish.boot_order < 1:
        raise UsageError("the boot order begins with 1")
    if wish.queues is not None and wish.queues < 1:
        raise UsageError("a device has at least one queue")
    if wish.reconnect_s is not None and wish.reconnect_s < 1:
        raise UsageError("QEMU waits at least a second before it connects again")


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


def _disk(wish: Wish, target: str, address: PciAddress | None) -> Element:
    queues = wish.queues if wish.face is Face.VHOST_USER_BLK else None
    return make(
        "disk",
        {"type": "vhostuser", "device": "disk"},
        make("driver", {"name": "qemu", "type": "raw", "queues": queues}),
        make("source", {"type": "unix", "path": wish.socket}, reconnect(wish.reconnect_s)),
        make("target", {"dev": target, "bus": "virtio"}),
        *closing(endpoint_alias(wish.endpoint), wish.boot_order, address),
    )


def _hostdev(wish: Wish, address: PciAddress | None) -> Element:
    return make(
        "hostdev",
        {"mode": "subsystem", "type": "scsi_host"},
        make("source", {"protocol": "vhost", "wwpn": wish.wwpn}),
        *closing(endpoint_alias(wish.endpoint), None, address),
    )
