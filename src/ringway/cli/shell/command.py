"""The command: one line from its arguments, lines from a file, or lines from a keyboard."""

from __future__ import annotations

import sys

import click

from ringway.cli.main import exit_status
from ringway.cli.remote import remote
from ringway.cli.shell.session import Session
from ringway.cli.shell.words import split

_EPILOG = """\b
Examples:
  ringway shell
  ringway shell ls /endpoints 1
  ringway shell /endpoints create db0 lun=0=/dev/vg0/db0 engine=lio
  ringway shell < lines.txt

\b
A line is [PATH] COMMAND WORD..., or a PATH to go there. help says what can be
done here.
"""


@click.command(
    epilog=_EPILOG,
    short_help="Walk through a host as through a tree.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("words", metavar="[LINE]...", nargs=-1, type=click.UNPROCESSED)
@remote
@click.pass_context
def shell(ctx: click.Context, words: tuple[str, ...], remote: str | None) -> None:
    """Walk through a host as through a tree, look at it and change it.

    With LINE, that line is carried out. Otherwise lines are read: from a terminal with TAB and a history,
    from a file or pipe until the first that fails, whose exit status it is. Each line is done and kept at
    once; there is nothing to save, and nobody is locked out meanwhile.
    """
    session = Session(remote)
    if words:
        session.execute(words)
    elif sys.stdin.isatty():
        _converse(session)
    else:
        ctx.exit(_run_file(session))


def _converse(session: Session) -> None:
    """Read from a keyboard. What goes wrong is said, and the next line is read."""
    from ringway.cli.shell.keyboard import read_lines

    for line in read_lines(session):
        exit_status(lambda line=line: session.execute(split(line)))  # type: ignore[misc]
        if session.over:
            return


def _run_file(session: Session) -> int:
    """Carry out lines until one fails. :returns: its exit status, or 0."""
    for number, line in enumerate(sys.stdin, 1):
        status = exit_status(lambda line=line: session.execute(split(line)))  # type: ignore[misc]
        if status:
            click.echo(f"line {number} failed: {line.strip()}", err=True)
            return status
        if session.over:
            break
    return 0
