"""The page docs/explanation/performance.md: fixed words around the tables of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from ringway.bench import chart, goals, text
from ringway.bench.samples import Run, Sample, placement_of
from ringway.errors import UsageError

_WIDTH: Final = 110

_HEAD: Final = """# Performance

<!-- made by `ringway bench --page`: change src/ringway/bench/page.py, not this page -->

These are the figures of one run, made on {day} by

```console
{commands}
```

on {machine}. {samples}.

The target has one CPU and the polling client another; sides take turns, and a figure is the median of its
fair samples. **Ratios travel, absolute figures do not:** they follow how fast two CPUs exchange a cache line
(here: {trips}), and on a virtual machine that changes from one run to the
next. Like is compared with like only.
{copies}"""

_GOALS: Final = """
## The goals

{table}
"""

_FIGURES: Final = """
## The figures

![Requests a second of all sides]({svg})

{table}

A case is named after its store, block size, pattern (`r25w75`: 25 % reads) and load: `4x64` is four queues
of depth 64, `10000iops` an open loop in which latency counts from when a request was due. `ratio` compares
IOPS with {peer}. `fair` says how many of the samples were kept.
"""

_NOTES: Final = """
## What to know about them

* **The client** is one thread that polls. It takes up to eight completions of a queue, never more than half
  of what is in flight, and publishes their successors together, with one barrier and one look at whether
  the device wants a kick. A driver that publishes each request by itself asks more of a target (`--burst 1`
  does that); one that takes all at once runs in turns with it. In a case with `batch4` or `batch32` it
  submits only when so many slots are free. All sides get the same client: direct chains of three
  descriptors, EVENT_IDX where it is offered.
* **A store in memory is written before it is read.** Memory that was never written is one page of zeroes,
  which is always in the cache.
* **A sample is dropped**, and taken again twice at most, if the client had less than nine tenths of its CPU,
  others used more than a tenth of the target's, the host took more than a twentieth away, or the CPUs moved
  from near to far.
* **CPU an I/O** is the time of all threads of the target, kernel workers included, over its requests. A
  target that polls while it is busy uses all of its CPU, so at full load that is the inverse of its IOPS.
  At partial load it is the price of a request.
* **fio** runs on the host, on a file like the targets' own, and has no guest to serve. The other CPU is kept
  busy meanwhile, as the client keeps it: on a virtual machine, an idle CPU is one more for the disk's
  interrupts and for the host.
* A scsi response is 108 bytes, a blk status is one. On a disk that does nothing else, that is the
  difference.
* The ring alone, `cargo bench -p ringway-core`, takes 13 ns a request on an idle machine of this kind with
  direct descriptors and 14 ns with indirect ones: pop, translate and publish, with three descriptors, hot.
* A file on a disk is as fast as the disk and the kernel's block layer are; there is little for a target to
  win.
"""


def write(run: Run, path: Path) -> None:
    """Write the page of a run, and its chart beside it as an SVG of the same name.

    :raises RingwayError: nothing was measured, or a file cannot be written.
    """
    svg = path.with_suffix(".svg")
    chart.write(run, svg)
    try:
        path.write_text(page(run, svg.name))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def page(run: Run, svg: str) -> str:
    """The whole page. :param svg: where the chart is, from there."""
    return "".join(_parts(run, svg))


def _parts(run: Run, svg: str) -> Iterator[str]:
    yield _HEAD.format(
        samples=text.summary(run),
        day=run.day,
        commands="\n".join(f"$ {line}" for line in run.command.split("\n")),
        machine=_machine(run),
        trips=_trips(run.samples),
        copies=_copies(run),
    )
    if verdicts := goals.verdicts(run):
        lines = [(v.goal, v.subject, v.measured, v.wanted, text.MET[v.met]) for v in verdicts]
        yield _GOALS.format(table=_table(text.GOAL_HEAD, text.without_repeats(lines), 2))
    table = _table(text.HEAD, text.rows(run), text.WORDS)
    yield _FIGURES.format(
        svg=svg, table=table, peer=text.peer_of(run) or "a peer, of which there is none here"
    )
    if run.failures:
        yield "\nNot measured:\n\n" + "".join(f"* {f.side}, {f.case}: {f.reason}\n" for f in run.failures)
    yield _NOTES


def _machine(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.machine.versions.items())
    return (
        f"{run.machine.cpus} CPUs ({run.machine.cpu}), Linux {run.machine.kernel}"
        + f", {versions}" * bool(versions)
    )


def _trips(samples: Sequence[Sample]) -> str:
    trips = [trip for sample in samples for trip in sample.round_trips_ns]
    if not trips:
        return "the CPUs were not pinned"
    groups = {name: [t for t in trips if placement_of(t) == name] for name in ("near", "far")}
    return ", ".join(f"{median(found):.0f} ns {name}" for name, found in groups.items() if found)


def _copies(run: Run) -> str:
    if not run.copies:
        return ""
    small, large = (
        median(getattr(rates, name) for rates in run.copies) for name in ("copies_4k", "copies_1m")
    )
    text = (
        f"One CPU copies {small / 1e6:.2f} million times 4 KiB a second and {large / 1e3:.1f} thousand times "
        f"1 MiB ({large * (1 << 20) / 1e9:.1f} GB/s), out of 256 MiB: the limit of a store in memory."
    )
    return f"\n{textwrap.fill(text, _WIDTH)}\n"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    rule = ["---" if number < words else "--:" for number in range(len(head))]
    every = [head, rule, *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)
