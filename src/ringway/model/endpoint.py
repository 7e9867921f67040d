"""What a host keeps: endpoints as they are wanted, as they are, and what an engine can do.

An :class:`EndpointSpec` is one document: it names its backstores inside of its LUNs. Two LUNs of the kernel
engine may map the same backstore; they name it alike and describe it alike. A backstore is there for as long
as a LUN maps it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Final

from msgspec import Struct, field

from ringway.errors import UsageError
from ringway.model.target import DeviceKind, IoEngine, Limits, LunSpec, OwnershipState, Poll
from ringway.model.validation import text

MAX_NAME: Final = 63
API_VERSION: Final = "1.0"

_NAME: Final = f"made of letters, digits, _ . and -, {MAX_NAME} at most, the first a letter or a digit"
NAME: Final = rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}"  #: of an object, as a pattern
Name = Annotated[str, text(NAME, _NAME, max_length=MAX_NAME)]
Naa = Annotated[str, text(r"naa\.[0-9a-f]{16}([0-9a-f]{16})?", "'naa.' and 16 or 32 digits of 0-9 and a-f")]
"""An NAA name as it was given: 8 bytes, or 16 for ``naa.6…``. The kernel keeps any; nothing is rewritten."""


def is_name(word: str) -> bool:
    """Whether an object can be called so."""
    return re.fullmatch(NAME, word) is not None


class EngineKind(StrEnum):
    """Who moves the data of an endpoint."""

    USER = "user"  #: our own vhost-user target, a process of its own
    LIO = "lio"  #: the kernel's vhost-scsi


class Protection(StrEnum):
    """T10 protection information that the fabric emulates (``fabric_prot_type``)."""

    NONE = "none"
    TYPE1 = "type1"
    TYPE3 = "type3"


class EndpointSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An endpoint as it is wanted. What is ``None`` is chosen once, at its creation, and kept.

    ``queues``, ``workers``, ``cpus``, ``poll``, ``io_engine`` and ``incoming`` are the user engine's;
    ``nexus`` and ``protection`` are the kernel engine's.
    """

    name: Name
    engine: EngineKind = EngineKind.USER
    device: DeviceKind = DeviceKind.SCSI
    luns: tuple[LunSpec, ...] = ()
    wwpn: Naa | None = None
    queues: int = 1
    workers: int = 1
    cpus: tuple[int, ...] = ()
    poll: Poll = Poll.ADAPTIVE
    io_engine: IoEngine = IoEngine.AUTO
    incoming: bool = False  #: at its start another host may have the disks: a guest that needs them waits
    nexus: Naa | None = None  #: the initiator's name, which persistent reservations hang on
    protection: Protection = Protection.NONE

    def __post_init__(self) -> None:
        """:raises UsageError: two LUNs have one address."""
        addresses = [(lun.target, lun.lun) for lun in self.luns]
        if len(set(addresses)) != len(addresses):
            raise UsageError(
                f"two disks of '{self.name}' have the same target and LUN",
                hint="give each --lun a number of its own",
            )


class EndpointState(StrEnum):
    """How an endpoint is doing."""

    STARTING = "starting"  #: it is being made
    READY = "ready"  #: a front end may come, or is there
    DEGRADED = "degraded"  #: it does not run as it should; ``message`` says why, and it is tried again
    DELETING = "deleting"
    FOREIGN = "foreign"  #: in the kernel, and not ours: shown and never changed
    LOST = "lost"  #: ours, and not known any more: shown and never changed; ``message`` says what to do


class LunStatus(Struct, frozen=True, kw_only=True):
    """A LUN of a running endpoint."""

    target: int
    lun: int
    backstore: str  #: its name
    kind: str  #: block, file, ram, null, pscsi, user
    path: str | None
    size_bytes: int | None
    block_size: int | None
    readonly: bool = False
    serial: str | None = None
    ownership: OwnershipState | None = None
    limits: Limits = Limits()


