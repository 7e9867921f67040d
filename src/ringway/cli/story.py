"""A narrative on a terminal or in a log: numbered steps with their times, figures below while one runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from ringway.units import format_duration

if TYPE_CHECKING:
    from rich.table import Table

_QUIET_S: Final = 5.0  #: where nothing can be redrawn, figures come so often
_INDENT: Final = "     "


class Story:
    """Tells what happens, step by step. Off a terminal every line is plain text and final."""

    def __init__(self, file: TextIO) -> None:
        self._console = Console(file=file, highlight=False)
        self._start_s = time.monotonic()
        self._number = 0
        self._live: Live | None = None
        self._title = ""
        self._details: list[str] = []
        self._told_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Since the story began."""
        return time.monotonic() - self._start_s

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Tell a step.

        The block calls what it gets with the step's result; an error marks the step as failed.
        """
        self._number += 1
        self._title, self._details = f"{self._number}  {title}", []
        begin_s = self._told_s = time.monotonic()
        results: list[str] = []
        failed = True
        try:
            with self._spinning():
                yield results.append
            failed = False
        finally:
            self._tell(" ".join(results), time.monotonic() - begin_s, failed)

    def detail(self, text: str) -> None:
        """Lines to show below the step's result."""
        self._details += text.split("\n")

    def figures(self, text: str) -> None:
        """What goes on now: redrawn in place on a terminal, else told now and then."""
        if self._live is not None:
            self._live.update(Spinner("dots", Text(f"{self._title}\n{_INDENT}{text}")))
        elif time.monotonic() - self._told_s >= _QUIET_S:
            self._told_s = time.monotonic()
            self._print(f"{_INDENT}{text}")

    def close(self, table: Table, text: str) -> None:
        """The end: a table, and a last line."""
        self._console.print()
        self._console.print(table)
        self._console.print(Text.assemble(("It works", "bold green"), f" ({text})."))

    @contextlib.contextmanager
    def _spinning(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        spinner = Spinner("dots", Text(self._title))
        with Live(spinner, console=self._console, transient=True, refresh_per_second=8) as self._live:
            yield
        self._live = None

    def _tell(self, result: str, seconds: float, failed: bool) -> None:
        mark = ("✗ ", "bold red") if failed else ("✓ ", "bold green")
        title = Text.assemble(mark, (self._title, "bold"), (f"  {format_duration(seconds)}", "dim"))
        self._console.print(title, soft_wrap=True)
        for line in [result, *self._details]:
            if line.strip():
                self._print(f"{_INDENT}{line}")

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)
