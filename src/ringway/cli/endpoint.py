"""``ringway endpoint``: what a host's guests connect to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import click

from ringway.cli import complete
from ringway.cli.format import COLOURS as STATE_COLOURS
from ringway.cli.format import Column, View, coloured, printable, table, terminal_width
from ringway.cli.remote import NounGroup, Performer, as_output, connect, dry_run, output, remote, waiting
from ringway.cli.views import LUNS
from ringway.errors import BusyError, ConflictError, NotFoundError, TimedOutError, UsageError
from ringway.model import (
    MAX_NAME,
    DeviceKind,
    EndpointInfo,
    EndpointSpec,
    EndpointState,
    EngineKind,
    IoEngine,
    Naa,
    Name,
    Poll,
    Protection,
)
from ringway.units import format_size

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_NAME_HINT: Final = f"take letters, digits, _, . and -, {MAX_NAME} at most; the first is a letter or a digit"
_NAA_HINT: Final = "write it as naa. and 16 or 32 small hexadecimal digits, as in naa.5001405a1b2c3d4e"
_EPILOG: Final = """\b
Examples:
  ringway endpoint create db0 --lun 0=/dev/vg0/db0
  ringway endpoint create web --engine lio --lun 0=/srv/web.img \\
      --lun 1=/srv/logs.img,readonly
  ringway endpoint list -c name,state,guest
  ringway endpoint delete db0
