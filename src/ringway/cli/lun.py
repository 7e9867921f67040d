"""``ringway lun``: the disks of a host's endpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

import click

from ringway.cli import complete
from ringway.cli.format import Column, View, printable
from ringway.cli.remote import NounGroup, Performer, as_output, connect, dry_run, output, remote, waiting
from ringway.errors import NotFoundError, UsageError
from ringway.model import BackstoreSpec, EndpointInfo, Limits, LunSpec, LunStatus, SpecKind
from ringway.units import format_count, format_duration, format_rate, format_size

EndpointLun = tuple[str, LunStatus]
"""A LUN, behind the name of its endpoint."""

_EPILOG: Final = """\b
Examples:
  ringway lun add db0 1=/srv/logs.img
  ringway lun limit db0 0 --iops 5000 --bandwidth 200M --burst 10s
  truncate -s 20G /srv/logs.img && ringway lun resize db0 1
  ringway lun remove db0 1
"""


def _address(found: EndpointLun) -> str:
    return f"{found[1].target}:{found[1].lun}"


def _limits(found: EndpointLun) -> str | None:
    return limits_text(found[1].limits) or None


def limits_text(limits: Limits) -> str:
    """``5 k/s, 200 MiB/s, burst 10 s``; empty: there are none."""
    parts = [f"{format_count(limits.iops)}/s"] if limits.iops else []
    parts += [format_rate(limits.bytes_per_s)] if limits.bytes_per_s else []
    return ", ".join(
        [*parts, f"burst {format_duration(limits.burst_s)}"] if limits.burst_s and parts else parts
    )


def _options(found: EndpointLun) -> str | None:
    lun = found[1]
    waits = [str(lun.ownership)] if lun.ownership is not None and lun.ownership != "held" else []
    return ",".join([*(["readonly"] if lun.readonly else []), *waits]) or None


def _encoded(found: EndpointLun) -> Any:
    import msgspec

    return {"endpoint": found[0], **msgspec.to_builtins(found[1])}


LUNS: Final = View[EndpointLun](
    {
        "endpoint": Column(lambda found: found[0]),
        "lun": Column(_address),
        "backstore": Column(lambda found: found[1].backstore),
        "kind": Column(lambda found: found[1].kind),
        "size": Column(lambda found: found[1].size_bytes, format_size, right=True),
        "block": Column(lambda found: found[1].block_size, right=True),
        "path": Column(lambda found: found[1].path),
        "options": Column(_options),
        "limits": Column(_limits),
        "serial": Column(lambda found: found[1].serial),
        "readonly": Column(lambda found: found[1].readonly, lambda readonly: "yes" if readonly else "no"),
        "iops": Column(lambda found: found[1].limits.iops, right=True),
        "bandwidth": Column(lambda found: found[1].limits.bytes_per_s, format_rate, right=True),
        "burst": Column(lambda found: found[1].limits.burst_s, format_duration, right=True),
    },
    ("endpoint", "lun", "kind", "size", "path", "options", "limits"),
    lambda found: f"{found[0]}/{_address(found)}",
    _encoded,
)


def read_lun(text: str, *, force: bool = False) -> LunSpec:
    """Read ``[TARGET:]LUN=DISK`` for the daemon, which has another working directory.

    :raises UsageError: no such form.
    """
    import msgspec

    from ringway.notation import parse_lun

    spec = parse_lun(text, BackstoreSpec(SpecKind.PATH, force=force), host=True)
    return msgspec.structs.replace(spec, backstore=absolute(spec.backstore))


def absolute(spec: BackstoreSpec) -> BackstoreSpec:
    """The same with a path from the root; links stay what they are."""
    import msgspec

    if spec.kind not in (SpecKind.PATH, SpecKind.PSCSI) or spec.path is None:
        return spec
    return msgspec.structs.replace(spec, path=os.path.abspath(spec.path))


def read_address(text: str) -> tuple[int, int]:
    """Read ``[TARGET:]LUN``. :raises UsageError: no such form."""
    from ringway.notation import parse_address

    return parse_address(text)


@click.group(
    cls=NounGroup, epilog=_EPILOG, short_help="Add, remove, limit and resize the disks of endpoints."
)
def lun() -> None:
    """Add, remove, limit and resize the disks of endpoints, while guests use them.

    NAME is the endpoint's; a disk has the address LUN or TARGET:LUN in it.
    """


_name = click.argument("name", shell_complete=complete.endpoints)
_lun = click.argument("lun", metavar="[TARGET:]LUN", shell_complete=complete.luns)


@lun.command("list")
@click.argument("name", required=False, shell_complete=complete.endpoints)
@remote
@output
def list_(name: str | None, remote: str | None, **options: Any) -> None:
    """List the disks of one endpoint, or of all."""
    client = connect(remote)
    found = client.endpoints.list() if name is None else [client.endpoints.show(name)]
    rows = [(each.name, lun) for each in found for lun in each.luns]
    as_output(options).show_list(rows, LUNS)


@lun.command()
@_name
@_lun
@remote
@output
def show(name: str, lun: str, remote: str | None, **options: Any) -> None:
    """Show all about one disk."""
    found = _find(connect(remote).endpoints.show(name), read_address(lun))
    as_output(options).show_one((name, found), LUNS, describe)


def describe(found: EndpointLun) -> Iterator[str]:
    """All about a disk, for a person."""
    for name, column in LUNS.columns.items():
        value = column.value(found)
        if value is not None and name not in ("options", "limits"):
            yield f"{name:<10} {printable(column.text(value))}"


@lun.command()
@_name
@click.argument("lun", metavar="[TARGET:]LUN=DISK")
@click.option(
    "--force",
    is_flag=True,
    help="Serve a device that is mounted or held, or an image of another format. Can destroy data.",
)
@dry_run
@waiting
@remote
@output
def add(name: str, lun: str, force: bool, **options: Any) -> None:
    """Show an endpoint's guest another disk. DISK is as for `ringway endpoint create`."""
    performer, spec = Performer.of(options), read_lun(lun, force=force)
    changed = performer(lambda client: client.luns.add, name, spec)
    _show(changed, (spec.target, spec.lun), performer)


