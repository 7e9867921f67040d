"""What a child of the spawner does: be a target, or open a file for one. It answers its client itself."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import select
import signal
import socket
import stat
import time
import traceback
from typing import Final, NoReturn

from ringway.engine.user import records
from ringway.engine.user.orders import (
    Add,
    Added,
    Answer,
    Born,
    Failed,
    Found,
    Order,
    Probe,
    Probed,
    Ready,
    Serve,
    read_order,
    send_answer,
)
from ringway.engine.user.processes import Identity
from ringway.engine.user.records import Record
from ringway.engine.user.strays import TARGET
from ringway.engine.user.words import STARTING
from ringway.errors import BusyError, RingwayError, UnreachableError
from ringway.target.backstore import open_backstore
from ringway.target.control import ControlClient
from ringway.target.listen import endpoint
from ringway.target.sandbox import Sandbox, privileges
from ringway.target.sandbox.filters import Filters
from ringway.target.target import Target

_log: Final = logging.getLogger(__name__)

MAX_LOG: Final = 1 << 18  #: bytes of a log that a new target writes on behind
_LOCK_S: Final = 2.0
_MAX_LUNS_TOLD: Final = 256


def carry_out(client: socket.socket, order_fd: int, filters: Filters | None) -> NoReturn:
    """Do what was ordered, and end.

    :param filters: the spawner's, for its children.
    """
    status = 1
    try:
        order = _become_own(client, order_fd)
        match order:
            case Serve():
                status = _serve(client, order, filters)
            case Probe():
                status = _tell(client, _probe(order))
            case Add():
                status = _tell(client, _add(order))
    except RingwayError as error:
        _tell(client, Failed.of(error))
    except BaseException as error:
        traceback.print_exc()
        _tell(client, Failed.of(RingwayError(f"the target could not be started: {error!r}")))
    finally:
        os._exit(status)


def _become_own(client: socket.socket, order_fd: int) -> Order:
    """Have nothing of the spawner's but its memory, and read what to do."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    ours = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
    order = read_order(order_fd)
    keep = client.fileno()
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    client.setblocking(True)
    gc.enable()
    return order


def _tell(client: socket.socket, answer: Answer, fd: int | None = None) -> int:
    """Who asked may be gone: nothing depends on it. :returns: the exit status of who is done."""
    with contextlib.suppress(OSError):
        send_answer(client, answer, fd)
    return int(isinstance(answer, Failed))


def _serve(client: socket.socket, order: Serve, filters: Filters | None) -> int:
    """Serve an endpoint until its end. :returns: exit status."""
    with Sandbox(order.sandbox, order.user, filters) as sandbox:
        sandbox.start()
        return _serve_confined(client, order, sandbox)


def _serve_confined(client: socket.socket, order: Serve, sandbox: Sandbox) -> int:
    privileges.name_process(TARGET)
    identity = Identity.of(os.getpid())
    own = os.pidfd_open(os.getpid())
    _tell(client, Born(identity), own)
    os.close(own)
    if order.log is not None:
        _take_log(order.log, order.socket)
        _refuse_unwanted(client)
        _log_start(identity)
    if order.record is not None and order.spec is not None:
        records.write(order.record, Record(process=identity, spec=order.spec))
    with (
        endpoint(order.socket, group=order.group) as (main, beside),
        Target(order.config, main, beside, sandbox) as target,
    ):
        told = _ear()
        for each in sandbox.missing:
            _log.warning("the sandbox is not whole: this host does not offer %s", each)
        _tell(client, Ready(target.info() if len(order.config.luns) <= _MAX_LUNS_TOLD else None))
        client.close()
        _wait(target.fileno(), told)
    return int(target.failed)


def _refuse_unwanted(client: socket.socket) -> None:
    """Come up for nobody: who died before the log was locked is followed by one who sees nothing of this.

    :raises UnreachableError: who ordered it is gone.
    """
    poller = select.poll()
    poller.register(client, 0)
    if poller.poll(0):
        raise UnreachableError("who ordered the target is gone")


def _ear() -> int:
    """A descriptor that is readable once SIGTERM came, whichever thread the kernel told.

    A handler in Python runs in the main thread, and that sleeps on when another one was told: so it is with a
    process that was stopped meanwhile, as all are when the host is shut down.
    """
    receiver, sender = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(sender)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return receiver


def _wait(*fds: int) -> None:
    """Wait until one of them is readable."""
    poller = select.poll()  # select() knows no descriptor above 1023
    for fd in fds:
        poller.register(fd, select.POLLIN)
    poller.poll()


def _take_log(path: str, what: str) -> None:
    """Say all from now on into a log, locked while this process lives: an endpoint has one.

    :raises BusyError: another target has it. :raises OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    log = os.open(path, flags, 0o640)
    deadline = time.monotonic() + _LOCK_S
    while not _try_lock(log):
        if time.monotonic() > deadline:
            raise BusyError(f"another target serves '{what}', or is about to", hint="wait for it, or stop it")
        time.sleep(0.01)
    status = os.fstat(log)
    if stat.S_ISREG(status.st_mode) and status.st_size > MAX_LOG:
        os.ftruncate(log, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _log_start(identity: Identity) -> None:
    """Where a target's own words begin. Without ``logging``, of which an idle target then touches nothing."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000+00:00", time.gmtime())
    words = f'"logger": "{__name__}", "message": "starting (pid {identity.pid})", "event": "{STARTING}"'
    os.write(2, f'{{"time": "{now}", "level": "info", {words}}}\n'.encode())


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _probe(order: Probe) -> Probed:
    """:raises RingwayError: what a target would say."""
    found = []
    with contextlib.ExitStack() as opened:
        for lun in order.luns:
            backstore = open_backstore(lun.backstore, claim=order.claim)
            opened.callback(backstore.close)
            geometry = backstore.geometry
            found.append(Found(backstore.kind.value, geometry.size_bytes, geometry.block_size))
    return Probed(tuple(found))


def _add(order: Add) -> Added:
    """:raises RingwayError: what the target says, or what is wrong with the file."""
    with ControlClient(order.control) as client:
        return Added(client.add_lun(order.spec))
