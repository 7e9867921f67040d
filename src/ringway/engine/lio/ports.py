"""Target ports in the kernel: ``vhost/WWPN``, its portal groups (a guest's SCSI targets), nexus and LUNs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ringway.engine.lio.configfs import Configfs
from ringway.errors import ConflictError
from ringway.model import EndpointSpec, Protection

FABRIC: Final = "vhost"
_PROTECTION: Final = {Protection.NONE: "0", Protection.TYPE1: "1", Protection.TYPE3: "3"}
_PROBE_LUN: Final = "lun_0"
Undo = Callable[[Callable[[], object]], object]
Address = tuple[int, int]
"""Target and LUN, as a guest counts them: the target is the number of the portal group."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A LUN as it is in the kernel: the link's name, and the device's path, or ``None`` for an empty LUN."""

    link: str | None
    device: str | None


def port_path(wwpn: str) -> str:
    """Of a target port."""
    return f"{FABRIC}/{wwpn}"


def group_path(wwpn: str, target: int) -> str:
    """Of one of its portal groups."""
    return f"{FABRIC}/{wwpn}/tpgt_{target}"


def lun_path(wwpn: str, address: Address) -> str:
    """Of a LUN."""
    return f"{FABRIC}/{wwpn}/tpgt_{address[0]}/lun/lun_{address[1]}"


def targets_of(spec: EndpointSpec) -> tuple[int, ...]:
    """The portal groups that an endpoint has: at least one, or no guest could come."""
    return tuple(sorted({lun.target for lun in spec.luns})) or (0,)


