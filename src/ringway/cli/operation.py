"""``ringway operation``: what takes longer than a second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from ringway.cli import complete
from ringway.cli.format import Column, View, printable
from ringway.cli.remote import NounGroup, Progress, as_output, connect, output, parse_timeout, remote
from ringway.model import OperationInfo, OperationState

VIEW: Final = View[OperationInfo](
    {
        "id": Column(lambda found: found.id),
        "state": Column(lambda found: found.state, coloured=True),
        "progress": Column(lambda found: found.progress, lambda share: f"{share:.0%}", right=True),
        "description": Column(lambda found: found.description),
        "step": Column(lambda found: found.step),
        "objects": Column(lambda found: " ".join(found.objects)),
        "created": Column(lambda found: found.created),
        "updated": Column(lambda found: found.updated),
        "error": Column(lambda found: found.error),
    },
    ("id", "state", "progress", "description", "created", "error"),
    lambda found: found.id,
)


def describe(found: OperationInfo) -> Iterator[str]:
    """All about an operation, for a person."""
    for name, column in VIEW.columns.items():
        value = column.value(found)
        if value not in (None, ""):
            yield f"{name:<11} {printable(column.text(value))}"


@click.group(cls=NounGroup, short_help="List, cancel and await what the daemon is doing.")
def operation() -> None:
    """List, cancel and await what the daemon is doing, and what it did lately.

    They are forgotten when the daemon restarts; what they were to bring about is not.
    """


_identifier = click.argument("identifier", metavar="ID", shell_complete=complete.operations)


@operation.command("list")
@click.option("--running", is_flag=True, help="Only those that still run.")
@remote
@output
def list_(remote: str | None, running: bool, **options: Any) -> None:
    """List operations, the oldest first."""
    found = connect(remote).operations.list()
    wanted = [each for each in found if not running or each.state is OperationState.RUNNING]
    as_output(options).show_list(wanted, VIEW)


@operation.command()
@_identifier
@remote
@output
def show(identifier: str, remote: str | None, **options: Any) -> None:
    """Show all about one operation."""
    as_output(options).show_one(connect(remote).operations.show(identifier), VIEW, describe)


@operation.command()
@_identifier
@remote
@output
def cancel(identifier: str, remote: str | None, **options: Any) -> None:
    """Ask an operation to end. What it did so far is taken back."""
    as_output(options).show_one(connect(remote).operations.cancel(identifier), VIEW, describe)


@operation.command()
@_identifier
@click.option(
    "--timeout",
    "timeout_s",
    metavar="TIME",
    callback=parse_timeout,
    help="Wait so long at most, as in 30s.  [default: no limit]",
)
@remote
@output
def wait(identifier: str, timeout_s: float | None, remote: str | None, **options: Any) -> None:
    """Wait until an operation has ended. The exit status says how it did."""
    with Progress() as progress:
        ended = connect(remote).operations.wait(identifier, timeout_s, progress)
    as_output(options).show_one(ended, VIEW, describe)
