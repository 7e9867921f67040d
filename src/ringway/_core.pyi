"""The Rust core: guest memory, vrings, workers, stores.

I/O threads never enter Python. Python pulls what a worker cannot decide with :meth:`Device.next_command`
and completes it by tag. File descriptors come in as integers and are duplicated at the border, so the
caller keeps its own. All methods are safe to call from several threads; blocking ones release the GIL.
"""

from collections.abc import Sequence
from typing import Literal, final

__all__ = [
    "GATE_ATTENTION",
    "GATE_NO_READ",
    "GATE_NO_WRITE",
    "MAX_SLOW_DATA",
    "Command",
    "Device",
    "DirtyLog",
    "Generations",
    "InflightRegion",
    "LoadDriver",
    "Region",
    "Store",
    "Trace",
    "__version__",
    "cache_line_ns",
    "copies_per_second",
    "inflight_size",
    "latency_bucket_bounds",
]

__version__: str

#: Bits of a LUN's gate word. Zero means that every hot command may run without asking Python.
GATE_ATTENTION: int  #: every command goes to the slow path (a unit attention waits, or the unit is stopped)
GATE_NO_READ: int  #: commands that read the medium go to the slow path
GATE_NO_WRITE: int  #: commands that change the medium go to the slow path
MAX_SLOW_DATA: int  #: bytes of data-out that a slow command carries at most

def inflight_size(queues: int, queue_size: int) -> int:
    """Bytes of an in-flight region for split rings. Spec: vhost-user, "Inflight I/O tracking"."""

