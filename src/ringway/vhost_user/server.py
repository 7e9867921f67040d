"""Accepts front ends and drives one session at a time, in one thread that never waits for a peer."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ringway.errors import ProtocolError
from ringway.vhost_user.connection import Connection, Peer, command_name, peer_of
from ringway.vhost_user.device import Device
from ringway.vhost_user.session import Session
from ringway.vhost_user.throttle import Throttle

_LOG: Final = logging.getLogger("ringway.vhost_user")
_MAX_COMPLAINTS: Final = 100  #: log lines at once about what front ends get wrong: they could fill the disk
_BURST: Final = 1024  #: messages handled before the server looks at anything else
_PAUSE_S: Final = 0.1  #: rest after accept failed (no fds left, say): it would fail again at once
_SILENCE_S: Final = 2.0  #: who said nothing for so long makes room for the next


@dataclass(slots=True)
class _Served:
    """The front end that is served now: since when, and whether it ever said anything."""

    peer: Peer
    connection: Connection
    session: Session
    since_s: float
    heard: bool = False

    @property
    def is_silent(self) -> bool:
        """Whether it is no front end: one that is speaks at once."""
        return not self.heard and time.monotonic() - self.since_s >= _SILENCE_S


class Server:
    """A vhost-user back end on a socket.

    :param endpoint: a listening unix socket, or a connected one (``--fd``): then the server ends with its
        front end. It belongs to the server from now on.
    :param device: what front ends come for; it outlives them, so one that comes back finds all as it was.
    :param name_of: what a process is called, for the log.

    A front end that comes while another is served is turned away, unless that never said a word. Whatever one
    does, the next is served; how often it does it, the log stays short.
    """

    def __init__(
        self, endpoint: socket.socket, device: Device, name_of: Callable[[int], str] = command_name
    ) -> None:
        self._endpoint = endpoint
        self._name_of = name_of
        self._device = device
        self._listening = bool(endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = threading.Event()
        self._finished = threading.Event()
        self._finish_lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._served: _Served | None = None
        self._throttle = Throttle(_LOG)
        self._complaints = Throttle(_LOG, burst=_MAX_COMPLAINTS)
        self._thread = threading.Thread(target=self._run, name="ringway-vhost-user", daemon=True)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve, on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End the session (its rings are drained) and the server, and wait. From any thread; idempotent."""
        self._stopping.set()
        if self._thread.ident is None:
            self._finish()
            return
        with self._finish_lock:
            if not self._finished.is_set():
                os.eventfd_write(self._wake, 1)
        self._thread.join()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server has ended: it was stopped, or the front end of a connected socket left."""
        return self._finished.wait(timeout_s)

    @property
    def peer(self) -> Peer | None:
        """The front end that is served now."""
        served = self._served
        return None if served is None else served.peer

    def config_changed(self) -> None:
        """Tell the front end, if there is one, to read the configuration space again. From any thread."""
        if (served := self._served) is not None:
            served.session.config_changed()

    def ring_broken(self, index: int, message: str) -> None:
        """Tell the front end, if there is one, that a ring was given up. From any thread."""
        if (served := self._served) is not None:
            served.session.ring_broken(index, message)

    # The thread

    def _run(self) -> None:
        try:
            self._selector.register(self._wake, selectors.EVENT_READ)
            if self._listening:
                self._selector.register(self._endpoint, selectors.EVENT_READ)
            else:
                self._begin(self._endpoint)
            while not self._stopping.is_set():
                self._turn()
        except Exception:
            _LOG.exception("the server failed")
        finally:
            self._end("the server stops")
            self._finish()

    def _finish(self) -> None:
        with self._finish_lock:
            if self._finished.is_set():
                return
            self._finished.set()
            self._selector.close()
            self._endpoint.close()
            os.close(self._wake)

    def _turn(self) -> None:
        """Wait for events and see to them; the session first, so that who left makes room for the next."""
        ready = {key.fileobj for key, _ in self._selector.select()}
        if self._served is not None and self._served.connection in ready:
            self._serve(self._served)
        if self._listening and self._endpoint in ready:
            self._accept()

    def _accept(self) -> None:
        try:
            endpoint, _ = self._endpoint.accept()
        except OSError as error:
            self._throttle.log(logging.WARNING, "a front end could not be accepted: %s", error)
            time.sleep(_PAUSE_S)
            return
        if self._served is not None and self._served.is_silent:
            self._end("it said nothing, and another came")
        if self._served is None:
            self._begin(endpoint)
            return
        served, turned_away = self._served.peer, peer_of(endpoint, self._name_of)
        self._throttle.log(logging.WARNING, "turned away %s: %s is being served", turned_away, served)
        endpoint.close()

    def _begin(self, endpoint: socket.socket) -> None:
        connection = Connection(endpoint)
        session = Session(connection, self._device, self._complaints)
        self._served = _Served(connection.peer(self._name_of), connection, session, time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)
        self._throttle.log(logging.INFO, "%s came", self._served.peer)

    def _serve(self, served: _Served) -> None:
        """Handle what came, and end the session where that is how it goes."""
        try:
            self._handle_all(served)
        except EOFError as reason:
            self._end(str(reason))
        except ProtocolError as reason:
            self._throttle.log(logging.ERROR, "%s broke the protocol: %s", served.peer, reason)
            self._end("it was shown the door")
        except Exception:
            _LOG.exception("a request of %s failed", served.peer)
            self._end("a request failed")

    def _handle_all(self, served: _Served) -> None:
        connection = served.connection
        connection.flush()
        for _ in range(_BURST):
            message = None if connection.pending else connection.receive()
            if message is None:
                break
            served.heard = True
            served.session.handle(message)
        # A peer that does not take its answers is asked for nothing more until it does.
        event = selectors.EVENT_WRITE if connection.pending else selectors.EVENT_READ
        self._selector.modify(connection, event)

    def _end(self, reason: str) -> None:
        served, self._served = self._served, None
        if served is None:
            return
        self._selector.unregister(served.connection)
        try:
            served.session.close()
        except Exception:
            _LOG.exception("the session of %s did not end cleanly", served.peer)
        served.connection.close()
        self._throttle.log(logging.INFO, "%s left: %s", served.peer, reason)
        if not self._listening:
            self._stopping.set()
