"""Call eventfds that a hostile front end fills, when something else goes wrong besides."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from ringway.model import BackstoreSpec, DeviceKind, LunSpec, SpecKind, TargetConfig
from ringway.testing.waiting import PATIENCE_S

from .. import requests
from ..bare import BareTarget

MIB = 1 << 20


def test_a_second_start_that_is_refused_leaves_the_first_one_looked_after(run_dir: Path) -> None:
    """The call of the ring that ran was forgotten: a front end that filled it held its worker up for ever."""
    disk = LunSpec(0, 0, BackstoreSpec(SpecKind.NULL, size_bytes=MIB))
    config = TargetConfig(device=DeviceKind.BLK, luns=(disk,))
    with BareTarget(str(run_dir / "x.sock"), config) as target, target.front_end() as front:
        assert len(requests.read(front, 0)) == 4096
        with pytest.raises(ValueError, match="started already"):
            target.core.start_queue(
                0, size=8, descriptors=0, available=0, used=0, base=0, kick_fd=None, call_fd=None
            )
        ring = front.rings[0]
        assert ring.arm(), "an answer is left from before"
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(ring.call_fd)  # or it would not take as much
        os.eventfd_write(ring.call_fd, 2**64 - 2)
        os.set_blocking(ring.call_fd, True)
        request = requests.send_read(front, 0)
        served = target.core.drain(timeout_s=PATIENCE_S)
        os.set_blocking(ring.call_fd, False)
        os.eventfd_read(ring.call_fd)  # lets the worker go on in any case
        assert requests.wait(front, request)[0] == 0
        assert served, "the worker waited for its front end"
