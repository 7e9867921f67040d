"""``ringway monitor``: what happens on the host, as it happens."""

from __future__ import annotations

import contextlib
import sys
from typing import Final

import click
import msgspec

from ringway.cli.format import printable
from ringway.cli.remote import connect, remote
from ringway.cli.signals import as_ctrl_c
from ringway.errors import UnreachableError
from ringway.model import Event

_EPILOG: Final = """\b
Examples:
  ringway monitor
  ringway monitor --kinds endpoint,lun -o json | jq -r .object
"""


@click.command(epilog=_EPILOG, short_help="Follow what happens on this host, a line an event.")
@click.option("--kinds", metavar="LIST", help="Only these, as in endpoint.degraded,lun.  [default: all]")
@click.option(
    "--since", type=click.IntRange(min=0), help="Begin behind this number; 0 for all that are still kept."
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@click.option(
    "-o",
    "--output",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: an object a line.",
)
@remote
def monitor(
    remote: str | None, kinds: str | None, since: int | None, count: int | None, format_: str
) -> None:
    """Follow what happens on this host, a line an event, until Ctrl-C."""
    wanted = [kind.strip() for kind in kinds.split(",")] if kinds else []
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError), as_ctrl_c():
        with connect(remote).events.follow(wanted, since) as events:
            for number, event in enumerate(events, 1):
                click.echo(_line(event) if format_ == "table" else msgspec.json.encode(event).decode())
                sys.stdout.flush()
                if number == count:
                    return
        raise UnreachableError(
            "ringwayd has ended its stream of events",
            hint="it may be restarting: ringway monitor follows again",
        )


def _line(event: Event) -> str:
    message = f"  {printable(event.message)}" if event.message else ""
    return f"{event.time}  {event.kind:<20} {printable(event.object)}{message}"
