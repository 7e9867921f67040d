"""Files and devices that others serve through the kernel's target: nobody else may write to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ringway.engine.lio.assembly import is_usual, paths_of
from ringway.engine.lio.backstores import Backstores
from ringway.engine.lio.checks import Identity, identify
from ringway.engine.lio.configfs import Configfs
from ringway.engine.lio.ports import Ports
from ringway.engine.lio.records import Records
from ringway.errors import BusyError
from ringway.model import EndpointSpec, EngineKind, LunSpec, SpecKind

_PLUGINS: Final = ("fileio_", "iblock_")


class ForeignMedia:
    """Looks for them. Any thread may call; a thousand endpoints of ours cost it some milliseconds."""

    def __init__(self, fs: Configfs, ports: Ports, backstores: Backstores, records: Records) -> None:
        self._fs = fs
        self._ports = ports
        self._backstores = backstores
        self._records = records

    def refuse(self, spec: EndpointSpec) -> None:
        """:raises BusyError: a backstore that is not ours has a disk of ``spec``, and not both only read.

        What a creation of ``spec`` would take over is no reason.
        """
        disks = _identities(spec)
        if not disks:
            return
        for path in self._paths():
            medium, readonly = self._backstores.medium(path)
            luns = disks.get(identify(medium), ()) if medium else ()
            for lun in luns:
                if not (readonly and lun.backstore.readonly) and not self._is_taken_over(spec, lun, path):
                    raise _busy(lun, path)

    def _paths(self) -> Iterator[str]:
        """Of all backstores on files and devices that are not ours.

        What is there is asked before what is ours: our own are noted before they are made. An adapter
        whose number follows from a name of ours is not looked into, for nobody counts so far.
        """
        adapters = [name for name in self._fs.names("core") if name.startswith(_PLUGINS)]
        ours = {path: name for record in self._records.all() for name, path in paths_of(record)}
        usual = {path.split("/")[1] for path, name in ours.items() if is_usual(path, name)}
        for adapter in adapters:
            if adapter not in usual:
                found = (f"core/{adapter}/{name}" for name in self._fs.names(f"core/{adapter}"))
                yield from (path for path in found if path not in ours)

    def _is_taken_over(self, spec: EndpointSpec, lun: LunSpec, path: str) -> bool:
        """Whether a port that is there has the LUN already: a creation adopts both."""
        if spec.engine is not EngineKind.LIO or spec.wwpn is None:
            return False
        return self._ports.mapping(spec.wwpn, (lun.target, lun.lun)).device == path


def _identities(spec: EndpointSpec) -> dict[Identity | None, tuple[LunSpec, ...]]:
    """What is to be served, and as which LUNs."""
    found: dict[Identity | None, tuple[LunSpec, ...]] = {}
    for lun in spec.luns:
        store = lun.backstore
        if store.kind is SpecKind.PATH and store.path is not None and (identity := identify(store.path)):
            found[identity] = (*found.get(identity, ()), lun)
    return found


def _busy(lun: LunSpec, path: str) -> BusyError:
    backstore = path.removeprefix("core/")
    return BusyError(
        f"'{lun.backstore}' is served by the kernel's target as backstore '{backstore}', "
        "which is not Ringway's",
        holder=f"backstore {backstore}",
        hint="take over the endpoint that has it: ringway config import --adopt; or delete it there first",
    )
