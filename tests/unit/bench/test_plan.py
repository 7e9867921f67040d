"""Which cases there are, how they are named and selected."""

from __future__ import annotations

import pytest

from ringway.bench.plan import STORE_BYTES, STORES, SUITES, Case, by_setup, select, suite
from ringway.errors import NotFoundError

FULL = suite("full")
NAMES = {case.name for case in FULL}


def test_a_name_says_all_of_a_case() -> None:
    assert len(NAMES) == len(FULL)
    assert Case("tmpfs", 32).name == "tmpfs-4k-read-1x32"
    assert Case("null", 64, block_bytes=512, read_percent=75, queues=4).name == "null-512-r75w25-4x64"
    assert Case("ram", 1, rate_iops=10_000.0).name == "ram-4k-read-10000iops"
    lio = Case("ram", 64, block_bytes=1 << 20, read_percent=25, batch=4, luns=16)
    assert lio.name == "ram-1m-r25w75-1x64-batch4-luns16"


@pytest.mark.parametrize("store", STORES)
def test_the_full_suite_has_all_that_is_promised_of_each_store(store: str) -> None:
    patterns = ("read", "write", "r25w75", "r75w25")
    small = {
        f"{store}-{size}-{p}-{load}"
        for size in ("4k", "512")
        for p in patterns
        for load in ("1x1", "1x32", "4x64")
    }
    large = {f"{store}-1m-{pattern}-1x8" for pattern in patterns}
    lio = {
        f"{store}-1m-{pattern}-1x64-batch{batch}{luns}"
        for pattern in ("r25w75", "r75w25")
        for batch in (4, 32)
        for luns in ("", "-luns16", "-luns32")
    }
    offered = {f"{store}-4k-read-10000iops", f"{store}-4k-read-1iops"}
    assert small | large | lio | offered <= NAMES


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_each_case_once_and_set_ups_together(name: str) -> None:
    cases = suite(name)  # type: ignore[arg-type]
    assert len(set(cases)) == len(cases)
    assert [case for group in by_setup(cases).values() for case in group] == cases
    assert set(cases) <= set(FULL)


def test_many_disks_span_as_much_memory_as_one() -> None:
    for case in FULL:
        assert case.setup.disk_bytes * case.luns == STORE_BYTES
        assert case.setup.disk_bytes >= case.block_bytes


def test_patterns_select_by_name_in_the_order_of_the_suite() -> None:
    found = [case.name for case in select(["*-1x32", "ram-4k-read-1x1"], suite("quick"))]
    assert found == [
        "null-4k-read-1x32",
        "ram-4k-read-1x1",
        "ram-4k-read-1x32",
        "tmpfs-4k-read-1x32",
        "disk-4k-read-1x32",
    ]


def test_a_pattern_without_a_case_is_an_error_that_says_where_to_look() -> None:
    with pytest.raises(NotFoundError, match="no case is named nvme-") as raised:
        select(["null-*", "nvme-*"], FULL)
    assert raised.value.hint is not None
    assert "--list" in raised.value.hint
