"""What is in the kernel now, ours or foreign, as the host shows it."""

from __future__ import annotations

from collections.abc import Iterator

from ringway.engine.lio.backstores import Backstores, Found
from ringway.engine.lio.configfs import Configfs
from ringway.engine.lio.ports import FABRIC, Address, Mapping, Ports, lun_path
from ringway.engine.lio.records import Record, Records
from ringway.model import (
    BackstoreInfo,
    DeviceKind,
    EndpointInfo,
    EndpointSpec,
    EndpointState,
    EngineKind,
    LunSpec,
    LunStatus,
)

_NO_PORTS = ("discovery_auth", "version")
_FOREIGN = "not Ringway's, or its record was lost: to have it, ringway config import --adopt"


class Looks:
    """Reads the kernel's tree. Any thread may call."""

    def __init__(self, fs: Configfs, ports: Ports, backstores: Backstores, records: Records) -> None:
        self._fs = fs
        self._ports = ports
        self._backstores = backstores
        self._records = records

    def wwpns(self) -> list[str]:
        """All target ports of the fabric."""
        return [name for name in self._fs.names(FABRIC) if name not in _NO_PORTS]

    def mappings(self, wwpn: str) -> dict[Address, Mapping]:
        """What is mapped at a port."""
        return {address: self._ports.mapping(wwpn, address) for address in self._ports.addresses(wwpn)}

    def is_whole(self, spec: EndpointSpec) -> bool:
        """Whether all links of an endpoint are there that we made; one question for each LUN."""
        assert spec.wwpn is not None
        return all(
            self._fs.exists(f"{lun_path(spec.wwpn, (lun.target, lun.lun))}/{lun.backstore.name}")
            or self._ports.mapping(spec.wwpn, (lun.target, lun.lun)).device is not None
            for lun in spec.luns
        )

    def ours(self, record: Record, *, connected: bool | None) -> EndpointInfo:
        """An endpoint of ours as it is: what is missing makes it degraded."""
        spec = record.spec
        assert spec.wwpn is not None
        there = self.mappings(spec.wwpn)
        found = {path: self._backstores.read(path) for path in {one.device for one in there.values()} if path}
        wrong = tuple(_differences(spec.luns, there))
        return EndpointInfo(
            name=spec.name,
            engine=EngineKind.LIO,
            device=DeviceKind.SCSI,
            state=EndpointState.DEGRADED if wrong else EndpointState.READY,
            wwpn=spec.wwpn,
            nexus=spec.nexus,
            connected=connected,
            message="; ".join(wrong) or None,
            luns=tuple(_status(address, one, found) for address, one in sorted(there.items()) if one.device),
            spec=spec,
        )

    def foreign(self, wwpn: str) -> EndpointInfo:
        """A target port that somebody else made. It goes by its WWPN."""
        there = self.mappings(wwpn)
        found = {path: self._backstores.read(path) for path in {one.device for one in there.values()} if path}
        targets = self._ports.targets(wwpn)
        return EndpointInfo(
            name=wwpn,
            engine=EngineKind.LIO,
            device=DeviceKind.SCSI,
            state=EndpointState.FOREIGN,
            message=_FOREIGN,
            wwpn=wwpn,
            nexus=next((nexus for target in targets if (nexus := self._ports.nexus(wwpn, target))), None),
            luns=tuple(_status(address, one, found) for address, one in sorted(there.items()) if one.device),
        )

    def devices(self) -> list[str]:
        """Paths of all backstores."""
        return [f"core/{hba}/{name}" for hba in self._fs.names("core") for name in self._in(hba)]

    def _in(self, hba: str) -> list[str]:
        if hba == "alua":
            return []
        return [name for name in self._fs.names(f"core/{hba}") if not name.startswith("hba_")]

    def backstore(self, path: str, *, foreign: bool) -> BackstoreInfo:
        """A backstore, and which LUNs map it, of whichever fabric."""
        found = self._backstores.read(path)
        members = self._fs.read_or(f"{path}/alua/default_tg_pt_gp/members").split()
        return BackstoreInfo(
            name=found.name,
            engine=EngineKind.LIO,
            kind=found.kind,
            path=found.medium,
            size_bytes=found.size_bytes,
            block_size=found.block_size,
            serial=found.serial,
            foreign=foreign,
            used_by=tuple(self._user(member) for member in members),
        )

    def _user(self, member: str) -> str:
        """``vhost/WWPN/tpgt_T/lun_L`` -> ``ENDPOINT/T:L``."""
        parts = member.split("/")
        if len(parts) != 4 or parts[0] != FABRIC:
            return member
        target, lun = parts[2].removeprefix("tpgt_"), parts[3].removeprefix("lun_")
        return f"{self._records.owner_of(parts[1]) or parts[1]}/{target}:{lun}"


def _status(address: Address, mapping: Mapping, found: dict[str, Found]) -> LunStatus:
    assert mapping.device is not None
    store = found[mapping.device]
    return LunStatus(
        target=address[0],
        lun=address[1],
        backstore=store.name,
        kind=store.kind,
        path=store.medium,
        size_bytes=store.size_bytes,
        block_size=store.block_size,
        readonly=store.readonly,
        serial=store.serial,
    )


def _differences(luns: tuple[LunSpec, ...], there: dict[Address, Mapping]) -> Iterator[str]:
    """What the kernel has otherwise than it should be."""
    for lun in luns:
        mapping = there.get((lun.target, lun.lun))
        if mapping is None or mapping.device is None:
            yield f"LUN {lun.target}:{lun.lun} is not there any more"
