"""What is measured: a target of ours, or a peer, started as a program and pinned to its CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from ringway.bench.plan import DeviceKind, StoreKind
from ringway.errors import NotFoundError, TimedOutError

SIZE_BYTES: Final = 256 << 20
QSD: Final = "qemu-storage-daemon"
_START_S: Final = 20.0


class Side(msgspec.Struct, frozen=True):
    """A target to measure.

    ``program`` starts it; ``{socket}`` and ``{image}`` are put in. ``stores``: those that it can serve.
    """

    name: str
    device: DeviceKind
    stores: Mapping[StoreKind, Sequence[str]]


def ringway(device: DeviceKind, poll: str) -> Side:
    """Our own target."""
    serve = [sys.executable, "-m", "ringway", "serve", "--device", device, "--poll", poll]
    disks: dict[StoreKind, str] = {
        "null": f"null:{SIZE_BYTES}",
        "ram": f"ram:{SIZE_BYTES}",
        "tmpfs": "{image}",
    }
    stores = {store: [*serve, "--socket", "{socket}", "--lun", f"0={disk}"] for store, disk in disks.items()}
    return Side(f"ringway {device}", device, stores)


def qemu_storage_daemon() -> Side:
    """QEMU's own back end: vhost-user-blk over null-co, and over a file with io_uring.

    :raises NotFoundError: it is not installed.
    """
    if shutil.which(QSD) is None:
        raise NotFoundError(f"{QSD} is not installed", hint="apt-get install qemu-utils, or --peer none")
    export = "vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={socket}"
    nodes: dict[StoreKind, str] = {
        "null": f"null-co,node-name=d,size={SIZE_BYTES}",
        "tmpfs": "file,node-name=d,aio=io_uring,filename={image}",
    }
    return Side(QSD, "blk", {s: [QSD, "--blockdev", node, "--export", export] for s, node in nodes.items()})


@contextmanager
def running(
    side: Side, store: StoreKind, folder: Path, image: Path, cpu: int | None
) -> Iterator[tuple[Path, int]]:
    """Start a side on a store. Yields its socket and process id; it is stopped at the end.

    :raises TimedOutError: it does not listen within 20 s.
    """
    socket = folder / "bench.sock"
    socket.unlink(missing_ok=True)
    command = [part.format(socket=socket, image=image) for part in side.stores[store]]
    log = folder / "bench.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        if cpu is not None:
            os.sched_setaffinity(process.pid, {cpu})
        _wait_for(socket, process, log)
        yield socket, process.pid
    finally:
        process.terminate()
        process.wait(_START_S)


def _wait_for(socket: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimedOutError(f"{process.args!r} did not start: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.01)
