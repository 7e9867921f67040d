"""A trace as Chrome's Trace Event JSON, which ui.perfetto.dev and chrome://tracing open.

Requests overlap, so each is an asynchronous slice of its own, with its steps as slices inside.
Spec: Trace Event Format, Async Events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from ringway.model import TargetInfo, TraceSample
from ringway.trace.steps import Segment, ended_ns, found_ns, segments, unseen

Event = dict[str, Any]
_LONGEST_UNSEEN_NS: Final = 1_000_000  #: an idle worker's sleep would hide all the rest


def document(samples: Iterable[TraceSample], info: TargetInfo) -> dict[str, Any]:
    """The whole file. Times in it are microseconds since the trace began."""
    ordered = sorted(samples, key=found_ns)
    queues = sorted({sample.queue for sample in ordered})
    name = f"ringway {info.device} {info.socket or ''}".strip()
    events = [_metadata(info.pid, 0, "process_name", name)]
    events += [_metadata(info.pid, queue, "thread_name", f"queue {queue}") for queue in queues]
    for number, sample in enumerate(ordered):
        events += _request(sample, info.pid, f"0x{number:x}")
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": {"ringway": info.ringway}}


def _metadata(pid: int, tid: int, kind: str, name: str) -> Event:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}


def _request(sample: TraceSample, pid: int, name: str) -> Iterator[Event]:
    """Begin and end of a request, and of each of its steps, in the order of time."""
    common = {"cat": "request", "id": name, "pid": pid, "tid": sample.queue}
    title = f"{sample.operation} {sample.bytes}" if sample.bytes else str(sample.operation)
    parts = [*_before(sample), *segments(sample)]
    yield {**common, "name": title, "ph": "b", "ts": parts[0].start_ns / 1e3, "args": _arguments(sample)}
    for part in parts:
        yield {**common, "name": part.step.value, "ph": "b", "ts": part.start_ns / 1e3}
        yield {**common, "name": part.step.value, "ph": "e", "ts": part.end_ns / 1e3}
    yield {**common, "name": title, "ph": "e", "ts": ended_ns(sample) / 1e3}


def _before(sample: TraceSample) -> Iterator[Segment]:
    """The time in which the guest queued it; of a long sleep the end alone."""
    part = unseen(sample)
    if part is not None:
        start = max(part.start_ns, part.end_ns - _LONGEST_UNSEEN_NS)
        yield Segment(part.step, start, part.end_ns)


def _arguments(sample: TraceSample) -> Event:
    lun = None if sample.lun is None else f"{sample.target}:{sample.lun}"
    return {
        "lun": lun,
        "opcode": f"0x{sample.opcode:02x}",
        "bytes": sample.bytes,
        "carrier": sample.carrier.value,
        "wake": sample.wake.value,
        "notice": sample.notice.value,
        "parked": sample.parked,
    }
