"""A target that dies at a fault point of the core, to be told from one that dies otherwise.

    target = FaultyTarget(core, folder, "--device", "blk", "disk.img")
    target.start_with(Fault("published", "write", 137))
    ...
    assert target.cause_of_death() == Fault("published", "write", 137)

The core must be a build with the feature ``fault-points``: see ``crates/ringway-core/src/fault.rs``.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from ringway.errors import GuestError
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import PATIENCE_S

#: Where a request can be, in the order of its way.
POINTS: Final = (
    "popped",
    "marked",
    "submitted",
    "completed",
    "pushed",
    "published",
    "cleared",
    "signalled",
)
#: What a request can be; ``unmap`` is whatever zeroes or repeats, ``slow`` whatever is none of the others.
CLASSES: Final = ("read", "write", "flush", "unmap", "slow")


@dataclass(frozen=True, slots=True)
class Fault:
    """Death when the ``count``-th request of a class passes a point."""

    point: str
    request_class: str
    count: int

    @property
    def marker(self) -> bytes:
        """What the core writes before it dies there."""
        return f"{self.point}:{self.request_class}\n".encode()


class FaultyTarget(ServedTarget):
    """A :class:`ServedTarget` over another core, with a fault for each of its lives.

    :param core: the shared object with fault points.
    """

    def __init__(self, core: Path, folder: Path, *arguments: str | PathLike[str], **more: Any) -> None:
        super().__init__(folder, *arguments, **more)
        self._core = core
        self._fault: Fault | None = None
        self._marker = -1

    def start_with(self, fault: Fault | None) -> None:
        """As :meth:`start`; the process will die of ``fault``, if it gets there.

        A guest that waits for it may bring that about before it has said that it is ready.
        """
        self._fault = fault
        try:
            self.start()
        except GuestError:
            if not self._reached(0):
                raise

    @property
    def deathbed(self) -> int:
        """A descriptor that is readable once the process has reached its fault, or has ended."""
        return self._marker

    def wait_fault(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the fault point was reached. The process may not be able to end yet: I/O of it hangs.

        :raises GuestError: it was not reached in time.
        """
        if not self._reached(timeout_s):
            raise GuestError(f"{self._fault} was not reached")

    def cause_of_death(self) -> Fault:
        """Wait for the end of the process. :raises GuestError: it was not the fault that was planned."""
        fault, status = self._fault, self.wait()
        said = os.read(self._marker, 64)
        self._forget_marker()
        if fault is None or said != fault.marker or status != -signal.SIGKILL:
            raise GuestError(f"the target died of {said!r} with status {status}, and not of {fault}")
        return fault

    def kill(self) -> None:
        """As :meth:`ServedTarget.kill`."""
        super().kill()
        self._forget_marker()

    def _reached(self, timeout_s: float) -> bool:
        return bool(select.select([self._marker], [], [], timeout_s)[0])

    def _forget_marker(self) -> None:
        if self._marker >= 0:
            os.close(self._marker)
            self._marker = -1

    def _spawn(
        self,
        arguments: Sequence[str],
        *,
        program: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        self._forget_marker()
        self._marker, write_end = os.pipe()
        plan = {"RINGWAY_FAULT_FD": str(write_end)}
        if self._fault is not None:
            fault = self._fault
            plan["RINGWAY_FAULT"] = f"{fault.point}:{fault.request_class}:{fault.count}"
        try:
            return super()._spawn(
                arguments,
                program=program or ("-m", "ringway.testing.with_core", str(self._core)),
                pass_fds=(*pass_fds, write_end),
                environment={**os.environ, **(environment or {}), **plan},
            )
        finally:
            os.close(write_end)
