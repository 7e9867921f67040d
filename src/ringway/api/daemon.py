"""The daemon's life: one at a time, ready when each endpoint had its turn, gone without a guest noticing."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, NoReturn

from ringway.api.app import build
from ringway.api.doors import Door, open_doors
from ringway.api.notify import Manager
from ringway.api.server import Server
from ringway.errors import BusyError, RingwayError
from ringway.host.config import Config, Loaded, files_of, load
from ringway.host.engines import open_engines, open_guards
from ringway.host.events import Kind
from ringway.host.host import Host
from ringway.host.hypervisors import open_hypervisor
from ringway.host.places import Places
from ringway.host.store import Store
from ringway.host.switches import open_switches

_log: Final = logging.getLogger(__name__)
_READY_S: Final = 60.0  #: how long READY may wait for endpoints that do not come
_STATUS_S: Final = 10.0
#: What a reload changes; the rest is for the next start.
_RELOADABLE: Final = ("daemon.reconcile_s", "daemon.log_level")


@contextlib.contextmanager
def _alone(places: Places) -> Iterator[None]:
    """:raises BusyError: another daemon has this state."""
    fd = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(fd, 20, 0).decode(errors="replace").strip()
            raise BusyError(
                f"ringwayd runs already (pid {pid}), and has '{places.state}'",
                holder=f"pid {pid}",
                hint="use that one, or give this one a folder of its own with --directory",
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _set_log_level(config: Config) -> None:
    """Log what is worth it; of what others wrote, their errors, and not each client's bad manners."""
    ours = logging.getLogger("ringway")
    ours.setLevel(config.daemon.log_level.upper())
    for name in ("uvicorn", "asyncio"):
        theirs = logging.getLogger(name)
        theirs.handlers[:], theirs.propagate = ours.handlers, False
        theirs.setLevel(logging.ERROR)


def run(places: Places, loaded: Loaded) -> None:
    """Be the daemon until SIGTERM or SIGINT. :raises RingwayError: it could not start."""
    _set_log_level(loaded.config)
    manager = Manager()
    places.make()
    with _alone(places), Store(places.database) as store, contextlib.ExitStack() as stack:
        doors = open_doors(places, loaded.config.api)
        for door in doors:
            stack.callback(door.remove)
        if not asyncio.run(_serve(manager, places, loaded, store, doors)):
            _leave_hanging()


def _leave_hanging() -> NoReturn:
    """End without the threads that hang in an engine; the interpreter would wait for them."""
    _log.warning("something hangs, and is left half done: the next start puts it in order")
    logging.shutdown()
    os._exit(0)


async def _serve(manager: Manager, places: Places, loaded: Loaded, store: Store, doors: list[Door]) -> bool:
    """:returns: whether all has ended."""
    config = loaded.config
    host = Host(
        open_engines(config, places),
        store,
        config.daemon,
        guards=open_guards(config, places),
        restarts=places.restarts,
        hypervisor=open_hypervisor(config.guests, places),
        switches=open_switches(config.net, places),
        sockets=places.endpoints,
    )
    server = Server(build(host), doors)
    stopping = asyncio.Event()
    reload = _Reload(places, loaded, host)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, reload.now)
    serving = asyncio.create_task(server.run_until_stopped())
    helpers = [asyncio.create_task(work) for work in (_keep_telling(manager, host), _keep_alive(manager))]
    try:
        await _become_ready(manager, host, stopping)
        await _first(stopping.wait, lambda: asyncio.shield(serving))
    finally:
        manager.tell("STOPPING=1", "STATUS=ending; endpoints go on")
        host.events.close()
        server.stop()
        await serving
        ended = await host.close()
        for helper in helpers:
            helper.cancel()
    _log.info("ringwayd has ended; endpoints go on")
    return ended


async def _first(*waits: Callable[[], Awaitable[Any]]) -> None:
    """Wait until one of them is over."""
    tasks = [asyncio.ensure_future(wait()) for wait in waits]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()


async def _become_ready(manager: Manager, host: Host, stopping: asyncio.Event) -> None:
    """Say READY when each endpoint had its turn, or after a minute: one that hangs holds up no boot."""
    starting = asyncio.create_task(host.start())
    done, _ = await asyncio.wait(
        [starting, asyncio.create_task(stopping.wait())],
        timeout=_READY_S,
        return_when=asyncio.FIRST_COMPLETED,
    )
    if starting in done:
        starting.result()
    elif not stopping.is_set():
        _log.warning("some endpoints are still not there after %g s; ready without them", _READY_S)
    manager.tell("READY=1", _status(host))
    _log.info("ringwayd is ready")


async def _keep_telling(manager: Manager, host: Host) -> None:
    """Show in ``systemctl status`` how the host does."""
    told = ""
    while True:
        await asyncio.sleep(_STATUS_S)
        if (status := _status(host)) != told:
            told = status
            manager.tell(status)


def _status(host: Host) -> str:
    return f"STATUS={len(host.desired)} endpoints, {host.degraded()} degraded"


async def _keep_alive(manager: Manager) -> None:
    """Tell the watchdog that the loop turns."""
    while manager.watchdog_s is not None:
        manager.tell("WATCHDOG=1")
        await asyncio.sleep(manager.watchdog_s)


class _Reload:
    """SIGHUP: read the configuration again; what is wrong with it leaves the old one in place."""

    def __init__(self, places: Places, loaded: Loaded, host: Host) -> None:
        self._places = places
        self._loaded = loaded
        self._host = host

    def now(self) -> None:
        try:
            new = load(files_of(self._places))
        except RingwayError as error:
            _log.error("the configuration stays as it was: %s", error)
            return
        changed = self._loaded.differences(new)
        self._loaded = new
        _set_log_level(new.config)
        self._host.reconciler.every_s = new.config.daemon.reconcile_s
        later = [name for name in changed if name not in _RELOADABLE]
        if later:
            _log.warning("%s: changed, and used from the next start on", ", ".join(later))
        self._host.events.tell(Kind.RELOADED, "daemon", ", ".join(changed) or "nothing has changed")
