"""The way back: requests that we send to the front end, on a socket that it gave us."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import threading
from typing import Final

from ringway.errors import ProtocolError
from ringway.vhost_user.connection import OwnedFd
from ringway.vhost_user.messages import HEADER, U64, VERSION, BackendRequest, Flag

_LOG: Final = logging.getLogger("ringway.vhost_user")
_ACK: Final = HEADER.size + 8


class BackendChannel:
    """Sends notices without ever waiting for the front end, which may itself be waiting for us.

    An answer that was asked for is read when the next notice goes out, and only a refusal is worth a log
    line. Safe to use from several threads.
    """

    def __init__(self, fd: OwnedFd) -> None:
        """Take the fd over. :raises ProtocolError: it is no unix stream socket; it is closed."""
        if not stat.S_ISSOCK(os.fstat(fd.fileno()).st_mode):
            fd.close()
            raise ProtocolError("SET_BACKEND_REQ_FD came with something that is no socket")
        self._socket = socket.socket(fileno=fd.detach())
        self._lock = threading.Lock()
        self._answers = bytearray()
        if (self._socket.family, self._socket.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            self._socket.close()
            raise ProtocolError("SET_BACKEND_REQ_FD came with a socket of another kind")

    def notify(self, request: BackendRequest, *, need_reply: bool) -> bool:
        """Send a message without payload. :returns: whether it went out whole."""
        message = HEADER.pack(request, VERSION | (Flag.NEED_REPLY if need_reply else 0), 0)
        with self._lock:
            try:
                self._read_answers()
                sent = self._socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as error:
                _LOG.warning("the front end takes no %s: %s", request.name, error)
                return False
        return sent == len(message)

    def close(self) -> None:
        with self._lock:
            self._socket.close()

    def _read_answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._answers += self._socket.recv(4096, socket.MSG_DONTWAIT)
        while len(self._answers) >= _ACK:
            result = U64.unpack(bytes(self._answers[HEADER.size : _ACK]))
            del self._answers[:_ACK]
            if result:
                _LOG.warning("the front end refused a notice: %d", result)
