"""What a command prints: a table for a person; JSON, YAML or CSV for a program.

JSON and YAML are the API's objects; a list is always a list. A table or CSV has columns, which ``-c``
chooses; in CSV sizes are whole numbers of bytes. Widths and colours are fitted to a terminal, and to nothing
else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import click
from msgspec import Struct

from ringway.errors import UsageError

T = TypeVar("T")
FORMATS: Final = ("table", "json", "yaml", "csv")
_GAP: Final = "  "
_NARROWEST: Final = 8  #: of a column that is cut
COLOURS: Final[Mapping[str, str]] = {
    "ready": "green",
    "done": "green",
    "ok": "green",
    "starting": "yellow",
    "running": "yellow",
    "deleting": "yellow",
    "degraded": "red",
    "failed": "red",
    "no": "red",
    "lost": "red",
    "foreign": "bright_black",
}


class Column(Struct, Generic[T], frozen=True):
    """``value`` is what a program reads, ``text`` makes of it what a person reads."""

    value: Callable[[T], Any]
    text: Callable[[Any], str] = str
    right: bool = False
    coloured: bool = False


class View(Struct, Generic[T], frozen=True):
    """How objects of one kind are shown.

    ``name`` is what ``-q`` prints; ``encode`` makes the API's object.
    """

    columns: Mapping[str, Column[T]]
    usual: Sequence[str]
    name: Callable[[T], str]
    encode: Callable[[T], Any] = lambda found: found

    def chosen(self, names: str | None) -> dict[str, Column[T]]:
        """The columns by name. :raises UsageError: there is no such column."""
        wanted = self.usual if names is None else [name.strip() for name in names.split(",")]
        for name in wanted:
            if name not in self.columns:
                raise UsageError(f"there is no column '{name}'", hint=f"there are {', '.join(self.columns)}")
        return {name: self.columns[name] for name in wanted}


class Output(Struct, frozen=True):
    """What the user wants to see."""

    format: str = "table"
    columns: str | None = None
    headers: bool = True
    quiet: bool = False

    def show_list(self, found: Sequence[T], view: View[T]) -> None:
        """Print objects, a line each."""
        if self.quiet:
            _echo_lines(view.name(each) for each in found)
        elif self.format in ("json", "yaml"):
            self.show_value([view.encode(each) for each in found])
        else:
            self._show_rows(found, view.chosen(self.columns))

    def show_one(self, found: T, view: View[T], describe: Callable[[T], Iterable[str]]) -> None:
        """Print one object: ``describe`` is what a person sees of it, unless columns are asked for."""
        if self.quiet:
            click.echo(view.name(found))
        elif self.format in ("json", "yaml"):
            self.show_value(view.encode(found))
        elif self.format == "table" and self.columns is None:
            _echo_lines(describe(found))
        else:
            self._show_rows([found], view.chosen(self.columns))

    def show_value(self, value: object) -> None:
        """Print JSON or YAML."""
        if self.format == "yaml":
            import msgspec.yaml

            click.echo(msgspec.yaml.encode(value).decode(), nl=False)
        else:
            import msgspec

            click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())

    def show_note(self, text: str | None) -> None:
        """Tell a person what has to be known besides; a program has it in the object."""
        if text and self.format == "table" and not self.quiet:
            lines = "\n".join(map(printable, text.splitlines()))
            click.echo(f"{click.style('note:', fg='cyan', bold=True)} {lines}", err=True)

    def _show_rows(self, found: Sequence[T], columns: Mapping[str, Column[T]]) -> None:
        if self.format == "csv":
            _echo_csv(found, columns, headers=self.headers)
        else:
            _echo_lines(table(found, columns, headers=self.headers, width=terminal_width()))


def table(
    found: Sequence[T], columns: Mapping[str, Column[T]], *, headers: bool = True, width: int | None = None
) -> Iterator[str]:
    """Lay objects out in columns. :param width: cut the widest columns until a line fits; ``None``: never."""
    kinds = list(columns.values())
    cells = [[_cell(kind, each) for kind in kinds] for each in found]
    shown = [[name.upper() for name in columns], *cells] if headers else cells
    if not shown:
        return
    widths = fitted([max(map(len, column)) for column in zip(*shown, strict=True)], width)
    for number, row in enumerate(shown):
        plain = headers and number == 0
        padded = [
            _padded(cell, size, kind, plain=plain)
            for cell, size, kind in zip(row, widths, kinds, strict=True)
        ]
        yield _GAP.join(padded).rstrip()


def fitted(widths: Sequence[int], width: int | None) -> list[int]:
    """Take from the widest column until all fit, or nothing more can be taken."""
    fitting = list(widths)
    while width is not None and sum(fitting) + len(_GAP) * (len(fitting) - 1) > width:
        widest = max(range(len(fitting)), key=fitting.__getitem__)
        if fitting[widest] <= _NARROWEST:
            break
        fitting[widest] -= 1
    return fitting


def _cell(column: Column[T], found: T) -> str:
    value = column.value(found)
    return "-" if value is None or value == "" else printable(column.text(value))


def _padded(cell: str, width: int, column: Column[Any], *, plain: bool) -> str:
    if len(cell) > width:
        cell = f"{cell[: width - 1]}…"
    padded = cell.rjust(width) if column.right else cell.ljust(width)
    return padded if plain or not column.coloured else coloured(padded, COLOURS.get(cell))


def coloured(text: str, colour: str | None) -> str:
    """Colour a text on a terminal."""
    return click.style(text, fg=colour) if colour is not None and has_colour() else text


def has_colour() -> bool:
    """Whether standard output shows colours. Spec of the variable: no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def terminal_width() -> int | None:
    """The width of standard output, if it is a terminal."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def printable(text: str) -> str:
    """A text of one line without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return " " if char in "\n\t" else char.encode("unicode_escape", "surrogatepass").decode()


def _echo_lines(lines: Iterable[str]) -> None:
    """Print all at once: a thousand lines are one write."""
    text = "\n".join(lines)
    if text:
        click.echo(text)


def _echo_csv(found: Sequence[T], columns: Mapping[str, Column[T]], *, headers: bool) -> None:
    rows: list[list[object]] = [[*columns]] if headers else []
    rows += [[_csv_cell(column.value(each)) for column in columns.values()] for each in found]
    _echo_lines(map(_csv_line, rows))


def _csv_line(cells: Sequence[object]) -> str:
    """Spec: RFC 4180, but for its line ends, which are the system's: the writer quotes as if they were."""
    import csv
    import io

    line = io.StringIO(newline="")
    csv.writer(line).writerow(cells)
    return line.getvalue().removesuffix("\r\n")


def _csv_cell(value: object) -> object:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
