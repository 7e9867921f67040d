"""Persistent reservations of a fake device, as configfs shows them and as the kernel keeps them in a file."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from ringway.testing.fake_kernel.tree import Attribute, Group, fixed, refuse

_TYPES = {
    1: "Write Exclusive Access",
    3: "Exclusive Access",
    5: "Write Exclusive Access, Registrants Only",
    6: "Exclusive Access, Registrants Only",
    7: "Write Exclusive Access, All Registrants",
    8: "Exclusive Access, All Registrants",
}
_NOBODY = "No SPC-3 Reservation holder\n"


@dataclass(frozen=True)
class Port:
    """One nexus at one LUN: the initiator, the target, its portal group and the LUN."""

    initiator: str
    target: str
    tpgt: int
    lun: int


@dataclass(frozen=True)
class Registration:
    """A key that an initiator registered; ``type`` is the reservation's that it holds, or 0."""

    port: Port
    key: int
    type: int


def parse(text: str) -> Registration:
    """Read one registration as ``res_aptpl_metadata`` takes it. :raises OSError: EINVAL: something is
    missing.
    """
    pairs = dict(part.partition("=")[::2] for part in text.replace("\n", ",").split(",") if part)
    try:
        port = Port(
            pairs["initiator_node"], pairs["target_node"], int(pairs["tpgt"]), int(pairs["mapped_lun"])
        )
        held = int(pairs["res_type"]) if pairs["res_holder"] == "1" else 0
        return Registration(port, int(pairs["sa_res_key"], 0), held)
    except (KeyError, ValueError) as error:
        raise refuse(errno.EINVAL) from error


class Reservations:
    """What is registered now, and what waits for its nexus to come back."""

    def __init__(self) -> None:
        self.waiting: list[Registration] = []
        self.active: list[Registration] = []
        self.aptpl = False
        self.generation = 0

    def connect(self, port: Port) -> None:
        """A nexus sees a LUN: what was registered for the two is in force again."""
        back = [one for one in self.waiting if one.port == port]
        self.waiting = [one for one in self.waiting if one.port != port]
        self.active += back
        self.aptpl = self.aptpl or bool(back)
        self.generation += len(back)

    def register(self, registration: Registration, path: Path) -> None:
        """A guest registers with APTPL: the kernel writes all registrations to a file.

        :raises OSError: ENOENT: the folder for it is not there, and nothing is registered.
        """
        active = [*self.active, registration]
        path.write_text("".join(_record(number, one) for number, one in enumerate(active)))
        self.active = active
        self.aptpl = True
        self.generation += 1

    def group(self, attribute_metadata: Attribute) -> Group:
        """The folder ``pr``."""
        return Group(
            res_aptpl_active=Attribute(
                lambda: f"APTPL Bit Status: {'Activated' if self.aptpl else 'Disabled'}\n"
            ),
            res_aptpl_metadata=attribute_metadata,
            res_holder=Attribute(
                lambda: self._of_holder("SPC-3 Reservation: vhost Initiator: {0.initiator}")
            ),
            res_pr_all_tgt_pts=Attribute(
                lambda: self._of_holder("SPC-3 Reservation: Single Target Port registration")
            ),
            res_pr_generation=Attribute(lambda: f"0x{self.generation:08x}\n"),
            res_pr_holder_tg_port=Attribute(
                lambda: self._of_holder("SPC-3 Reservation: vhost Target Node Endpoint: {0.target}")
            ),
            res_pr_registered_i_pts=Attribute(self._registered),
            res_pr_type=Attribute(lambda: self._of_holder("SPC-3 Reservation Type: {1}")),
            res_type=fixed("SPC3_PERSISTENT_RESERVATIONS\n"),
        )

    def _of_holder(self, text: str) -> str:
        holder = next((one for one in self.active if one.type), None)
        return text.format(holder.port, _TYPES.get(holder.type, "")) + "\n" if holder else _NOBODY

    def _registered(self) -> str:
        lines = [
            f"vhost Node: {one.port.initiator} Key: 0x{one.key:016x} PRgen: 0x{number:08x}\n"
            for number, one in enumerate(self.active)
        ]
        return "SPC-3 PR Registrations:\n" + ("".join(lines) or "None\n")


def _record(number: int, one: Registration) -> str:
    """A registration as the kernel writes it to its file."""
    port = one.port
    held = f"res_holder=1\nres_type={one.type:02x}\nres_scope=00\n" if one.type else "res_holder=0\n"
    return (
        f"PR_REG_START: {number}\ninitiator_fabric=vhost\ninitiator_node={port.initiator}\n"
        f"sa_res_key={one.key}\n{held}res_all_tg_pt=0\nmapped_lun={port.lun}\n"
        f"target_fabric=vhost\ntarget_node={port.target}\ntpgt={port.tpgt}\nport_rtpi=0\n"
        f"target_lun={port.lun}\nPR_REG_END: {number}\n"
    )
