"""Describe what other tools made in the kernel so that it can be kept: names, nexus and serial numbers as
they are.

Nothing is changed in the kernel, and no guest notices.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

from ringway.engine.lio import foreign_attributes
from ringway.engine.lio.backstores import Backstores, Found
from ringway.engine.lio.configfs import Configfs
from ringway.engine.lio.ports import Address, Mapping, Ports
from ringway.errors import ConflictError, UsageError
from ringway.model import MAX_LUN, BackstoreSpec, EndpointSpec, EngineKind, LunSpec, SpecKind

_NAA: Final = re.compile(r"naa\.[0-9a-f]{16}([0-9a-f]{16})?")
_SCSI: Final = re.compile(r"Channel ID: (\d+) Target ID: (\d+) LUN: (\d+) Host ID: (\d+)")
_BLOCK: Final = 512
_KINDS: Final = {"pscsi": SpecKind.PSCSI, "user": SpecKind.TCMU}


class Adoption:
    """Reads ports and their backstores.

    :param taken: names of backstores that endpoints have, and where those lie: no two go by one name.
    """

    def __init__(self, fs: Configfs, ports: Ports, backstores: Backstores, taken: dict[str, str]) -> None:
        self._fs = fs
        self._ports = ports
        self._backstores = backstores
        self._taken = taken

    def describe(self, wwpn: str, mappings: dict[Address, Mapping]) -> EndpointSpec:
        """:returns: the endpoint, which goes by its WWPN.

        :raises UsageError: it is named as no endpoint of ours can be, or has LUNs that no guest reaches.
        :raises ConflictError: it has no nexus, or several: there is no one name to keep.
        """
        if not _NAA.fullmatch(wwpn):
            raise UsageError(
                f"'{wwpn}' cannot be taken over: its name is no naa. name", hint="leave it to its tool"
            )
        targets = self._ports.targets(wwpn)
        return EndpointSpec(
            name=wwpn,
            engine=EngineKind.LIO,
            wwpn=wwpn,
            nexus=self._nexus(wwpn, targets),
            protection=self._ports.protection(wwpn, targets[0]),
            luns=tuple(
                self._lun(wwpn, address, mapping.device)
                for address, mapping in sorted(mappings.items())
                if mapping.device is not None
            ),
        )

    def _nexus(self, wwpn: str, targets: Iterable[int]) -> str:
        names = {self._ports.nexus(wwpn, target) for target in targets}
        if len(names) == 1 and (name := names.pop()) is not None:
            return name
        what = "several of them" if len(names) > 0 else "none"
        raise ConflictError(
            f"'{wwpn}' cannot be taken over: all its portal groups need one nexus, and it has {what}",
            hint="leave it to its tool, or delete it there and make an endpoint",
        )

    def _lun(self, wwpn: str, address: Address, device: str) -> LunSpec:
        if address[1] > MAX_LUN:
            raise UsageError(
                f"'{wwpn}' cannot be taken over: no guest reaches its LUN {address[1]}",
                hint="remove that LUN first",
            )
        return LunSpec(*address, self._store(self._backstores.read(device)))

    def _store(self, found: Found) -> BackstoreSpec:
        kind = _KINDS.get(found.plugin, SpecKind.PATH)
        if found.plugin == "rd_mcp":
            kind = SpecKind.NULL if found.null else SpecKind.RAM
        bare = found.plugin in _KINDS
        return BackstoreSpec(
            kind,
            path=self._path(found, kind),
            size_bytes=self._size(found),
            readonly=found.readonly,
            direct=found.direct,
            block_size=found.block_size if found.block_size not in (None, _BLOCK) and not bare else None,
            serial=None if bare else found.serial,
            name=self._name(found),
            attributes={} if bare else self._attributes(found),
        )

    def _path(self, found: Found, kind: SpecKind) -> str | None:
        if kind is SpecKind.TCMU:
            return found.name
        if kind is SpecKind.PSCSI:
            match = _SCSI.search(self._fs.read_or(f"{found.path}/info"))
            assert match is not None
            return f"{match[4]}:{match[1]}:{match[2]}:{match[3]}"
        return found.medium

    def _size(self, found: Found) -> int | None:
        """Of memory always, of a file where it is not served in whole."""
        if found.plugin == "rd_mcp":
            return found.size_bytes
        if found.plugin != "fileio" or found.medium is None:
            return None
        try:
            return None if os.path.getsize(found.medium) == found.size_bytes else found.size_bytes
        except OSError:
            return found.size_bytes

    def _attributes(self, found: Found) -> dict[str, str]:
        values = {
            name: text
            for name in (*foreign_attributes.DEFAULTS, "is_nonrot")
            if (text := self._fs.read_or(f"{found.path}/attrib/{name}"))
        }
        kept = foreign_attributes.kept(values, found.plugin)
        if "emulate_3pc" in values:  # as it is, though new disks have it off: no guest shall notice
            kept["emulate_3pc"] = values["emulate_3pc"]
        if found.write_through:
            kept["emulate_write_cache"] = "0"
        return kept

    def _name(self, found: Found) -> str:
        """Its own name, unless another backstore has that."""
        name = found.name
        if self._taken.setdefault(name, found.path) == found.path:
            return name
        longer = f"{name}:{found.path.split('/')[1]}"
        self._taken[longer] = found.path
        return longer
