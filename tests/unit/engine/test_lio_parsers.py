"""What the kernel engine reads from the kernel, from files and from users."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ringway.engine.lio import (
    VHOST,
    FabricSpec,
    checks,
    parse_fabric_spec,
    print_fabric_spec,
    read_saveconfig,
)
from ringway.engine.lio.backstores import usual_place
from ringway.engine.lio.choices import resolve
from ringway.engine.lio.foreign_attributes import DEFAULTS, kept
from ringway.engine.lio.kernel_log import parse_records
from ringway.engine.lio.modules import kernel_version
from ringway.engine.lio.reservations import kept_registrations, parse_aptpl
from ringway.errors import BackstoreError, RingwayError, UsageError
from ringway.model import BackstoreSpec, EndpointSpec, EngineKind, LunSpec, Poll, SpecKind

APTPL = """\
PR_REG_START: 0
initiator_fabric=vhost
initiator_node=naa.5001405000000bbb
sa_res_key=43969
res_holder=1
res_type=05
res_scope=00
res_all_tg_pt=0
mapped_lun=0
target_fabric=vhost
target_node=naa.5001405000000aaa
tpgt=0
port_rtpi=0
target_lun=0
PR_REG_END: 0
PR_REG_START: 1
initiator_fabric=vhost
initiator_node=naa.5001405000000ccc
sa_res_key=7
res_holder=0
res_all_tg_pt=0
mapped_lun=0
target_fabric=vhost
target_node=naa.5001405000000aaa
tpgt=0
port_rtpi=0
target_lun=0
PR_REG_END: 1
"""


def test_registrations_are_read_one_by_one() -> None:
    first, second = parse_aptpl(APTPL)
    assert first.startswith(
        "initiator_fabric=vhost,initiator_node=naa.5001405000000bbb,sa_res_key=43969,res_holder=1"
    )
    assert first.endswith(",target_lun=0")
    assert "sa_res_key=7,res_holder=0" in second


def test_no_registrations_are_fine(tmp_path: Path) -> None:
    assert parse_aptpl("No Registrations or Reservations") == ()
    assert kept_registrations(str(tmp_path), "none") == ()


@given(st.integers(1, len(APTPL) - 2))
def test_a_file_that_is_cut_off_is_never_half_believed(size: int) -> None:
    whole = parse_aptpl(APTPL)
    try:
        found = parse_aptpl(APTPL[:size])
    except ValueError:
        return
    assert found == whole[: len(found)]


@given(st.text(max_size=200))
def test_nonsense_is_refused_or_empty(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_aptpl(text), tuple)


def test_a_file_that_cannot_be_understood_stops_the_disk(tmp_path: Path) -> None:
    (tmp_path / "pr").mkdir()
    (tmp_path / "pr" / "aptpl_s").write_bytes(b"PR_REG_START: 0\n\xff")
    with pytest.raises(BackstoreError, match="aptpl_s") as caught:
        kept_registrations(str(tmp_path), "s")
    assert caught.value.hint


def test_the_log_is_read_by_time_and_gravity() -> None:
    log = (
        "3,1,1000,-;old\n"
        "6,2,5000,-;only a word\n"
        "3,3,5000,-;Generic Block Discard not supported\n"
        " SUBSYSTEM=block\n"
        "12,4,6000,-;from a program\n"
        "0,5,6000,-;worse\n"
    )
    assert parse_records(log, 2000) == ["Generic Block Discard not supported", "worse"]


@given(st.text(max_size=300))
def test_any_log_is_read(text: str) -> None:
    assert all(isinstance(line, str) for line in parse_records(text, 0))


words = st.lists(st.sampled_from(["nexus", "tpgts", "acls", "nps", "auth"]), max_size=4, unique=True).map(
    tuple
)
names = st.none() | st.from_regex(r"[a-z_][a-z0-9_-]{0,12}", fullmatch=True)


@given(st.builds(FabricSpec, words, st.sampled_from([(), ("naa",), ("naa", "iqn")]), names, names))
def test_a_fabric_spec_is_printed_and_read(spec: FabricSpec) -> None:
    assert parse_fabric_spec(print_fabric_spec(spec)) == spec


def test_a_fabric_spec_as_people_write_it() -> None:
    text = (
        "# The vhost fabric module specfile\n"
        "features = nexus, tpgts   # no portals\n\n"
        "wwn_type = naa\n"
        "kernel_module = 'tcm_vhost'\n"
        "configfs_group = vhost\n"
    )
    assert parse_fabric_spec(text) == replace(VHOST, kernel_module="tcm_vhost")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("features", "line 1"),
        ("a = b", "'a'"),
        ("features = fly", "fly"),
        ("features = acls\nfeatures = acls", "before"),
    ],
)
def test_a_fabric_spec_that_is_none(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        parse_fabric_spec(text)
    assert caught.value.hint


@given(st.text(max_size=120))
def test_any_fabric_spec_is_read_or_refused(text: str) -> None:
    try:
        assert isinstance(parse_fabric_spec(text), FabricSpec)
    except UsageError as refused:
        assert_has_hint(refused)


scalars = st.none() | st.booleans() | st.integers(-3, 70000) | st.sampled_from(["", "x", "r0", "1", "4096"])
attributes = st.dictionaries(
    st.sampled_from(["block_size", "fabric_prot_type", "emulate_3pc"]), scalars, max_size=3
)
paths = st.sampled_from(["/backstores/ramdisk/r0", "/backstores/block/b0", "/backstores/fileio/none", ""])
stores = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["r0", "b0"]),
        "plugin": st.sampled_from(["ramdisk", "block", "fileio", "user", "odd"]),
    },
    optional={"size": scalars, "dev": scalars, "wwn": scalars, "nullio": scalars, "attributes": attributes},
)
groups = st.fixed_dictionaries(
    {
        "luns": st.lists(
            st.fixed_dictionaries({"index": st.integers(-1, 20000), "storage_object": paths}), max_size=3
        )
    },
    optional={"tag": st.integers(-1, 300), "attributes": attributes},
)
targets = st.fixed_dictionaries(
    {
        "fabric": st.sampled_from(["vhost", "iscsi"]),
        "wwn": st.sampled_from(["naa.5001405000000abc", "naa.ABC", "iqn.x", ""]),
    },
    optional={"tpgs": st.lists(groups, max_size=2)},
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "storage_objects": st.lists(stores, max_size=3) | scalars,
        "targets": st.lists(targets, max_size=3),
    },
)


@given(documents)
def test_any_saveconfig_is_read_or_refused(document: object) -> None:
    try:
        found = read_saveconfig(json.dumps(document))
    except UsageError as refused:
        assert_has_hint(refused)
    else:
        assert all(spec.engine is EngineKind.LIO for spec in found.endpoints)


hostile = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["9" * 5000, 10**30, -1, 2**63, 2**64, 10**400, 1e308, 0.5])
    | st.text(max_size=8)
    | st.sampled_from(
        [
            "",
            "\0",
            "a\0b",
            "..",
            "../../x",
            "/",
            "/dev/../etc/passwd",
            "x,fd_dev_size=1",
            "\x1b[2J",
            "\n",
            "9" * 5000,
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
TEMPLATE = {
    "storage_objects": [
        {
            "name": "b0",
            "plugin": "block",
            "dev": "/dev/vg0/b0",
            "size": 4096,
            "wwn": "0123",
            "readonly": False,
            "attributes": {"block_size": 512, "emulate_3pc": 0},
        }
    ],
    "targets": [
        {
            "fabric": "vhost",
            "wwn": "naa.5001405000000abc",
            "tpgs": [
                {
                    "tag": 0,
                    "attributes": {"fabric_prot_type": 0},
                    "luns": [{"index": 0, "storage_object": "/backstores/block/b0"}],
                    "node_acls": [],
                }
            ],
        }
    ],
}


def places_of(document: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The ways to all that is in a document."""
    yield path
    if isinstance(document, dict):
        for name, value in document.items():
            yield from places_of(value, (*path, name))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from places_of(value, (*path, number))


