"""``ringway-vhost-user-scsi`` and ``-blk``: the target under the conventions for vhost-user back-end
programs.

They stay in the foreground, end on SIGTERM, and fail early with a status other than 0.
Spec: vhost-user, "Backend program conventions".
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

import click

import ringway
from ringway.cli import privileges
from ringway.cli.main import run as run_command

_CAPABILITIES: Final = {
    "scsi": {"type": "scsi", "features": []},
    "blk": {"type": "block", "features": ["read-only", "blk-file"]},
}


def _print_capabilities(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(json.dumps(_CAPABILITIES[ctx.command.name or ""]))
        ctx.exit(0)


def _start(command: click.Command, kind: str) -> NoReturn:
    """Run a program; asked for its capabilities, it prints them, whatever else the command line says."""
    if "--print-capabilities" in sys.argv[1:]:
        sys.argv[1:] = ["--print-capabilities"]
    run_command(command, f"ringway-vhost-user-{kind}")


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """The options that both programs have."""
    options = [
        click.option("--socket-path", metavar="PATH", help="Listen for front ends on this path."),
        click.option(
            "--fd", type=int, metavar="FDNUM", help="Use this inherited socket (listening or connected)."
        ),
        click.option(
            "--print-capabilities",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_capabilities,
            help="Print what this program can do as JSON, and exit.",
        ),
        click.option("--queues", type=int, default=1, show_default=True, help="Request queues."),
        click.version_option(ringway.__version__, message="%(prog)s %(version)s"),
    ]
    for option in reversed([*options, *privileges.OPTIONS]):
        command = option(command)
    return command


@click.command("scsi")
@_common
@click.option(
    "--lun", "luns", multiple=True, metavar="[TARGET:]LUN=DISK", help="A disk, as for ringway serve."
)
def _scsi(
    socket_path: str | None,
    fd: int | None,
    queues: int,
    sandbox: str,
    user: str | None,
    luns: tuple[str, ...],
) -> None:
    """Serve disks over vhost-user-scsi, as a back-end program that a management layer starts."""
    from ringway.cli.serve import disks
    from ringway.errors import UsageError
    from ringway.model import BackstoreSpec, DeviceKind, SpecKind, TargetConfig

    if not luns:
        raise UsageError("there is nothing to serve", hint="name a disk, as in: --lun 0=disk.img")
    specs = disks(None, luns, BackstoreSpec(SpecKind.PATH))
    config = TargetConfig(device=DeviceKind.SCSI, luns=specs, queues=queues)
    _serve(config, socket_path, fd, sandbox, user)


@click.command("blk")
@_common
@click.option("--blk-file", metavar="PATH", required=True, help="The image or block device to serve.")
@click.option("--read-only", is_flag=True, help="Let no guest write.")
def _blk(
    socket_path: str | None,
    fd: int | None,
    queues: int,
    sandbox: str,
    user: str | None,
    blk_file: str,
    read_only: bool,
) -> None:
    """Serve one disk over vhost-user-blk, as a back-end program that a management layer starts."""
    from ringway.model import BackstoreSpec, DeviceKind, LunSpec, SpecKind, TargetConfig

    disk = BackstoreSpec(SpecKind.PATH, path=blk_file, readonly=read_only)
    config = TargetConfig(device=DeviceKind.BLK, luns=(LunSpec(0, 0, disk),), queues=queues)
    _serve(config, socket_path, fd, sandbox, user)


def scsi() -> NoReturn:
    """The program ``ringway-vhost-user-scsi``."""
    _start(_scsi, "scsi")


def blk() -> NoReturn:
    """The program ``ringway-vhost-user-blk``."""
    _start(_blk, "blk")


def _serve(config: Any, socket_path: str | None, fd: int | None, sandbox: str, user: str | None) -> None:
    from ringway import logs
    from ringway.cli.signals import stop_signals
    from ringway.errors import RingwayError
    from ringway.model import SandboxMode
    from ringway.target.sandbox import Sandbox
    from ringway.target.target import Target

    _check_endpoint(socket_path, fd)  # before a file of our own can take the number
    log = logs.log_as_json()
    with (
        Sandbox(SandboxMode(sandbox), user) as confinement,
        stop_signals() as signals,
        _endpoint(socket_path, fd) as where,
        Target(config, where, sandbox=confinement) as target,
    ):
        log.start()
        privileges.announce(confinement.mode, confinement.missing)
        logs.log_event("ready", "serving")
        signals.wait(target.fileno(), None)
        if target.failed:
            raise RingwayError("the target failed", hint="the log says why; report it, and start it again")


def _check_endpoint(socket_path: str | None, fd: int | None) -> None:
    """:raises UsageError: not exactly one way is given, or the fd is no socket."""
    from ringway.errors import UsageError

    if (socket_path is None) == (fd is None):
        raise UsageError(
            "give either --socket-path or --fd", hint="they exclude each other, and one is needed"
        )
    if fd is not None and not _is_unix_socket(fd):
        raise UsageError(
            f"file descriptor {fd} is no unix socket", hint="pass it on when the program is started"
        )


@contextlib.contextmanager
def _endpoint(socket_path: str | None, fd: int | None) -> Iterator[Any]:
    """Where front ends come."""
    from ringway.target.listen import listen

    if socket_path is not None:
        listener = listen(socket_path)
        try:
            yield listener
        finally:
            listener.close()
        return
    assert fd is not None
    with socket.socket(fileno=fd) as inherited:
        os.set_inheritable(fd, False)
        yield inherited


def _is_unix_socket(fd: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
    except OSError:
        return False
    probe = socket.socket(fileno=os.dup(fd))
    with probe:
        return probe.family == socket.AF_UNIX
