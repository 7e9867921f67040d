"""A target under atheris: ``python -m tests.fuzz TARGET [libFuzzer's options]``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ringway"]):
    from tests.fuzz.targets import TARGETS, quiet


def main() -> None:
    """Run until libFuzzer has enough."""
    name, *arguments = sys.argv[1:]
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    with quiet():
        atheris.Fuzz()


main()