@lun.command()
@_name
@_lun
@click.option("--force", is_flag=True, help="Even while a guest uses it: the guest loses the disk.")
@dry_run
@waiting
@remote
@output
def remove(name: str, lun: str, force: bool, **options: Any) -> None:
    """Take a disk away from an endpoint. It keeps what is on it."""
    target, number = read_address(lun)
    Performer.of(options)(lambda client: client.luns.remove, name, target, number, force=force)


@lun.command()
@_name
@_lun
@click.option("--size", metavar="SIZE", help="The new size of a null disk; all others are looked at again.")
@dry_run
@waiting
@remote
@output
def resize(name: str, lun: str, size: str | None, **options: Any) -> None:
    """Show the guest the present size of an image or device."""
    from ringway.units import parse_size

    performer, (target, number) = Performer.of(options), read_address(lun)
    size_bytes = None if size is None else parse_size(size)
    changed = performer(lambda client: client.luns.resize, name, target, number, size_bytes)
    _show(changed, (target, number), performer)


@lun.command()
@_name
@_lun
@click.option("--iops", metavar="COUNT", help="Requests a second; 0 is no limit.")
@click.option("--bandwidth", metavar="SIZE", help="Bytes a second, as in 200M; 0 is no limit.")
@click.option("--burst", metavar="TIME", help="After a pause, so much time's worth at once, as in 10s.")
@click.option("--none", "no_limits", is_flag=True, help="No limits at all.")
@dry_run
@waiting
@remote
@output
def limit(
    name: str,
    lun: str,
    iops: str | None,
    bandwidth: str | None,
    burst: str | None,
    no_limits: bool,
    **options: Any,
) -> None:
    """Limit what a disk may do, from now on. What is not said stays as it is."""
    performer, (target, number) = Performer.of(options), read_address(lun)
    given = {} if no_limits else read_limits(iops, bandwidth, burst)
    if not given and not no_limits:
        raise UsageError("there is no limit to set", hint="name one, as in --iops 5000, or take --none")
    endpoint = connect(performer.socket).endpoints.show(name)
    old = Limits() if no_limits else _find(endpoint, (target, number)).limits
    limits = _changed(old, given)
    changed = performer(lambda client: client.luns.limit, name, target, number, limits)
    _show(changed, (target, number), performer)


def _changed(old: Limits, given: dict[str, float]) -> Limits:
    """:raises UsageError: a number is out of range."""
    import msgspec

    try:
        return msgspec.convert({**msgspec.to_builtins(old), **given}, Limits)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"these limits are not possible: {error}",
            hint="at most 1000 M requests and 1 PB a second, and a burst of 60 s",
        ) from error


def read_limits(iops: str | None, bandwidth: str | None, burst: str | None) -> dict[str, float]:
    """The fields of :class:`Limits` that are given. :raises UsageError: no such numbers."""
    from ringway.units import parse_count, parse_duration, parse_size

    given: dict[str, float] = {}
    if iops is not None:
        given["iops"] = parse_count(iops)
    if bandwidth is not None:
        given["bytes_per_s"] = parse_size(bandwidth)
    if burst is not None:
        given["burst_s"] = parse_duration(burst)
    return given


def _find(endpoint: EndpointInfo, address: tuple[int, int]) -> LunStatus:
    """:raises NotFoundError: no such LUN."""
    for found in endpoint.luns:
        if (found.target, found.lun) == address:
            return found
    there = ", ".join(_address((endpoint.name, found)) for found in endpoint.luns)
    raise NotFoundError(
        f"'{endpoint.name}' has no LUN {address[0]}:{address[1]}",
        hint=f"it has {there}" if there else f"add one: ringway lun add {endpoint.name} 0=DISK",
    )


def _show(changed: EndpointInfo | None, address: tuple[int, int], performer: Performer) -> None:
    if changed is not None:
        performer.output.show_list([(changed.name, _find(changed, address))], LUNS)
