"""QEMU's monitor through libvirt: what a guest has that libvirt does not know of."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import libvirt
import libvirt_qemu

from ringway.errors import GuestError
from ringway.guest.document import PciAddress
from ringway.guest.libvirt.failures import translated

_PERIPHERAL: Final = "/machine/peripheral"
_CHILD: Final = re.compile(r"child<(.+)>")
_BUS: Final = re.compile(r"(?:^|/)pcie?\.(\d+)$")
_PORT: Final = re.compile(r"pci\.(\d+)")
_PORTS: Final = frozenset(
    {"pcie-root-port", "ioh3420", "xio3130-downstream", "pcie-switch-downstream-port"}
)  #: one slot each
_LAST_SLOT: Final = 31  #: of a PCI bus


class Refused(Exception):
    """QEMU did not do what it was asked. :param kind: QEMU's class of error."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class Monitor:
    """The monitor of a domain that runs. libvirt marks a domain that is asked here as tainted.

    All calls :raise RingwayError: libvirt or QEMU cannot be asked.
    """

    def __init__(self, domain: libvirt.virDomain) -> None:
        self._domain = domain
        self.guest: Final[str] = domain.name()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command; underscores in names of arguments stand for hyphens.

        :raises Refused: QEMU's answer is an error.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = json.dumps({"execute": command.replace("_", "-"), "arguments": named})
        return self._ask(request)

    def add_device(self, properties: dict[str, Any]) -> None:
        """Plug in a device, whose properties have names of both kinds. :raises Refused: QEMU did not."""
        self._ask(json.dumps({"execute": "device_add", "arguments": properties}))

    def remove_device(self, alias: str) -> None:
        """Ask the guest to let a device go. :raises Refused: it is not there, or was asked already."""
        self._ask(json.dumps({"execute": "device_del", "arguments": {"id": alias}}))

    def _ask(self, request: str) -> Any:
        with translated(f"QEMU of guest '{self.guest}' cannot be asked"):
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(self._domain, request, 0))
        if "error" in answer:
            raise Refused(answer["error"]["class"], answer["error"]["desc"])
        return answer["return"]

    def devices(self) -> dict[str, str]:
        """All that has a name, and QEMU's type of each."""
        children = self._look("qom-list", path=_PERIPHERAL)
        found = ((child["name"], _CHILD.fullmatch(child["type"])) for child in children)
        return {name: match[1] for name, match in found if match}

    def sockets(self) -> dict[str, bool]:
        """Character devices by name, and whether each is connected."""
        return {
            each["label"]: not each["filename"].startswith("disconnected:")
            for each in self._look("query-chardev")
        }

    def address(self, alias: str) -> PciAddress | None:
        """Where a device is, as libvirt counts; ``None``: on no PCI bus, or gone."""
        try:
            bus = self.execute("qom-get", path=f"{_PERIPHERAL}/{alias}", property="parent_bus")
            place = self.execute("qom-get", path=f"{_PERIPHERAL}/{alias}", property="addr")
        except Refused:
            return None
        match = _BUS.search(bus)
        return (
            PciAddress(0, int(match[1]), place >> 3, place & 7) if match and isinstance(place, int) else None
        )

    def queues(self, alias: str) -> int | None:
        """The request queues of a SCSI adapter; ``None``: it has gone."""
        try:
            found = self.execute("qom-get", path=f"{_PERIPHERAL}/{alias}", property="num_queues")
        except Refused:
            return None
        return found if isinstance(found, int) else None

    def free_ports(self) -> tuple[PciAddress, ...]:
        """PCI Express ports without a device, the last first: libvirt takes the first."""
        ports = (_PORT.fullmatch(name) for name, kind in self.devices().items() if kind in _PORTS)
        numbers = sorted((int(port[1]) for port in ports if port), reverse=True)
        return tuple(PciAddress(0, number, 0, 0) for number in numbers if self._is_free(number))

    def free_slots(self) -> tuple[PciAddress, ...]:
        """Slots of the first PCI bus without a device, the last first: libvirt takes the first."""
        buses = self._look("query-pci")
        taken = {device["slot"] for bus in buses if bus["bus"] == 0 for device in bus["devices"]}
        return tuple(PciAddress(0, 0, slot, 0) for slot in range(_LAST_SLOT, 0, -1) if slot not in taken)

    def _is_free(self, number: int) -> bool:
        bus = self._look("qom-list", path=f"{_PERIPHERAL}/pci.{number}/pci.{number}")
        return not any(child["name"].startswith("child[") for child in bus)

    def _look(self, command: str, **arguments: Any) -> Any:
        """Ask what QEMU always answers. :raises GuestError: it did not."""
        try:
            return self.execute(command, **arguments)
        except Refused as error:
            raise GuestError(f"QEMU of guest '{self.guest}': {error.text}") from error