class EndpointInfo(Struct, frozen=True, kw_only=True):
    """An endpoint as it is."""

    name: str
    engine: EngineKind
    device: DeviceKind
    state: EndpointState
    wwpn: str | None
    nexus: str | None = None
    socket: str | None = None  #: where the front end of the user engine connects
    pid: int | None = None
    connected: bool | None = None  #: a guest uses it; ``None``: it cannot be told
    restarts: int = 0
    message: str | None = None  #: the last words of a target that died, or what is wrong
    generation: int = 0  #: counts the changes of its specification
    luns: tuple[LunStatus, ...] = ()
    spec: EndpointSpec | None = None  #: ``None`` for a foreign one


class BackstoreInfo(Struct, frozen=True, kw_only=True):
    """A backstore, and which LUNs map it (``ENDPOINT/TARGET:LUN``)."""

    name: str
    engine: EngineKind
    kind: str
    path: str | None
    size_bytes: int | None
    block_size: int | None = None
    serial: str | None = None
    foreign: bool = False
    used_by: tuple[str, ...] = ()


class Check(Struct, frozen=True, kw_only=True):
    """One thing that an engine needs or can do."""

    name: str
    ok: bool
    detail: str
    hint: str | None = None


class EngineReport(Struct, frozen=True, kw_only=True):
    """What an engine can do on this host; asked, never assumed."""

    engine: EngineKind
    usable: bool
    version: str  #: of Ringway, or of the kernel
    devices: tuple[DeviceKind, ...]
    backstores: tuple[str, ...]
    limits: bool  #: LUNs can be limited
    resize: bool  #: a guest hears of a new size
    migration: bool  #: a guest can be moved while it runs
    checks: tuple[Check, ...] = ()


class OperationState(StrEnum):
    """How far an operation is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OperationInfo(Struct, frozen=True, kw_only=True):
    """Work that may take longer than a second. ``progress`` goes from 0 to 1; times are RFC 3339."""

    id: str
    description: str
    state: OperationState
    created: str
    updated: str
    progress: float = 0.0
    step: str = ""  #: what it does now
    cancellable: bool = True
    objects: tuple[str, ...] = ()  #: ``endpoint/db0``
    error: str | None = None
    error_code: str | None = None
    error_hint: str | None = None


class Event(Struct, frozen=True, kw_only=True):
    """Something happened to an object. ``kind`` is ``endpoint.created``, ``endpoint.ready``, ….

    Sequence numbers grow by one; a gap tells a reader that it missed some.
    """

    sequence: int
    time: str
    kind: str
    object: str  #: ``endpoint/db0``
    message: str = ""


class Action(StrEnum):
    """What a plan would do to an object."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    KEEP = "keep"


class Change(Struct, frozen=True, kw_only=True):
    """A step of a plan; ``details`` are lines for a person (``lun 0:1: add /dev/sdb``)."""

    action: Action
    object: str  #: ``endpoint/db0``, ``guest/web0``, ``port/p0``
    details: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The object's, without its kind."""
        return self.object.partition("/")[2]


class Plan(Struct, frozen=True, kw_only=True):
    """What would change; ``notes`` are lines about what was left out."""

    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


class HostConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file for ``ringway plan`` and ``ringway apply``: the endpoints that shall be.

    Endpoints that the file does not name stay, unless the caller asks to prune.
    """

    endpoint: tuple[EndpointSpec, ...] = field(default_factory=tuple)


class HostInfo(Struct, frozen=True, kw_only=True):
    """The daemon and its host."""

    ringway: str
    api: str
    pid: int
    hostname: str
    kernel: str
    uptime_s: float
    read_only: bool  #: this socket changes nothing
    engines: tuple[EngineReport, ...]
    endpoints: int
    degraded: int
    checks: tuple[Check, ...] = ()  #: of libvirt and of switches
