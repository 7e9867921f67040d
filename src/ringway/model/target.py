"""The data that all layers share: what a target is made of, and the control socket's
messages.

Everything here is frozen and goes through JSON unchanged.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from ringway.errors import UsageError
from ringway.model.sandbox import SandboxInfo
from ringway.model.validation import text

MAX_TARGET: Final = 255
MAX_LUN: Final = 16383
MAX_QUEUES: Final = 254  #: request queues; with the two others of scsi, all that the core serves
MAX_FETCH: Final = 2048  #: samples in one answer
BLOCK_SIZES: Final = (512, 4096)

DiskPath = Annotated[str, text(r"[^\x00]*", "without zero bytes")]
Target = Annotated[int, Meta(ge=0, le=MAX_TARGET)]
Lun = Annotated[int, Meta(ge=0, le=MAX_LUN)]


class SpecKind(StrEnum):
    """Where a backstore is to be found, as its user names it."""

    PATH = "path"  #: a file or a block device: opening it tells which
    RAM = "ram"
    NULL = "null"
    PSCSI = "pscsi"  #: a SCSI device of this host, passed through; the kernel engine's
    TCMU = "tcmu"  #: a user-space handler of the kernel engine's, as found


class StoreKind(StrEnum):
    """What an open backstore is."""

    FILE = "file"
    BLOCK = "block"
    RAM = "ram"
    NULL = "null"


class Mapped(StrEnum):
    """Whether a file is served by loads and stores."""

    AUTO = "auto"  #: when its file system lies in memory
    ON = "on"
    OFF = "off"


class DeviceKind(StrEnum):
    """The virtio face of an endpoint."""

    SCSI = "scsi"
    BLK = "blk"


class Poll(StrEnum):
    """How a worker waits."""

    INTERRUPT = "interrupt"
    ADAPTIVE = "adaptive"
    POLL = "poll"


class IoEngine(StrEnum):
    """How a worker does I/O."""

    AUTO = "auto"
    URING = "uring"
    EPOLL = "epoll"


class OwnershipState(StrEnum):
    """Who may write to a store, as seen from here."""

    HELD = "held"  #: we may
    RELEASED = "released"  #: we may not, and do not want to
    WANTED = "wanted"  #: we may not yet; it is tried again and again


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What a LUN may do at most; 0 is no limit.

    After a pause it may do ``burst_s`` seconds' worth at once.
    """

    iops: Annotated[int, Meta(ge=0, le=10**9)] = 0
    bytes_per_s: Annotated[int, Meta(ge=0, le=10**15)] = 0
    burst_s: Annotated[float, Meta(ge=0, le=60)] = 0.0


class BackstoreSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A backstore as its user asked for it; nothing is opened yet.

    ``path`` is set for PATH, PSCSI and TCMU, ``size_bytes`` for RAM and NULL. ``block_size`` is the logical
    block, ``None`` the backstore's own. ``force`` overrides that a block device is mounted or held. ``name``
    and ``attributes`` are a host's: the name of the object, and what the kernel engine shall set on it
    (``emulate_tpu``, ``pi_prot_type``, …).
    """

    kind: SpecKind
    path: DiskPath | None = None
    size_bytes: int | None = None
    readonly: bool = False
    direct: bool = False
    block_size: int | None = None
    serial: str | None = None
    mapped: Mapped = Mapped.AUTO
    force: bool = False
    name: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The word for it in messages: the path, or ``ram``, ``null``."""
        return self.path if self.path is not None else str(self.kind)


class LunSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A backstore mapped at an address of an endpoint."""

    target: Target
    lun: Lun
    backstore: BackstoreSpec
    limits: Limits = Limits()


class TargetConfig(Struct, frozen=True):
    """Everything that one endpoint's process is told at its start.

    :raises UsageError: numbers out of range, an address used twice, a blk device with other than one disk.
    """

    device: DeviceKind
    luns: tuple[LunSpec, ...]
    queues: int = 1  #: request queues (scsi has its control and event queue besides)
    workers: int = 1
    cpus: tuple[int, ...] = ()
    poll: Poll = Poll.ADAPTIVE
    io_engine: IoEngine = IoEngine.AUTO
    wwpn: str | None = None
    incoming: bool = False

    def __post_init__(self) -> None:
        """Refuse what no host could serve."""
        _check_range("--queues", self.queues, MAX_QUEUES)
        _check_range("--workers", self.workers, self.queues)
        addresses = [(spec.target, spec.lun) for spec in self.luns]
        if len(set(addresses)) != len(addresses):
            raise UsageError(
                "two disks have the same target and LUN", hint="give each --lun a number of its own"
            )
        if self.device is DeviceKind.BLK and addresses != [(0, 0)]:
            hint = "take --device scsi for several" if addresses else "name it, as in 0=/dev/vg0/db0"
            raise UsageError("a blk device has exactly one disk, at LUN 0", hint=hint)


def _check_range(option: str, value: int, most: int) -> None:
    """:raises UsageError: ``value`` is not in 1 … ``most``."""
    if not 1 <= value <= most:
        why = (
            "no more workers than queues are useful"
            if option == "--workers"
            else "each queue serves guest vCPUs"
        )
        raise UsageError(f"{option} {value} is out of range: 1 to {most}", hint=why)


class Operation(StrEnum):
    """What a traced request asked for, as far as its worker understood it."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    UNMAP = "unmap"
    OTHER = "other"  #: all that the slow path decides, too
    CONTROL = "control"  #: of the scsi control queue


class Wake(StrEnum):
    """How a worker came to look at the ring."""

    KICK = "kick"  #: it slept, and the guest's kick woke it
    POLLING = "polling"  #: it was awake: no kick was needed
    OTHER = "other"  #: it slept, and something else woke it


class Carrier(StrEnum):
    """Who carried a request out."""

    WORKER = "worker"  #: the worker itself, on the spot
    KERNEL = "kernel"  #: by io_uring, or by a thread's system call
    PYTHON = "python"  #: the slow path


class Notice(StrEnum):
    """How the guest heard of a request's end."""

    SIGNALLED = "signalled"
    SUPPRESSED = "suppressed"  #: the driver wants no interrupt for it
    NO_CALL = "no-call"  #: the front end gave no eventfd for calls


class TraceSample(Struct, frozen=True):
    """One request's way. Times are nanoseconds since the trace began; they never run backwards.

    When the guest queued the request, and when it kicked, is not visible to the host: it was between
    ``absent_ns``, the last look at the ring at which it was not there (``None``: before the trace), and
    ``woken_ns`` or, when the worker was awake, ``seen_ns``.
    """

    queue: int
    head: int
    target: int | None
    lun: int | None
    operation: Operation
    opcode: int  #: first byte of the CDB, or the type of a blk request
    bytes: int
    wake: Wake
    carrier: Carrier
    parked: bool  #: it waited for a range lock, or for room on the way to the slow path
    notice: Notice
    absent_ns: int | None
    woken_ns: int | None  #: the worker's sleep ended; ``None``: it was awake
    seen_ns: int
    dequeued_ns: int
    dispatched_ns: int
    completed_ns: int
    enqueued_ns: int  #: the guest could see the answer
    notified_ns: int | None  #: the call eventfd was written


class TraceBatch(Struct, frozen=True):
    """Samples that were finished since the last fetch. ``dropped``: those without room, since the start."""

    samples: tuple[TraceSample, ...]
    dropped: int


class LunInfo(Struct, frozen=True):
    """An open LUN."""

    target: int
    lun: int
    kind: StoreKind
    name: str  #: path, or the kind again
    size_bytes: int
    block_size: int
    readonly: bool
    mapped: bool
    direct: bool
    serial: str
    ownership: OwnershipState
    epoch: int
    limits: Limits = Limits()


class TargetInfo(Struct, frozen=True):
    """What a target is, and whether a front end is there."""

    ringway: str
    pid: int
    device: DeviceKind
    socket: str | None
    io_engine: str
    poll: Poll
    queues: int
    workers: int
    wwpn: str | None
    connected: bool
    luns: tuple[LunInfo, ...]
    sandbox: SandboxInfo


CONTROL_VERSION: Final = 1


class ControlEnvelope(Struct, frozen=True):
    """The two fields that every request has, whatever its verb.

    Read first, to answer the rest with an error.
    """

    version: int
    verb: str


