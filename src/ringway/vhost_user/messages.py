"""The vhost-user wire: request numbers, flags and payloads, as bytes and as values.

Both ends use it. ``REQUESTS`` says what a request carries and ``REPLIES`` what answers those that have an
answer of their own; every codec checks the size of what it is given. Numbers are in the machine's byte order.

Spec: vhost-user (QEMU docs/interop/vhost-user.rst, 10.2), "Message Specification".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from ringway.errors import ProtocolError

T = TypeVar("T")

HEADER: Final = struct.Struct("=III")
VERSION: Final = 1
VERSION_MASK: Final = 3
MAX_PAYLOAD: Final = 4096  #: bytes; the largest payload that we know (32 regions) has 1032
MAX_CONFIG: Final = 256  #: bytes of a configuration space
MAX_TABLE_REGIONS: Final = 32  #: QEMU sends 8 at most, rust-vmm 32
MAX_MEM_SLOTS: Final = 509  #: what the kernel's vhost has, and front ends are sized for
MAX_RING_SIZE: Final = 32768
VRING_F_LOG: Final = 1  #: flag of SET_VRING_ADDR
NO_FD: Final = 1 << 8  #: flag of SET_VRING_KICK, CALL and ERR: no fd comes along
INDEX_MASK: Final = 0xFF

LOG_ALL: Final = 1 << 26  #: VHOST_F_LOG_ALL, a virtio feature bit that no guest sees
PROTOCOL_FEATURES: Final = 1 << 30  #: VHOST_USER_F_PROTOCOL_FEATURES, likewise


class Flag(IntFlag):
    """The header's flags, beside the version."""

    REPLY = 0x4
    NEED_REPLY = 0x8


class ProtocolFeature(IntFlag):
    """Extensions of the protocol that both ends agree on."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


class Request(IntEnum):
    """What a front end asks of a back end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class BackendRequest(IntEnum):
    """What a back end asks of a front end, on the channel of SET_BACKEND_REQ_FD."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5


@dataclass(frozen=True, slots=True)
class VringState:
    """A ring's number, and a number about it: size, base, or whether it is enabled."""

    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringAddress:
    """Where a ring lies. The three addresses are the front end's own, ``log`` is guest physical."""

    index: int
    flags: int
    descriptors: int
    used: int
    available: int
    log: int


@dataclass(frozen=True, slots=True)
class VringFd:
    """What SET_VRING_KICK, CALL and ERR say beside their fd; ``has_fd`` is whether one comes along."""

    index: int
    has_fd: bool


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """A piece of guest memory. Addresses and size in bytes; ``mmap_offset`` is where it starts in its fd."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class LogArea:
    """The dirty log's place in its fd, in bytes."""

    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class ConfigSpace:
    """A piece of the configuration space; ``data`` is empty in the request of some front ends."""

    offset: int
    size: int
    flags: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Inflight:
    """The in-flight region. ``padding`` is what follows it on the wire: QEMU sends a padded C structure (24
    bytes, not the 20 of the specification) and takes no other size for an answer."""

    mmap_size: int
    mmap_offset: int
    queues: int
    queue_size: int
    padding: bytes = b""


def _expect(payload: bytes, *sizes: int) -> None:
    if len(payload) not in sizes:
        wanted = " or ".join(str(size) for size in sizes)
        raise ProtocolError(f"a payload of {len(payload)} bytes where {wanted} are due")


class Codec(Generic[T]):
    """A payload of one fixed layout.

    :param layout: of :mod:`struct`. :param build: makes the value of the fields. :param fields: the reverse.
    """

    def __init__(self, layout: str, build: Callable[..., T], fields: Callable[[T], tuple[Any, ...]]) -> None:
        self._struct = struct.Struct(layout)
        self._build = build
        self._fields = fields

    def pack(self, value: T) -> bytes:
        return self._struct.pack(*self._fields(value))

    def unpack(self, payload: bytes) -> T:
        """:raises ProtocolError: the size is wrong."""
        _expect(payload, self._struct.size)
        return self._build(*self._struct.unpack(payload))


class _MemoryTable(Codec[tuple[MemoryRegion, ...]]):
    """A count and that many regions."""

    def __init__(self) -> None:
        self._head = struct.Struct("=II")
        self._region = struct.Struct("=QQQQ")

    def pack(self, value: tuple[MemoryRegion, ...]) -> bytes:
        regions = (self._region.pack(*astuple(region)) for region in value)
        return self._head.pack(len(value), 0) + b"".join(regions)

    def unpack(self, payload: bytes) -> tuple[MemoryRegion, ...]:
        if len(payload) < self._head.size:
            raise ProtocolError(f"a memory table of {len(payload)} bytes")
        count, _ = self._head.unpack_from(payload)
        if count > MAX_TABLE_REGIONS:
            raise ProtocolError(f"a memory table of {count} regions, {MAX_TABLE_REGIONS} are allowed")
        _expect(payload, self._head.size + count * self._region.size)
        return tuple(MemoryRegion(*row) for row in self._region.iter_unpack(payload[self._head.size :]))


