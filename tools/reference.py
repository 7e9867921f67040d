"""Write what the documentation repeats of the code: options, commands, errors.

    .venv/bin/python tools/reference.py

A page of ``docs`` holds a place for each such table, between ``<!-- generated: NAME -->`` and
``<!-- end -->``. ``tests/style/test_docs.py`` fails when a page is not what this would write.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from ringway.api.routes import Route
from ringway.api.table import ROUTES
from ringway.cli import remote
from ringway.cli.daemon import daemon
from ringway.cli.main import cli
from ringway.client import resources, verbs
from ringway.errors import RingwayError, all_errors
from ringway.host.config import Config
from ringway.host.events import Kind
from ringway.scsi import vpd
from ringway.scsi.sense import Condition
from ringway.scsi.table import Kind as CommandKind
from ringway.scsi.table import Row
from ringway.scsi.unit import DISK, LogicalUnit

ROOT: Final = Path(__file__).parents[1]
_ROLE: Final = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
_PLACE: Final = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return all pages of the documentation."""
    return sorted((ROOT / "docs").rglob("*.md"))


def rendered(text: str) -> str:
    """Return a page with its generated tables as they should be. :raises KeyError: no such table."""
    return _PLACE.sub(lambda place: place[1] + GENERATORS[place["name"]]() + place[3], text)


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


# Commands of the shell


def commands(
    group: click.Group = cli, parent: click.Context | None = None
) -> Iterator[tuple[click.Command, click.Context]]:
    """Walk the tree of commands, parents before children."""
    context = parent or click.Context(group, info_name="ringway")
    yield group, context
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        child = click.Context(command, parent=context, info_name=name, **command.context_settings)
        if isinstance(command, click.Group):
            yield from commands(command, child)
        else:
            yield command, child


def options(command: click.Command) -> Iterator[tuple[str, str]]:
    """Return names and meaning of each option, without those that all commands share that ask the daemon."""
    common = set(common_options())
    rows = [
        (_names(option), _meaning(option))
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
    ]
    yield from (row for row in rows if row not in common)


def common_options() -> list[tuple[str, str]]:
    """Return names and meaning of the options that all commands share that ask the daemon."""
    shared = [remote.remote, remote.output, remote.waiting, remote.dry_run]
    command: Callable[..., None] = reduce(lambda made, decorate: decorate(made), shared, lambda: None)
    made: list[click.Option] = getattr(command, "__click_params__", [])
    return [(_names(option), _meaning(option)) for option in reversed(made)]


def _shares(command: click.Command) -> str:
    """The names of the shared options that a command has, first ones only."""
    names = {_names(option) for option in command.params if isinstance(option, click.Option)}
    return ", ".join(f"`{name.split(' ')[0].rstrip(',')}`" for name, _ in common_options() if name in names)


def common() -> str:
    """The table of the options that all commands share that ask the daemon."""
    return table(("option", "meaning"), ((f"`{names}`", meaning) for names, meaning in common_options()))


def _names(option: click.Option) -> str:
    names = ", ".join(option.opts) + "".join(f" / {name}" for name in option.secondary_opts)
    if option.is_flag:
        return names
    if isinstance(option.type, click.Choice):
        return f"{names} [{'|'.join(map(str, option.type.choices))}]"
    return f"{names} {option.metavar or option.type.name.split()[0].upper()}"


def _meaning(option: click.Option) -> str:
    parts = [" ".join((option.help or "").split())]
    if isinstance(option.type, click.IntRange | click.FloatRange):
        least = "more than 0" if option.type.min_open else f"{option.type.min:g}"
        most = option.type.max
        parts.append(f"At least {least}." if most is None else f"From {least} to {most:g}.")
    if option.show_default is True:
        parts.append(f"[default: {option.default}]")
    return " ".join(filter(None, parts))


def usage(command: click.Command, context: click.Context) -> str:
    """Return the line behind "Usage:"."""
    return " ".join([context.command_path, *command.collect_usage_pieces(context)])


def command_options() -> str:
    """A section for each command: its usage, and a table of its options."""
    parts = []
    for command, context in commands():
        rows = [(f"`{names}`", meaning) for names, meaning in options(command)]
        parts.append(f"\n### {context.command_path}\n\n    {usage(command, context)}\n\n")
        shares = _shares(command)
        if rows:
            parts.append(table(("option", "meaning"), iter(rows)))
        if shares:
            gap = "\n" if rows else ""
            parts.append(f"{gap}As all that ask the daemon: {shares}.\n")
        if not rows and not shares:
            parts.append("No options but `--help`.\n")
    return "".join(parts) + "\n"


def _paragraphs(text: str) -> str:
    plain = (" ".join(part.split()) for part in text.split("\n\n") if "\b" not in part)
    return "\n\n".join(textwrap.fill(part, 116) for part in plain)


def man_commands() -> str:
    """The COMMANDS part of the manual page."""
    parts = []
    for command, context in commands():
        parts.append(f"\n## {context.command_path}\n\n    {usage(command, context)}\n\n")
        parts.append(f"{_paragraphs(command.help or '')}\n\n")
        rows = [f"* `{names}`: {meaning}\n" for names, meaning in options(command)]
        if shares := _shares(command):
            rows.append(f"* {shares}: as below.\n")
        parts.append("".join([*rows, "\n"] if rows else []))
    return "".join(parts)


def man_common() -> str:
    """The same for the manual page."""
    return "".join(["\n", *(f"* `{names}`: {meaning}\n" for names, meaning in common_options()), "\n"])


# Errors


