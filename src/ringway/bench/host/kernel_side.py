"""Our side, in the guest: the kernel engine by itself, then the daemon, asked by eight clients at once.

python -m ringway.bench.host.kernel_side ENDPOINTS
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ringway.bench.host.figures import OURS, Figure, measured, say
from ringway.bench.host.names import DISK_BYTES, name, wwpn
from ringway.bench.host.ours import Api, each, processor_s, proportional_set
from ringway.engine.lio import LioDriver, Settings
from ringway.host.config import DaemonConfig
from ringway.host.host import Host
from ringway.host.store import Store, Wanted
from ringway.model import BackstoreSpec, EndpointSpec, EngineKind, LunSpec, SpecKind
from ringway.testing import configfs
from ringway.testing.daemon import Daemon

_IDLE_S: Final = 40.0
_REPEATS: Final = 5
_CONFIG: Final = "[lio]\nenabled = true\n[user]\nenabled = false\n"


def main(endpoints: int) -> None:
    """Do each job once, with so many endpoints; what is quick some times, for the median."""
    with tempfile.TemporaryDirectory(prefix="rw-") as folder:
        specs = _engine(Path(folder), endpoints)
        _store(specs)
        daemon = Daemon(Path(folder))
        daemon.configure(_CONFIG)
        daemon.start()
        with daemon:
            _growth(daemon, endpoints)
            _with_daemon(daemon, endpoints)


def _engine(folder: Path, endpoints: int) -> list[EndpointSpec]:
    """Use the engine as a library, which rtslib is as well."""
    driver = LioDriver(Settings(runtime=folder / "alone"))
    specs = [driver.resolve(_spec(number)) for number in range(endpoints)]
    with measured(OURS, "create, engine", endpoints):
        each(lambda number: driver.create(specs[number]), range(endpoints))
    with measured(OURS, "delete, engine", endpoints):
        each(lambda number: driver.delete(name(number)), range(endpoints))
    return specs


def _store(specs: list[EndpointSpec]) -> None:
    """Write one change of one endpoint, where as many are kept as here."""
    with tempfile.TemporaryDirectory(prefix="rw-") as folder, Store(Path(folder) / "state.db") as store:
        for spec in specs:
            store.insert(Wanted(spec=spec, applied=spec))
        row = Wanted(spec=specs[0], applied=specs[0], generation=2)
        say(Figure(OURS, "save", len(specs), _median(lambda: store.update(row), 50)))


def _with_daemon(daemon: Daemon, endpoints: int) -> None:
    api = Api(daemon)
    with measured(OURS, "create", endpoints):
        each(lambda number: api.create(_spec(number)), range(endpoints))
    _list(daemon, endpoints)
    _look(daemon, endpoints)
    daemon.stop()
    with measured(OURS, "start beside running endpoints", endpoints):
        daemon.start()
    with measured(OURS, "delete", endpoints):
        each(lambda number: api.delete(name(number)), range(endpoints))
    assert api.list() == []


def _spec(number: int) -> EndpointSpec:
    disk = BackstoreSpec(SpecKind.RAM, size_bytes=DISK_BYTES)
    return EndpointSpec(
        name=name(number), engine=EngineKind.LIO, wwpn=wwpn(number), luns=(LunSpec(0, 0, disk),)
    )


def _list(daemon: Daemon, endpoints: int) -> None:
    """List them through the API, and by the command, a program that starts and ends."""
    api = Api(daemon)
    assert len(api.list()) == endpoints
    say(Figure(OURS, "list, API", endpoints, _median(api.list)))
    command = [sys.executable, "-m", "ringway", "endpoint", "list", "--socket", str(daemon.api)]

    def run() -> None:
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    say(Figure(OURS, "list, command", endpoints, _median(run)))


def _look(daemon: Daemon, endpoints: int) -> None:
    """Look at a daemon that nobody asks for anything."""
    mib = proportional_set(daemon.pid) / (1 << 20)
    say(Figure(OURS, "daemon: memory", endpoints, mib, unit="MiB"))
    before = processor_s(daemon.pid)
    time.sleep(_IDLE_S)
    used = processor_s(daemon.pid) - before
    say(Figure(OURS, "daemon: idle CPU", endpoints, 100 * used / _IDLE_S, unit="%"))


def _growth(daemon: Daemon, endpoints: int) -> None:
    """Restore a quarter of them, then all: what each takes tells whether time grows with the number only."""
    quarter = max(endpoints // 4, 1)
    small_s, whole_s = (_restored(daemon, number) for number in (quarter, endpoints))
    say(Figure(OURS, "restore", endpoints, whole_s))
    growth = (whole_s / endpoints) / (small_s / quarter)
    say(Figure(OURS, "restore, growth", endpoints, growth, unit="×"))


def _restored(daemon: Daemon, endpoints: int) -> float:
    """Make endpoints, forget what a reboot forgets, let a host restore them, and delete them.

    The host runs in this process, as rtslib does: neither side's time has imports in it.

    :returns: the seconds that restoring took.
    """
    api = Api(daemon)
    each(lambda number: api.create(_spec(number)), range(endpoints))
    daemon.stop()
    configfs.clear()
    shutil.rmtree(daemon.folder / "run" / "lio")
    took = _timed(lambda: asyncio.run(_start_host(daemon.folder)))
    daemon.start()
    each(lambda number: api.delete(name(number)), range(endpoints))
    return took


async def _start_host(folder: Path) -> None:
    driver = LioDriver(Settings(runtime=folder / "run"))
    with Store(folder / "state" / "state.db") as store:
        host = Host({EngineKind.LIO: driver}, store, DaemonConfig())
        await host.start()
        await host.close()


def _median(work: Callable[[], object], times: int = _REPEATS) -> float:
    return statistics.median(_timed(work) for _ in range(times))


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(int(sys.argv[1]))