def planted(document: Any, path: tuple[str | int, ...], value: object) -> object:
    """A copy with another value somewhere."""
    if not path:
        return value
    copied = document.copy()
    copied[path[0]] = planted(document[path[0]], path[1:], value)
    return copied


def read_by_a_host(text: str) -> None:
    """Read a file, and resolve and look at what it comes to, as an import does.

    :raises RingwayError: a clean one; no other error is.
    """
    found = read_saveconfig(text)
    assert all(note.isprintable() and len(note) <= 500 for note in found.notes)
    for spec in found.endpoints:
        assert msgspec.json.decode(msgspec.json.encode(spec), type=EndpointSpec) == spec
        for lun in resolve(spec).luns:
            checks.check_medium(lun.backstore)


@given(
    st.sampled_from(list(places_of(TEMPLATE))),
    hostile,
    st.sampled_from(["block", "fileio", "ramdisk", "user", "pscsi"]),
)
def test_a_hostile_value_anywhere_is_a_clean_error(
    path: tuple[str | int, ...], value: object, plugin: str
) -> None:
    usual = planted(TEMPLATE, ("storage_objects", 0, "plugin"), plugin)
    usual = planted(usual, ("targets", 0, "tpgs", 0, "luns", 0, "storage_object"), f"/backstores/{plugin}/b0")
    with contextlib.suppress(RingwayError):
        read_by_a_host(json.dumps(planted(usual, path, value)))


