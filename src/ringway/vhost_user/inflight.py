"""The shared region of requests in flight: made here, kept by the front end, given back on reconnection."""

from __future__ import annotations

import fcntl
import os

from ringway._core import InflightRegion, inflight_size
from ringway.errors import ProtocolError
from ringway.vhost_user.connection import OwnedFd
from ringway.vhost_user.messages import MAX_RING_SIZE, Inflight

# A front end that shrank the region under us would make our stores to it fatal.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(wanted: Inflight, queues: int) -> tuple[Inflight, OwnedFd]:
    """Make a fresh, zeroed region in sealed memory.

    :param queues: how many the device has.
    :returns: the description in the size that the question came in (QEMU takes no other), and the memory.
    :raises ProtocolError: it is asked for queues that do not exist.
    """
    if not 0 < wanted.queues <= queues or not 0 < wanted.queue_size <= MAX_RING_SIZE:
        raise ProtocolError(f"an in-flight region for {wanted.queues} queues of {wanted.queue_size}")
    size = inflight_size(wanted.queues, wanted.queue_size)
    fd = OwnedFd(os.memfd_create("ringway-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd.fileno(), size)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        fd.close()
        raise
    return Inflight(size, 0, wanted.queues, wanted.queue_size, wanted.padding), fd


def adopt(described: Inflight, fd: OwnedFd) -> InflightRegion:
    """Map the region that a front end gave (back). :raises ProtocolError: it is not what it is said to be."""
    try:
        return InflightRegion(
            fd.fileno(),
            mmap_offset=described.mmap_offset,
            size_bytes=described.mmap_size,
            queues=described.queues,
            queue_size=described.queue_size,
        )
    except (OSError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the in-flight region cannot be used: {error}") from error
