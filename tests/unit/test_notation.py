"""What a user may call a disk."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.errors import UsageError
from ringway.model import BackstoreSpec, LunSpec, Mapped, SpecKind
from ringway.notation import parse_address, parse_backstore, parse_lun


def file(path: str, **fields: Any) -> BackstoreSpec:
    return BackstoreSpec(SpecKind.PATH, path, **fields)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("disk.img", file("disk.img")),
        ("/dev/sdb,readonly", file("/dev/sdb", readonly=True)),
        ("file:ram:4G", file("ram:4G")),
        ("a:b.img", file("a:b.img")),
        ("with,,comma.img,direct", file("with,comma.img", direct=True)),
        ("ram:4G", BackstoreSpec(SpecKind.RAM, size_bytes=4 << 30)),
        ("null:1T,block-size=4096", BackstoreSpec(SpecKind.NULL, size_bytes=1 << 40, block_size=4096)),
        ("d,serial=A 1,mapped=off", file("d", serial="A 1", mapped=Mapped.OFF)),
        ("d,readonly=off,direct=on", file("d", direct=True)),
    ],
)
def test_a_disk_is_read(text: str, spec: BackstoreSpec) -> None:
    assert parse_backstore(text) == spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("pscsi:/dev/sg3", BackstoreSpec(SpecKind.PSCSI, "/dev/sg3")),
        ("tcmu:rbd/disk", BackstoreSpec(SpecKind.TCMU, "rbd/disk")),
        ("file:pscsi:x", file("pscsi:x")),
        ("/dev/sdb,name=db0.data", file("/dev/sdb", name="db0.data")),
        (
            "d,emulate_tpu=1,readonly,pi_prot_type=3",
            file("d", readonly=True, attributes={"emulate_tpu": "1", "pi_prot_type": "3"}),
        ),
    ],
)
def test_a_host_knows_more(text: str, spec: BackstoreSpec) -> None:
    assert parse_backstore(text, host=True) == spec
    assert parse_lun(f"3={text}", host=True) == LunSpec(0, 3, spec)


@pytest.mark.parametrize("text", ["d,name=x", "d,emulate_tpu=1"])
def test_a_target_alone_knows_nothing_of_it(text: str) -> None:
    with pytest.raises(UsageError, match="not an option"):
        parse_backstore(text)
    assert parse_backstore("pscsi:x") == file("pscsi:x")


@pytest.mark.parametrize("name", ["", "-x", "a/b", "x" * 64])
def test_a_backstore_has_a_name_that_can_be_a_directory(name: str) -> None:
    with pytest.raises(UsageError, match="not possible"):
        parse_backstore(f"d,name={name}", host=True)


def test_defaults_give_what_the_text_does_not() -> None:
    defaults = file("", readonly=True, block_size=4096)
    assert parse_backstore("a,readonly=off", defaults) == file("a", block_size=4096)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",readonly",
        "file:",
        "ram:",
        "ram:0",
        "ram:big",
        "null:-1",
        "d,bogus",
        "d,readonly=maybe",
        "d,block-size=1024",
        "d,block-size=",
        "d,mapped=sometimes",
        "d,serial=",
        "d,serial=é",
        "d,serial= x",
        "d,serial=" + "x" * 65,
        "a,b.img",
    ],
)
def test_what_is_no_disk_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_backstore(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "address"), [("2=a", (0, 2)), ("1:0=a", (1, 0)), ("255:16383=a", (255, 16383))]
)
def test_a_lun_is_read(text: str, address: tuple[int, int]) -> None:
    assert parse_lun(text) == LunSpec(*address, file("a"))


@pytest.mark.parametrize(
    "text", ["a", "=a", "x=a", "1:=a", ":1=a", "256:0=a", "0:16384=a", "-1=a", "1:2:3=a", "²=a"]
)
def test_what_is_no_lun_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_lun(text)
    assert caught.value.hint


def test_a_path_may_have_an_equals_sign() -> None:
    assert parse_lun("0=a=b") == LunSpec(0, 0, file("a=b"))


@given(st.text())
def test_any_text_is_a_disk_or_a_usage_error(text: str) -> None:
    for parse in (parse_backstore, parse_lun, parse_address):
        with contextlib.suppress(UsageError):
            parse(text)