class _Config(Codec[ConfigSpace]):
    """Offset, size, flags, and the bytes. Spec: vhost-user, "Virtio device config space"."""

    def __init__(self) -> None:
        self._head = struct.Struct("=III")

    def pack(self, value: ConfigSpace) -> bytes:
        return self._head.pack(value.offset, value.size, value.flags) + value.data

    def unpack(self, payload: bytes) -> ConfigSpace:
        if len(payload) < self._head.size:
            raise ProtocolError(f"a configuration message of {len(payload)} bytes")
        offset, size, flags = self._head.unpack_from(payload)
        _expect(payload, self._head.size, self._head.size + size)
        return ConfigSpace(offset, size, flags, payload[self._head.size :])


class _Inflight(Codec[Inflight]):
    """Twenty bytes, or QEMU's twenty-four."""

    def __init__(self) -> None:
        self._body = struct.Struct("=QQHH")

    def pack(self, value: Inflight) -> bytes:
        body = self._body.pack(value.mmap_size, value.mmap_offset, value.queues, value.queue_size)
        return body + value.padding

    def unpack(self, payload: bytes) -> Inflight:
        _expect(payload, self._body.size, self._body.size + 4)
        mmap_size, mmap_offset, queues, queue_size = self._body.unpack_from(payload)
        return Inflight(mmap_size, mmap_offset, queues, queue_size, payload[self._body.size :])


def _vring_fd(number: int) -> VringFd:
    return VringFd(number & INDEX_MASK, not number & NO_FD)


def _vring_fd_fields(value: VringFd) -> tuple[int]:
    return (value.index | (0 if value.has_fd else NO_FD),)


EMPTY: Final = Codec[None]("=", lambda: None, lambda _: ())
U64: Final = Codec[int]("=Q", int, lambda number: (number,))
STATE: Final = Codec[VringState]("=II", VringState, astuple)
ADDRESS: Final = Codec[VringAddress]("=IIQQQQ", VringAddress, astuple)
VRING_FD: Final = Codec[VringFd]("=Q", _vring_fd, _vring_fd_fields)
MEMORY_TABLE: Final = _MemoryTable()
MEMORY_REGION: Final = Codec[MemoryRegion]("=8xQQQQ", MemoryRegion, astuple)
LOG: Final = Codec[LogArea]("=QQ", LogArea, astuple)
CONFIG: Final = _Config()
INFLIGHT: Final = _Inflight()

#: What each request that we understand carries.
REQUESTS: Final[Mapping[Request, Codec[Any]]] = MappingProxyType(
    {
        Request.GET_FEATURES: EMPTY,
        Request.SET_FEATURES: U64,
        Request.SET_OWNER: EMPTY,
        Request.RESET_OWNER: EMPTY,
        Request.SET_MEM_TABLE: MEMORY_TABLE,
        Request.SET_LOG_BASE: LOG,
        Request.SET_LOG_FD: EMPTY,
        Request.SET_VRING_NUM: STATE,
        Request.SET_VRING_ADDR: ADDRESS,
        Request.SET_VRING_BASE: STATE,
        Request.GET_VRING_BASE: STATE,
        Request.SET_VRING_KICK: VRING_FD,
        Request.SET_VRING_CALL: VRING_FD,
        Request.SET_VRING_ERR: VRING_FD,
        Request.GET_PROTOCOL_FEATURES: EMPTY,
        Request.SET_PROTOCOL_FEATURES: U64,
        Request.GET_QUEUE_NUM: EMPTY,
        Request.SET_VRING_ENABLE: STATE,
        Request.SET_BACKEND_REQ_FD: EMPTY,
        Request.GET_CONFIG: CONFIG,
        Request.SET_CONFIG: CONFIG,
        Request.GET_INFLIGHT_FD: INFLIGHT,
        Request.SET_INFLIGHT_FD: INFLIGHT,
        Request.RESET_DEVICE: EMPTY,
        Request.GET_MAX_MEM_SLOTS: EMPTY,
        Request.ADD_MEM_REG: MEMORY_REGION,
        Request.REM_MEM_REG: MEMORY_REGION,
        Request.SET_STATUS: U64,
        Request.GET_STATUS: EMPTY,
    }
)

#: What answers the requests that have an answer of their own, asked for or not.
REPLIES: Final[Mapping[Request, Codec[Any]]] = MappingProxyType(
    {
        Request.GET_FEATURES: U64,
        Request.SET_LOG_BASE: LOG,
        Request.GET_VRING_BASE: STATE,
        Request.GET_PROTOCOL_FEATURES: U64,
        Request.GET_QUEUE_NUM: U64,
        Request.GET_CONFIG: CONFIG,
        Request.GET_INFLIGHT_FD: INFLIGHT,
        Request.GET_MAX_MEM_SLOTS: U64,
        Request.GET_STATUS: U64,
    }
)


def request_name(number: int) -> str:
    """The request's name in the specification, for logs."""
    return Request(number).name if number in Request._value2member_map_ else f"request {number}"
