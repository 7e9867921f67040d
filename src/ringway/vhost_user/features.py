"""Names of virtio feature bits, so that a log line can say which one a front end got wrong.

Spec: virtio 1.3, 6 "Reserved Feature Bits", 5.2.3 (block) and 5.6.3 (SCSI host).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

TRANSPORT: Final[Mapping[int, str]] = MappingProxyType(
    {
        24: "NOTIFY_ON_EMPTY",
        26: "LOG_ALL",
        27: "ANY_LAYOUT",
        28: "INDIRECT_DESC",
        29: "EVENT_IDX",
        30: "PROTOCOL_FEATURES",
        32: "VERSION_1",
        33: "ACCESS_PLATFORM",
        34: "RING_PACKED",
        35: "IN_ORDER",
        36: "ORDER_PLATFORM",
        37: "SR_IOV",
        38: "NOTIFICATION_DATA",
        39: "NOTIF_CONFIG_DATA",
        40: "RING_RESET",
        41: "ADMIN_VQ",
    }
)
SCSI: Final[Mapping[int, str]] = MappingProxyType({0: "INOUT", 1: "HOTPLUG", 2: "CHANGE", 3: "T10_PI"})
BLK: Final[Mapping[int, str]] = MappingProxyType(
    {
        0: "BARRIER",
        1: "SIZE_MAX",
        2: "SEG_MAX",
        4: "GEOMETRY",
        5: "RO",
        6: "BLK_SIZE",
        7: "SCSI",
        9: "FLUSH",
        10: "TOPOLOGY",
        11: "CONFIG_WCE",
        12: "MQ",
        13: "DISCARD",
        14: "WRITE_ZEROES",
        15: "LIFETIME",
        16: "SECURE_ERASE",
        17: "ZONED",
    }
)
_BY_KIND: Final[Mapping[str, Mapping[int, str]]] = MappingProxyType({"scsi": SCSI, "blk": BLK})


def feature_names(kind: str, features: int) -> list[str]:
    """Name each bit that is set, the lowest first.

    :param kind: ``"scsi"`` or ``"blk"``: what the bits below 24 mean.
    """
    names = {**_BY_KIND[kind], **TRANSPORT}
    bits = (bit for bit in range(features.bit_length()) if features >> bit & 1)
    return [names.get(bit, f"bit {bit}") for bit in bits]
