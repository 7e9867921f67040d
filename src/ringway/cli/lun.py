"""``ringway lun``: the disks of a host's endpoints."""

from __future__ import annotations

from typing import Any, Final

import click

from ringway.cli import complete
from ringway.cli.remote import NounGroup, Performer, as_output, connect, dry_run, output, remote, waiting
from ringway.cli.views import LUNS, address_text, describe_lun
from ringway.errors import NotFoundError, UsageError
from ringway.model import EndpointInfo, Limits, LunStatus

_EPILOG: Final = """\b
Examples:
  ringway lun add db0 1=/srv/logs.img
  ringway lun limit db0 0 --iops 5000 --bandwidth 200M --burst 10s
  truncate -s 20G /srv/logs.img && ringway lun resize db0 1
  ringway lun remove db0 1
"""


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
    from ringway.notation import parse_address

    found = _find(connect(remote).endpoints.show(name), parse_address(lun))
    as_output(options).show_one((name, found), LUNS, describe_lun)


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
    from ringway.cli import disks

    performer, spec = Performer.of(options), disks.read_lun(lun, force=force)
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
    from ringway.notation import parse_address

    target, number = parse_address(lun)
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
    from ringway.notation import parse_address
    from ringway.units import parse_size

    performer, (target, number) = Performer.of(options), parse_address(lun)
    size_bytes = None if size is None else parse_size(size)
    changed = performer(lambda client: client.luns.resize, name, target, number, size_bytes)
    _show(changed, (target, number), performer)
    if changed is not None:
        performer.output.show_note(changed.message)


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
    from ringway.cli import disks
    from ringway.notation import parse_address

    performer, (target, number) = Performer.of(options), parse_address(lun)
    given = (iops, bandwidth, burst)
    if no_limits is any(given):
        raise UsageError("there is no limit to set", hint="name one, as in --iops 5000, or --none alone")
    disks.changed_limits(Limits(), *given)  # refused before anything is asked
    endpoint = connect(performer.socket).endpoints.show(name)
    old = Limits() if no_limits else _find(endpoint, (target, number)).limits
    limits = disks.changed_limits(old, *given)
    changed = performer(lambda client: client.luns.limit, name, target, number, limits)
    _show(changed, (target, number), performer)


def _find(endpoint: EndpointInfo, address: tuple[int, int]) -> LunStatus:
    """:raises NotFoundError: no such LUN."""
    for found in endpoint.luns:
        if (found.target, found.lun) == address:
            return found
    there = ", ".join(address_text((endpoint.name, found)) for found in endpoint.luns)
    raise NotFoundError(
        f"'{endpoint.name}' has no LUN {address[0]}:{address[1]}",
        hint=f"it has {there}" if there else f"add one: ringway lun add {endpoint.name} 0=DISK",
    )


def _show(changed: EndpointInfo | None, address: tuple[int, int], performer: Performer) -> None:
    if changed is not None:
        performer.output.show_list([(changed.name, _find(changed, address))], LUNS)