"""
_DISKS: Final = """\b
A disk is PATH, file:PATH, ram:SIZE or null:SIZE; for lio also pscsi:PATH and
tcmu:NAME. Options follow behind commas: readonly, direct, serial=TEXT,
block-size=512|4096, mapped=on|off|auto, iops=COUNT, bandwidth=SIZE,
burst=SECONDS, name=NAME, and lio's own, as in emulate_tpu=1.
A comma in a path is written twice.
"""


def _guest(found: EndpointInfo) -> str | None:
    return None if found.connected is None else "yes" if found.connected else "no"


def _size(found: EndpointInfo) -> int:
    return sum(lun.size_bytes or 0 for lun in found.luns)


VIEW: Final = View[EndpointInfo](
    {
        "name": Column(lambda found: found.name),
        "engine": Column(lambda found: found.engine),
        "device": Column(lambda found: found.device),
        "state": Column(lambda found: found.state, coloured=True),
        "guest": Column(_guest),
        "luns": Column(lambda found: len(found.luns), right=True),
        "size": Column(_size, format_size, right=True),
        "wwpn": Column(lambda found: found.wwpn),
        "nexus": Column(lambda found: found.nexus),
        "socket": Column(lambda found: found.socket),
        "pid": Column(lambda found: found.pid, right=True),
        "restarts": Column(lambda found: found.restarts, right=True),
        "generation": Column(lambda found: found.generation, right=True),
        "message": Column(lambda found: found.message),
    },
    ("name", "engine", "device", "state", "guest", "luns", "size", "wwpn"),
    lambda found: found.name,
)


def describe(found: EndpointInfo) -> Iterator[str]:
    """All about an endpoint, for a person."""
    for name, column in VIEW.columns.items():
        value = column.value(found)
        if value is not None and name not in ("luns", "size", "message"):
            text = printable(column.text(value))
            yield f"{name:<11} {coloured(text, STATE_COLOURS.get(text) if column.coloured else None)}"
    for number, line in enumerate((found.message or "").splitlines()):
        yield f"{'' if number else 'message':<11} {printable(line)}"
    if found.luns:
        yield ""
        yield from table(
            [(found.name, lun) for lun in found.luns],
            LUNS.chosen("lun,kind,size,block,path,options,limits"),
            width=terminal_width(),
        )


@click.group(cls=NounGroup, epilog=_EPILOG, short_help="Create, list, change and delete a host's endpoints.")
def endpoint() -> None:
    """Create, list, change and delete endpoints: what a host's guests connect to.

    The daemon keeps them: they survive its restart, its crash and the host's reboot.
    """


@endpoint.command("list")
@click.option("--engine", type=click.Choice([*map(str, EngineKind)]), help="Only those of this engine.")
@click.option("--state", type=click.Choice([*map(str, EndpointState)]), help="Only those in this state.")
@remote
@output
def list_(remote: str | None, engine: str | None, state: str | None, **options: Any) -> None:
    """List endpoints, those that others made in the kernel as well (foreign)."""
    found = connect(remote).endpoints.list()
    wanted = [each for each in found if engine in (None, each.engine) and state in (None, each.state)]
    as_output(options).show_list(wanted, VIEW)


@endpoint.command()
@click.argument("name", shell_complete=complete.endpoints)
@click.option("--qemu", is_flag=True, help="Print the arguments that QEMU needs for it, and nothing else.")
@remote
@output
def show(name: str, remote: str | None, qemu: bool, **options: Any) -> None:
    """Show all about one endpoint."""
    found = connect(remote).endpoints.show(name)
    if qemu:
        from ringway.cli import howto

        click.echo(howto.endpoint_command(found))
        return
    as_output(options).show_one(found, VIEW, describe)


def _settings(command: Decorated) -> Decorated:
    """What can be said of an endpoint besides its disks; what is not said stays as it is, or is chosen."""
    for option in reversed(_SETTINGS):
        command = option(command)
    return command


def _cpus(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    from ringway.units import parse_cpus

    return None if text is None else parse_cpus(text)


def _naa(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    return None if text is None else _checked(text, Naa, f"'{text}' is no NAA name", _NAA_HINT)


def _checked(value: str, kind: Any, message: str, hint: str) -> str:
    """:raises UsageError: ``value`` is not of the kind."""
    import msgspec

    try:
        return str(msgspec.convert(value, kind))
    except msgspec.ValidationError as error:
        raise UsageError(message, hint=hint) from error


_SETTINGS: Final = (
    click.option(
        "--wwpn",
        callback=_naa,
        metavar="NAA",
        help="Name of the scsi target port.  [default: chosen, and kept]",
    ),
    click.option("--queues", type=click.IntRange(min=1), help="user: request queues.  [default: 1]"),
    click.option("--workers", type=click.IntRange(min=1), help="user: I/O threads.  [default: 1]"),
    click.option("--cpus", callback=_cpus, metavar="LIST", help="user: pin the workers, as in 0,2-3."),
    click.option("--poll", type=click.Choice([*map(str, Poll)]), help="user: how workers wait."),
    click.option("--io-engine", type=click.Choice([*map(str, IoEngine)]), help="user: how I/O is done."),
    click.option(
        "--incoming/--no-incoming",
        default=None,
        help="user: another host may have the disks, and lets go of them when it moves its guest here.",
    ),
    click.option(
        "--nexus",
        callback=_naa,
        metavar="NAA",
        help="lio: the initiator's name.  [default: chosen, and kept]",
    ),
    click.option("--protection", type=click.Choice([*map(str, Protection)]), help="lio: T10 PI."),
)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Take those settings out of a command's options that were given."""
    kinds: dict[str, Callable[[Any], Any]] = {"poll": Poll, "io_engine": IoEngine, "protection": Protection}
    names = ("wwpn", "queues", "workers", "cpus", "poll", "io_engine", "incoming", "nexus", "protection")
    values = {name: options.pop(name) for name in names}
    return {name: kinds.get(name, _as_is)(value) for name, value in values.items() if value is not None}


def _as_is(value: Any) -> Any:
    return value


@endpoint.command(epilog=_DISKS)
@click.argument("name")
@click.option(
    "--lun", "luns", multiple=True, metavar="[TARGET:]LUN=DISK", help="A disk at an address; repeatable."
)
@click.option(
    "--engine",
    type=click.Choice([*map(str, EngineKind)]),
    default="user",
    show_default=True,
    help="Our own target, or the kernel's.",
)
@click.option("--device", type=click.Choice([*map(str, DeviceKind)]), default="scsi", show_default=True)
@_settings
@click.option(
    "--force",
    is_flag=True,
    help="Serve devices that are mounted or held, and images of other formats as bytes. Can destroy data.",
)
@click.option("--or-update", is_flag=True, help="Change it if there is another of this name.")
@dry_run
@waiting
@remote
@output
def create(name: str, luns: tuple[str, ...], or_update: bool, **options: Any) -> None:
    """Create an endpoint. If there is an equal one, that is fine."""
    performer = Performer.of(options)
    spec = _spec(name, luns, options)
    try:
        found = performer(lambda client: client.endpoints.create, spec)
    except ConflictError as error:
        if not or_update or isinstance(error, BusyError) or not _exists(performer, name):
            raise
        found = performer(lambda client: client.endpoints.update, spec)
    if found is not None:
        performer.output.show_one(found, VIEW, describe)
    if not spec.luns:
        click.echo(f"warning: endpoint '{name}' has no LUNs: a guest will find no disk there", err=True)
        click.echo(f"hint: add one with: ringway lun add {name} 0=/dev/vg0/db0", err=True)


