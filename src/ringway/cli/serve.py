"""``ringway serve``: one endpoint in the foreground."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Final

import click
import msgspec

from ringway import logs
from ringway.cli import howto, live, privileges
from ringway.cli.signals import StopSignals, as_ctrl_c, held_back, stop_signals
from ringway.control import SUFFIX
from ringway.errors import RingwayError, UsageError
from ringway.model import (
    BackstoreSpec,
    DeviceKind,
    IoEngine,
    LunInfo,
    LunSpec,
    Poll,
    SandboxMode,
    SpecKind,
    TargetConfig,
)
from ringway.notation import check_block_size, check_serial, parse_backstore, parse_lun
from ringway.target import host
from ringway.target.backstore import create_image
from ringway.target.listen import check_path, endpoint
from ringway.target.sandbox import Sandbox
from ringway.target.target import Target
from ringway.units import format_duration, format_size, parse_cpus, parse_size

_EPILOG: Final = """\b
Examples:
  ringway serve disk.img
  ringway serve --create 10G new.img
  ringway serve --lun 0=disk.img --lun 1=/dev/sdb,readonly --lun 2=ram:4G \\
      --queues 4 --socket /run/x.sock
  ringway serve --device blk --direct --poll adaptive \\
      --socket /run/b.sock disk.img

\b
A disk is PATH, file:PATH, ram:SIZE or null:SIZE, with options behind commas:
  readonly, direct, block-size=512|4096, serial=TEXT, mapped=on|off|auto
