"""The kernel target of the machine that we run on, as a test plays with it: the twin of the fake kernel.

For a guest of our own: entering and leaving it removes every endpoint and every backstore in the kernel.
"""

from __future__ import annotations

import errno
import struct
import subprocess
from pathlib import Path
from typing import Final, Self

from ringway.errors import NotFoundError
from ringway.testing import configfs
from ringway.testing.frontend import ScsiResponse
from ringway.testing.vhost_scsi import VhostScsiFrontEnd

_CHUNK: Final = 1 << 20
_BLOCK: Final = 512
REGISTER, RESERVE = 0, 1


class RealKernel:
    """The kernel's target, empty when it is entered, and again when it is left."""

    sysfs = Path("/sys")
    configfs = configfs.ROOT
    kmsg = Path("/dev/kmsg")

    def __init__(self) -> None:
        self._guests: dict[str, VhostScsiFrontEnd] = {}

    @property
    def dbroot(self) -> Path:
        """Where the kernel keeps reservations that outlive power loss."""
        return Path((self.configfs / "dbroot").read_text().strip())

    def __enter__(self) -> Self:
        self.load("vhost_scsi")
        self._empty()
        for kept in (self.dbroot / "pr").glob("aptpl_*"):
            kept.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        self._empty()

    def reboot(self) -> None:
        """Forget everything but the files of reservations."""
        self._empty()

    def attach(self, wwpn: str) -> None:
        """A guest comes. :raises OSError: ENODEV: it cannot."""
        try:
            self._guests[wwpn] = VhostScsiFrontEnd(wwpn).open()
        except NotFoundError as error:
            raise OSError(errno.ENODEV, str(error)) from error

    def detach(self, wwpn: str) -> None:
        """The guest goes."""
        self._guests.pop(wwpn).close()

    def use(self, wwpn: str, target: int, lun: int, *, commands: int, read: int, written: int) -> None:
        """The guest does I/O; sizes in bytes, in so many commands in all, over and over in the first MiB."""
        sizes = [(0x28, size) for size in _chunks(read)] + [(0x2A, size) for size in _chunks(written)]
        with _Visit(self, wwpn) as guest:
            for opcode, size in sizes:
                cdb = struct.pack(">BBIBHB", opcode, 0, 0, 0, size // _BLOCK, 0)
                out, into = (bytes(size), 0) if opcode == 0x2A else (b"", size)
                _good(guest.command(cdb, target=target, lun=lun, data_out=out, data_in=into))
            for _ in range(commands - len(sizes)):
                _good(guest.command(bytes(6), target=target, lun=lun))

    def register(self, wwpn: str, target: int, lun: int, *, key: int, type_: int) -> None:
        """The guest registers a key with APTPL, and reserves unless ``type_`` is 0."""
        with _Visit(self, wwpn) as guest:
            _good(reserve_out(guest, REGISTER, target=target, lun=lun, new_key=key, aptpl=True))
            if type_:
                _good(reserve_out(guest, RESERVE, target=target, lun=lun, key=key, kind=type_))

    def load(self, module: str) -> None:
        """A module is loaded."""
        subprocess.run(["modprobe", module], check=True)

    def _empty(self) -> None:
        for wwpn in list(self._guests):
            self.detach(wwpn)
        configfs.clear(self.configfs)


class _Visit:
    """The guest of an endpoint: the one that is there, or one that comes for as long as this lasts."""

    def __init__(self, kernel: RealKernel, wwpn: str) -> None:
        self._kernel = kernel
        self._wwpn = wwpn
        self._stays = wwpn in kernel._guests

    def __enter__(self) -> VhostScsiFrontEnd:
        if not self._stays:
            self._kernel.attach(self._wwpn)
        return self._kernel._guests[self._wwpn]

    def __exit__(self, *_: object) -> None:
        if not self._stays:
            self._kernel.detach(self._wwpn)


def reserve_out(
    guest: VhostScsiFrontEnd,
    action: int,
    *,
    target: int,
    lun: int = 0,
    key: int = 0,
    new_key: int = 0,
    kind: int = 0,
    aptpl: bool = False,
) -> ScsiResponse:
    """Send PERSISTENT RESERVE OUT. Spec: SPC-4 r37, 6.16"""
    parameters = struct.pack(">QQ4xB3x", key, new_key, int(aptpl))
    cdb = struct.pack(">BBB2xIB", 0x5F, action, kind, len(parameters), 0)
    return guest.command(cdb, target=target, lun=lun, data_out=parameters)


def registered_keys(guest: VhostScsiFrontEnd, *, target: int, lun: int = 0) -> list[int]:
    """Return the keys that are registered. Spec: SPC-4 r37, 6.15.2"""
    data = _reserve_in(guest, 0, target=target, lun=lun)
    (size,) = struct.unpack_from(">I", data, 4)
    return [key for (key,) in struct.iter_unpack(">Q", data[8 : 8 + size])]


def reservation(guest: VhostScsiFrontEnd, *, target: int, lun: int = 0) -> tuple[int, int] | None:
    """Return key and type of the reservation, if there is one. Spec: SPC-4 r37, 6.15.3"""
    data = _reserve_in(guest, 1, target=target, lun=lun)
    if int.from_bytes(data[4:8]) == 0:
        return None
    return int.from_bytes(data[8:16]), data[21] & 0xF


def _reserve_in(guest: VhostScsiFrontEnd, action: int, *, target: int, lun: int) -> bytes:
    cdb = struct.pack(">BB5xHB", 0x5E, action, 512, 0)
    answer = guest.command(cdb, target=target, lun=lun, data_in=512)
    _good(answer)
    return answer.data


def _chunks(total: int) -> list[int]:
    return [min(_CHUNK, total - done) for done in range(0, total, _CHUNK)]


def _good(answer: ScsiResponse) -> None:
    assert (answer.response, answer.status) == (0, 0), answer
