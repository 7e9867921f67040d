"""Backstores of the fake kernel: ``core/PLUGIN_N/NAME``, with the attributes of Linux 6.12."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from typing import Final

from ringway.testing.fake_kernel.reservations import Port, Reservations, parse
from ringway.testing.fake_kernel.state import RELEASE, State
from ringway.testing.fake_kernel.tree import Attribute, Folder, Group, Node, fixed, refuse

_DIRECTORY: Final = stat.S_IFDIR | 0o755
_HBA: Final = re.compile(r"(iblock|fileio|pscsi|user|rd_mcp)_(\d+)")
_READ_ONLY: Final = ("hw_block_size", "hw_max_sectors", "hw_pi_prot_type", "hw_queue_depth")
_COMMON: Final = {
    "alua_support": 1,
    "emulate_pr": 1,
    "hw_block_size": 512,
    "hw_max_sectors": 16384,
    "hw_pi_prot_type": 0,
    "hw_queue_depth": 128,
    "pgr_support": 1,
    "submit_type": 0,
}
_SBC: Final = _COMMON | {
    "block_size": 512,
    "emulate_3pc": 1,
    "emulate_caw": 1,
    "emulate_dpo": 1,
    "emulate_fua_read": 1,
    "emulate_fua_write": 1,
    "emulate_model_alias": 0,
    "emulate_rest_reord": 0,
    "emulate_rsoc": 1,
    "emulate_tas": 1,
    "emulate_tpu": 0,
    "emulate_tpws": 0,
    "emulate_ua_intlck_ctrl": 0,
    "emulate_write_cache": 0,
    "enforce_pr_isids": 1,
    "force_pr_aptpl": 0,
    "is_nonrot": 1,
    "max_unmap_block_desc_count": 0,
    "max_unmap_lba_count": 0,
    "max_write_same_len": 0,
    "optimal_sectors": 16384,
    "pi_prot_format": 0,
    "pi_prot_type": 0,
    "pi_prot_verify": 0,
    "queue_depth": 128,
    "unmap_granularity": 0,
    "unmap_granularity_alignment": 0,
    "unmap_zeroes_data": 0,
}
_FILE: Final = {
    "is_nonrot": 0,
    "max_unmap_block_desc_count": 1,
    "max_unmap_lba_count": 0x2000,
    "unmap_granularity": 1,
}
_ATTRIBUTES: Final = {
    "iblock": _SBC,
    "fileio": _SBC
    | {
        "is_nonrot": 0,
        "max_unmap_lba_count": 0x2000,
        "max_unmap_block_desc_count": 1,
        "unmap_granularity": 1,
    },
    "rd_mcp": _SBC,
    "pscsi": _COMMON,
    "user": _COMMON | {"cmd_time_out": 30, "emulate_write_cache": 0, "max_data_area_mb": 1024},
}
_PARAMETERS: Final = {
    "iblock": ("udev_path", "readonly", "force"),
    "fileio": ("fd_dev_name", "fd_dev_size", "fd_buffered_io", "fd_async_io"),
    "rd_mcp": ("rd_pages", "rd_nullio", "rd_dummy"),
    "pscsi": ("scsi_host_id", "scsi_channel_id", "scsi_target_id", "scsi_lun_id"),
    "user": ("dev_config", "dev_size", "hw_block_size", "hw_max_sectors", "max_data_area_mb"),
}
_MODELS: Final = {"iblock": "IBLOCK", "fileio": "FILEIO", "rd_mcp": "RAMDISK-MCP"}
_FIXED_WHEN_EXPORTED: Final = {
    "block_size": "block_size",
    "emulate_tas": "TAS",
    "emulate_ua_intlck_ctrl": "UA_INTRLCK_CTRL",
    "pi_prot_type": "PROT type",
    "queue_depth": "TCQ",
}
_BLOCK_SIZES: Final = (512, 1024, 2048, 4096)


class Core(Folder):
    """``target/core``."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state

    def default(self, name: str) -> Node | None:
        """The ALUA groups that there are from the beginning."""
        return Group(lu_gps=Group(default_lu_gp=Group(lu_gp_id=fixed("0\n")))) if name == "alua" else None

    def defaults(self) -> Mapping[str, int]:
        """One."""
        return {"alua": _DIRECTORY}

    def mkdir(self, name: str) -> Folder:
        """Make an adapter. :raises OSError: EEXIST, or EINVAL: no such plug-in."""
        if name in self.made:
            raise refuse(errno.EEXIST)
        if not (match := _HBA.fullmatch(name)):
            if "_" not in name:
                self._state.complain('Unable to locate "_" for $SUBSYSTEM_PLUGIN_$HOST_ID')
            raise refuse(errno.EINVAL)
        self.made[name] = hba = Hba(self._state, match[1], name)
        return hba


