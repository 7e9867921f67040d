"""The kernel target's configfs in plain path operations, for tests that want no engine between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/kernel/config/target")
#: Folders of the root that are no fabric.
_NO_FABRICS: Final = frozenset({"core"})
_NO_HBAS: Final = frozenset({"alua"})
_NO_GROUPS: Final = frozenset({"default_tg_pt_gp"})


@dataclass(frozen=True, slots=True)
class Backstore:
    """A backstore of the kernel's.

    :param hba: the folder below ``core``, such as ``fileio_0``.
    """

    hba: str
    name: str

    @property
    def folder(self) -> Path:
        """Its folder."""
        return ROOT / "core" / self.hba / self.name

    def make(self, control: str, *, serial: str | None = None, **attributes: int) -> Backstore:
        """Make and enable it. :param control: what the kind wants (``fd_dev_name=…,fd_dev_size=…``).

        :raises OSError: the kernel refused; what was made so far is left.
        """
        self.folder.mkdir(parents=True)
        (self.folder / "control").write_text(control)
        if serial is not None:
            (self.folder / "wwn" / "vpd_unit_serial").write_text(serial)
        (self.folder / "enable").write_text("1")
        for name, value in attributes.items():
            (self.folder / "attrib" / name).write_text(str(value))
        return self


@dataclass(frozen=True, slots=True)
class VhostEndpoint:
    """An endpoint of the fabric ``vhost`` with one port group."""

    wwpn: str
    tag: int = 1

    @property
    def group(self) -> Path:
        """The port group's folder."""
        return ROOT / "vhost" / self.wwpn / f"tpgt_{self.tag}"

    def make(self, nexus: str) -> VhostEndpoint:
        """Make it without a LUN. :param nexus: the initiator's name."""
        self.group.mkdir(parents=True)
        (self.group / "nexus").write_text(nexus)
        return self

    def link(self, lun: int, backstore: Backstore) -> None:
        """Map a backstore; a front end that is attached hears of it."""
        folder = self.group / "lun" / f"lun_{lun}"
        folder.mkdir()
        (folder / "mapped").symlink_to(backstore.folder)

    def unlink(self, lun: int) -> None:
        """Take a LUN away, a front end attached or not."""
        _remove_lun(self.group / "lun" / f"lun_{lun}")

    def remove(self) -> None:
        """Remove LUNs, port group and endpoint. :raises OSError: EBUSY: a front end is attached."""
        _remove_fabric_object(self.group.parent)


def file_backstore(path: Path, size_bytes: int, *, number: int = 0, serial: str | None = None) -> Backstore:
    """Make a backstore on a file, which is written through.

    :param number: of its HBA; one HBA has one backstore, as rtslib has it.
    """
    control = f"fd_dev_name={path},fd_dev_size={size_bytes}"
    return Backstore(f"fileio_{number}", "d0").make(control, serial=serial)


def ram_backstore(pages: int, *, number: int = 0, serial: str | None = None) -> Backstore:
    """Make a backstore in the kernel's memory, of pages of 4 KiB."""
    return Backstore(f"rd_mcp_{number}", "d0").make(f"rd_pages={pages}", serial=serial)


def clear(root: Path = ROOT) -> None:
    """Remove all endpoints of all fabrics and all backstores.

    :raises OSError: EBUSY: a front end is attached to one of them.
    """
    if not root.exists():
        return
    for fabric in _folders(root, _NO_FABRICS):
        for target in _folders(fabric, frozenset({"discovery_auth"})):
            _remove_fabric_object(target)
    for hba in _folders(root / "core", _NO_HBAS):
        for device in _folders(hba):
            _remove_backstore(device)
        hba.rmdir()


def _folders(folder: Path, without: frozenset[str] = frozenset()) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in without)


def _remove_fabric_object(target: Path) -> None:
    for group in target.glob("tpgt_*"):
        for acl in _folders(group / "acls"):
            _remove_acl(acl)
        for lun in _folders(group / "lun"):
            _remove_lun(lun)
        group.rmdir()
    target.rmdir()


def _remove_acl(acl: Path) -> None:
    for mapped in acl.glob("lun_*"):
        _remove_lun(mapped)
    acl.rmdir()


def _remove_lun(lun: Path) -> None:
    for link in lun.iterdir():
        if link.is_symlink():
            link.unlink()
    lun.rmdir()


def _remove_backstore(device: Path) -> None:
    for group in _folders(device / "alua", _NO_GROUPS):
        group.rmdir()
    device.rmdir()
