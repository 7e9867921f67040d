"""The LUNs of one endpoint: opening and closing them, and owning their stores, all together."""

from __future__ import annotations

import contextlib
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

#: Seconds that requests on the hot path have to end in when their LUN is removed, or gets another store.
DRAIN_S: Final = 10.0
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

    def settled(self, timeout_s: float, instance: int | None = None) -> bool:
        """Wait until no request of the slow path uses the store (of a LUN). :returns: whether none does."""


@dataclass(frozen=True, slots=True, eq=False)
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
    """All LUNs of an endpoint. Its methods may be called from any thread.

    Changes come one at a time. No file is looked at, opened or closed meanwhile: its file system may hang,
    and other LUNs can still be asked about, added and removed.

    :param owned: whether the LUNs' stores are this target's from the start: not those of a migration's
        destination, which :meth:`acquire_later` obtains.
    """

    def __init__(
        self, core: _core.Device, kind: DeviceKind, listener: LunListener, *, owned: bool = True
    ) -> None:
        self._core = core
        self._kind = kind
        self._listener = listener
        self._owned = owned  # what comes is to be owned from its first moment: guests may use it at once
        self._lock = threading.RLock()
        self._luns: dict[tuple[int, int], Lun] = {}
        # removed, but requests that do not end still use them; by instance: others may be at their addresses
        self._lingering: dict[int, Lun] = {}

    def __iter__(self) -> Iterator[Lun]:
        """The LUNs by address."""
        return iter([lun for _, lun in sorted(self._luns.items())])

    def add(self, spec: LunSpec, *, fd: int | None = None) -> LunInfo:
        """Open a backstore and serve it; own it if this target owns its stores by then.

        On failure nothing is served that was not before, and nothing stays open.

        :raises ConflictError: the address is taken. :raises RingwayError: as ``open_backstore``.
        """
        self.reap()
        while (info := self._try_to_add(spec, fd)) is None:
            _log.debug("the stores changed hands while '%s' was opened: again", spec.backstore)
        return info

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
            instance = self._core.lun_instance(target, lun)
            self._listener.lun_removed(target, lun)
            del self._luns[target, lun]
            self._lingering[instance] = gone
            self._core.remove_lun(target, lun, timeout_s=0)
        if not self._is_settled(instance, DRAIN_S, SETTLE_S):
            raise TimedOutError(f"LUN {_words(target, lun)} is removed, but its last requests do not end")
        self._close_lingering(instance)

    def resize(
        self, target: int, lun: int, *, size_bytes: int | None = None, fd: int | None = None
    ) -> LunInfo:
        """Look at a LUN's size again, and serve and show the new one.

        :raises NotFoundError: no such LUN, or it was removed meanwhile.
        :raises RingwayError: as ``Backstore.reload``.
        """
        with self._lock:
            found = self._find(target, lun)
        if found.backstore.reload(size_bytes=size_bytes, fd=fd):
            self._show(found, self._listener.lun_resized)
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
            lingering = tuple(self._lingering)
        for instance in lingering:
            if self._is_settled(instance, _LOOK_S, _LOOK_S):
                self._close_lingering(instance)

    @property
    def held(self) -> bool:
        """Whether requests may reach all stores."""
        return all(lun.backstore.ownership.held for lun in self)

    def keep(self) -> bool:
        """Call off a release that still flushes.

        :returns: whether requests may reach all stores, and those of LUNs that come from now on.
        """
        while True:
            luns = tuple(self)
            held = all([lun.backstore.ownership.keep() for lun in luns])
            with self._lock:
                if luns == tuple(self):
                    self._owned = self._owned or held
                    return held

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
        with self._lock:
            self._owned = False
            luns = tuple(self)
        for lun in luns:
            lun.backstore.ownership.release_later(lun.backstore.store.flush, ready)

    def close(self) -> None:
        """Close all backstores. The core is closed: nobody uses them."""
        with self._lock:
            luns = (*self, *self._lingering.values())
            self._luns.clear()
            self._lingering.clear()
        for lun in luns:
            lun.backstore.close()

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

    def _try_to_add(self, spec: LunSpec, fd: int | None) -> LunInfo | None:
        """:returns: ``None``: it was opened as one that is owned, and now it must not be; or the reverse."""
        with self._lock:
            self._check_new(spec)
            owned = self._owned
        backstore = open_backstore(spec.backstore, claim=owned, fd=fd)
        with contextlib.ExitStack() as undo:
            undo.callback(backstore.close)
            with self._lock:
                if owned is not self._owned:
                    return None
                info = self.add_open(spec, backstore)
            undo.pop_all()
        return info

    def _is_settled(self, instance: int, hot_s: float, slow_s: float) -> bool:
        """Wait for a removed LUN's requests, on both paths. :returns: whether they have ended."""
        return self._core.drain(instance=instance, timeout_s=hot_s) and self._listener.settled(
            slow_s, instance
        )

    def _close_lingering(self, instance: int) -> None:
        """Close a removed LUN's backstore, unless another thread does."""
        with self._lock:
            gone = self._lingering.pop(instance, None)
        if gone is not None:
            gone.backstore.close()

    def _reload(self, lun: Lun) -> None:
        try:
            if lun.backstore.reload():
                self._show(lun, self._listener.lun_reloaded)
        except (RingwayError, OSError) as error:
            _log.error("'%s' is served in its old size: %s", lun.backstore.name, error)

    def _show(self, lun: Lun, tell: Callable[[int, int, Backstore], None]) -> None:
        """Let the core serve a LUN's new store, and tell of it. :raises NotFoundError: it was removed."""
        with self._lock:
            if self._find(lun.target, lun.lun) is not lun:
                raise NotFoundError(f"LUN {_words(lun.target, lun.lun)} was removed meanwhile")
            unused = self._set_store(lun, timeout_s=0)
            instance = self._core.lun_instance(lun.target, lun.lun)
            tell(lun.target, lun.lun, lun.backstore)
        if unused or self._core.drain(instance=instance, timeout_s=DRAIN_S):
            lun.backstore.ownership.drop_old()

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

    def _set_store(self, lun: Lun, timeout_s: float = DRAIN_S) -> bool:
        """Let the core serve a LUN's present store. :returns: whether no request uses the one before."""
        return self._core.set_lun(
            lun.target,
            lun.lun,
            lun.backstore.store,
            block_size=lun.backstore.geometry.block_size,
            serial=self._serial_bytes(lun.serial),
            timeout_s=timeout_s,
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