class Hba(Folder):
    """``target/core/PLUGIN_N``."""

    def __init__(self, state: State, plugin: str, name: str) -> None:
        super().__init__()
        self._state = state
        self.plugin = plugin
        self.name = name
        self.index = next(state.indexes)
        info = fixed(f"HBA Index: {self.index} plugin: {plugin} version: v5.0\n")
        self._shown = {"hba_info": info, "hba_mode": fixed("0\n")}

    def defaults(self) -> Mapping[str, int]:
        """Two attributes."""
        return {name: node.mode for name, node in self._shown.items()}

    def mkdir(self, name: str) -> Folder:
        """Make a device. :raises OSError: EEXIST."""
        if name in self.made:
            raise refuse(errno.EEXIST)
        self.made[name] = device = Device(self._state, self, name)
        return device


class Device(Folder):
    """``target/core/PLUGIN_N/NAME``.

    :ivar exports: LUNs that it is linked to.
    """

    def __init__(self, state: State, hba: Hba, name: str) -> None:
        super().__init__()
        self.hba = hba
        self.name = name
        self.plugin = hba.plugin
        self.enabled = False
        self.exports: list[str] = []
        self.commands = self.read_bytes = self.written_bytes = 0
        self.reservations = Reservations()
        self.serial = ""
        self.index = next(state.indexes)
        self._state = state
        self._created = time.monotonic()
        self._parameters: dict[str, str] = {}
        self._values = dict(_ATTRIBUTES[self.plugin])
        self._texts = {"alias": "", "udev_path": ""}
        self._makers: dict[str, Callable[[], Node]] = {
            "action": Group,
            "alias": lambda: self._text("alias"),
            "alua": self._alua,
            "alua_lu_gp": lambda: fixed(""),
            "attrib": lambda: Group(**{key: self._attribute(key) for key in self._values}),
            "control": lambda: Attribute(store=self._control),
            "enable": lambda: Attribute(lambda: f"{int(self.enabled)}\n", self._enable),
            "info": lambda: Attribute(self._info),
            "lba_map": lambda: fixed(""),
            "pr": self._pr,
            "statistics": self._statistics,
            "udev_path": lambda: self._text("udev_path"),
            "wwn": self._wwn,
        }

    @property
    def path(self) -> str:
        """Below ``target``."""
        return f"core/{self.hba.name}/{self.name}"

    @property
    def aptpl_path(self) -> str:
        """The kernel's file of its reservations."""
        return str(self._state.dbroot / "pr" / f"aptpl_{self.serial}")

    def defaults(self) -> Mapping[str, int]:
        """As the kernel has them."""
        folders = dict.fromkeys(("action", "alua", "attrib", "pr", "statistics", "wwn"), _DIRECTORY)
        files = dict.fromkeys(("alias", "alua_lu_gp", "enable", "lba_map", "udev_path"), stat.S_IFREG | 0o644)
        return {**folders, **files, "control": stat.S_IFREG | 0o200, "info": stat.S_IFREG | 0o444}

    def default(self, name: str) -> Node | None:
        """Made when it is looked at: there are more than a hundred in each device."""
        make = self._makers.get(name)
        return make() if make else None

    def _alua(self) -> Node:
        members = Attribute(lambda: "".join(f"{export}\n\0" for export in self.exports))
        return Group(default_tg_pt_gp=Group(tg_pt_gp_id=fixed("0\n"), members=members))

    def _pr(self) -> Node:
        metadata = Attribute(lambda: "Ready to process PR APTPL metadata..\n", self._restore)
        return self.reservations.group(metadata)

    def _text(self, name: str) -> Node:
        return Attribute(lambda: self._texts[name], lambda text: self._note(name, text))

    def connect(self, port: Port, place: str) -> None:
        """A LUN links here. :raises OSError: ENODEV: it is not enabled."""
        if not self.enabled:
            self._state.complain("se_device not configured yet, cannot port link")
            raise refuse(errno.ENODEV)
        self.exports.append(place)
        self.reservations.connect(port)

    def _note(self, name: str, text: str) -> None:
        self._texts[name] = text.rstrip("\n") + "\n"

    def _control(self, text: str) -> None:
        """Known parameters are kept, others are passed over in silence; a comma ends a value."""
        for part in re.split("[,\n]", text):
            key, _, value = part.partition("=")
            if key in _PARAMETERS[self.plugin]:
                self._parameters[key] = value

    def _enable(self, text: str) -> None:
        if text.strip() != "1":
            self._state.complain('For dev_enable ops, only valid value is "1"')
            raise refuse(errno.EINVAL)
        if self.enabled:
            self._state.complain("se_dev->se_dev_ptr already set for storage object")
            raise refuse(errno.EEXIST)
        opens: dict[str, Callable[[], object]] = {
            "iblock": self._open_device,
            "fileio": self._open_file,
            "rd_mcp": lambda: self._need("rd_pages", "Missing rd_pages= parameter"),
            "pscsi": self._open_scsi,
            "user": lambda: self._need("dev_config", "Missing dev_config="),
        }
        opens[self.plugin]()
        self.enabled = True

    def _need(self, parameter: str, complaint: str) -> str:
        if parameter not in self._parameters:
            self._state.complain(complaint)
            raise refuse(errno.EINVAL)
        return self._parameters[parameter]

    def _open_device(self) -> None:
        path = self._need("udev_path", "Missing udev_path= parameters for IBLOCK")
        if not stat.S_ISBLK(os.stat(path).st_mode):
            raise refuse(errno.ENOTBLK)

    def _open_file(self) -> None:
        """The kernel makes a file that is missing, and never looks how large it is."""
        path = self._need("fd_dev_name", "Missing fd_dev_name=")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._need(
            "fd_dev_size", "FILEIO: Missing fd_dev_size= parameter, and no backing struct block_device"
        )
        if self._parameters.get("fd_buffered_io") == "1":
            self._values["emulate_write_cache"] = 1

    def _open_scsi(self) -> None:
        if not self._texts["udev_path"]:
            self._state.complain("pSCSI: udev_path attribute has not been set before ENABLE=1")
            raise refuse(errno.EINVAL)

    def _info(self) -> str:
        status = "ACTIVATED" if self.exports else "DEACTIVATED"
        values, given = self._values, self._parameters
        head = (
            f"Status: {status}  Max Queue Depth: 0  SectorSize: {values.get('block_size', 512)}  "
            f"HwMaxSectors: {values['hw_max_sectors']}\n"
        )
        match self.plugin:
            case "iblock":
                device, mark = given.get("udev_path", ""), " readonly" if given.get("readonly") == "1" else ""
                tail = f"iBlock device: {os.path.basename(device)}  UDEV PATH: {device}{mark}\n        "
            case "fileio":
                mode = "Buffered-WCE" if given.get("fd_buffered_io") == "1" else "O_DSYNC"
                asynchronous = given.get("fd_async_io", 0)
                tail = (
                    f"TCM FILEIO ID: 0        File: {given.get('fd_dev_name', '')}  "
                    f"Size: {given.get('fd_dev_size', 0)}  Mode: {mode} Async: {asynchronous}\n"
                )
            case "rd_mcp":
                pages, nullio = given.get("rd_pages", 0), given.get("rd_nullio", 0)
                tail = (
                    "TCM RamDisk ID: 0  RamDisk Makeup: rd_mcp\n"
                    f"        PAGES/PAGE_SIZE: {pages}*4096  SG_table_count: 1  nullio: {nullio} dummy: 0\n"
                )
            case "user":
                tail = f"Config: {given.get('dev_config', 'NULL')} Size: {given.get('dev_size', 0)}\n"
            case _:
                host, channel, target, lun = (given.get(key, 0) for key in _PARAMETERS["pscsi"])
                tail = (
                    f"SCSI Device Bus Location: Channel ID: {channel} Target ID: {target} LUN: {lun} "
                    f"Host ID: {host}\n"
                )
        return f"{head}        {tail}"

    def _attribute(self, name: str) -> Attribute:
        store = None if name in _READ_ONLY else lambda text: self._set(name, text)
        return Attribute(lambda: f"{self._values[name]}\n", store)

    def _set(self, name: str, text: str) -> None:
        try:
            value = int(text, 0)
        except ValueError:
            raise refuse(errno.EINVAL) from None
        if self.exports and name in _FIXED_WHEN_EXPORTED:
            what = _FIXED_WHEN_EXPORTED[name]
            self._state.complain(
                f"Unable to change SE Device {what} while export_count is {len(self.exports)}"
            )
            raise refuse(errno.EINVAL)
        if name == "block_size" and value not in _BLOCK_SIZES:
            self._state.complain(
                f"Illegal value for block_device: {value} for SE device, must be 512, 1024, 2048 or 4096"
            )
            raise refuse(errno.EINVAL)
        if name == "pi_prot_type" and value == 2:
            self._state.complain("DIF TYPE2 protection currently not supported")
            raise refuse(errno.ENOSYS)
        if name == "emulate_tpu" and value == 1 and not self._values["max_unmap_block_desc_count"]:
            self._state.complain("Generic Block Discard not supported")
            raise refuse(errno.ENOSYS)
        if name.startswith(("emulate_", "pi_prot_format")) and value not in (0, 1):
            raise refuse(errno.EINVAL)
        if self.plugin == "fileio" and name.startswith("pi_prot_") and value:
            self._protect(name)
        self._values[name] = value

    def _protect(self, name: str) -> None:
        """The kernel keeps protection information beside the file, and fills it when it is told to."""
        with open(f"{self._parameters['fd_dev_name']}.protection", "ab") as file:
            if name == "pi_prot_format":
                file.truncate(0)
                file.write(b"\xff" * (int(self._parameters["fd_dev_size"]) // 512 * 8))

    def _wwn(self) -> Group:
        return Group(
            vpd_unit_serial=Attribute(lambda: f"T10 VPD Unit Serial Number: {self.serial}\n", self._name_it),
            vendor_id=fixed("LIO-ORG\n"),
            product_id=fixed(f"{_MODELS.get(self.plugin, '')}\n"),
            revision=fixed("4.0\n"),
            company_id=fixed("0x001405\n"),
        )

    def _name_it(self, text: str) -> None:
        if self.exports:
            self._state.complain(
                f"Unable to set VPD Unit Serial while active {len(self.exports)} $FABRIC_MOD exports exist"
            )
            raise refuse(errno.EINVAL)
        if len(text) > 254:
            raise refuse(errno.EOVERFLOW)
        self.serial = text.strip()

    def _restore(self, text: str) -> None:
        if self.exports:
            raise refuse(errno.EINVAL)
        self.reservations.waiting.append(parse(text))

    def _statistics(self) -> Group:
        created = int(self._created * 100)
        return Group(
            scsi_dev=Group(indx=fixed(f"{self.index}\n"), ports=Attribute(lambda: f"{len(self.exports)}\n")),
            scsi_lu=Group(
                creation_time=fixed(f"{created}\n"),
                lu_name=Attribute(lambda: f"{self.serial or 'None'}\n"),
                num_cmds=Attribute(lambda: f"{self.commands}\n"),
                read_mbytes=Attribute(lambda: f"{self.read_bytes >> 20}\n"),
                write_mbytes=Attribute(lambda: f"{self.written_bytes >> 20}\n"),
                resets=fixed("0\n"),
                status=Attribute(lambda: "available\n" if self.exports else "notavailable\n"),
            ),
            scsi_tgt_dev=Group(
                aborts_complete=fixed("0\n"), aborts_no_task=fixed("0\n"), resets=fixed("0\n")
            ),
        )


def version() -> str:
    """``target/version``."""
    return f"Target Engine Core ConfigFS Infrastructure v5.0 on Linux/x86_64 on {RELEASE}\n"
