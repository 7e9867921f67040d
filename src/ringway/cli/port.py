"""``ringway port``: vhost-user network ports, each of a switch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from ringway.cli import complete
from ringway.cli.format import COLOURS as STATE_COLOURS
from ringway.cli.format import Column, View, coloured, printable
from ringway.cli.remote import NounGroup, Performer, as_output, connect, dry_run, output, remote, waiting
from ringway.errors import UsageError
from ringway.model import MAX_QUEUE_PAIRS, MTU_MAX, MTU_MIN, PortInfo, PortMode, PortSpec
from ringway.units import format_duration

_EPILOG: Final = """\b
Examples:
  ringway port create web0-net0 --switch ovs --option bridge=br0
  ringway port create lab0 --path /run/snabb/lab0.sock --mode server
  ringway guest plug web0 web0-net0
  ringway port list
"""

VIEW: Final = View[PortInfo](
    {
        "name": Column(lambda found: found.name),
        "switch": Column(lambda found: found.switch),
        "state": Column(lambda found: found.state, coloured=True),
        "guest": Column(lambda found: found.guest),
        "mac": Column(lambda found: found.mac),
        "mode": Column(lambda found: found.mode),
        "queues": Column(lambda found: found.spec.queues if found.spec else None, right=True),
        "rx ring": Column(lambda found: found.spec.rx_queue_size if found.spec else None, right=True),
        "tx ring": Column(lambda found: found.spec.tx_queue_size if found.spec else None, right=True),
        "mtu": Column(lambda found: found.spec.mtu if found.spec else None, right=True),
        "reconnect": Column(
            lambda found: found.spec.reconnect_s if found.spec else None, format_duration, right=True
        ),
        "socket": Column(lambda found: found.socket),
        "message": Column(lambda found: found.message),
    },
    ("name", "switch", "state", "guest", "mac", "mode", "socket", "message"),
    lambda found: found.name,
)


def describe(found: PortInfo) -> Iterator[str]:
    """All about a port, for a person."""
    for name, column in VIEW.columns.items():
        if (value := column.value(found)) is not None:
            text = printable(column.text(value))
            yield f"{name:<11} {coloured(text, STATE_COLOURS.get(text) if column.coloured else None)}"
    for option, value in (found.spec.options if found.spec else {}).items():
        yield f"{printable(option):<11} {printable(value)}"


@click.group(cls=NounGroup, epilog=_EPILOG, short_help="Create, list and delete vhost-user network ports.")
def port() -> None:
    """Create, list and delete vhost-user network ports.

    A port belongs to a switch: ovs (Open vSwitch with DPDK), external (a switch that sees to the socket
    itself: Snabb, VPP, testpmd), or another one whose driver is installed. `ringway guest plug` gives it to
    a guest.
    """


_name = click.argument("name", shell_complete=complete.ports)


def _options(_ctx: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """:raises UsageError: one is no KEY=VALUE, or is given twice."""
    found: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UsageError(f"'--option {text}' names no value", hint="write it as --option bridge=br0")
        if key in found:
            raise UsageError(f"option '{key}' is given twice", hint="give it once")
        found[key] = value
    return found


@port.command("list")
@remote
@output
def list_(remote: str | None, **options: Any) -> None:
    """List all ports."""
    as_output(options).show_list(connect(remote).ports.list(), VIEW)


@port.command()
@_name
@remote
@output
def show(name: str, remote: str | None, **options: Any) -> None:
    """Show all about one port."""
    as_output(options).show_one(connect(remote).ports.show(name), VIEW, describe)


@port.command()
@click.argument("name")
@click.option("--switch", default="external", show_default=True, help="Whose driver makes it.")
@click.option("--mac", metavar="MAC", help="The guest's address.  [default: chosen, and kept]")
@click.option("--path", "socket", metavar="PATH", help="Where both sides meet.  [default: chosen, and kept]")
@click.option(
    "--mode",
    type=click.Choice([*map(str, PortMode)]),
    default=str(PortMode.SERVER),
    show_default=True,
    help="QEMU's part: server: it listens and the switch connects.",
)
@click.option(
    "--queues", type=click.IntRange(1, MAX_QUEUE_PAIRS), default=1, show_default=True, help="Pairs of queues."
)
@click.option("--rx-queue-size", type=int, metavar="COUNT", help="Entries of each receive ring.")
@click.option("--tx-queue-size", type=int, metavar="COUNT", help="Entries of each transmit ring.")
@click.option(
    "--mtu",
    type=click.IntRange(MTU_MIN, MTU_MAX),
    help="The largest packet: asked of the switch, told to the guest.",
)
@click.option(
    "--reconnect",
    "reconnect_s",
    type=click.IntRange(min=1),
    help="client: seconds until QEMU connects again.",
)
@click.option(
    "--option", "options_", multiple=True, callback=_options, help="KEY=VALUE of the switch's driver."
)
@dry_run
@waiting
@remote
@output
def create(name: str, options_: dict[str, str], mode: str, **options: Any) -> None:
    """Make a port, and have its switch know it."""
    fields = ("switch", "mac", "socket", "queues", "rx_queue_size", "tx_queue_size", "mtu", "reconnect_s")
    given = {field: options.pop(field) for field in fields}
    performer = Performer.of(options)
    spec = PortSpec(name=name, mode=PortMode(mode), options=options_, **given)
    found = performer(lambda client: client.ports.create, spec)
    if found is not None:
        performer.output.show_list([found], VIEW)


@port.command()
@_name
@click.option(
    "--force",
    is_flag=True,
    help="Unplug it from its guest, and forget it if its switch cannot be asked.",
)
@dry_run
@waiting
@remote
@output
def delete(name: str, force: bool, **options: Any) -> None:
    """Delete a port from its switch."""
    Performer.of(options)(lambda client: client.ports.delete, name, force=force)
