"""Every block-device mapping that can be."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from ringway.errors import UsageError
from ringway.model import PREFIXES, BlockDevice, Destination, DiskBus, DiskType, VolumeSource

_LETTERS = st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"], exclude_characters=",").filter(
    str.isprintable
)
TEXTS = st.text(_LETTERS, min_size=1, max_size=12)
_TAGS = TEXTS.filter(lambda text: "/" not in text)


@st.composite
def devices(draw: st.DrawFn, *, sizes_in_gib: bool = False) -> BlockDevice:
    """Mappings without contradictions. :param sizes_in_gib: as clients count them."""
    fields: dict[str, Any] = {
        "source": draw(st.sampled_from(VolumeSource)),
        "destination": draw(st.sampled_from(Destination)),
        "bus": draw(st.none() | st.sampled_from(DiskBus)),
        "type": draw(st.none() | st.sampled_from(DiskType)),
        "guest_format": draw(st.none() | TEXTS | st.just("swap")),
        "boot_index": draw(st.none() | st.integers(-1, 9)),
        "delete_on_termination": draw(st.booleans()),
        "tag": draw(st.none() | _TAGS),
    }
    blank = fields["source"] is VolumeSource.BLANK
    unit = (20 if fields["guest_format"] == "swap" else 30) if sizes_in_gib else 0
    size = st.integers(1, 5000).map(lambda count: count << unit)
    fields["size_bytes"] = draw(size if blank else st.none() | size)
    fields["id"] = None if blank else draw(TEXTS)
    if fields["source"] is not VolumeSource.VOLUME:
        fields["volume_type"] = draw(st.none() | TEXTS)
    if fields["bus"] is not None:
        letters = st.sampled_from("abz")
        fields["device"] = draw(st.none() | letters.map(lambda letter: PREFIXES[fields["bus"]] + letter))
    return _repaired(fields)


def _repaired(fields: dict[str, Any]) -> BlockDevice:
    """Take away what contradicts the rest, until nothing does."""
    for away in ((), ("type",), ("type", "bus", "device"), ("type", "bus", "device", "destination")):
        try:
            return BlockDevice(**{key: value for key, value in fields.items() if key not in away})
        except UsageError:
            continue
    raise AssertionError(fields)
