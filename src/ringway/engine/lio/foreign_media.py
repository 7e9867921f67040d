"""Files and devices that others serve through the kernel's target: nobody else may write to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from ringway.engine.lio.assembly import is_usual, paths_of, possible_paths
from ringway.engine.lio.backstores import Backstores
from ringway.engine.lio.configfs import Configfs
from ringway.engine.lio.ports import Ports
from ringway.engine.lio.records import Records
from ringway.errors import BusyError
from ringway.media import Identity, identify
from ringway.model import EndpointSpec, EngineKind, LunSpec, SpecKind

_PLUGINS: Final = ("fileio_", "iblock_")
_RECENT_S: Final = 1.0


class _Medium(NamedTuple):
    """What a backstore that is not ours serves."""

    path: str
    identity: Identity
    readonly: bool


class ForeignMedia:
    """Looks for them. Any thread may call; a thousand endpoints of ours cost it some milliseconds."""

    def __init__(self, fs: Configfs, ports: Ports, backstores: Backstores, records: Records) -> None:
        self._fs = fs
        self._ports = ports
        self._backstores = backstores
        self._records = records
        self._lock = threading.Lock()
        self._seen: list[_Medium] = []
        self._seen_s = float("-inf")

    def refuse(self, spec: EndpointSpec, *, restoring: bool = False) -> None:
        """:raises BusyError: a backstore that is not ours has a disk of ``spec``, and not both only read.

        What a creation of ``spec`` would take over is no reason.

        :param restoring: as :meth:`ringway.engine.base.Driver.check_foreign`.
        """
        disks = _identities(spec)
        if not disks:
            return
        for each in self._recent() if restoring else self._media():
            for lun in disks.get(each.identity, ()):
                both_read = each.readonly and lun.backstore.readonly
                is_own = restoring and each.path in _own_paths(spec, lun)
                if not both_read and not is_own and not self._is_taken_over(spec, lun, each.path):
                    raise _busy(lun, each.path)

    def _recent(self) -> list[_Medium]:
        """A look that is not older than a second; who comes while somebody looks shares it."""
        with self._lock:
            if time.monotonic() - self._seen_s > _RECENT_S:
                self._seen = list(self._media())
                self._seen_s = time.monotonic()
            return self._seen

    def _media(self) -> Iterator[_Medium]:
        for path in self._paths():
            medium, readonly = self._backstores.medium(path)
            if medium and (identity := identify(medium)):
                yield _Medium(path, identity, readonly)

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


def _own_paths(spec: EndpointSpec, lun: LunSpec) -> tuple[str, ...]:
    """Where a backstore of ours lies, whether that was noted or not."""
    store = lun.backstore
    if spec.engine is not EngineKind.LIO or store.name is None:
        return ()
    return possible_paths(store, store.name, {})


def _identities(spec: EndpointSpec) -> dict[Identity, tuple[LunSpec, ...]]:
    """What is to be served, and as which LUNs."""
    found: dict[Identity, tuple[LunSpec, ...]] = {}
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
