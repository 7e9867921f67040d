"""One connection to libvirt that comes back by itself.

libvirt has one event loop a process; it runs on a thread of its own from the first connection on. Callbacks
come from there, so they do not block and call nothing of libvirt's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Final

import libvirt

from ringway.errors import RingwayError, UnreachableError
from ringway.guest.libvirt.failures import unreachable

_KEEPALIVE_S: Final = 5  #: between questions whether a silent libvirtd is still there
_KEEPALIVE_MISSED: Final = 6
_DELAYS_S: Final = (0.1, 0.5, 2.0)  #: until the next attempt, and then
_LONGEST_S: Final = 10.0

_log = logging.getLogger(__name__)
_loop_lock = threading.Lock()
_loop: threading.Thread | None = None

Prepare = Callable[[libvirt.virConnect], None]


class Connection:
    """The way to one libvirtd.

    :param uri: ``qemu:///system``.
    :param prepare: registers events at each new connection.
    """

    def __init__(self, uri: str, prepare: Prepare) -> None:
        self.uri: Final = uri
        self._prepare = prepare
        self._lock = threading.Lock()
        self._connection: libvirt.virConnect | None = None
        self._opened = 0  #: how often; events in between were missed
        self._lost = threading.Event()
        self._closed = False
        self._keeper: threading.Thread | None = None

    def get(self) -> libvirt.virConnect:
        """The connection, made now if there is none. :raises UnreachableError: nobody answers."""
        with self._lock:
            if self._closed:
                raise UnreachableError("the connection to libvirt was closed")
            if self._connection is None or not _is_alive(self._connection):
                self._drop()
                self._connection = self._open()
                self._opened += 1
                self._lost.set()  # the keeper may not have heard that the last one broke
            return self._connection

    def keep(self, came_back: Callable[[], None]) -> None:
        """From now on make it again whenever it breaks, and say so then; at most one may ask."""
        assert self._keeper is None, "it is kept already"
        self._keeper = threading.Thread(
            target=self._keep, args=(came_back,), name="libvirt-keeper", daemon=True
        )
        self._lost.set()
        self._keeper.start()

    def close(self) -> None:
        """Hang up; again is fine."""
        with self._lock:
            self._closed = True
            self._drop()
        self._lost.set()
        if self._keeper is not None:
            self._keeper.join()

    def _open(self) -> libvirt.virConnect:
        _run_loop()
        try:
            connection = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            raise unreachable(self.uri, error) from error
        try:
            connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_MISSED)
            connection.registerCloseCallback(self._on_close, None)
            self._prepare(connection)
        except libvirt.libvirtError as error:
            _hang_up(connection)
            raise unreachable(self.uri, error) from error
        return connection

    def _on_close(self, *_: object) -> None:
        self._lost.set()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _hang_up(connection)

    def _keep(self, came_back: Callable[[], None]) -> None:
        failures, told = 0, 0
        while not self._closed:
            if failures == 0:
                self._lost.wait()
            self._lost.clear()
            try:
                self.get()
            except RingwayError as error:
                failures += 1
                if failures == 1 and not self._closed:
                    _log.warning("%s", error.message)
                self._lost.wait(_delay_s(failures))
                continue
            failures = 0
            if told != (told := self._opened):
                came_back()


def _delay_s(failures: int) -> float:
    return _DELAYS_S[failures - 1] if failures <= len(_DELAYS_S) else _LONGEST_S


def _is_alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _hang_up(connection: libvirt.virConnect) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


def _run_loop() -> None:
    global _loop
    with _loop_lock:
        if _loop is None:
            libvirt.registerErrorHandler(_say_nothing, None)  # it would print what is raised as well
            libvirt.virEventRegisterDefaultImpl()
            _loop = threading.Thread(target=_turn, name="libvirt-events", daemon=True)
            _loop.start()


def _say_nothing(*_: object) -> None:
    """What went wrong is raised."""


def _turn() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
