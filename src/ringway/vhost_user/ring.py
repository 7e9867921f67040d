"""What a front end said of one ring so far."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ringway.errors import ProtocolError
from ringway.vhost_user.connection import OwnedFd
from ringway.vhost_user.device import RingSetup
from ringway.vhost_user.messages import MAX_RING_SIZE, VRING_F_LOG, VringAddress

_SIGNAL = (1).to_bytes(8, "little")

_NO_EVENTS = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISBLK, stat.S_ISCHR)


def check_event_fd(fd: OwnedFd) -> None:
    """Let eventfds and pipes pass. :raises ProtocolError: it is something that no worker can wait for."""
    mode = os.fstat(fd.fileno()).st_mode
    if any(matches(mode) for matches in _NO_EVENTS):
        raise ProtocolError("a kick, call or err file descriptor is a file and not an eventfd")


@dataclass(slots=True)
class Ring:
    """A ring's state in a session.

    ``kicked`` is set by SET_VRING_KICK and cleared by GET_VRING_BASE: the front end wants it to run.
    ``running`` is whether the device was told to. ``enabled`` is apart from both.
    Spec: vhost-user, "Ring states".
    """

    index: int
    size: int = 0
    address: VringAddress | None = None
    base: int = 0
    kicked: bool = False
    enabled: bool = False
    running: bool = False
    kick: OwnedFd | None = None
    call: OwnedFd | None = None
    err: OwnedFd | None = None

    @property
    def configured(self) -> bool:
        """Whether everything is known but the memory that the ring lies in."""
        return self.kicked and self.size > 0 and self.address is not None

    @property
    def log_address(self) -> int | None:
        if self.address is None or not self.address.flags & VRING_F_LOG:
            return None
        return self.address.log

    def addresses(self) -> Iterator[int]:
        """Where its three parts start, in the front end's addresses."""
        if self.address is not None:
            yield from (self.address.descriptors, self.address.available, self.address.used)

    def setup(self) -> RingSetup:
        """What the device needs to start it. Only for a ring that is :attr:`configured`."""
        descriptors, available, used = self.addresses()
        return RingSetup(
            size=self.size,
            descriptors=descriptors,
            available=available,
            used=used,
            base=self.base,
            kick_fd=_number(self.kick),
            call_fd=_number(self.call),
            log_address=self.log_address,
        )

    def set_size(self, size: int) -> None:
        """:raises ProtocolError: the ring runs, or no split ring has this size. Spec: virtio 1.3, 2.7."""
        self.refuse_if_running("size")
        if not 0 < size <= MAX_RING_SIZE or size & (size - 1):
            raise ProtocolError(f"ring {self.index}: {size} is no ring size")
        self.size = size

    def set_base(self, base: int) -> None:
        """:raises ProtocolError: the ring runs, or the index is more than 16 bits."""
        self.refuse_if_running("base")
        if base > 0xFFFF:
            raise ProtocolError(f"ring {self.index}: {base} is no index of a split ring")
        self.base = base

    def set_address(self, address: VringAddress) -> None:
        """:raises ProtocolError: the ring runs, and this would move it (only its log address may change)."""
        if self.running and self.address is not None and _place(address) != _place(self.address):
            raise ProtocolError(f"ring {self.index} runs, it cannot be moved")
        self.address = address

    def set_kick(self, fd: OwnedFd | None) -> None:
        self.kick = _replace(self.kick, fd)
        self.kicked = True

    def forget_kick(self) -> None:
        self.kick = _replace(self.kick, None)
        self.kicked = False

    def set_call(self, fd: OwnedFd | None) -> None:
        self.call = _replace(self.call, fd)

    def set_err(self, fd: OwnedFd | None) -> None:
        self.err = _replace(self.err, fd)

    def reset(self) -> None:
        """Forget all but the fds that tell of completions and errors: front ends do not send these anew."""
        self.forget_kick()
        self.size, self.address, self.base = 0, None, 0

    def signal_error(self) -> None:
        """Write to the err eventfd, unless its reader sleeps: this never blocks."""
        if self.err is None:
            return
        poller = select.poll()
        poller.register(self.err.fileno(), select.POLLOUT)
        if poller.poll(0):
            os.write(self.err.fileno(), _SIGNAL)

    def close(self) -> None:
        self.forget_kick()
        self.set_call(None)
        self.set_err(None)

    def refuse_if_running(self, what: str) -> None:
        if self.running:
            raise ProtocolError(f"ring {self.index} runs, its {what} cannot be changed")


def _place(address: VringAddress) -> tuple[int, int, int]:
    return (address.descriptors, address.available, address.used)


def _number(fd: OwnedFd | None) -> int | None:
    return None if fd is None else fd.fileno()


def _replace(old: OwnedFd | None, new: OwnedFd | None) -> OwnedFd | None:
    if old is not None:
        old.close()
    return new
