"""``ringway backstore``: where the bytes of a host's disks are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from ringway.cli.format import Column, View, printable
from ringway.cli.remote import NounGroup, as_output, connect, output, remote
from ringway.errors import NotFoundError
from ringway.model import BackstoreInfo
from ringway.units import format_size

VIEW: Final = View[BackstoreInfo](
    {
        "name": Column(lambda found: found.name),
        "engine": Column(lambda found: found.engine),
        "kind": Column(lambda found: found.kind),
        "size": Column(lambda found: found.size_bytes, format_size, right=True),
        "block": Column(lambda found: found.block_size, right=True),
        "path": Column(lambda found: found.path),
        "serial": Column(lambda found: found.serial),
        "foreign": Column(lambda found: found.foreign, lambda foreign: "yes" if foreign else "no"),
        "used-by": Column(lambda found: " ".join(found.used_by)),
    },
    ("name", "engine", "kind", "size", "path", "used-by"),
    lambda found: found.name,
)


def describe(found: BackstoreInfo) -> Iterator[str]:
    """All about a backstore, for a person."""
    for name, column in VIEW.columns.items():
        value = column.value(found)
        if value not in (None, ""):
            yield f"{name:<9} {printable(column.text(value))}"


@click.group(cls=NounGroup, short_help="List what a host's disks are made of; look whether one could be.")
def backstore() -> None:
    """List what the disks of this host are made of, and look whether another could be served.

    A backstore is there for as long as a LUN maps it.
    """


@backstore.command("list")
@remote
@output
def list_(remote: str | None, **options: Any) -> None:
    """List backstores, those that others made in the kernel as well."""
    as_output(options).show_list(connect(remote).backstores.list(), VIEW)


@backstore.command()
@click.argument("name")
@remote
@output
def show(name: str, remote: str | None, **options: Any) -> None:
    """Show all about one backstore."""
    for found in connect(remote).backstores.list():
        if found.name == name:
            as_output(options).show_one(found, VIEW, describe)
            return
    raise NotFoundError(f"there is no backstore '{name}'", hint="see ringway backstore list")


@backstore.command()
@click.argument("disk")
@remote
@output
def probe(disk: str, remote: str | None, **options: Any) -> None:
    """Look whether DISK could be served, and what it is. Nothing is changed."""
    from ringway.cli.disks import absolute
    from ringway.notation import parse_backstore

    found = connect(remote).backstores.probe(absolute(parse_backstore(disk, host=True)))
    as_output(options).show_one(found, VIEW, describe)
