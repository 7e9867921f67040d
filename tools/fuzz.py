"""Fuzz the targets in Rust and in Python for so many seconds in all, and say what came of it.

    .venv/bin/python tools/fuzz.py SECONDS [TARGET...]

Corpora grow below build/fuzz/corpus; the ones in the repository are read and not written. With --merge what
is new and reaches something goes to the repository, minimised. The exit status is 1 after a crash.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "fuzz"
TRIPLE = f"{os.uname().machine}-unknown-linux-gnu"
#: Coverage for libFuzzer, from the stable compiler.
RUSTFLAGS = " ".join(
    (
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
    )
)
RUST = ("worker", "chain", "command", "inflight", "dirty")
PYTHON = ("messages", "session", "dispatcher")
MAX_INPUT = 4096  #: bytes


@dataclass(frozen=True)
class Result:
    """What one target did."""

    target: str
    status: int
    runs: str
    coverage: str
    artifacts: list[Path]
    log: Path


def seeds(target: str) -> Path:
    """The corpus in the repository."""
    folder = "crates/ringway-fuzz/corpus" if target in RUST else "tests/fuzz/corpus"
    return ROOT / folder / target


def command(target: str) -> list[str]:
    """What runs a target under libFuzzer."""
    if target in RUST:
        return [str(BUILD / "target" / TRIPLE / "fuzz" / f"fuzz-{target}")]
    return [sys.executable, "-m", "tests.fuzz", target]


def build(targets: list[str]) -> None:
    """Make what the targets need: instrumented binaries; atheris in the environment."""
    if set(targets) & set(RUST):
        cargo = ["cargo", "build", "--locked", "--profile", "fuzz", "--target", TRIPLE]
        cargo += ["--target-dir", str(BUILD / "target"), "-p", "ringway-fuzz", "--features", "libfuzzer"]
        subprocess.run(cargo, cwd=ROOT, check=True, env=os.environ | {"RUSTFLAGS": RUSTFLAGS})
    if set(targets) & set(PYTHON):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--group", "fuzz"]
        subprocess.run(pip, cwd=ROOT, check=True)


def fuzz(target: str, seconds: int) -> Result:
    """Run one target. Its log and what made it crash stay below build/fuzz."""
    corpus, artifacts = BUILD / "corpus" / target, BUILD / "crashes" / target
    corpus.mkdir(parents=True, exist_ok=True)
    artifacts.mkdir(parents=True, exist_ok=True)
    before = set(artifacts.iterdir())
    arguments = [f"-max_total_time={seconds}", f"-max_len={MAX_INPUT}", "-timeout=20", "-print_final_stats=1"]
    arguments += [f"-artifact_prefix={artifacts}/", str(corpus), str(seeds(target))]
    log = BUILD / f"{target}.log"
    with log.open("w") as out:
        done = subprocess.run([*command(target), *arguments], cwd=ROOT, stdout=out, stderr=out, check=False)
    text = log.read_text(errors="replace")
    runs = re.findall(r"stat::number_of_executed_units: (\d+)", text) or ["?"]
    coverage = re.findall(r"cov: (\d+) ft: (\d+)", text) or [("?", "?")]
    new = sorted(set(artifacts.iterdir()) - before)
    return Result(target, done.returncode, runs[-1], "{} ({})".format(*coverage[-1]), new, log)


def merge(target: str) -> None:
    """Write the least corpus that reaches all that this one reaches over the one in the repository."""
    least = BUILD / "least" / target
    shutil.rmtree(least, ignore_errors=True)
    least.mkdir(parents=True)
    sources = [str(BUILD / "corpus" / target), str(seeds(target))]
    subprocess.run([*command(target), "-merge=1", "-max_len=512", str(least), *sources], cwd=ROOT, check=True)
    for path in least.iterdir():
        shutil.copy(path, seeds(target))


def report(results: list[Result]) -> int:
    """Print a line for each target and how to repeat what failed. :returns: the exit status."""
    print(f"{'target':<12}{'executions':>12}  {'edges (features)':<20}result")
    for result in results:
        verdict = "ok" if result.status == 0 else f"FAILED, see {result.log.relative_to(ROOT)}"
        print(f"{result.target:<12}{result.runs:>12}  {result.coverage:<20}{verdict}")
    for result in results:
        for path in result.artifacts:
            print(f"\nto repeat: {' '.join(command(result.target))} {path}")
            print(f"to keep it as a regression test: cp {path} {seeds(result.target)}/")
    return int(any(result.status for result in results))


def main() -> int:
    """Parse, build, run and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seconds", type=int, help="seconds for all targets together")
    parser.add_argument("targets", nargs="*", default=[*RUST, *PYTHON], help="all, unless named")
    parser.add_argument("--merge", action="store_true", help="keep what is new in the repository")
    options = parser.parse_args()
    build(options.targets)
    jobs = min(os.cpu_count() or 1, len(options.targets))
    each = max(1, options.seconds * jobs // len(options.targets))
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda target: fuzz(target, each), options.targets))
    if options.merge:
        for target in options.targets:
            merge(target)
    return report(results)


if __name__ == "__main__":
    sys.exit(main())
