"""``<qemu:override>``: properties of QEMU's devices that libvirt has no element for.

libvirt heeds them when it starts QEMU, not when it hot-plugs, and marks the domain as tainted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ringway.guest.document.tree import Element, insert, insert_at, make, remove

NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
_Q: Final = f"{{{NAMESPACE}}}"
Value = str | int | bool | None
"""Of a property; ``None`` takes it away."""


def override(root: Element, alias: str, properties: Mapping[str, Value]) -> None:
    """Have QEMU's device ``alias`` started with these properties, and no others of ours."""
    drop(root, alias)
    frontend = make(f"{_Q}frontend", None, *(_property(name, value) for name, value in properties.items()))
    insert(_overrides(root), make(f"{_Q}device", {"alias": alias}, frontend))


def drop(root: Element, alias: str) -> None:
    """Take away what is overridden of a device; the last one takes ``<qemu:override>`` along."""
    for overrides in list(root.iterfind(f"{_Q}override")):
        for device in list(overrides.iterfind(f"{_Q}device")):
            if device.get("alias") == alias:
                remove(device)
                if len(overrides) == 0:
                    remove(overrides)


def overridden(root: Element, alias: str) -> dict[str, str]:
    """The properties that are set for a device, as they are written."""
    return {each.get("name", ""): each.get("value", "") for each in properties_of(root, alias)}


def properties_of(root: Element, alias: str | None = None) -> Iterator[Element]:
    """The elements of the properties that are overridden, of one device or of all."""
    for device in root.iterfind(f"{_Q}override/{_Q}device"):
        if alias in (None, device.get("alias")):
            yield from device.iterfind(f"{_Q}frontend/{_Q}property")


def _overrides(root: Element) -> Element:
    """The one ``<qemu:override>``, made at the end; it declares the namespace if nobody did before."""
    found = root.find(f"{_Q}override")
    if found is None:
        prefixes = None if NAMESPACE in root.nsmap.values() else {"qemu": NAMESPACE}
        found = root.makeelement(f"{_Q}override", nsmap=prefixes)
        insert_at(root, found, len(root))
    return found


def _property(name: str, value: Value) -> Element:
    if value is None:
        return make(f"{_Q}property", {"name": name, "type": "remove"})
    kind = "bool" if isinstance(value, bool) else "unsigned" if isinstance(value, int) else "string"
    shown = str(value).lower() if isinstance(value, bool) else value
    return make(f"{_Q}property", {"name": name, "type": kind, "value": shown})
