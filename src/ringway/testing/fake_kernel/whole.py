"""The whole tree: ``kernel/config/target``, ``module``, and ``fake``, by which tests play guest."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from ringway.testing.fake_kernel.core import Core, version
from ringway.testing.fake_kernel.fabric import Lun, Tpg, Vhost
from ringway.testing.fake_kernel.reservations import Registration
from ringway.testing.fake_kernel.state import State
from ringway.testing.fake_kernel.tree import Attribute, Folder, Group, Node, fixed, refuse

#: The one that can be passed through.
SCSI_DEVICE: Final = "2:0:1:0"
_PARAMETERS: Final = {"vhost_scsi": {"max_io_vqs": "128\n"}}


class TargetRoot(Folder):
    """``kernel/config/target``."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state
        dbroot = Attribute(lambda: f"{state.dbroot}\n", self._refuse_dbroot)
        self._shown = {"core": Core(state), "version": fixed(version()), "dbroot": dbroot}

    def defaults(self) -> dict[str, int]:
        """As the kernel has them."""
        return {name: node.mode for name, node in self._shown.items()}

    def mkdir(self, name: str) -> Folder:
        """Begin to use a fabric. :raises OSError: EEXIST, or EINVAL: its module is not loaded."""
        if name in self.made:
            raise refuse(errno.EEXIST)
        if name != "vhost" or "vhost_scsi" not in self._state.modules:
            raise refuse(errno.EINVAL)
        self.made[name] = vhost = Vhost(self._state)
        return vhost

    def vhost(self) -> Vhost:
        """:raises OSError: ENODEV: nobody uses it."""
        node = self.made.get("vhost")
        if not isinstance(node, Vhost):
            raise refuse(errno.ENODEV)
        return node

    def lun(self, wwpn: str, target: str, lun: str) -> tuple[Tpg, Lun]:
        """:raises OSError: ENODEV: there is none."""
        tpg = self.vhost().port(wwpn).made.get(f"tpgt_{target}")
        found = tpg.luns.made.get(f"lun_{lun}") if isinstance(tpg, Tpg) else None
        if not isinstance(found, Lun) or not isinstance(tpg, Tpg):
            raise refuse(errno.ENODEV)
        return tpg, found

    def _refuse_dbroot(self, _: str) -> None:
        self._state.complain("db_root: cannot be changed because it's in use")
        raise refuse(errno.EINVAL)


class Modules(Folder):
    """``module``: what is loaded now."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state

    def default(self, name: str) -> Node | None:
        """A module's folder, if it is loaded."""
        if name not in self._state.modules:
            return None
        parameters = {key: fixed(value) for key, value in _PARAMETERS.get(name, {}).items()}
        return Group(initstate=fixed("live\n"), refcnt=fixed("1\n"), parameters=Group(**parameters))

    def defaults(self) -> dict[str, int]:
        """All that are loaded."""
        return dict.fromkeys(sorted(self._state.modules), Group.mode)


def whole_tree(modules: set[str], dbroot: Path) -> Folder:
    """:returns: what is mounted."""
    state = State(modules, dbroot)
    target = TargetRoot(state)
    return Group(
        kernel=Group(config=Group(target=target)),
        module=Modules(state),
        bus=Group(scsi=Group(devices=Group(**{SCSI_DEVICE: Group()}))),
        fake=Group(
            attach=Attribute(store=lambda text: target.vhost().port(text.strip()).attach()),
            detach=Attribute(store=lambda text: target.vhost().port(text.strip()).detach()),
            io=Attribute(store=lambda text: _use(target, *text.split())),
            register=Attribute(store=lambda text: _register(target, *text.split())),
            load=Attribute(store=lambda text: state.modules.add(text.strip())),
            kmsg=Attribute(state.log),
        ),
    )


def _use(root: TargetRoot, wwpn: str, target: str, lun: str, *counts: str) -> None:
    """``WWPN TARGET LUN COMMANDS READ WRITTEN``: a guest does I/O."""
    commands, read_bytes, written_bytes = map(int, counts)
    root.lun(wwpn, target, lun)[1].use(commands, read_bytes, written_bytes)


def _register(root: TargetRoot, wwpn: str, target: str, lun: str, key: str, kind: str) -> None:
    """``WWPN TARGET LUN KEY TYPE``: a guest registers with APTPL, and reserves unless TYPE is 0."""
    tpg, found = root.lun(wwpn, target, lun)
    if found.device is None:
        raise refuse(errno.ENODEV)
    registration = Registration(tpg.port(int(lun)), int(key, 0), int(kind))
    found.device.reservations.register(registration, Path(found.device.aptpl_path))
