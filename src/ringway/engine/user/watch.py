"""Processes that end by themselves: one thread waits for all of them."""

from __future__ import annotations

import logging
import os
import select
import threading
from typing import Final

from ringway.engine.base import Notify
from ringway.engine.user.processes import Process

_log: Final = logging.getLogger(__name__)


class Watch:
    """Tells whose process ended, from :meth:`start` until :meth:`close`. From any thread."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.EPOLLIN)
        self._lock = threading.Lock()
        self._watched: dict[str, Process] = {}
        self._names: dict[int, str] = {}
        self._thread: threading.Thread | None = None

    def start(self, notify: Notify) -> None:
        """Call ``notify`` with the name of each whose process ends, also if that was before."""
        assert self._thread is None, "there is one who is told"
        self._thread = threading.Thread(target=self._run, args=(notify,), name="watch", daemon=True)
        self._thread.start()

    def add(self, name: str, process: Process) -> None:
        """Watch a process, and no other under this name any more."""
        self.forget(name)
        with self._lock:
            self._watched[name] = process
            self._names[process.fileno()] = name
            self._poll.register(process, select.EPOLLIN | select.EPOLLONESHOT)

    def forget(self, name: str) -> None:
        """Watch it no more. An end that is told right now may still arrive."""
        with self._lock:
            process = self._watched.pop(name, None)
            if process is not None:
                del self._names[process.fileno()]
                self._poll.unregister(process)

    def close(self) -> None:
        """End the thread, and forget all. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            os.eventfd_write(self._wake, 1)
            thread.join()
        if not self._poll.closed:
            self._poll.close()
            os.close(self._wake)
        self._watched.clear()
        self._names.clear()

    def _run(self, notify: Notify) -> None:
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._wake:
                    return
                with self._lock:
                    name = self._names.get(fd)
                if name is not None:
                    self.forget(name)
                    self._tell(notify, name)

    @staticmethod
    def _tell(notify: Notify, name: str) -> None:
        try:
            notify(name)
        except Exception:  # who is told is no reason to tell nobody else
            _log.exception("endpoint '%s' ended, and who was told failed", name)
