"""Who a disk is: names that stay the same over restarts, renumbering and migrations.

Guests find their disks by these (``/dev/disk/by-id``), and clusters their reservations: they depend on the
endpoint's WWPN and on the disk's serial number, and on nothing else that a host could change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import ringway
from ringway.digest import sha256
from ringway.errors import UsageError

VENDOR: Final = b"RINGWAY "
PRODUCT: Final = b"DISK".ljust(16)
#: Four characters: as much of the version as they hold.
REVISION: Final = ".".join(ringway.__version__.split(".")[:2]).encode().ljust(4)[:4]

MAX_SERIAL: Final = 64
_WWPN: Final = re.compile(r"naa\.([0-9a-fA-F]{16})")
_SERIAL: Final = re.compile(rf"[!-~](?:[ -~]{{0,{MAX_SERIAL - 2}}}[!-~])?")
_NAA_LOCAL, _NAA_REGISTERED, _NAA_EXTENDED = 0x3, 0x5, 0x6


@dataclass(frozen=True, slots=True)
class Identity:
    """The names of a logical unit.

    :param port: the target port's NAA name, 8 bytes: the endpoint's WWPN.
    :param unit: the logical unit's NAA name, 8 or 16 bytes.
    :param serial: printable ASCII.
    """

    port: bytes
    unit: bytes
    serial: str

    @classmethod
    def derive(cls, wwpn: str, serial: str) -> Identity:
        """Name a unit after its endpoint and its serial number.

        :param wwpn: ``naa.`` and 16 hexadecimal digits.
        :raises UsageError: not a WWPN, or the serial is empty, too long or not printable ASCII.
        """
        port = parse_wwpn(wwpn)
        return cls(port, _unit_name(port, check_serial(serial)), serial)


def parse_wwpn(wwpn: str) -> bytes:
    """:returns: the 8 bytes of ``naa.…``. :raises UsageError: it is not one."""
    if not (match := _WWPN.fullmatch(wwpn)):
        raise UsageError(f"{wwpn!r} is not a WWPN", hint="a WWPN is naa. and 16 hexadecimal digits")
    return bytes.fromhex(match[1])


def check_serial(serial: str) -> str:
    """:returns: ``serial``. :raises UsageError: a guest could not be shown it."""
    if not _SERIAL.fullmatch(serial):
        hint = f"1 to {MAX_SERIAL} printable ASCII characters, without a space at either end"
        raise UsageError(f"serial number {serial!r} cannot be used", hint=hint)
    return serial


def _unit_name(port: bytes, serial: str) -> bytes:
    """An extended name under the port's own registered one, else one that is locally assigned.

    Spec: SPC-4 r37, NAA designator format: NAA 6 is NAA 5's company and vendor identifier, and 64 bits more.
    """
    digest = sha256(port + serial.encode())
    if port[0] >> 4 == _NAA_REGISTERED:
        return bytes([_NAA_EXTENDED << 4 | port[0] & 0xF]) + port[1:] + digest[:8]
    return bytes([_NAA_LOCAL << 4 | digest[0] & 0xF]) + digest[1:8]