@final
class Region:
    """Guest memory that a front end shares, mapped for the life of the object.

    :param fd: the memory; duplicated, or rather mapped: it may be closed afterwards.
    :param guest_address: guest physical address of the first byte.
    :param size_bytes: length; neither it nor the addresses need to be multiples of a page.
    :param user_address: the front end's own virtual address (vring addresses are given in these).
    :param mmap_offset: offset of the first byte in the fd.
    :raises ValueError: empty, or an address range that wraps.
    :raises OSError: the fd cannot be mapped, or is shorter than offset + size.
    """

    def __new__(
        cls, fd: int, *, guest_address: int, size_bytes: int, user_address: int, mmap_offset: int
    ) -> Region: ...
    @property
    def guest_address(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def user_address(self) -> int: ...
    @property
    def mmap_offset(self) -> int: ...
    @property
    def identity(self) -> tuple[int, int]:
        """(st_dev, st_ino) of the memory's file: with the four numbers, what makes two regions the same."""

@final
class InflightRegion:
    """Shared memory in which a back end marks the requests that it holds (survives its death).

    :raises OSError: the fd cannot be mapped.
    :raises ValueError: ``size_bytes`` is less than ``inflight_size(queues, queue_size)``.
    """

    def __new__(
        cls, fd: int, *, mmap_offset: int, size_bytes: int, queues: int, queue_size: int
    ) -> InflightRegion: ...

@final
class DirtyLog:
    """The bitmap of pages that the back end wrote, one bit for 4 KiB of guest physical memory.

    :raises OSError: the fd cannot be mapped.
    """

    def __new__(cls, fd: int, *, mmap_offset: int, size_bytes: int) -> DirtyLog: ...

@final
class Store:
    """An open backstore. The methods here are the slow path's; guests' I/O never enters Python.

    Every method blocks, releases the GIL, and raises OSError (EIO: a mapped file shrank;
    ENOSPC; EINVAL: beyond the end).
    """

    @staticmethod
    def null(size_bytes: int) -> Store:
        """A disk that forgets: writes are dropped, reads leave the guest's buffer as it was."""
    @staticmethod
    def ram(size_bytes: int) -> Store:
        """A disk in this process's anonymous memory, zero at first."""
    @staticmethod
    def file(
        fd: int,
        *,
        size_bytes: int,
        writable: bool,
        direct: bool = False,
        mapped: bool = False,
        discard: bool = True,
        memory_align: int = 1,
        offset_align: int = 1,
    ) -> Store:
        """A raw file or a block device.

        :param fd: open for reading (and writing if ``writable``), with O_DIRECT if ``direct``.
        :param mapped: serve it by loads and stores (it lies in memory: tmpfs, hugetlbfs, DAX).
        :param discard: the medium takes FALLOC_FL_PUNCH_HOLE; without it a discard does nothing.
        :param memory_align: bytes; buffers that are not so aligned go through a bounce buffer.
        :param offset_align: bytes; requests are multiples of it (the logical block is at least as large).
        """
    @property
    def kind(self) -> Literal["null", "ram", "mapped", "file"]: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    @property
    def discard(self) -> bool: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None: ...
    def zero(self, offset: int, length: int, *, unmap: bool = False) -> None: ...
    def flush(self) -> None: ...

@final
class Command:
    """A request that a worker could not finish.

    ``kind``:

    * ``"cdb"``: a SCSI command for :meth:`Device.complete` or :meth:`Device.resume`;
    * ``"control"``: a control-queue request (``data_out`` is the whole readable part) for
      :meth:`Device.complete_control`;
    * ``"broken"``: no request, a notice: queue ``queue`` was stopped, ``failure`` says why. Not completed.
    """

    @property
    def kind(self) -> Literal["cdb", "control", "broken"]: ...
    @property
    def tag(self) -> int:
        """Handle for the completion; dead after it, or after the queue stopped."""
    @property
    def dead(self) -> bool:
        """Whether the queue let go of it: nobody waits for it any more, and it must not be done."""
    @property
    def queue(self) -> int: ...
    @property
    def lun(self) -> bytes:
        """The eight LUN bytes of the request header. Spec: virtio 1.3, 5.6.6.1."""
    @property
    def id(self) -> int: ...
    @property
    def instance(self) -> int:
        """The LUN that it is for: see :meth:`Device.lun_instance`. Zero: there was none at its address.

        Another may have come there since, which it is not for.
        """
    @property
    def task_attribute(self) -> int: ...
    @property
    def cdb(self) -> bytes:
        """32 bytes, zero-padded."""
    @property
    def data_out(self) -> bytes:
        """At most MAX_SLOW_DATA bytes of data-out; ``data_out_size`` has the true length."""
    @property
    def data_out_size(self) -> int: ...
    @property
    def data_in_size(self) -> int:
        """Bytes of the guest's data-in buffer."""
    @property
    def failure(self) -> str:
        """Empty when the worker merely asks. Else why a hot command failed: ``"range"`` (beyond the end),
        ``"read_only"``, ``"no_lun"``, ``"field"`` (a CDB field the hot path refuses), ``"parameter"`` (bad
        parameter
        list), ``"overrun"`` (guest's buffer smaller than the transfer), or ``"errno:N"`` (the store's)."""

@final
class Device:
    """The data path of one virtio device: queues on worker threads over LUNs.

    :param kind: ``"scsi"`` (queue 0 control, 1 event, the rest requests) or ``"blk"`` (all requests, LUN
        (0, 0)).
    :param queues: virtqueues in all.
    :param workers: threads; queue *i* runs on worker ``i % workers`` (scsi: request queues are spread).
    :param cpus: host CPUs to pin workers to, in turn; none: not pinned.
    :param poll: ``"interrupt"`` sleeps at once, ``"poll"`` never sleeps, ``"adaptive"`` spins while it pays.
    :param engine: ``"auto"`` takes io_uring where the kernel allows it.
    :raises OSError: threads, eventfds or a demanded io_uring cannot be had.
    :raises ValueError: numbers out of range.
    """

    def __new__(
        cls,
        kind: Literal["scsi", "blk"],
        *,
        queues: int,
        workers: int = 1,
        cpus: Sequence[int] | None = None,
        poll: Literal["interrupt", "adaptive", "poll"] = "adaptive",
        engine: Literal["auto", "uring", "epoll"] = "auto",
    ) -> Device: ...
    @property
    def engine(self) -> Literal["uring", "epoll"]: ...
    @property
    def engine_reason(self) -> str | None:
        """What the kernel said against io_uring, if ``"auto"`` had to do without."""
    def close(self) -> None:
        """Stop and join the workers; idempotent. Requests in flight are waited for, ten seconds at most."""

    # LUNs
    def set_lun(
        self,
        target: int,
        lun: int,
        store: Store,
        *,
        block_size: int,
        serial: bytes | None = None,
        timeout_s: float = 10.0,
    ) -> bool:
        """Add a LUN, or swap the store under one between two requests (gate and statistics are kept).

        :param block_size: 512 or 4096.
        :param serial: blk only: the GET_ID answer, at most 20 bytes.
        :returns: whether no request uses the old store any more.
        """
    def remove_lun(self, target: int, lun: int, *, timeout_s: float = 10.0) -> bool:
        """:returns: whether no request uses it any more. :raises KeyError: no such LUN."""
    def lun_instance(self, target: int, lun: int) -> int:
        """Which of all LUNs that there have been is at an address: never zero, and unique in this process.

        :raises KeyError: no such LUN.
        """
    def set_gate(self, target: int, lun: int, word: int, *, instance: int | None = None) -> None:
        """Publish what of the hot path a LUN allows (``GATE_*``).

        :param instance: that LUN alone, and no later one at its address. :raises KeyError: no such LUN.
        """
    def set_limit(
        self, target: int, lun: int, *, iops: int = 0, bytes_per_s: int = 0, burst_s: float = 0.0
    ) -> None:
        """Limit what guests may do to a LUN, from now on and whatever waits; 0 is no limit.

        It outlives a swap of the store. Costs guests nothing while there is none.

        :raises KeyError: no such LUN.
        """
    def lock_range(
        self,
        target: int,
        lun: int,
        offset: int,
        length: int,
        *,
        reads: bool = True,
        timeout_s: float = 10.0,
        instance: int | None = None,
    ) -> int | None:
        """Hold back writes (and reads) of guests to a range of bytes; wait for those in flight.

        Costs guests nothing while nobody holds a lock.

        :param instance: as for :meth:`set_gate`.
        :returns: a handle for :meth:`unlock_range`, or ``None`` (nothing is locked) when others held on too
            long.
        :raises KeyError: no such LUN.
        """
    def unlock_range(self, target: int, lun: int, handle: int) -> None: ...

    # the front end
    def set_features(self, features: int) -> None:
        """Virtio features that the front end acknowledged: EVENT_IDX, LOG_ALL and T10_PI (59-byte request
        header,
        as Linux lays it out) matter here."""
    def set_writeback(self, enabled: bool) -> None:
        """blk: whether a write may be acknowledged before it is stable. Off: every write is FUA."""
    def doubt_writeback(self) -> None:
        """blk: the guest may have chosen write-through with a back end that died, which nobody repeats to its
        successor. Every write is FUA until the guest's next flush: who flushes knows of the cache.
        """
    def set_memory(self, regions: Sequence[Region], *, timeout_s: float = 1.0) -> bool:
        """Swap the memory map at a batch border.

        :returns: whether no request uses a dropped region any more.
        :raises ValueError: two regions overlap.
        """
    def set_log(self, log: DirtyLog | None) -> None: ...
    def start_queue(
        self,
        index: int,
        *,
        size: int,
        descriptors: int,
        available: int,
        used: int,
        base: int,
        kick_fd: int | None,
        call_fd: int | None,
        log_address: int | None = None,
        inflight: InflightRegion | None = None,
    ) -> None:
        """Make a ring ready; it is served once it is enabled too. Requests that the in-flight region holds
        are run
        again first, in their order.

        :param descriptors: user address of the descriptor table; ``available``, ``used``: of the rings.
        :param base: next available index. With an in-flight region: the used index (trap T7), or where a
            fresh
            region's ring goes on (T8).
        :param kick_fd: eventfd; ``None``: the ring is polled.
        :param log_address: guest physical address for logging writes to the used ring.
        :raises ValueError: size no power of two up to 32768, or an address outside of the memory map or
            misaligned.
        """
    def is_used(self, size: int, used: int) -> bool:
        """Whether a device ever used a used ring of ``size`` entries at a user address.

        A driver hands over a zeroed one. What was used stays so when the indices wrap to zero. An address
        outside of the memory map is not used.
        """
    def enable_queue(self, index: int, enabled: bool) -> None: ...
    def set_queue_call(self, index: int, fd: int | None) -> None:
        """Replace the call eventfd; the guest is signalled once through the new one (an interrupt may have
        been lost)."""
    def set_queue_log(self, index: int, log_address: int | None) -> None: ...
    def stop_queue(self, index: int, *, timeout_s: float = 5.0) -> int:
        """Stop a ring: pop no more, finish what is in flight.

        Requests that do not finish in time are failed to the guest as BUSY (scsi) or IOERR (blk) and their
        store's
        I/O is cancelled. The back end touches guest memory no more when this returns, except for reads that
        the kernel could not cancel: :meth:`drain` says whether there are any.

        :returns: the next available index, for GET_VRING_BASE. A ring that was not started answers its last
            base.
        """

    # the slow path
    def next_command(self, timeout_s: float | None = None) -> Command | None:
        """Wait for a command; ``None`` after the time-out, or when the device was closed or :meth:`wake`
        called. Dead ones are dropped."""
    def wait_command(self, timeout_s: float | None = None) -> bool:
        """Wait until there is something to take; false after the time-out, when the device was closed or
        :meth:`wake` called."""
    def wake(self) -> None:
        """Let one waiting :meth:`next_command` return ``None``."""
    def complete(
        self,
        tag: int,
        *,
        response: int,
        status: int = 0,
        sense: bytes | None = None,
        data: bytes | None = None,
        taken: int | None = None,
    ) -> None:
        """Finish a SCSI command. Data-in longer than the guest's buffer becomes OVERRUN; residual and
        ``used.len`` are
        computed here. A dead tag is ignored.

        :param response: VIRTIO_SCSI_S_*.
        :param sense: at most 96 bytes.
        :param taken: bytes of data-out that were used, for the residual; ``None``: all when it went well,
            else none.
        """
    def complete_control(self, tag: int, response: bytes) -> None: ...
    def resume(self, tag: int) -> None:
        """Run a command on the hot path, past the gate. Only for commands that came without ``failure``."""
    def post_event(self, event: int, lun: bytes, reason: int) -> None:
        """Queue an event for the guest (scsi). Without a buffer it is dropped and the next one says
        EVENTS_MISSED."""
    def drain(
        self,
        *,
        target: int | None = None,
        lun: int | None = None,
        id: int | None = None,
        instance: int | None = None,
        cancel: bool = False,
        timeout_s: float = 5.0,
    ) -> bool:
        """Wait until what is in flight now, on the hot path, and matches, is finished. New requests go on.

        :param target: with ``lun`` an address: what was sent to a LUN that is gone from there counts, too.
        :param id: one command, by its virtio tag. :param cancel: ask the kernel to cancel it.
        :param instance: of one LUN alone: see :meth:`lun_instance`.
        :returns: whether all finished in time.
        """
    def start_trace(
        self,
        *,
        interval: int = 1,
        capacity: int = 16384,
        queue: int | None = None,
        lun: tuple[int, int] | None = None,
    ) -> Trace:
        """Follow one of each ``interval`` requests of a queue, chosen at random among them.

        Costs nothing while no trace is on.

        :param capacity: samples that wait to be taken, for each worker; more are dropped and counted.
        :param queue: this virtqueue alone. :param lun: this (target, LUN) alone.
        :raises OSError: EBUSY: a trace is on already; EIO: a worker is dead.
        :raises ValueError: numbers out of range.
        """
    def statistics(self) -> dict[str, list[dict[str, int | list[int]]]]:
        """Counters since the start, without stopping anybody.

        :returns: ``{"luns": [...], "queues": [...], "workers": [...]}``. A LUN row is one (queue, target,
            lun):
            ``queue target lun reads writes flushes unmaps other errors read_bytes write_bytes`` and
            ``read_latency write_latency``: counts for each bucket of :func:`latency_bucket_bounds`. A queue
            row:
            ``queue kicks signals batches requests slow_commands in_flight running``. A worker row:
            ``worker thread sleeps spins alarms foreseen loops cpu_ns``.
        """

@final
class Trace:
    """Samples of requests, until :meth:`close` or the end of the object."""

    def take(self, most: int) -> list[dict[str, int | str | bool | None]]:
        """Take finished samples, at most so many; none after :meth:`close`.

        A row: ``queue head target lun operation opcode bytes wake carrier parked notice``, and times in
        nanoseconds
        since the trace began, by the clock of the request's worker: ``absent_ns`` (last look at the ring at
        which it
        was not there; ``None``: unknown), ``woken_ns`` (``None``: the worker was awake), ``seen_ns``,
        ``dequeued_ns``, ``dispatched_ns``, ``completed_ns``, ``enqueued_ns``, ``notified_ns`` (``None``: not
        signalled). They never run backwards in this order.
        """
    @property
    def dropped(self) -> int:
        """Samples that found no room so far: among those that wait, or among those under way."""
    def close(self) -> None:
        """End it; no request is followed any more when this returns. Idempotent."""

def latency_bucket_bounds() -> list[int]:
    """Upper bounds in nanoseconds of the log-linear latency buckets (the last one is open)."""

def cache_line_ns(cpus: tuple[int, int], *, seconds: float = 0.01) -> float:
    """Nanoseconds that a cache line takes from one CPU to the other and back (median).

    :raises ValueError: this process may not run on one of them.
    """

def copies_per_second(
    *,
    block_bytes: int,
    buffers: int = 32,
    store_bytes: int = 256 << 20,
    cpu: int | None = None,
    seconds: float = 0.1,
) -> float:
    """Plain copies a second out of random places of a store in memory into buffers in turn, on one CPU.

    :raises ValueError: no block fits, or this process may not run there.
    """

@final
class Generations:
    """What each block of a disk holds, so far as a verifying load knows; outlives a run.

    Two ``uint32`` a block: the last write that was acknowledged (0: none), and the last that was submitted.
    """

    def __new__(cls, blocks: int) -> Generations: ...
    @property
    def acknowledged(self) -> list[int]: ...
    @property
    def issued(self) -> list[int]: ...

@final
class LoadDriver:
    """A polling virtio driver: the guest's side of some queues, for benchmarks and verifying loads.

    It owns no socket: Python does the vhost-user handshake, maps the memory, and hands over the addresses.
    The memory's first byte is guest physical address 0.

    :param memory_fd: the memory that was shared with the back end (a memfd), mapped here whole.
    :param rings: for each request queue: offsets in the memory of (descriptors, available, used).
    :param kick_fds: eventfds, one a queue.
    :param data_offset: bytes; request headers and buffers lie from here to the end.
    :param timeout_s: how long a device that has requests may be silent.
    :raises ValueError: rings that do not rest or do not fit.
    """

    def __new__(
        cls,
        memory_fd: int,
        *,
        kind: Literal["scsi", "blk"],
        rings: Sequence[tuple[int, int, int]],
        queue_size: int,
        kick_fds: Sequence[int],
        data_offset: int,
        event_idx: bool,
        indirect: bool,
        timeout_s: float = 10.0,
    ) -> LoadDriver: ...
    def run(
        self,
        *,
        seconds: float,
        block_bytes: int,
        depth: int,
        size_bytes: int,
        read_percent: int = 100,
        sequential: bool = False,
        luns: int = 1,
        batch: int = 1,
        burst: int = 0,
        rate_iops: float = 0.0,
        cpu: int | None = None,
        seed: int = 1,
        sector_bytes: int = 512,
    ) -> dict[str, int | float | list[int]]:
        """Drive the queues from this thread and measure.

        :param depth: requests in flight for each queue. :param size_bytes: of each disk, from block 0.
        :param batch: slots that must be free before any is filled again.
        :param burst: completions that are taken, at most, before their successors are published; 0: all.
        :param rate_iops: offered load over all queues, latency counted from when a request was due; 0:
            closed loop.
        :returns: ``requests errors read_bytes write_bytes flushes checked unsent kicks seconds
            cpu_seconds`` and
            ``latency`` (counts by bucket).
        :raises TimeoutError: a queue fell silent. :raises OSError: the device broke a ring (EILSEQ).
        """
    def verify(
        self,
        state: Generations,
        *,
        size_bytes: int,
        block_bytes: int = 4096,
        depth: int = 8,
        seconds: float | None = None,
        requests: int = 0,
        lun: int = 0,
        seed: int = 1,
        sector_bytes: int = 512,
        generation_base: int = 0,
        flush_every: int = 0,
    ) -> dict[str, int | float | list[int]]:
        """Write and read at random, check each read, then sweep the disk. ``state`` stays true whatever
        happens.

        :param seconds: of the mixed load; ``None``: ``requests`` of it.
        :raises OSError: EILSEQ, and the first block that did not hold what was acknowledged.
        """