def _spec(name: str, luns: tuple[str, ...], options: dict[str, Any]) -> EndpointSpec:
    """:raises UsageError: it cannot be."""
    from ringway.cli.disks import read_lun

    return EndpointSpec(
        name=_checked(name, Name, f"'{name}' cannot be an endpoint's name", _NAME_HINT),
        engine=EngineKind(options["engine"]),
        device=DeviceKind(options["device"]),
        luns=tuple(read_lun(text, force=options["force"]) for text in luns),
        **_given(options),
    )


def _exists(performer: Performer, name: str) -> bool:
    """Whether there is an endpoint of this name that is ours to change."""
    try:
        return connect(performer.socket).endpoints.show(name).spec is not None
    except NotFoundError:
        return False


@endpoint.command("set")
@click.argument("name", shell_complete=complete.endpoints)
@_settings
@dry_run
@waiting
@remote
@output
def set_(name: str, **options: Any) -> None:
    """Change the settings of an endpoint. Its disks are changed with `ringway lun`."""
    import msgspec

    performer = Performer.of(options)
    if not (given := _given(options)):
        raise UsageError("there is nothing to set", hint="name a setting, as in --queues 4")
    found = connect(performer.socket).endpoints.show(name)
    if found.spec is None:
        raise ConflictError(
            f"'{name}' is not ours to change: others made it",
            hint="take it over with ringway config import --adopt",
        )
    spec = msgspec.structs.replace(found.spec, **given)
    changed = performer(lambda client: client.endpoints.update, spec)
    if changed is not None:
        performer.output.show_one(changed, VIEW, describe)


@endpoint.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete.endpoints)
@click.option("--force", is_flag=True, help="Even while a guest uses it: the guest loses its disks.")
@click.option("--missing-ok", is_flag=True, help="One that is not there is fine.")
@dry_run
@waiting
@remote
@output
def delete(names: tuple[str, ...], force: bool, missing_ok: bool, **options: Any) -> None:
    """Delete endpoints. Their disks keep what is on them."""
    performer = Performer.of(options)
    for name in names:
        try:
            performer(lambda client: client.endpoints.delete, name, force=force)
        except NotFoundError:
            if not missing_ok:
                raise


_GONE: Final = "gone"
_CONDITIONS: Final[dict[str, Callable[[EndpointInfo], bool]]] = {
    "ready": lambda found: found.state is EndpointState.READY,
    "degraded": lambda found: found.state is EndpointState.DEGRADED,
    "connected": lambda found: found.connected is True,
    "disconnected": lambda found: found.connected is False,
}


@endpoint.command()
@click.argument("name", shell_complete=complete.endpoints)
@click.option(
    "--for",
    "condition",
    type=click.Choice([*_CONDITIONS, _GONE]),
    default="ready",
    show_default=True,
    help="What to wait for.",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="TIME",
    default="60s",
    show_default=True,
    callback=lambda _ctx, _parameter, text: _duration(text),
    help="Wait so long at most.",
)
@remote
@output
def wait(name: str, condition: str, timeout_s: float, remote: str | None, **options: Any) -> None:
    """Wait until an endpoint is ready, a guest has connected, or it is gone."""
    client, deadline, pause_s = connect(remote), time.monotonic() + timeout_s, 0.02
    while True:
        found = _look(lambda: client.endpoints.show(name), condition)
        if found is None:
            return
        if condition != _GONE and _CONDITIONS[condition](found):
            as_output(options).show_one(found, VIEW, describe)
            return
        if time.monotonic() + pause_s > deadline:
            raise TimedOutError(
                f"'{name}' is {found.state}, and not {condition} after {timeout_s:g} s",
                hint=found.message or f"see ringway endpoint show {name}",
            )
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.5)


def _look(show: Callable[[], EndpointInfo], condition: str) -> EndpointInfo | None:
    """The endpoint; ``None`` if it is gone, and should be. :raises NotFoundError: it should not."""
    try:
        return show()
    except NotFoundError:
        if condition != _GONE:
            raise
        return None


def _duration(text: str) -> float:
    from ringway.units import parse_duration

    return parse_duration(text)