@pytest.mark.parametrize(
    "nested", ["[", '{"targets":', '{"x":', '{"targets":[{"fabric":"vhost","wwn":"x","tpgs":[{"node_acls":']
)
@pytest.mark.parametrize("depth", [1, 1000, 200_000])
def test_a_file_that_is_nested_too_deeply_is_refused(nested: str, depth: int) -> None:
    with pytest.raises(UsageError, match="no saveconfig"):
        read_saveconfig(nested + "[" * depth)
    closed = '{"x":' + "[" * depth + "]" * depth + "}"
    with contextlib.suppress(UsageError):
        assert read_saveconfig(closed).endpoints == ()


@given(st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        read_by_a_host(data.decode(errors="replace"))


def assert_has_hint(error: UsageError) -> None:
    assert error.hint


def test_attributes_that_say_nothing_are_not_kept() -> None:
    assert kept(DEFAULTS, "iblock") == {}
    odd = {"emulate_tpu": 1, "hw_block_size": 4096, "emulate_caw": "0", "is_nonrot": 1}
    assert kept(odd, "fileio") == {"emulate_caw": "0", "emulate_tpu": "1", "is_nonrot": "1"}
    assert "is_nonrot" not in kept(odd, "ramdisk") | kept(odd, "block")


@pytest.mark.parametrize(
    ("release", "version"), [("6.12.95+deb12-amd64", (6, 12)), ("6.16.0-rc1", (6, 16)), ("strange", (0, 0))]
)
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


@given(st.text("abcdefghij0123456789_.:-", min_size=1, max_size=40))
def test_a_place_follows_from_the_name(name: str) -> None:
    hba, _, last = usual_place("fileio", name).removeprefix("core/fileio_").partition("/")
    assert last == name
    assert 0 <= int(hba) < 1 << 31


def _spec(**fields: object) -> EndpointSpec:
    ram = LunSpec(0, 0, BackstoreSpec(SpecKind.RAM, size_bytes=4096))
    return EndpointSpec(name="db0", engine=EngineKind.LIO, luns=(ram,), **fields)  # type: ignore[arg-type]


def test_what_is_chosen_is_a_name() -> None:
    spec = resolve(_spec())
    assert spec.wwpn is not None
    assert spec.wwpn.startswith("naa.5001405")
    assert len(spec.wwpn) == 20
    assert spec.nexus not in (None, spec.wwpn)
    assert spec.luns[0].backstore.name == "db0:0:0"
    assert resolve(_spec()).wwpn != spec.wwpn


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"wwpn": "naa.xyz"}, "naa.xyz"),
        ({"wwpn": "naa.5001405000000ABC"}, "small letters|not a WWN"),
        ({"nexus": "iqn.2003-01.org.example"}, "iqn"),
        ({"wwpn": "naa.5001405000000abc", "nexus": "naa.5001405000000abc"}, "same name"),
        ({"queues": 4}, "queues"),
        ({"poll": Poll.POLL}, "poll"),
        ({"incoming": True}, "moves no guest"),
    ],
)
def test_what_no_kernel_serves_is_refused(fields: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        resolve(_spec(**fields))
    assert caught.value.hint


@pytest.mark.parametrize("wwpn", ["naa.6001405000000abc", "naa.60014050000000000000000000000abc"])
def test_names_of_kind_6_are_kept(wwpn: str) -> None:
    assert resolve(_spec(wwpn=wwpn)).wwpn == wwpn