class Ports:
    """Makes, reads and removes them. Any thread may call, one at a time for each WWPN."""

    def __init__(self, fs: Configfs) -> None:
        self._fs = fs

    def make(self, spec: EndpointSpec, undo: Undo) -> bool:
        """Have the port with its groups and its nexus, without LUNs.

        :returns: whether the port was not there. :raises RingwayError: it cannot be.
        """
        assert spec.wwpn is not None
        path = port_path(spec.wwpn)
        if made := self._fs.make(path):
            undo(lambda: self._fs.remove(path))
        for target in targets_of(spec):
            self.make_group(spec, target, undo)
        return made

    def make_group(self, spec: EndpointSpec, target: int, undo: Undo) -> None:
        """Have a portal group with its nexus. :raises ConflictError: it has another nexus."""
        assert spec.wwpn is not None
        assert spec.nexus is not None
        path = group_path(spec.wwpn, target)
        if made := self._fs.make(path):
            undo(lambda: self._fs.remove(path))
        if spec.protection is not Protection.NONE or not made:
            self._protect(path, _PROTECTION[spec.protection])
        if not made and (nexus := self.nexus(spec.wwpn, target)):
            if nexus != spec.nexus:
                raise ConflictError(
                    f"target {target} of {spec.wwpn} has the nexus {nexus}, not {spec.nexus}",
                    hint="detach its guest and delete the endpoint; it is then made anew",
                )
            return
        self._fs.write(f"{path}/nexus", spec.nexus)

    def map(self, wwpn: str, address: Address, name: str, device: str, undo: Undo) -> None:
        """Map a device; one that is mapped there already is fine.

        :raises ConflictError: another one is mapped there.
        """
        path = lun_path(wwpn, address)
        if self._fs.make(path):
            undo(lambda: self._fs.remove(path))
        elif (there := self.mapping(wwpn, address)).device is not None:
            if there.device != device:
                raise ConflictError(
                    f"LUN {address[0]}:{address[1]} of {wwpn} maps {there.device}, not {device}",
                    hint="remove that LUN first",
                )
            return
        self._fs.link(f"{path}/{name}", device)
        undo(lambda: self._fs.unlink(f"{path}/{name}"))

    def unmap(self, wwpn: str, address: Address, name: str | None = None) -> None:
        """Take a LUN away, also from a guest that uses it. One that is not there is fine.

        :param name: of its link, if that is known.
        """
        path = lun_path(wwpn, address)
        if name is None or not self._fs.unlink(f"{path}/{name}"):
            link = self.mapping(wwpn, address).link
            if link is not None:
                self._fs.unlink(f"{path}/{link}")
        self._fs.remove(path)

    def mapping(self, wwpn: str, address: Address) -> Mapping:
        """What is mapped at an address."""
        path = lun_path(wwpn, address)
        for name in self._fs.names(path):
            if (device := self._fs.target_of(f"{path}/{name}")) is not None:
                return Mapping(name, device)
        return Mapping(None, None)

    def targets(self, wwpn: str) -> list[int]:
        """Numbers of the portal groups that are there."""
        return _numbers("tpgt_", self._fs.names(port_path(wwpn)))

    def luns(self, wwpn: str, target: int) -> list[int]:
        """Numbers of the LUNs that are there."""
        return _numbers("lun_", self._fs.names(f"{group_path(wwpn, target)}/lun"))

    def addresses(self, wwpn: str) -> list[Address]:
        """All LUNs that are there."""
        return [(target, lun) for target in self.targets(wwpn) for lun in self.luns(wwpn, target)]

    def nexus(self, wwpn: str, target: int) -> str | None:
        """The initiator's name, or ``None``: no guest can come."""
        return self._fs.read_or(f"{group_path(wwpn, target)}/nexus") or None

    def protection(self, wwpn: str, target: int) -> Protection:
        """What the fabric emulates."""
        text = self._fs.read_or(f"{group_path(wwpn, target)}/attrib/fabric_prot_type", "0")
        return next((kind for kind, number in _PROTECTION.items() if number == text), Protection.NONE)

    def is_attached(self, wwpn: str, targets: Iterable[int]) -> bool:
        """Whether a guest is there. It holds all portal groups at once, and the kernel lets none of them go.

        There is no attribute that says so. To remove a group that has LUNs fails in either case, and changes
        nothing; one without gets a LUN that maps nothing while we ask. To be called by the port's owner
        alone: who removes its last LUN at the same time lets the question be its end.
        """
        return any(self._is_held(wwpn, target) for target in targets)

    def holds_guest(self, wwpn: str, targets: Iterable[int]) -> bool:
        """The same, for who is about to remove the port: a group without LUNs may be gone by the question."""
        return any(self._fs.is_held(group_path(wwpn, target)) for target in targets)

    def _is_held(self, wwpn: str, target: int) -> bool:
        path = group_path(wwpn, target)
        if self._fs.names(f"{path}/lun"):
            return self._fs.is_held(path)
        if not self._fs.exists(path):
            return False
        probe = f"{path}/lun/{_PROBE_LUN}"
        self._fs.make(probe)
        try:
            return self._fs.is_held(path)
        finally:
            self._fs.remove(probe)

    def remove_group(self, wwpn: str, target: int) -> None:
        """Remove a portal group that has no LUN any more. :raises BusyError: a guest is attached."""
        self._fs.remove(group_path(wwpn, target))

    def remove_empty(self, wwpn: str, targets: Iterable[int]) -> bool:
        """Remove a port with these groups, if nothing is in them, nobody uses them, and there are no others.

        :returns: whether it is gone.
        """
        gone = all(self._fs.remove_if_unused(group_path(wwpn, target)) for target in targets)
        return gone and self._fs.remove_if_unused(port_path(wwpn))

    def remove(self, wwpn: str) -> None:
        """Remove a port that has no portal group any more."""
        self._fs.remove(port_path(wwpn))

    def _protect(self, path: str, wanted: str) -> None:
        name = f"{path}/attrib/fabric_prot_type"
        with contextlib.suppress(OSError):
            if self._fs.read(name) == wanted:
                return
        self._fs.write(name, wanted)


def _numbers(prefix: str, names: Iterable[str]) -> list[int]:
    found = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return sorted(int(text) for text in found if text.isdecimal())
