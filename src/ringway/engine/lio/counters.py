"""What guests did to LUNs, as configfs counts it."""

from __future__ import annotations

import time
from typing import Final

from ringway.engine.lio.configfs import Configfs
from ringway.engine.lio.ports import Address, Mapping, lun_path
from ringway.model import Latency, LunCounters, LunStatistics, TargetCounters, TargetStatistics

_MIB: Final = 1 << 20


def statistics_of(fs: Configfs, wwpn: str, mappings: dict[Address, Mapping]) -> TargetStatistics:
    """The kernel counts commands of all kinds as one, and bytes in whole MiB: commands go as ``other``."""
    luns = tuple(_lun(fs, wwpn, address) for address in sorted(mappings))
    devices = {mapping.device for mapping in mappings.values() if mapping.device is not None}
    return TargetStatistics(_uptime_s(fs, devices), luns, (), ())


def without_latencies(found: TargetStatistics) -> TargetCounters:
    """The same as counters: the kernel measures no latencies."""
    luns = ({name: getattr(lun, name) for name in LunStatistics.__struct_fields__} for lun in found.luns)
    counters = (LunCounters(**{**lun, "read_latency": (), "write_latency": ()}) for lun in luns)
    return TargetCounters(found.uptime_s, tuple(counters), (), ())


def _lun(fs: Configfs, wwpn: str, address: Address) -> LunStatistics:
    port = f"{lun_path(wwpn, address)}/statistics/scsi_tgt_port"
    return LunStatistics(
        target=address[0],
        lun=address[1],
        reads=0,
        writes=0,
        flushes=0,
        unmaps=0,
        other=fs.read_int(f"{port}/in_cmds"),
        errors=0,
        read_bytes=fs.read_int(f"{port}/read_mbytes") * _MIB,
        write_bytes=fs.read_int(f"{port}/write_mbytes") * _MIB,
        read_latency=Latency(),
        write_latency=Latency(),
    )


def _uptime_s(fs: Configfs, devices: set[str]) -> float:
    """Since the oldest device was made; the kernel says when in hundredths of a second since its start."""
    made = [fs.read_int(f"{device}/statistics/scsi_lu/creation_time") for device in devices]
    return max(0.0, time.clock_gettime(time.CLOCK_MONOTONIC) - min(made) / 100) if made else 0.0
