"""Where a daemon of each engine works, and what is on the host when nobody asks the daemon."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringway.engine.base import Driver
from ringway.engine.lio import LioDriver, Settings
from ringway.engine.user import UserDriver
from ringway.engine.user.client import SpawnerClient
from ringway.engine.user.places import Places
from ringway.model import EngineKind
from ringway.testing.daemon import Daemon
from ringway.testing.fake_kernel import FakeKernel
from ringway.testing.processes import kill
from ringway.testing.real_kernel import RealKernel
from ringway.testing.waiting import wait_until

MIB = 1 << 20


@dataclass
class Plant:
    """One engine, and a folder for daemons.

    :param driver: makes a driver of its own, to look at the host past the daemon.
    :param left: what is on the host of endpoints, named; nothing when all are deleted.
    :param break_off: lets an endpoint end by itself.
    """

    engine: EngineKind
    folder: Path
    config: str
    driver: Callable[[], Driver]
    left: Callable[[], list[str]]
    break_off: Callable[[str], None]
    points: int = 1  #: how many times as many fault points as the other engine it passes

    def daemon(self, fault: str = "") -> Daemon:
        """A daemon that is not started yet."""
        found = Daemon(self.folder, fault=fault)
        found.configure(self.config)
        return found

    def spec(self, name: str, luns: int = 1, **more: Any) -> dict[str, Any]:
        """An endpoint with disks on RAM, as JSON."""
        ram = {"kind": "ram", "size_bytes": MIB}
        disks = [{"target": 0, "lun": lun, "backstore": ram} for lun in range(luns)]
        return {"name": name, "engine": self.engine, "luns": disks, **more}

    def actual(self) -> dict[str, Any]:
        """What the engine has, by name, as seen past the daemon."""
        driver = self.driver()
        try:
            return {info.name: info for info in driver.list()}
        finally:
            driver.close()


def lio_plant(folder: Path, kernel: FakeKernel | RealKernel) -> Plant:
    """The kernel engine on a kernel, a fake one or the real one."""
    settings = Settings(kernel.configfs, kernel.sysfs, folder / "run", kernel.kmsg, ("false",))
    config = (
        f'[lio]\nenabled = true\nconfigfs = "{kernel.configfs}"\nsysfs = "{kernel.sysfs}"\n'
        f'kmsg = "{kernel.kmsg}"\n[user]\nenabled = false\n'
    )

    def left() -> list[str]:
        core = [path.name for path in kernel.configfs.glob("core/*_*/*") if path.is_dir()]
        vhost = [path.name for path in kernel.configfs.glob("vhost/naa.*")]
        return sorted([*core, *vhost, *(path.name for path in (folder / "run" / "lio").glob("*"))])

    def break_off(name: str) -> None:
        driver = LioDriver(settings)
        notes = folder / "run" / "lio"
        kept = folder / "kept"
        shutil.copytree(notes, kept, dirs_exist_ok=True)
        driver.delete(name)
        shutil.copytree(kept, notes, dirs_exist_ok=True)  # who did it noted nothing
        driver.close()

    return Plant(EngineKind.LIO, folder, config, lambda: LioDriver(settings), left, break_off, points=5)


def user_plant(folder: Path) -> Plant:
    """The user engine; call :func:`end_user_plant` in the end."""
    run = folder / "run"

    def left() -> list[str]:
        return sorted(os.listdir(run / "endpoint")) if (run / "endpoint").exists() else []

    def break_off(name: str) -> None:
        driver = UserDriver(run)
        pid = driver.show(name).pid
        driver.close()
        assert pid is not None
        kill(pid)

    return Plant(EngineKind.USER, folder, "", lambda: UserDriver(run), left, break_off)


def end_user_plant(plant: Plant) -> None:
    """End its targets and its spawner."""
    places = Places(plant.folder / "run")
    driver = UserDriver(places.run)
    for name in places.names():
        driver.delete(name, force=True)
    driver.close()
    if (pid := SpawnerClient(str(places.spawner)).pid()) is not None:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: SpawnerClient(str(places.spawner)).pid() is None, "the spawner's end")
