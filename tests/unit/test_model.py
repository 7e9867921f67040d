"""The model as a whole."""

from __future__ import annotations

import sys
from types import FrameType

import msgspec
import pytest

from ringway.model.known import structs


def test_no_class_is_learned_when_it_is_decoded() -> None:
    """Two threads that did so at once crashed the interpreter: a client with several of them did."""
    learned: list[str] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "get_class_annotations":
            learned.append(str(frame.f_locals))

    sys.setprofile(watch)
    try:
        for kind in structs():
            with pytest.raises(msgspec.ValidationError):
                msgspec.json.decode(b"0", type=kind)
    finally:
        sys.setprofile(None)
    assert learned == []


def test_that_would_be_seen() -> None:
    class Fresh(msgspec.Struct):
        number: int

    calls: list[str] = []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name))
    try:
        msgspec.json.decode(b'{"number": 1}', type=Fresh)
    finally:
        sys.setprofile(None)
    assert "get_class_annotations" in calls
