"""The LUNs of one endpoint: opening and closing them, and owning their stores, all together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from ringway import _core
from ringway.errors import ConflictError, NotFoundError, RingwayError, TimedOutError
from ringway.model import DeviceKind, Limits, LunInfo, LunSpec, SpecKind, StoreKind
from ringway.target.backstore import Backstore, open_backstore
from ringway.target.blk_device import serial_bytes

_log: Final = logging.getLogger(__name__)

#: Seconds that the slow path's present request for a LUN has to end in when that is removed.
SETTLE_S: Final = 2.0
#: Seconds that a request has to end in for a LUN that was removed before: a look, rather than a wait.
_LOOK_S: Final = 0.01


class LunListener(Protocol):
    """What of a device's face follows the LUNs."""

    def check_new_lun(self, target: int, lun: int) -> None:
        """:raises UsageError: the device cannot have such a LUN. Nothing was opened yet."""

    def lun_added(self, target: int, lun: int, backstore: Backstore, serial: str) -> None:
        """The core serves it from now on: show it. :raises RingwayError: it cannot be shown."""

    def lun_resized(self, target: int, lun: int, backstore: Backstore) -> None:
        """The core serves the new store from now on: show its size."""

    def lun_reloaded(self, target: int, lun: int, backstore: Backstore) -> None:
        """As :meth:`lun_resized`, before a guest comes that knows the size: it is not told."""

    def lun_removed(self, target: int, lun: int) -> None:
        """Show it no more; the core still serves it. :raises UsageError: it cannot be removed."""

    def settled(self, timeout_s: float, target: int | None = None, lun: int | None = None) -> bool:
        """Wait until no request of the slow path uses the store (of a LUN). :returns: whether none does."""


@dataclass(frozen=True, slots=True)
class Lun:
    """An open LUN."""

    target: int
    lun: int
    backstore: Backstore
    serial: str
    limits: Limits

    def info(self) -> LunInfo:
        """What to tell of it."""
        backstore = self.backstore
        return LunInfo(
            target=self.target,
            lun=self.lun,
            kind=backstore.kind,
            name=backstore.name,
            size_bytes=backstore.geometry.size_bytes,
            block_size=backstore.geometry.block_size,
            readonly=backstore.readonly,
            mapped=backstore.mapped,
            direct=backstore.direct,
            serial=self.serial,
            ownership=backstore.ownership.state,
            epoch=backstore.ownership.epoch,
            limits=self.limits,
        )


