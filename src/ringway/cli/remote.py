"""What all commands share that ask the daemon: their options, and how they wait.

A command that changes something waits until it is done. Ctrl-C ends the waiting, never the work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import click
from msgspec import Struct

from ringway.cli.format import FORMATS, Column, Output, View, printable
from ringway.errors import UsageError

if TYPE_CHECKING:
    from ringway.client import Client
    from ringway.client.verbs import BlockingChange
    from ringway.model import Change, OperationInfo, Plan

T = TypeVar("T")
P = ParamSpec("P")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_ALIASES: Final = {"ls": "list", "rm": ("delete", "remove")}
_MARKS: Final = {"create": "+", "update": "~", "delete": "-", "keep": "="}
#: Of a file that describes a host.
_MOST_BYTES: Final = 16 << 20


class NounGroup(click.Group):
    """The verbs of one noun. ``ls`` is ``list``, and ``rm`` is ``delete`` or ``remove``.

    :param elsewhere: verbs that are not ours, and the command that is meant.
    """

    def __init__(self, *args: Any, elsewhere: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._elsewhere = elsewhere or {}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does. :raises UsageError: the verb is another program's; the hint is how to say it."""
        verb, *rest = args
        if self.get_command(ctx, verb) is None and (command := self._elsewhere.get(verb)) is not None:
            noun = next((word for word in rest if not word.startswith("-")), (ctx.info_name or "").upper())
            raise UsageError(f"{ctx.command_path} has no {verb}", hint=f"it is: {command} {noun}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a verb, by its name or its alias."""
        found = super().get_command(ctx, cmd_name)
        names = _ALIASES.get(cmd_name, ())
        for name in (names,) if isinstance(names, str) else names:
            found = found or super().get_command(ctx, name)
        return found


def parse_timeout(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """``30s``, ``2m``."""
    from ringway.units import parse_duration

    return None if text is None else parse_duration(text)


# Options

remote: Final = click.option(
    "--socket",
    "remote",
    metavar="PATH",
    type=click.Path(),
    help="The daemon's socket.  [default: $RINGWAY_SOCKET, or its usual places]",
)
dry_run: Final = click.option("--dry-run", is_flag=True, help="Only say what would change.")


def output(command: Decorated) -> Decorated:
    """The options of what is printed; the command gets them as ``output``."""
    for option in reversed(_OUTPUT_OPTIONS):
        command = option(command)
    return command


_OUTPUT_OPTIONS: Final = (
    click.option(
        "-o",
        "--output",
        "format_",
        type=click.Choice(FORMATS),
        envvar="RINGWAY_FORMAT",
        default="table",
        show_default=True,
        help="How to print it; $RINGWAY_FORMAT says it for all.",
    ),
    click.option("-c", "--columns", metavar="LIST", help="Columns of the table or CSV, as in name,state."),
    click.option("--no-headers", is_flag=True, help="Leave the columns' names out."),
    click.option("-q", "--quiet", is_flag=True, help="Only print names."),
)


def waiting(command: Decorated) -> Decorated:
    """The options of how long to wait; the command gets ``wait`` and ``timeout_s``."""
    wait = click.option("--wait/--no-wait", default=True, help="Wait until it is done.  [default: wait]")
    timeout = click.option(
        "--timeout",
        "timeout_s",
        metavar="TIME",
        callback=parse_timeout,
        help="Wait so long at most, as in 30s.  [default: no limit]",
    )
    return wait(timeout(command))


def as_output(options: dict[str, Any]) -> Output:
    """Take the output's options out of a command's."""
    return Output(
        options.pop("format_"),
        options.pop("columns"),
        not options.pop("no_headers"),
        options.pop("quiet"),
    )


# Asking


def connect(socket: str | None) -> Client:
    """A client that waits for nothing beyond an answer."""
    from ringway.client import Client

    return Client(socket)


class Performer(Struct, frozen=True):
    """Carries changes out as the user wants it: at once, in the background, or only on paper."""

    socket: str | None
    output: Output
    wait: bool = True
    timeout_s: float | None = None
    dry_run: bool = False

    @classmethod
    def of(cls, options: dict[str, Any]) -> Performer:
        """Take its options out of a command's."""
        return cls(
            options.pop("remote"),
            as_output(options),
            options.pop("wait"),
            options.pop("timeout_s"),
            options.pop("dry_run", False),
        )

    def __call__(
        self, verb: Callable[[Client], BlockingChange[P, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Do it.

        :returns: the result; ``None`` when it was planned or begun only, and that was printed.
        :raises TimedOutError: it goes on.
        """
        if self.dry_run:
            print_plan(verb(connect(self.socket)).plan(*args, **kwargs), self.output)
            return None
        if not self.wait:
            begun = verb(connect(self.socket)).begin(*args, **kwargs)
            if begun.operation is not None:
                self._print_begun(begun.operation)
            return None
        with Progress() as progress:
            return verb(self._client(progress))(*args, **kwargs)

    def _client(self, progress: Progress) -> Client:
        from ringway.client import Client

        return Client(self.socket, timeout_s=self.timeout_s, progress=progress)

    def _print_begun(self, operation: OperationInfo) -> None:
        if self.output.format in ("json", "yaml") and not self.output.quiet:
            self.output.show_value(operation)
        else:
            click.echo(operation.id)


class Progress:
    """A line on a terminal's stderr while something takes long; a word when it is left with Ctrl-C."""

    def __init__(self) -> None:
        self._last: OperationInfo | None = None
        self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __call__(self, operation: OperationInfo) -> None:
        """Show how far it is."""
        self._last = operation
        if sys.stderr.isatty():
            self._drawn = True
            step = f"  {operation.step}" if operation.step else ""
            text = printable(f"{operation.description}  {operation.progress:.0%}{step}")
            click.echo(f"\r\033[K{text}", err=True, nl=False)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._drawn:
            click.echo("\r\033[K", err=True, nl=False)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            click.echo(f"it goes on; {self._advice()}", err=True)

    def _advice(self) -> str:
        if self._last is None:
            return "see ringway operation list"
        name = self._last.id
        return f"see ringway operation wait {name}, or cancel it: ringway operation cancel {name}"


def print_plan(plan: Plan, output: Output) -> None:
    """Print what would change; nothing but a remark if nothing would."""
    if output.format in ("json", "yaml"):
        output.show_value(plan)
        return
    for note in plan.notes:
        click.echo(f"note: {printable(note)}", err=True)
    changes = [change for change in plan.changes if change.action != "keep"]
    if not changes:
        click.echo("nothing would change", err=True)
    elif output.quiet or output.format == "csv" or output.columns:
        output.show_list(changes, _CHANGES)
    else:
        click.echo("\n".join(line for change in changes for line in _describe_change(change)))


def _describe_change(change: Change) -> Iterator[str]:
    yield f"{_MARKS[change.action]} {change.action} {printable(change.object.replace('/', ' ', 1))}"
    yield from (f"    {printable(detail)}" for detail in change.details)


_CHANGES: Final = View["Change"](
    {
        "action": Column(lambda change: change.action),
        "object": Column(lambda change: change.object),
        "details": Column(lambda change: "; ".join(change.details)),
    },
    ("action", "object", "details"),
    lambda change: change.object,
)


def read_file(path: str, of: str = "a host") -> bytes:
    """The content of a file, or of standard input for ``-``.

    :param of: what it describes.

    :raises UsageError: it cannot be read, or is too large for what is meant.
    """
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"'{path}' cannot be read: {error.strerror}", hint="name a file, or - for stdin"
        ) from error
    if len(content) > _MOST_BYTES:
        raise UsageError(f"'{path}' has more than 16 MiB", hint=f"name a file that describes {of}")
    return content
