"""A trace as a picture: a panel for each operation, a row for each request, a colour for each step.

Rows begin when the worker found the request; what lies left of that is when the guest queued it, as far as
that is known. They are chosen from the fastest to the slowest. Light and dark follow the viewer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from ringway.model import Operation, TraceSample, Wake
from ringway.trace.figures import by_operation, percentile
from ringway.trace.steps import MEANING, Step, found_ns, segments, total_ns, unseen
from ringway.units import format_count, format_duration

ROWS: Final = 16  #: requests in a panel
_WIDTH, _LEFT, _RIGHT = 960, 190, 90
_ROW, _BAR = 17, 11
_PLOT: Final = _WIDTH - _LEFT - _RIGHT
_HEAD: Final = 96  #: title and legend
_COLOURS: Final = {
    Step.DEQUEUED: "#c9a227",
    Step.DISPATCHED: "#7b6fd0",
    Step.COMPLETED: "#2f8fd0",
    Step.ENQUEUED: "#d9772b",
    Step.NOTIFIED: "#3aa76d",
}
_STYLE: Final = """
text { font: 12px system-ui, 'DejaVu Sans', sans-serif; fill: #1b1f24; }
.title { font-size: 17px; font-weight: 600; }
.panel { font-size: 13px; font-weight: 600; }
.faint { fill: #59636e; font-size: 11px; }
.end { text-anchor: end; }
.mid { text-anchor: middle; }
.paper { fill: #ffffff; }
.rule { stroke: #d8dee4; stroke-width: 1; }
.zero { stroke: #1b1f24; stroke-width: 1; }
.unseen { fill: #8b949e; fill-opacity: 0.25; stroke: #8b949e; stroke-dasharray: 2 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .faint { fill: #9aa4ae; }
  .paper { fill: #14181d; }
  .rule { stroke: #363d46; }
  .zero { stroke: #e6edf3; }
}
"""


def picture(samples: Iterable[TraceSample], title: str) -> str:
    """The whole file. Without samples it says so."""
    panels, top = [], float(_HEAD)
    for operation, group in by_operation(samples).items():
        panel = _Panel.of(operation, group, top)
        panels.append(panel)
        top += panel.height
    body = [_legend(), *(line for panel in panels for line in panel.draw())]
    if not panels:
        body.append(_text(_LEFT, top, "no request was sampled", "faint"))
    height = round(top + 24)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" role="img" aria-label={quoteattr(title)}>',
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" width="{_WIDTH}" height="{height}"/>',
            _text(16, 28, title, "title"),
            *body,
            "</svg>\n",
        ]
    )


@dataclass(frozen=True, slots=True)
class _Panel:
    """Requests of one operation over an axis of their own."""

    operation: Operation
    count: int
    median_ns: int
    rows: Sequence[TraceSample]
    scale: float  #: pixels a nanosecond
    zero: float  #: where rows begin
    top: float

    @classmethod
    def of(cls, operation: Operation, samples: Sequence[TraceSample], top: float) -> _Panel:
        """Choose rows, and an axis on which most of them fit; the rest are cut off, and say so."""
        ordered = sorted(samples, key=total_ns)
        rows = _spread(ordered)
        totals = [total_ns(sample) for sample in rows]
        extent = max(min(totals[-1], 2 * percentile(totals, 0.75)), 1)
        zero = _LEFT + _PLOT * 0.14
        scale = (_LEFT + _PLOT - zero) / extent
        return cls(operation, len(samples), total_ns(ordered[len(ordered) // 2]), rows, scale, zero, top)

    @property
    def height(self) -> float:
        """With title and axis."""
        return 30 + _ROW * len(self.rows) + 34

    def draw(self) -> Iterator[str]:
        """Every element of it."""
        what = f"{self.operation} · {format_count(self.count)} sampled"
        yield _text(16, self.top + 14, what, "panel")
        note = f"median {_time(self.median_ns)} from found to told"
        yield _text(_WIDTH - 16, self.top + 14, note, "faint end")
        first = self.top + 26
        bottom = first + _ROW * len(self.rows)
        yield from self._axis(first, bottom)
        for number, sample in enumerate(self.rows):
            yield from self._row(sample, first + _ROW * number)
        yield f'<line class="zero" x1="{self.zero:.1f}" y1="{first}" x2="{self.zero:.1f}" y2="{bottom}"/>'

    def _axis(self, first: float, bottom: float) -> Iterator[str]:
        step = _round_step((_LEFT + _PLOT - self.zero) / self.scale / 6)
        tick = 0.0
        while (x := self.zero + tick * self.scale) <= _LEFT + _PLOT + 0.5:
            yield f'<line class="rule" x1="{x:.1f}" y1="{first}" x2="{x:.1f}" y2="{bottom + 4}"/>'
            yield _text(x, bottom + 17, f"{tick / 1e3:g} µs", "faint mid")
            tick += step

    def _row(self, sample: TraceSample, y: float) -> Iterator[str]:
        base, edge = found_ns(sample), float(_LEFT + _PLOT)
        yield _text(_LEFT - 8, y + 10, _label(sample), "faint end")
        yield from self._unseen(sample, y)
        for part in segments(sample):
            x0 = self.zero + (part.start_ns - base) * self.scale
            x1 = self.zero + (part.end_ns - base) * self.scale
            if x0 < edge and x1 > x0:
                tip = f"{part.step}: {MEANING[part.step]}, {_time(part.ns)}"
                yield _bar(x0, y, min(x1, edge) - x0, tip, f'fill="{_COLOURS[part.step]}"')
        cut = "▸ " if self.zero + total_ns(sample) * self.scale > edge + 0.5 else ""
        yield _text(edge + 8, y + 10, cut + _time(total_ns(sample)), "faint")

    def _unseen(self, sample: TraceSample, y: float) -> Iterator[str]:
        part = unseen(sample)
        if part is None:
            return
        width = min(part.ns * self.scale, self.zero - _LEFT)
        what = "queued in here" if sample.wake is Wake.POLLING else "queued (and kicked) in here, asleep"
        if width >= 1:
            yield _bar(self.zero - width, y, width, f"{what}: within {_time(part.ns)}", 'class="unseen"')


def _legend() -> str:
    parts, x = [], 16.0
    entries = [('class="unseen"', "queued, kicked: in here")]
    entries += [(f'fill="{colour}"', f"{step}: {MEANING[step]}") for step, colour in _COLOURS.items()]
    for number, (look, words) in enumerate(entries):
        y = 46 if number < 3 else 66
        x = 16.0 if number in (0, 3) else x
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" {look}/>')
        parts.append(_text(x + 18, y + 10, words, ""))
        x += 250
    return "\n".join(parts)


def _spread(ordered: Sequence[TraceSample]) -> list[TraceSample]:
    """So many of them, at even distances, the first and the last among them."""
    if len(ordered) <= ROWS:
        return list(ordered)
    return [ordered[round(number * (len(ordered) - 1) / (ROWS - 1))] for number in range(ROWS)]


def _round_step(rough_ns: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    unit = 1.0
    while unit * 10 <= rough_ns:
        unit *= 10
    return next((unit * factor for factor in (1, 2, 5) if unit * factor >= rough_ns), unit * 10)


def _label(sample: TraceSample) -> str:
    size = f" {sample.bytes} B" if sample.bytes else f" 0x{sample.opcode:02x}"
    lun = "" if sample.lun is None else f" {sample.target}:{sample.lun}"
    return f"{sample.carrier} · q{sample.queue}{lun}{size}"


def _time(ns: int) -> str:
    return format_duration(ns / 1e9)


def _bar(x: float, y: float, width: float, tip: str, look: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.6):.1f}" height="{_BAR}" {look}>'
        f"<title>{escape(tip)}</title></rect>"
    )


def _text(x: float, y: float, words: str, classes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(words)}</text>'
