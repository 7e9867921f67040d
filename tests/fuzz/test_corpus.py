"""The corpora again, without instrumentation: each input as it is, and with bytes changed; repeatable."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import pytest

from .targets import TARGETS, quiet

CORPUS = Path(__file__).parent / "corpus"
ROUNDS = 3000 if os.environ.get("RINGWAY_LONG") == "1" else 100


def inputs(name: str) -> list[Path]:
    return sorted((CORPUS / name).iterdir())


def changed(data: bytes, source: random.Random) -> bytes:
    """A copy with a few bytes changed, cut or doubled."""
    copy = bytearray(data)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(copy) + 1)
        match source.randrange(6):
            case 0:
                del copy[at:]
            case 1:
                copy += copy[at:]
            case _:
                copy[at : at + 1] = source.randbytes(1)
        del copy[4096:]
    return bytes(copy)


@pytest.mark.timeout(600 if ROUNDS > 100 else 300)
@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_does_no_harm(name: str) -> None:
    gc.collect()  # what earlier tests left open must not be closed while a target counts
    source = random.Random(name)
    found = inputs(name)
    assert found, "no corpus"
    with quiet():
        for path in found:
            data = path.read_bytes()
            TARGETS[name](data)
            for _ in range(ROUNDS):
                TARGETS[name](changed(data, source))
