"""Vhost-user network ports: as they are wanted (:class:`PortSpec`), and as they are (:class:`PortInfo`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from ringway.errors import UsageError
from ringway.model.endpoint import Name
from ringway.model.validation import text

MAX_QUEUE_PAIRS: Final = 256  #: that a guest drives
MTU_MIN: Final = 68  #: Spec: virtio 1.3, 5.1.4.1; the smallest that IPv4 allows (RFC 791)
MTU_MAX: Final = 65535
MAX_PATH_BYTES: Final = 107  #: of a socket: sun_path without its terminating zero
_RECONNECT_S: Final = 1  #: without it a guest has no network from the switch's next start on
_RING_SIZES: Final = (256, 512, 1024)  #: of QEMU (VIRTIO_NET_RX_QUEUE_MIN_SIZE to VIRTQUEUE_MAX_SIZE)

_MAC: Final = "six pairs of hexadecimal digits, as in 52:54:00:12:34:56"
Mac = Annotated[str, text(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", _MAC)]
_STATION: Final = re.compile(r"(?!00(:00){5})[0-9a-f][02468ace](:[0-9a-f]{2}){5}")


class PortMode(StrEnum):
    """Which part QEMU has at a port's socket, as libvirt and Neutron count it."""

    CLIENT = "client"  #: the switch listens, QEMU connects
    SERVER = "server"  #: QEMU listens, the switch connects


class PortSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A vhost-user network port as it is wanted. What is ``None`` is chosen once, and kept.

    ``options`` are the switch driver's (``bridge=br0`` of ``ovs``). A MAC is kept in small letters.

    :raises UsageError: QEMU, libvirt or any switch would refuse it.
    """

    name: Name
    switch: str = "external"
    mac: Mac | None = None
    socket: str | None = None
    mode: PortMode = PortMode.SERVER
    queues: int = 1
    rx_queue_size: int | None = None
    tx_queue_size: int | None = None
    mtu: int | None = None
    reconnect_s: int | None = None  #: seconds until QEMU connects again; as a client only
    options: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Write what means the same in one way, and refuse what no port can be."""
        if self.mac is not None:
            force_setattr(self, "mac", self.mac.lower())
        for wrong, reason, hint in _faults(self):
            if wrong:
                raise UsageError(f"port '{self.name}': {reason}", hint=hint)


class PortState(StrEnum):
    """How a port is doing."""

    READY = "ready"  #: the switch has it, or its socket is where it should be
    UP = "up"  #: both sides have connected
    DEGRADED = "degraded"  #: it is not as it should be; ``message`` says why, and it is tried again


class PortInfo(Struct, frozen=True, kw_only=True):
    """A port as it is."""

    name: str
    switch: str
    state: PortState
    mac: str
    socket: str
    mode: PortMode
    guest: str | None = None  #: that it is plugged into
    message: str | None = None
    spec: PortSpec | None = None


def resolved_port(spec: PortSpec, *, mac: str, socket: str | None = None) -> PortSpec:
    """Choose what is open: as a client, QEMU connects again.

    :param mac: what to take where none is named. :param socket: the same; ``None``: it stays open.
    :raises UsageError: no socket can be there.
    """
    reconnect_s = _RECONNECT_S if spec.mode is PortMode.CLIENT else None
    return replace(
        spec,
        mac=spec.mac or mac,
        socket=spec.socket or socket,
        reconnect_s=reconnect_s if spec.reconnect_s is None else spec.reconnect_s,
    )


def socket_of(spec: PortSpec) -> str:
    """The socket of a port that is whole. :raises UsageError: it is open yet."""
    if spec.socket is None:
        raise UsageError(f"port '{spec.name}' has no socket", hint="name one, as in /run/vpp/web0.sock")
    return spec.socket


def mac_of(spec: PortSpec) -> str:
    """The MAC of a port that is whole. :raises UsageError: it is open yet."""
    if spec.mac is None:
        raise UsageError(f"port '{spec.name}' has no MAC address", hint="name one, as in 52:54:00:12:34:56")
    return spec.mac


def _faults(spec: PortSpec) -> Iterator[tuple[bool, str, str]]:
    """What can be wrong, whether it is, and what to do."""
    yield (
        spec.mac is not None and not _STATION.fullmatch(spec.mac),
        f"'{spec.mac}' is no MAC address of a single station",
        "write it as 52:54:00:12:34:56; the second digit is even",
    )
    yield from _faults_of_path(spec.socket or "/")
    yield (
        not 1 <= spec.queues <= MAX_QUEUE_PAIRS,
        f"it cannot have {spec.queues} queues",
        f"take 1 to {MAX_QUEUE_PAIRS} pairs",
    )
    for size, what in ((spec.rx_queue_size, "receive"), (spec.tx_queue_size, "transmit")):
        yield (
            size is not None and size not in _RING_SIZES,
            f"QEMU has no {what} ring of {size}",
            f"take {', '.join(map(str, _RING_SIZES))}",
        )
    yield (
        spec.mtu is not None and not MTU_MIN <= spec.mtu <= MTU_MAX,
        f"an MTU of {spec.mtu} is not possible",
        f"take {MTU_MIN} to {MTU_MAX}",
    )
    yield (
        spec.reconnect_s is not None and spec.mode is PortMode.SERVER,
        "QEMU listens at its socket, and cannot reconnect; the switch comes back by itself",
        "leave reconnect away, or take mode=client",
    )
    yield (
        spec.reconnect_s is not None and spec.reconnect_s < 1,
        f"QEMU cannot wait {spec.reconnect_s} s before it connects again",
        "give whole seconds, from 1 on",
    )


def _faults_of_path(path: str) -> Iterator[tuple[bool, str, str]]:
    yield (
        not path.startswith("/") or os.path.normpath(path) != path or not path.isprintable(),
        f"the path of its socket is whole and plain, not '{path}'",
        "name it from the root, as in /run/ringway/port/web0.sock",
    )
    length = len(os.fsencode(path))
    yield (
        length > MAX_PATH_BYTES,
        f"the path of its socket has {length} bytes, and a socket's can have {MAX_PATH_BYTES}: '{path}'",
        f"name one of at most {MAX_PATH_BYTES} bytes, or leave it out",
    )
