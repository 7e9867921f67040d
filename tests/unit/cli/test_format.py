"""What commands print: whatever the objects say, tables line up and programs read back what was meant."""

from __future__ import annotations

import csv
import io
import json
from typing import NamedTuple

import msgspec.yaml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.cli.format import Column, Output, View, fitted, printable, table
from ringway.cli.guest import ATTACHMENTS
from ringway.errors import UsageError
from ringway.model import AttachmentInfo, AttachmentState, Face
from ringway.units import format_size


class Thing(NamedTuple):
    name: str
    size: int | None
    state: str = "ready"


VIEW = View[Thing](
    {
        "name": Column(lambda thing: thing.name),
        "size": Column(lambda thing: thing.size, format_size, right=True),
        "state": Column(lambda thing: thing.state, coloured=True),
    },
    ("name", "size"),
    lambda thing: thing.name,
    lambda thing: thing._asdict(),
)
names = st.text(min_size=1, max_size=20)
things = st.lists(st.builds(Thing, names, st.none() | st.integers(0, 1 << 50)), max_size=6)


def shown(output: Output, found: list[Thing], capsys: pytest.CaptureFixture[str]) -> str:
    output.show_list(found, VIEW)
    return capsys.readouterr().out


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(Output(), [Thing("a", 1 << 30), Thing("longer", None)], capsys)
    assert text == "NAME     SIZE\na       1 GiB\nlonger      -\n"


def test_columns_are_chosen_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(Output(columns="state,name", headers=False), [Thing("a", 1)], capsys)
    assert text == "ready  a\n"


def test_a_column_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no column 'colour'") as caught:
        shown(Output(columns="name,colour"), [], capsys)
    assert caught.value.hint == "there are name, size, state"


def test_names_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(Output("json", quiet=True), [Thing("a", 1), Thing("b", 2)], capsys) == "a\nb\n"
    assert shown(Output(quiet=True), [], capsys) == ""


def test_nothing_is_still_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(Output(), [], capsys) == "NAME  SIZE\n"
    assert shown(Output(headers=False), [], capsys) == ""
    assert json.loads(shown(Output("json"), [], capsys)) == []
    assert msgspec.yaml.decode(shown(Output("yaml"), [], capsys)) == []


@given(found=things)
def test_json_and_yaml_say_the_same_and_all(found: list[Thing]) -> None:
    told = [thing._asdict() for thing in found]
    for format_, decode in (("json", json.loads), ("yaml", msgspec.yaml.decode)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", buffer := io.StringIO())
            Output(format_).show_list(found, VIEW)
        assert decode(buffer.getvalue()) == told


@given(found=things)
def test_csv_is_read_back(found: list[Thing]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", buffer := io.StringIO())
        Output("csv").show_list(found, VIEW)
    rows = list(csv.DictReader(io.StringIO(buffer.getvalue(), newline="")))
    sizes = ["" if thing.size is None else str(thing.size) for thing in found]
    assert [(row["name"], row["size"]) for row in rows] == list(
        zip((thing.name for thing in found), sizes, strict=True)
    )


@given(found=things, width=st.none() | st.integers(20, 80))
def test_a_table_lines_up_and_fits(found: list[Thing], width: int | None) -> None:
    lines = list(table(found, VIEW.columns, width=width))
    assert len(lines) == len(found) + 1
    assert all(line.isprintable() for line in lines)
    longest = max(map(len, lines))
    if width is not None and width >= 3 * 8 + 4:
        assert longest <= width


@given(widths=st.lists(st.integers(1, 60), min_size=1, max_size=6), width=st.integers(1, 200))
def test_the_widest_columns_give_way_first(widths: list[int], width: int) -> None:
    fitting = fitted(widths, width)
    assert all(new <= old for new, old in zip(fitting, widths, strict=True))
    assert all(new >= min(old, 8) for new, old in zip(fitting, widths, strict=True))
    cut = [new for new, old in zip(fitting, widths, strict=True) if new < old]
    assert not cut or max(cut) - min(cut) <= 1


@given(st.text())
def test_nothing_printed_is_obeyed_by_a_terminal(text: str) -> None:
    assert printable(text).isprintable()


def test_an_escape_sequence_is_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[31m\nb") == "a\\x1b[31m b"


@pytest.mark.parametrize("face", Face)
def test_an_attachment_has_room_on_a_terminal(face: Face) -> None:
    """What it is, and where in the guest, is not cut at 80 columns."""
    info = AttachmentInfo(guest="web0", endpoint="data", face=face, alias="ua-ringway-data",
                          state=AttachmentState.DETACHING, address="0000:0c:00.0")  # fmt: skip
    row = list(table([info], ATTACHMENTS.chosen(None), width=80))[1]
    assert row.split() == ["web0", "data", face, "detaching", "no", "no", "0000:0c:00.0"]
