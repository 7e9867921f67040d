"""The fabric ``vhost`` of the fake kernel: target ports, portal groups, nexus and LUNs."""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Final

from ringway.testing.fake_kernel.core import Device
from ringway.testing.fake_kernel.reservations import Port
from ringway.testing.fake_kernel.state import State
from ringway.testing.fake_kernel.tree import Attribute, Folder, Group, Link, Node, fixed, refuse

_DIRECTORY: Final = stat.S_IFDIR | 0o755
_WWN: Final = re.compile(r"(naa|fc|iqn)\..+")
_MAX_TPGT: Final = 255


class Vhost(Folder):
    """``target/vhost``."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state
        self._shown = {"discovery_auth": Group(), "version": fixed("TCM_VHOST fabric module v0.1\n")}

    def defaults(self) -> Mapping[str, int]:
        """As the kernel has them."""
        return {name: node.mode for name, node in self._shown.items()}

    def mkdir(self, name: str) -> Folder:
        """Make a target port. :raises OSError: EEXIST, or EINVAL: a name of no known kind."""
        if name in self.made:
            raise refuse(errno.EEXIST)
        if not _WWN.fullmatch(name):
            self._state.complain(f"Unable to locate prefix for emulated Target Port: {name}")
            raise refuse(errno.EINVAL)
        self.made[name] = wwn = Wwn(self._state, name)
        return wwn

    def port(self, name: str) -> Wwn:
        """:raises OSError: ENODEV: there is none."""
        wwn = self.made.get(name)
        if not isinstance(wwn, Wwn):
            raise refuse(errno.ENODEV)
        return wwn


class Wwn(Folder):
    """``target/vhost/NAME``."""

    def __init__(self, state: State, name: str) -> None:
        super().__init__()
        self._state = state
        self.name = name

    def default(self, name: str) -> Node | None:
        """Made when it is looked at."""
        if name == "param":
            return Group(cmd_completion_affinity=fixed("-1\n"), default_submit_type=fixed("2\n"))
        return Group() if name == "fabric_statistics" else None

    def defaults(self) -> Mapping[str, int]:
        """Two groups."""
        return {"fabric_statistics": _DIRECTORY, "param": _DIRECTORY}

    def mkdir(self, name: str) -> Folder:
        """Make a portal group. :raises OSError: EEXIST, or EINVAL: no number that the fabric takes."""
        if name in self.made:
            raise refuse(errno.EEXIST)
        match = re.fullmatch(r"tpgt_(\d{1,5})", name)
        if not match or int(match[1]) > _MAX_TPGT:
            raise refuse(errno.EINVAL)
        self.made[name] = tpg = Tpg(self._state, self.name, int(match[1]))
        return tpg

    def groups(self) -> Iterator[Tpg]:
        """Its portal groups."""
        yield from (node for node in self.made.values() if isinstance(node, Tpg))

    def attach(self) -> None:
        """A guest comes to all of its portal groups that have a nexus.

        :raises OSError: ENODEV: none has one, or another guest is there.
        """
        able = [tpg for tpg in self.groups() if tpg.nexus and not tpg.dependents]
        if not able:
            raise refuse(errno.ENODEV)
        for tpg in able:
            tpg.dependents = 1

    def detach(self) -> None:
        """The guest goes."""
        for tpg in self.groups():
            tpg.dependents = 0


class Tpg(Folder):
    """``target/vhost/NAME/tpgt_N``; ``dependents`` says whether a guest is attached."""

    def __init__(self, state: State, wwpn: str, tag: int) -> None:
        super().__init__()
        self.state = state
        self.wwpn = wwpn
        self.tag = tag
        self.nexus = ""
        self.luns = Luns(self)
        self._protection = 0

    def default(self, name: str) -> Node | None:
        """Made when it is looked at."""
        match name:
            case "lun":
                return self.luns
            case "nexus":
                return Attribute(self._show_nexus, self._set_nexus)
            case "attrib":
                show = Attribute(lambda: f"{self._protection}\n", self._protect)
                return Group(fabric_prot_type=show)
            case "rtpi":
                return fixed("0x0\n")
            case "acls" | "auth" | "np" | "param":
                return Group()
        return None

    def defaults(self) -> Mapping[str, int]:
        """As the kernel has them."""
        files = dict.fromkeys(("nexus", "rtpi"), stat.S_IFREG | 0o644)
        return {**dict.fromkeys(("acls", "attrib", "auth", "lun", "np", "param"), _DIRECTORY), **files}

    def port(self, lun: int) -> Port:
        """The nexus at one of its LUNs."""
        return Port(self.nexus, self.wwpn, self.tag, lun)

    def _show_nexus(self) -> str:
        if not self.nexus:
            raise refuse(errno.ENODEV)
        return f"{self.nexus}\n"

    def _set_nexus(self, text: str) -> None:
        name = text.strip()
        if name == "NULL":
            self._drop_nexus()
        elif self.nexus:
            raise refuse(errno.EEXIST)
        elif name.partition(".")[0] != self.wwpn.partition(".")[0]:
            self.state.complain(f"Passed Initiator Port {name} does not match target port protoid")
            raise refuse(errno.EINVAL)
        else:
            self.nexus = name
            for lun in self.luns.all():
                lun.reconnect()

    def _drop_nexus(self) -> None:
        if not self.nexus:
            raise refuse(errno.ENODEV)
        if links := sum(lun.device is not None for lun in self.luns.all()):
            self.state.complain(f"Unable to remove TCM_vhost I_T Nexus with active TPG port count: {links}")
            raise refuse(errno.EBUSY)
        if self.dependents:
            self.state.complain("Unable to remove TCM_vhost I_T Nexus with active TPG vhost count: 1")
            raise refuse(errno.EBUSY)
        self.nexus = ""

    def _protect(self, text: str) -> None:
        if (value := int(text)) not in (0, 1, 3):
            self.state.complain(f"Invalid vhost_scsi fabric_prot_type: {value}")
            raise refuse(errno.EINVAL)
        self._protection = value


class Luns(Folder):
    """``…/lun``."""

    def __init__(self, tpg: Tpg) -> None:
        super().__init__()
        self._tpg = tpg

    def mkdir(self, name: str) -> Folder:
        """Make a LUN, of any number. :raises OSError: EEXIST, or EINVAL: no number."""
        if name in self.made:
            raise refuse(errno.EEXIST)
        if not (match := re.fullmatch(r"lun_(\d+)", name)):
            self._tpg.state.complain('Unable to locate \'_" in "lun_$LUN_NUMBER"')
            raise refuse(errno.EINVAL)
        self.made[name] = lun = Lun(self._tpg, int(match[1]))
        return lun

    def all(self) -> Iterator[Lun]:
        """Each of them."""
        yield from (node for node in self.made.values() if isinstance(node, Lun))


class Lun(Folder):
    """``…/lun/lun_N``, and the device that is linked to it."""

    def __init__(self, tpg: Tpg, number: int) -> None:
        super().__init__()
        self._tpg = tpg
        self.number = 0
        self.lun = number
        self.device: Device | None = None
        self.commands = self.read_bytes = self.written_bytes = 0

    def default(self, name: str) -> Node | None:
        """Made when it is looked at."""
        if name == "statistics":
            port = Group(
                in_cmds=self._counter("commands", 0),
                read_mbytes=self._counter("read_bytes", 20),
                write_mbytes=self._counter("written_bytes", 20),
                hs_in_cmds=self._counter("", 0),
            )
            return Group(scsi_port=Group(), scsi_tgt_port=port, scsi_transport=Group())
        return fixed("0\n") if name in self.defaults() else None

    def defaults(self) -> Mapping[str, int]:
        """As the kernel has them."""
        names = ("alua_tg_pt_gp", "alua_tg_pt_offline", "alua_tg_pt_status", "alua_tg_pt_write_md")
        return {**dict.fromkeys(names, stat.S_IFREG | 0o644), "statistics": _DIRECTORY}

    def symlink(self, name: str, target: Folder) -> None:
        """Map a device. :raises OSError: EEXIST, ENODEV: it is not enabled, EINVAL: it is no device."""
        if not isinstance(target, Device):
            raise refuse(errno.EINVAL)
        if self.device is not None:
            self._tpg.state.complain("Port Symlink already exists")
            raise refuse(errno.EEXIST)
        target.connect(self._tpg.port(self.lun), self._place)
        target.linked += 1
        self.device = target
        self.made[name] = Link(target, f"../../../../../../target/{target.path}")

    def unlinked(self, link: Link) -> None:
        """Let go of the device, also while a guest uses it."""
        if self.device is not None:
            self.device.exports.remove(self._place)
        self.device = None

    def reconnect(self) -> None:
        """A nexus has come."""
        if self.device is not None:
            self.device.reservations.connect(self._tpg.port(self.lun))

    def use(self, commands: int, read_bytes: int, written_bytes: int) -> None:
        """A guest did something."""
        for what in (self, self.device):
            assert what is not None
            what.commands += commands
            what.read_bytes += read_bytes
            what.written_bytes += written_bytes

    @property
    def _place(self) -> str:
        return f"vhost/{self._tpg.wwpn}/tpgt_{self._tpg.tag}/lun_{self.lun}"

    def _counter(self, name: str, shift: int) -> Attribute:
        def show() -> str:
            if self.device is None:
                raise refuse(errno.ENODEV)
            return f"{getattr(self, name, 0) >> shift}\n"

        return Attribute(show)
