"""What guests did to LUNs, as configfs counts it."""

from __future__ import annotations

import time
from typing import Final

from msgspec.structs import replace

from ringway.engine.lio.configfs import Configfs
from ringway.engine.lio.ports import Address, Mapping, lun_path
from ringway.model import LunStatistics, TargetStatistics

_MIB: Final = 1 << 20


def statistics_of(fs: Configfs, wwpn: str, mappings: dict[Address, Mapping]) -> TargetStatistics:
    """The kernel counts commands of all kinds as one, and bytes in whole MiB: commands go as
    ``other``, without latencies."""
    luns = tuple(_lun(fs, wwpn, address) for address in sorted(mappings))
    devices = {mapping.device for mapping in mappings.values() if mapping.device is not None}
    return TargetStatistics(_uptime_s(fs, devices), luns, (), ())


def _lun(fs: Configfs, wwpn: str, address: Address) -> LunStatistics:
    port = f"{lun_path(wwpn, address)}/statistics/scsi_tgt_port"
    return replace(
        LunStatistics.unused(*address),
        other=fs.read_int(f"{port}/in_cmds"),
        read_bytes=fs.read_int(f"{port}/read_mbytes") * _MIB,
        write_bytes=fs.read_int(f"{port}/write_mbytes") * _MIB,
    )


def _uptime_s(fs: Configfs, devices: set[str]) -> float:
    """Since the oldest device was made; the kernel says when in hundredths of a second since its start."""
    made = [fs.read_int(f"{device}/statistics/scsi_lu/creation_time") for device in devices]
    return max(0.0, time.clock_gettime(time.CLOCK_MONOTONIC) - min(made) / 100) if made else 0.0
