"""``ringway target``: a running target's control socket on the command line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

import click
import msgspec

from ringway.cli import live
from ringway.errors import TimedOutError, UnreachableError, UsageError
from ringway.model import (
    Done,
    DrainRequest,
    InfoRequest,
    Limits,
    LunInfo,
    LunLimitRequest,
    LunRemoveRequest,
    LunResizeRequest,
    QuitRequest,
    SandboxInfo,
    StatisticsRequest,
    TargetInfo,
    TargetStatistics,
)
from ringway.notation import parse_address, parse_limits, parse_lun
from ringway.target.control import ControlClient
from ringway.units import format_count, format_duration, format_rate, format_size, parse_size

_SUFFIX: Final = ".ctl"
_SOCKET: Final = ".sock"
_HINT: Final = (
    "give the socket that ringway serve printed, as the user who started it; a target that was started as a "
    "back-end program has no control socket"
)
_EPILOG: Final = """\b
Examples:
  ringway target info disk.img.sock
  ringway target add disk.img.sock 1=second.img,readonly
  truncate -s 20G disk.img && ringway target resize disk.img.sock 0
"""

_socket = click.argument("socket", metavar="SOCKET")
_output = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True
)


@click.group(epilog=_EPILOG, short_help="Look into a running target, and change its disks.")
def target() -> None:
    """Look into a running target, and change its disks while a guest uses them.

    SOCKET is the path that `ringway serve` listens on, or its control socket's.
    """


@target.command()
@_socket
@_output
def info(socket: str, output: str) -> None:
    """Show what a target is and which LUNs it has."""
    with connect(socket) as client:
        answer = client.call(InfoRequest(), TargetInfo)
    if output == "json":
        _echo_json(answer)
        return
    state = "a guest is connected" if answer.connected else "no guest is connected"
    click.echo(f"vhost-user-{answer.device}, pid {answer.pid}, {answer.io_engine}, {answer.poll}; {state}")
    click.echo(_sandbox_line(answer.sandbox))
    for lun in answer.luns:
        click.echo(_lun_line(lun))


@target.command()
@_socket
@_output
def statistics(socket: str, output: str) -> None:
    """Show what a target did since its start."""
    with connect(socket) as client:
        answer = client.call(StatisticsRequest(), TargetStatistics)
    if output == "json":
        _echo_json(answer)
        return
    from rich.console import Console

    Console().print(live.summary_table(answer, f"Served for {format_duration(answer.uptime_s)}"))


@target.command()
@_socket
@click.argument("lun", metavar="[TARGET:]LUN=DISK")
def add(socket: str, lun: str) -> None:
    """Show the guest a new disk."""
    spec = parse_lun(lun)
    with connect(socket) as client:
        click.echo(_lun_line(client.add_lun(spec)))


@target.command()
@_socket
@click.argument("lun", metavar="[TARGET:]LUN")
def remove(socket: str, lun: str) -> None:
    """Take a disk away from the guest."""
    with connect(socket) as client:
        client.call(LunRemoveRequest(*parse_address(lun)), Done)


@target.command()
@_socket
@click.argument("lun", metavar="[TARGET:]LUN")
@click.option("--size", metavar="SIZE", help="The new size of a null disk; all others are looked at again.")
def resize(socket: str, lun: str, size: str | None) -> None:
    """Show the guest the present size of an image or device."""
    size_bytes = None if size is None else parse_size(size)
    with connect(socket) as client:
        click.echo(_lun_line(client.call(LunResizeRequest(*parse_address(lun), size_bytes), LunInfo)))


@target.command()
@_socket
@click.argument("lun", metavar="[TARGET:]LUN")
@click.option("--iops", metavar="COUNT", help="Requests a second, as in 500 or 20k.  [default: no limit]")
@click.option("--bandwidth", metavar="SIZE", help="Bytes a second, as in 100M.  [default: no limit]")
@click.option("--burst", metavar="SECONDS", help="As much of a pause may be made up for.  [default: 10 ms]")
def limit(socket: str, lun: str, iops: str | None, bandwidth: str | None, burst: str | None) -> None:
    """Limit what the guest may do to a disk, from now on; without options, lift the limits."""
    request = LunLimitRequest(*parse_address(lun), parse_limits(iops, bandwidth, burst))
    with connect(socket) as client:
        click.echo(_lun_line(client.call(request, LunInfo)))


@target.command()
@_socket
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, 60, min_open=True), default=5.0, show_default=True
)
def drain(socket: str, timeout_s: float) -> None:
    """Wait until what is in flight now is finished."""
    with connect(socket) as client:
        if not client.call(DrainRequest(timeout_s), Done).complete:
            raise TimedOutError(f"requests were still in flight after {format_duration(timeout_s)}")


@target.command(name="quit")
@_socket
def quit_(socket: str) -> None:
    """Stop a target, as SIGTERM does."""
    with connect(socket) as client:
        client.call(QuitRequest(), Done)


def connect(path: str) -> ControlClient:
    """Reach a target by what its user calls it: its socket, its control socket, or the image that it serves.

    :raises UsageError: no path. :raises UnreachableError: no target answers there; the hint says why.
    """
    if not path:
        raise UsageError("an empty path", hint="give the path that ringway serve listens on")
    if path.endswith(_SUFFIX):
        return ControlClient(path)
    beside = path + _SOCKET + _SUFFIX  # where ringway serve listens for a disk of that name
    if not os.path.exists(path + _SUFFIX) and os.path.exists(beside):
        return ControlClient(beside)
    try:
        return ControlClient(path + _SUFFIX)
    except UnreachableError as error:
        if os.path.exists(path + _SUFFIX):
            raise
        raise UnreachableError(f"no target answers on '{path}': {_why_not(path)}", hint=_HINT) from error


def _why_not(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return error.strerror or "it cannot be used"
    if stat.S_ISSOCK(mode):
        return f"the socket is there, but no control socket {path}{_SUFFIX}"
    return "it is no socket, and nobody serves it from this directory"


def _echo_json(answer: msgspec.Struct) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())


def _sandbox_line(sandbox: SandboxInfo) -> str:
    capabilities = f"capabilities {sandbox.capabilities:#x}" if sandbox.capabilities else "no capabilities"
    landlock = f"Landlock ABI {sandbox.landlock_abi}" if sandbox.landlock_abi else "no Landlock"
    seccomp = "seccomp" if sandbox.seccomp else "no seccomp"
    gaps = "".join(f"\n  not offered here: {each}" for each in sandbox.missing)
    return f"sandbox {sandbox.mode}: user {sandbox.uid}, {capabilities}, {landlock}, {seccomp}{gaps}"


def _limit_words(limits: Limits) -> Iterator[str]:
    if limits.iops:
        yield f"at most {format_count(limits.iops)} IOPS"
    if limits.bytes_per_s:
        yield f"at most {format_rate(limits.bytes_per_s)}"
    if limits.burst_s:
        yield f"burst {format_duration(limits.burst_s)}"


def _lun_line(lun: LunInfo) -> str:
    marks = [name for name in ("readonly", "mapped", "direct") if getattr(lun, name)]
    return "  ".join(
        [
            f"{lun.target}:{lun.lun}",
            f"{lun.kind} {lun.name}",
            f"{format_size(lun.size_bytes)} in blocks of {lun.block_size}",
            f"{lun.ownership} (epoch {lun.epoch})",
            *marks,
            *_limit_words(lun.limits),
        ]
    )