class InfoRequest(Struct, frozen=True, tag="info", tag_field="verb", forbid_unknown_fields=True):
    """Answered with TargetInfo."""

    version: int = CONTROL_VERSION


class StatisticsRequest(Struct, frozen=True, tag="statistics", tag_field="verb", forbid_unknown_fields=True):
    """Answered with TargetStatistics."""

    version: int = CONTROL_VERSION


class TraceStartRequest(Struct, frozen=True, tag="trace-start", tag_field="verb", forbid_unknown_fields=True):
    """Follow one of each ``sample`` requests of a queue from now on, chosen at random; answered with Done.

    One trace runs at a time. It ends with ``trace-stop``, and when the connection that began it ends.
    """

    sample: Annotated[int, Meta(ge=1, le=1 << 31)] = 1
    queue: Annotated[int, Meta(ge=0, le=MAX_QUEUES + 1)] | None = None
    target: Target | None = None
    lun: Lun | None = None
    version: int = CONTROL_VERSION


class TraceFetchRequest(Struct, frozen=True, tag="trace-fetch", tag_field="verb", forbid_unknown_fields=True):
    """Take what was sampled, at most ``most``; answered with TraceBatch."""

    most: Annotated[int, Meta(ge=1, le=MAX_FETCH)] = MAX_FETCH
    version: int = CONTROL_VERSION


class TraceStopRequest(Struct, frozen=True, tag="trace-stop", tag_field="verb", forbid_unknown_fields=True):
    """End this connection's trace; answered with Done."""

    version: int = CONTROL_VERSION


class LunAddRequest(Struct, frozen=True, tag="lun-add", tag_field="verb", forbid_unknown_fields=True):
    """Open a backstore and show it to the guest; answered with LunInfo.

    A file descriptor sent along is served instead of opening ``spec.backstore.path``, which is then a name
    only.
    """

    spec: LunSpec
    version: int = CONTROL_VERSION


class LunRemoveRequest(Struct, frozen=True, tag="lun-remove", tag_field="verb", forbid_unknown_fields=True):
    """Take a LUN away from the guest and close it; answered with Done."""

    target: Target
    lun: Lun
    version: int = CONTROL_VERSION


class LunResizeRequest(Struct, frozen=True, tag="lun-resize", tag_field="verb", forbid_unknown_fields=True):
    """Look at a LUN's size again, and tell the guest; answered with LunInfo.

    ``size_bytes`` is for null, which has no size of its own; ram keeps what it has. A file descriptor sent
    along replaces the open one; it must be of the same file or device.
    """

    target: Target
    lun: Lun
    size_bytes: int | None = None
    version: int = CONTROL_VERSION


class LunLimitRequest(Struct, frozen=True, tag="lun-limit", tag_field="verb", forbid_unknown_fields=True):
    """Limit what guests may do to a LUN, from now on and whatever waits; answered with LunInfo."""

    target: Target
    lun: Lun
    limits: Limits = Limits()
    version: int = CONTROL_VERSION


class DrainRequest(Struct, frozen=True, tag="drain", tag_field="verb", forbid_unknown_fields=True):
    """Wait until what is in flight now is finished; answered with Done."""

    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0
    version: int = CONTROL_VERSION


class QuitRequest(Struct, frozen=True, tag="quit", tag_field="verb", forbid_unknown_fields=True):
    """Stop the target as SIGTERM does; answered with Done before it stops."""

    version: int = CONTROL_VERSION


ControlRequest = (
    InfoRequest
    | StatisticsRequest
    | TraceStartRequest
    | TraceFetchRequest
    | TraceStopRequest
    | LunAddRequest
    | LunRemoveRequest
    | LunResizeRequest
    | LunLimitRequest
    | DrainRequest
    | QuitRequest
)


class Done(Struct, frozen=True):
    """The answer of a verb that has nothing to tell. ``complete`` is false when a time-out cut it short."""

    complete: bool = True


class ErrorRecord(Struct, frozen=True):
    """An error as it crosses a socket; ``code`` is one of ``errors.py``."""

    code: str
    message: str
    hint: str | None = None
