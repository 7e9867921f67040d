"""The one trace that a target runs at a time: it belongs to the control connection that began it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

import msgspec

from ringway import _core
from ringway.errors import BusyError, ConflictError, ControlError, NotFoundError, UsageError
from ringway.model import LunInfo, TraceBatch, TraceSample, TraceStartRequest
from ringway.target.luns import LunTable

_SAMPLE: Final = list[TraceSample]


class Tracing:
    """Starts, reads and ends a trace. Every method is called on the thread of its control connection.

    However a connection ends, :meth:`client_gone` ends its trace with it: tracing is never left on.
    """

    def __init__(self, core: _core.Device) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._trace: _core.Trace | None = None
        self._owner: int | None = None

    def start(self, request: TraceStartRequest, luns: LunTable) -> None:
        """Begin a trace.

        :raises BusyError: one is on. :raises NotFoundError: no such LUN. :raises UsageError: no such queue.
        """
        address = _address(request, (lun.info() for lun in luns))
        with self._lock:
            if self._trace is not None:
                raise BusyError(
                    "this target is being traced already",
                    hint="one trace runs at a time; it ends with the command or connection that began it",
                )
            try:
                self._trace = self._core.start_trace(
                    interval=request.sample, queue=request.queue, lun=address
                )
            except ValueError as error:
                raise UsageError(str(error), hint="ringway top shows the queues") from error
            except OSError as error:
                raise ConflictError(f"the trace cannot begin: {error.strerror}") from error
            self._owner = threading.get_ident()

    def fetch(self, most: int) -> TraceBatch:
        """Take what was sampled. :raises ControlError: this connection began no trace."""
        with self._lock:
            trace = self._own()
            samples = msgspec.convert(trace.take(most), _SAMPLE)
            return TraceBatch(tuple(samples), trace.dropped)

    def stop(self) -> None:
        """End this connection's trace. :raises ControlError: it began none."""
        with self._lock:
            self._end(self._own())

    def client_gone(self) -> None:
        """End the trace if its connection is this one."""
        with self._lock:
            if self._trace is not None and self._owner == threading.get_ident():
                self._end(self._trace)

    def _own(self) -> _core.Trace:
        if self._trace is None or self._owner != threading.get_ident():
            raise ControlError("no trace was begun on this connection", hint="send trace-start first")
        return self._trace

    def _end(self, trace: _core.Trace) -> None:
        trace.close()
        self._trace = self._owner = None


def _address(request: TraceStartRequest, luns: Iterable[LunInfo]) -> tuple[int, int] | None:
    """:raises NotFoundError: no such LUN."""
    if request.lun is None:
        return None
    address = (request.target or 0, request.lun)
    if all((lun.target, lun.lun) != address for lun in luns):
        raise NotFoundError(
            f"there is no LUN {address[0]}:{address[1]}", hint="ringway target info shows them"
        )
    return address