def exit_statuses() -> str:
    """Each class of error: its exit status, its code on the control socket, what it means."""

    def row(kind: type[RingwayError]) -> tuple[str, ...]:
        meaning = (kind.__doc__ or "").split("\n", maxsplit=1)[0]
        meaning = "Anything that has no class of its own." if kind is RingwayError else meaning
        return str(kind.exit_status), f"`{kind.code}`", f"`{kind.__name__}`", meaning

    own = [kind for kind in all_errors() if kind.__module__ == RingwayError.__module__]
    rows = (row(kind) for kind in sorted(own, key=lambda kind: kind.exit_status))
    return table(("exit status", "code", "class", "meaning"), rows)


# The client

RESOURCES: Final[tuple[type[verbs.Resource[Any]], ...]] = (
    resources.Endpoints,
    resources.Luns,
    resources.Backstores,
    resources.Operations,
    resources.Host,
    resources.Config,
    resources.Events,
)


def client_verbs() -> str:
    """All that a client can be asked, resource by resource."""
    rows = ((f"`{name}`", what) for kind in RESOURCES for name, what in _verbs(kind))
    return table(("verb", "what"), rows)


def _verbs(kind: type[verbs.Resource[Any]]) -> Iterator[tuple[str, str]]:
    for name, verb in vars(kind).items():
        if isinstance(verb, verbs.Look | verbs.Change | verbs.Follow):
            function = getattr(verb, "_converse", None) or getattr(verb, "_make")  # noqa: B009
            words = ", ".join(map(_parameter, inspect.signature(function).parameters.values()))
            first = " ".join((verb.__doc__ or "").partition("\n\n")[0].split())
            plain = re.sub(r" :(param|returns|raises).*", "", first)
            yield f"{kind.__name__.lower()}.{name}({words})", _ROLE.sub(r"`\1`", plain).replace("``", "`")


def _parameter(parameter: inspect.Parameter) -> str:
    return (
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
    )


# SCSI


def scsi_commands() -> str:
    """The table of SCSI commands, as REPORT SUPPORTED OPERATION CODES tells it."""

    def row(row: Row[LogicalUnit]) -> tuple[str, ...]:
        code = f"{row.opcode:02X}"
        action = "" if row.service_action is None else f"{row.service_action:02X}"
        who = "data path" if row.kind & CommandKind.HOT else "Python"
        return code, action, row.name, str(len(row.usage)), who

    return table(("opcode", "service action", "command", "CDB bytes", "run by"), (row(each) for each in DISK))


def vpd_pages() -> str:
    """The vital product data pages."""

    def row(code: int) -> tuple[str, str]:
        return f"{code:02X}", vpd.PAGES[code].__name__.replace("_", " ")

    return table(("page", "what"), (row(code) for code in sorted(vpd.PAGES)))


def sense_codes() -> str:
    """The sense data that a guest can see."""

    def row(condition: Condition) -> tuple[str, ...]:
        code, qualifier = condition.code
        words = condition.name.lower().replace("_", " ")
        return f"{condition.key.name.replace('_', ' ')}", f"{code:02X}/{qualifier:02X}", words

    return table(("sense key", "ASC/ASCQ", "T10's text"), (row(each) for each in Condition))


# The daemon


def daemon_options() -> str:
    """The options of ringwayd."""
    rows = [(f"`{names}`", meaning) for names, meaning in options(daemon)]
    return table(("option", "meaning"), iter(rows))


def configuration() -> str:
    """Each table of the configuration, and its values."""
    defs = msgspec.json.schema(Config)["$defs"]
    sections = {name: type(getattr(Config(), name)).__name__ for name in Config.__struct_fields__}
    parts = []
    for name, kind in sections.items():
        rows = (_value(key, schema) for key, schema in defs[kind]["properties"].items())
        parts.append(f"\n### [{name}]\n\n{table(('value', 'default', 'meaning'), rows)}")
    return "".join(parts) + "\n"


def _value(key: str, schema: dict[str, Any]) -> tuple[str, ...]:
    meaning = schema.get("description", "")
    if "minimum" in schema:
        meaning += f" From {schema['minimum']} to {schema['maximum']}."
    return f"`{key}`", f"`{json.dumps(schema['default'])}`", meaning


def api_routes() -> str:
    """Each route: what it takes, and what it answers."""

    def row(route: Route) -> tuple[str, ...]:
        query = ", ".join(f"`{name}`" for name in route.query.__struct_fields__)
        return f"`{route.method} {route.path}`", route.summary, _kind(route.body), query, _kind(route.answer)

    return table(("route", "what it does", "body", "query", "answer"), (row(route) for route in ROUTES))


def _kind(kind: Any) -> str:
    """The name of a type, as OpenAPI has it."""
    if kind is None:
        return ""
    inner = getattr(kind, "__args__", None)
    return f"list of {inner[0].__name__}" if inner else str(kind.__name__)


def event_kinds() -> str:
    """What can happen."""
    return table(("kind", "when"), ((f"`{kind}`", kind.meaning) for kind in Kind))


GENERATORS: Final[dict[str, Callable[[], str]]] = {
    "api-routes": api_routes,
    "client-verbs": client_verbs,
    "common-options": common,
    "man-common-options": man_common,
    "command-options": command_options,
    "configuration": configuration,
    "daemon-options": daemon_options,
    "event-kinds": event_kinds,
    "exit-statuses": exit_statuses,
    "man-commands": man_commands,
    "scsi-commands": scsi_commands,
    "sense-codes": sense_codes,
    "vpd-pages": vpd_pages,
}


def main() -> None:
    """Write every page whose tables are not what they should be."""
    for page in pages():
        text = page.read_text()
        if (new := rendered(text)) != text:
            page.write_text(new)
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