A LUN can be limited: iops=20k, bandwidth=100M, burst=2s.
A comma in a path is written twice.
"""


def _cpus(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    return () if text is None else parse_cpus(text)


def _check_cpus(cpus: tuple[int, ...]) -> None:
    """:raises UsageError: some are not there, or not for this process."""
    usable = os.sched_getaffinity(0)
    if missing := sorted(set(cpus) - usable):
        raise UsageError(
            f"there is no CPU {missing[0]} for this process",
            hint=f"it may use {', '.join(map(str, sorted(usable)))}",
        )


@click.command(epilog=_EPILOG, short_help="Serve disks to a guest over vhost-user.")
@click.argument("disk", required=False)
@click.option(
    "--lun", "luns", multiple=True, metavar="[TARGET:]LUN=DISK", help="A disk at an address; repeatable."
)
@click.option("--socket", "socket_path", metavar="PATH", help="Where QEMU connects.  [default: ./DISK.sock]")
@click.option("--device", type=click.Choice([*map(str, DeviceKind)]), default="scsi", show_default=True)
@click.option(
    "--queues", type=int, default=1, show_default=True, help="Request queues; one for each vCPU is best."
)
@click.option(
    "--workers", type=int, default=1, show_default=True, help="I/O threads; the queues are spread over them."
)
@click.option(
    "--cpus", callback=_cpus, metavar="LIST", help="Pin the workers to these host CPUs, as in 0,2-3."
)
@click.option(
    "--poll",
    type=click.Choice([*map(str, Poll)]),
    default="adaptive",
    show_default=True,
    help="Sleep at once, spin while it pays, or never sleep.",
)
@click.option(
    "--io-engine",
    type=click.Choice([*map(str, IoEngine)]),
    default="auto",
    show_default=True,
    help="How I/O is done.",
)
@click.option("--create", metavar="SIZE", help="Make DISK first: a new sparse image of this size.")
@click.option("--direct", is_flag=True, help="Bypass the page cache (O_DIRECT).")
@click.option("--block-size", type=int, metavar="BYTES", help="Logical blocks of 512 or 4096 bytes.")
@click.option("--readonly", is_flag=True, help="Let no guest write.")
@click.option("--serial", metavar="TEXT", help="Serial number.  [default: derived from the path]")
@click.option(
    "--wwpn", metavar="NAA", help="Name of the scsi target port, as naa.5001405...  [default: derived]"
)
@click.option(
    "--incoming", is_flag=True, help="A migration's destination: take the disks when the source lets go."
)
@click.option(
    "--force",
    is_flag=True,
    help="Serve devices that are mounted or held, and images of other formats as bytes. Can destroy data.",
)
@privileges.options
def serve(
    *,
    disk: str | None,
    luns: tuple[str, ...],
    socket_path: str | None,
    device: DeviceKind,
    queues: int,
    workers: int,
    cpus: tuple[int, ...],
    poll: Poll,
    io_engine: IoEngine,
    create: str | None,
    direct: bool,
    block_size: int | None,
    readonly: bool,
    serial: str | None,
    wwpn: str | None,
    incoming: bool,
    force: bool,
    sandbox: SandboxMode,
    user: str | None,
) -> None:
    """Serve disks to a guest over vhost-user, until SIGTERM or Ctrl-C.

    DISK becomes LUN 0 of a new endpoint on ./DISK.sock. What QEMU needs to be told is printed. Beside the
    socket there is another, SOCKET.ctl, for `ringway target`.
    """
    defaults = BackstoreSpec(
        SpecKind.PATH,
        readonly=readonly,
        direct=direct,
        block_size=None if block_size is None else check_block_size(block_size),
        serial=None if serial is None else check_serial(serial),
        force=force,
    )
    specs = disks(disk, luns, defaults)
    if serial is not None and len(specs) > 1:
        raise UsageError(
            "--serial names one disk, and there are several", hint="write --lun 0=a.img,serial=TEXT"
        )
    _check_cpus(cpus)
    config = TargetConfig(
        device=DeviceKind(device),
        luns=specs,
        queues=queues,
        workers=workers,
        cpus=cpus,
        poll=Poll(poll),
        io_engine=IoEngine(io_engine),
        wwpn=wwpn,
        incoming=incoming,
    )
    path = default_socket(specs) if socket_path is None else socket_path
    if sys.stderr.isatty():
        live.warm_up()
    with (
        as_ctrl_c(),
        Sandbox(SandboxMode(sandbox), user) as confinement,
        new_image(specs, create, path) as keep,
        endpoint(path) as (main, control),
        Target(config, main, control, confinement) as target,
    ):
        keep()
        run(target, path)


def disks(disk: str | None, luns: tuple[str, ...], defaults: BackstoreSpec) -> tuple[LunSpec, ...]:
    """The LUNs that the command line names. :raises UsageError: none, or no LUN at all."""
    first = () if disk is None else (LunSpec(0, 0, parse_backstore(disk, defaults)),)
    specs = (*first, *(parse_lun(text, defaults) for text in luns))
    if not specs:
        raise UsageError("there is nothing to serve", hint="name a disk, as in: ringway serve disk.img")
    return specs


def default_socket(specs: tuple[LunSpec, ...]) -> str:
    """``./disk.img.sock`` for what lies anywhere as ``disk.img``; ``./ram.sock`` for memory."""
    return f"./{os.path.basename(str(specs[0].backstore))}.sock"


@contextlib.contextmanager
def new_image(specs: tuple[LunSpec, ...], size: str | None, socket_path: str) -> Iterator[Callable[[], None]]:
    """Make the first disk's image if a size is given.

    Remove it again unless the yielded function was called.
    """
    check_path(socket_path)
    check_path(socket_path + SUFFIX)
    path = specs[0].backstore.path
    if size is None:
        yield lambda: None
        return
    if path is None or len(specs) > 1:
        raise UsageError("--create makes one image", hint="as in: ringway serve --create 10G disk.img")
    with held_back() as let_come:
        create_image(path, parse_size(size))
        made = host.made(path)
        kept: list[bool] = []
        try:
            let_come()
            yield lambda: kept.append(True)
        finally:
            if kept:
                host.forget(path)
            else:
                host.remove(path, made)


def run(target: Target, path: str | None) -> None:
    """Serve until a signal or the target's own end; show figures on a terminal, log JSON anywhere else.

    :raises RingwayError: the target ended because of an error of its own.
    """
    with stop_signals() as signals:
        if path is not None:
            click.echo(_instructions(target, path))
        (_run_on_terminal if sys.stderr.isatty() else _run_in_background)(target, signals)
        target.close()  # here, where a further signal does not cut it short
    if target.failed:
        raise RingwayError("the target failed", hint="the log says why; report it, and start it again")


def _instructions(target: Target, path: str) -> str:
    info = target.info()
    disks = "\n".join(f"  {_disk_line(lun)}" for lun in info.luns)
    return (
        f"Serving vhost-user-{info.device} on {path} ({info.io_engine}, {info.poll}):\n{disks}\n\n"
        f"QEMU:\n{howto.qemu_command(target.config, path)}\n\n"
        f"libvirt:\n  {howto.libvirt_hint(target.config, os.path.abspath(path))}\n"
    )


def _disk_line(lun: LunInfo) -> str:
    marks = [name for name in ("readonly", "mapped", "direct") if getattr(lun, name)]
    return "  ".join([f"{lun.target}:{lun.lun}", lun.name, format_size(lun.size_bytes), *marks])


def _run_in_background(target: Target, signals: StopSignals) -> None:
    logs.log_as_json().start()
    privileges.announce(target.sandbox.mode, target.sandbox.missing)
    logs.log_event("ready", "serving", info=msgspec.to_builtins(target.info()))
    signals.wait(target.fileno(), None)
    statistics = msgspec.to_builtins(target.statistics())
    logs.log_event("summary", "stopping", signal=signals.received, statistics=statistics)


def _run_on_terminal(target: Target, signals: StopSignals) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    logs.log_as_text(lambda text: console.print(Text(text))).start()
    privileges.announce(target.sandbox.mode, target.sandbox.missing)
    before = target.statistics()
    with Live(Text("waiting for a guest  (Ctrl-C stops)"), console=console, auto_refresh=False) as display:
        while not signals.wait(target.fileno(), 1.0):
            after = target.statistics()
            figures = live.line(target.info(), before, after)
            display.update(Text(figures, no_wrap=True, overflow="ellipsis"), refresh=True)
            before = after
    final = target.statistics()
    served = f"Served for {format_duration(final.uptime_s)}"
    console.print(live.summary_table(final, served) if final.luns else f"{served}; no guest came")
