"""Figures as an SVG: requests a second of all sides, a panel for each kind of store.

Points and not bars: the axis is logarithmic, where the length of a bar would mean nothing. A hollow point
had no fair sample.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ringway.bench.plan import STORES
from ringway.bench.samples import Figure, Run, figures
from ringway.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The same run gives the same file: no date in it, and no random ids.
_STYLE: Final[Any] = {"svg.hashsalt": "ringway", "svg.fonttype": "none", "font.size": 8}
_PANEL_INCHES: Final = (9.0, 2.6)
_COLOURS: Final = ("#1b6ca8", "#57a0d3", "#c0392b", "#8e8e8e", "#d9a441", "#6c9a5b")
_WIDTH: Final = 0.5


def check() -> None:
    """:raises NotFoundError: matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise NotFoundError("matplotlib is not installed", hint="pip install 'ringway[bench]'")


def write(run: Run, path: Path) -> None:
    """Write the chart of a run.

    :raises NotFoundError: matplotlib is not installed.
    :raises UsageError: there is nothing to draw, or the file cannot be written.
    """
    check()
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    rows = [row for row in figures(run.samples) if not row.case.rate_iops]
    stores = [store for store in STORES if any(row.case.store == store for row in rows)]
    if not stores:
        raise UsageError("there is nothing to draw in this run")
    with matplotlib.rc_context(_STYLE):
        drawing = Drawing(figsize=(_PANEL_INCHES[0], _PANEL_INCHES[1] * len(stores)), layout="constrained")
        panels: Any = drawing.subplots(len(stores), squeeze=False)
        sides = list(dict.fromkeys(row.side for row in rows))
        for store, panel in zip(stores, panels[:, 0], strict=True):
            _draw(panel, store, [row for row in rows if row.case.store == store], sides)
        marks = [
            panels[0, 0].plot([], [], "o", color=_colour(n), label=side)[0] for n, side in enumerate(sides)
        ]
        if not all(row.fair for row in rows):
            marks += panels[0, 0].plot([], [], "o", color="black", fillstyle="none", label="no fair sample")
        drawing.legend(handles=marks, fontsize=7, ncols=len(marks), loc="outside upper left", frameon=False)
        try:
            drawing.savefig(path, format="svg", metadata={"Date": None, "Creator": "ringway bench"})
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _draw(panel: Axes, store: str, rows: Sequence[Figure], sides: Sequence[str]) -> None:
    loads = list(dict.fromkeys((row.case.name.removeprefix(f"{store}-"), row.placement) for row in rows))
    places = {load: place for place, load in enumerate(loads)}
    width = _WIDTH / len(sides)
    for number, side in enumerate(sides):
        mine = [row for row in rows if row.side == side]
        at = [
            places[row.case.name.removeprefix(f"{store}-"), row.placement]
            - _WIDTH / 2
            + (number + 0.5) * width
            for row in mine
        ]
        faces = [_colour(number) if row.fair else "none" for row in mine]
        panel.scatter(at, [row.iops for row in mine], s=16, edgecolors=_colour(number), facecolors=faces)
    panel.set_yscale("log")
    panel.set_title(store, loc="right", fontsize=8)
    panel.set_ylabel("IOPS")
    names = [f"{load}\n{placement}" for load, placement in loads]
    panel.set_xlim(-0.5, len(loads) - 0.5)
    panel.set_xticks(range(len(loads)), names, rotation=0 if len(loads) < 8 else 90, fontsize=6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", linewidth=0.3)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]
