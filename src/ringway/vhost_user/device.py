"""What a session drives: the seam between the protocol and a virtio device.

``target`` implements it over ``_core.Device``; tests implement it with a recorder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ringway import _core


@dataclass(frozen=True, slots=True)
class RingSetup:
    """What a front end said of one ring, complete enough to start it.

    Addresses are the front end's own (user) addresses; ``log_address`` is guest physical, ``None`` when
    VHOST_VRING_F_LOG is off. The fds belong to the session; the device duplicates what it keeps.
    """

    size: int
    descriptors: int
    available: int
    used: int
    base: int
    kick_fd: int | None
    call_fd: int | None
    log_address: int | None


class Device(Protocol):
    """A virtio device behind a vhost-user session. All methods are called from the session's one thread."""

    @property
    def kind(self) -> Literal["scsi", "blk"]:
        """What it is: names the feature bits below 24 in logs."""

    @property
    def queues(self) -> int:
        """Virtqueues that exist, the scsi control and event queue included."""

    @property
    def queue_number(self) -> int:
        """What GET_QUEUE_NUM answers (scsi: QEMU compares it with its request queues alone)."""

    @property
    def features(self) -> int:
        """Virtio feature bits offered, without the vhost-user ones (LOG_ALL, PROTOCOL_FEATURES)."""

    @property
    def has_config(self) -> bool:
        """Whether VHOST_USER_PROTOCOL_F_CONFIG is offered (blk only: QEMU warns of it for scsi)."""

    def config(self) -> bytes:
        """The device's configuration space as it is now."""

    def set_config(self, offset: int, data: bytes) -> None:
        """:raises ProtocolError: the field is not writable."""

    def set_features(self, features: int) -> None:
        """The front end acknowledged these (LOG_ALL included; a subset of what was offered)."""

    def set_memory(self, regions: Sequence[_core.Region]) -> None:
        """Replace the memory map. Rings that lie in a region which changes are stopped meanwhile.

        :raises ValueError: two regions overlap; the old map stays.
        """

    def set_log(self, log: _core.DirtyLog | None) -> None:
        """The log of dirty pages. It may come after a ring was started with LOG_ALL on (trap T6), never after
        the ring was enabled."""

    def start_ring(self, index: int, ring: RingSetup, inflight: _core.InflightRegion | None) -> None:
        """Make a ring ready; it is served once it is enabled too.

        :raises ValueError: as ``_core.Device.start_queue``.
        """

    def enable_ring(self, index: int, enabled: bool) -> None:
        """Serve a ring, or let it rest. This is a state of its own: it may be set before the ring is started
        (trap T4) and outlives its stop. Rings are disabled at first, and when the session has ended."""

    def set_ring_call(self, index: int, fd: int | None) -> None:
        """Replace the call eventfd of a started ring."""

    def set_ring_log(self, index: int, log_address: int | None) -> None:
        """Replace the log address of a started ring."""

    def stop_ring(self, index: int) -> int:
        """Drain with a deadline and stop. :returns: next available index."""

    def reset(self) -> None:
        """RESET_DEVICE or SET_STATUS(0): an I_T nexus event at most (trap T11); rings are already stopped."""

    def detached(self) -> None:
        """The front end left; rings are stopped, memory is dropped. The disk stays as it is."""