class LunTable:
    """All LUNs of an endpoint. Changes come one at a time, from any thread."""

    def __init__(self, core: _core.Device, kind: DeviceKind, listener: LunListener) -> None:
        self._core = core
        self._kind = kind
        self._listener = listener
        self._lock = threading.RLock()
        self._luns: dict[tuple[int, int], Lun] = {}
        self._lingering: list[Lun] = []  # removed, but requests that do not end still use them

    def __iter__(self) -> Iterator[Lun]:
        """The LUNs by address."""
        return iter([lun for _, lun in sorted(self._luns.items())])

    def add(self, spec: LunSpec, *, claim: bool = True, fd: int | None = None) -> LunInfo:
        """Open a backstore and serve it.

        On failure nothing is served that was not before, and nothing stays open.

        :param claim: own it at once; without, :meth:`acquire_later` does.
        :raises ConflictError: the address is taken. :raises RingwayError: as ``open_backstore``.
        """
        self.reap()
        with self._lock:
            self._check_new(spec)
        backstore = open_backstore(spec.backstore, claim=claim, fd=fd)  # for as long as its medium likes
        try:
            return self.add_open(spec, backstore)
        except BaseException:
            backstore.close()
            raise

    def add_open(self, spec: LunSpec, backstore: Backstore) -> LunInfo:
        """Serve an open backstore, which is the table's from then on; on failure it stays the caller's.

        :raises ConflictError: the address is taken. :raises UsageError: the device cannot have such a LUN.
        """
        address = (spec.target, spec.lun)
        with self._lock:
            self._check_new(spec)
            lun = Lun(*address, backstore, backstore.serial(*address), spec.limits)
            self._serve(lun)
            self._luns[address] = lun
            return lun.info()

    def remove(self, target: int, lun: int) -> None:
        """Take a LUN away and close it once its requests are done.

        :raises NotFoundError: no such LUN.
        :raises TimedOutError: it is gone for the guest, but requests to its store do not end; it stays open.
        """
        self.reap()
        with self._lock:
            gone = self._find(target, lun)
            self._listener.lun_removed(target, lun)
            del self._luns[target, lun]
            if not (self._core.remove_lun(target, lun) and self._listener.settled(SETTLE_S, target, lun)):
                self._lingering.append(gone)
                raise TimedOutError(f"LUN {_words(target, lun)} is removed, but its last requests do not end")
            gone.backstore.close()

    def resize(
        self, target: int, lun: int, *, size_bytes: int | None = None, fd: int | None = None
    ) -> LunInfo:
        """Look at a LUN's size again, and serve and show the new one.

        :raises NotFoundError: no such LUN. :raises RingwayError: as ``Backstore.reload``.
        """
        with self._lock:
            found = self._find(target, lun)
            if found.backstore.reload(size_bytes=size_bytes, fd=fd):
                self._set_store(found)
                self._listener.lun_resized(target, lun, found.backstore)
            return found.info()

    def limit(self, target: int, lun: int, limits: Limits) -> LunInfo:
        """Limit what guests may do to a LUN, from now on. :raises NotFoundError: no such LUN."""
        with self._lock:
            limited = replace(self._find(target, lun), limits=limits)
            self._set_limits(limited)
            self._luns[target, lun] = limited
            return limited.info()

    def reap(self) -> None:
        """Close what was removed while requests used it, once they have ended."""
        with self._lock:
            self._lingering = [gone for gone in self._lingering if not self._reaped(gone)]

    @property
    def held(self) -> bool:
        """Whether requests may reach all stores."""
        return all(lun.backstore.ownership.held for lun in self)

    def keep(self) -> bool:
        """Call off a release that still flushes. :returns: whether requests may reach all stores."""
        return all([lun.backstore.ownership.keep() for lun in self])

    def acquire_later(self, when_held: Callable[[], None]) -> None:
        """Own each store as soon as its holder lets go; ``when_held`` is called for each that is obtained."""
        for lun in self:
            if not lun.backstore.ownership.held:
                lun.backstore.ownership.acquire_later(when_held)

    def forget_cached(self) -> None:
        """Drop what the page cache has of the stores: their last owner may have been another host."""
        for lun in self:
            lun.backstore.forget_cached()

    def reload_sizes(self) -> None:
        """Serve the stores in the size that their last owner left them. No request is in flight.

        One that cannot be served so is served as it was.
        """
        with self._lock:
            for lun in self:
                if lun.backstore.spec.kind is SpecKind.PATH:
                    self._reload(lun)

    def flush_unguarded(self, timeout_s: float) -> None:
        """Write back what the page cache has of block devices: their claims do not reach other hosts, where
        the next owner starts without waiting. Nobody uses them.
        """
        stores = [
            lun.backstore.store
            for lun in self
            if lun.backstore.kind is StoreKind.BLOCK
            and not (lun.backstore.direct or lun.backstore.readonly)
            and lun.backstore.ownership.held
        ]
        deadline = time.monotonic() + timeout_s
        flushes = [
            threading.Thread(target=_flush, args=(each,), name="flush", daemon=True) for each in stores
        ]
        for flush in flushes:
            flush.start()
        for flush in flushes:
            flush.join(max(deadline - time.monotonic(), 0.0))
        if any(flush.is_alive() for flush in flushes):
            _log.error("a device is still written back: another host must not read it yet; take --direct")

    def release_later(self, ready: Callable[[], bool]) -> None:
        """Flush the stores and give them up, in the background, once ``ready`` says that nobody uses them."""
        for lun in self:
            lun.backstore.ownership.release_later(lun.backstore.store.flush, ready)

    def close(self) -> None:
        """Close all backstores. The core is closed: nobody uses them."""
        with self._lock:
            for lun in (*self, *self._lingering):
                lun.backstore.close()
            self._luns.clear()
            self._lingering.clear()

    def _check_new(self, spec: LunSpec) -> None:
        address = (spec.target, spec.lun)
        if address in self._luns:
            raise ConflictError(
                f"LUN {_words(*address)} exists", hint="remove it first, or take another number"
            )
        self._listener.check_new_lun(*address)
        self._serial_bytes(spec.backstore.serial or "")

    def _find(self, target: int, lun: int) -> Lun:
        try:
            return self._luns[target, lun]
        except KeyError:
            raise NotFoundError(
                f"there is no LUN {_words(target, lun)}", hint="ringway target info shows them"
            ) from None

    def _reaped(self, gone: Lun) -> bool:
        """Close a removed LUN's backstore if no request is left. (A busy successor makes it wait.)"""
        drained = self._core.drain(target=gone.target, lun=gone.lun, timeout_s=_LOOK_S)
        if drained and self._listener.settled(_LOOK_S, gone.target, gone.lun):
            gone.backstore.close()
            return True
        return False

    def _reload(self, lun: Lun) -> None:
        try:
            if lun.backstore.reload():
                self._set_store(lun)
                self._listener.lun_reloaded(lun.target, lun.lun, lun.backstore)
        except (RingwayError, OSError) as error:
            _log.error("'%s' is served in its old size: %s", lun.backstore.name, error)

    def _serve(self, lun: Lun) -> None:
        """Let the core serve a new LUN, then show it; on failure neither."""
        self._set_store(lun)
        self._set_limits(lun)
        try:
            self._listener.lun_added(lun.target, lun.lun, lun.backstore, lun.serial)
        except BaseException:
            self._core.remove_lun(lun.target, lun.lun)
            raise

    def _serial_bytes(self, serial: str) -> bytes:
        """What GET_ID answers (blk only). :raises UsageError: too long for it."""
        return serial_bytes(serial) if self._kind is DeviceKind.BLK else b""

    def _set_store(self, lun: Lun) -> None:
        """Let the core serve a LUN's present store."""
        self._core.set_lun(
            lun.target,
            lun.lun,
            lun.backstore.store,
            block_size=lun.backstore.geometry.block_size,
            serial=self._serial_bytes(lun.serial),
        )

    def _set_limits(self, lun: Lun) -> None:
        rates = lun.limits
        self._core.set_limit(
            lun.target, lun.lun, iops=rates.iops, bytes_per_s=rates.bytes_per_s, burst_s=rates.burst_s
        )


def _flush(store: _core.Store) -> None:
    try:
        store.flush()
    except OSError as error:
        _log.error("a device could not be written back: %s", error.strerror)


def _words(target: int, lun: int) -> str:
    """``2`` or ``1:2``, as its user writes it."""
    return f"{target}:{lun}" if target else str(lun)
