"""HTTP without I/O: however the bytes are cut, the response is the same."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.client.wire import MAX_HEAD, Lines, Request, ResponseReader, quote
from ringway.errors import ControlError

BODY = b'{"a": 1}\r\n{"b": 2}\n'
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\n\r\n" + BODY
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\n%s\r\n%x\r\n%s\r\n0\r\nx: y\r\n\r\n"
    % (BODY[:5], len(BODY) - 5, BODY[5:])
)
INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n" + PLAIN
cuts = st.lists(st.integers(0, len(INTERIM)), max_size=12).map(sorted)


def read(data: bytes, marks: list[int]) -> tuple[int, bytes]:
    """Feed ``data``, cut at ``marks``, and then the end."""
    reader, body = ResponseReader(), b""
    for start, end in pairwise([0, *marks, len(data)]):
        if data[start:end] and not reader.done:
            body += reader.feed(data[start:end])
    if not reader.done:
        body += reader.feed(b"")
    assert reader.done
    return reader.status, body


@pytest.mark.parametrize("data", [PLAIN, UNTIL_THE_END, CHUNKED, INTERIM])
@given(marks=cuts)
def test_a_response_is_read_however_it_is_cut(data: bytes, marks: list[int]) -> None:
    assert read(data, [min(mark, len(data)) for mark in marks]) == (200, BODY)


@pytest.mark.parametrize("data", [PLAIN, CHUNKED])
@given(kept=st.integers(0, len(CHUNKED) - 1))
def test_a_response_that_is_cut_off_is_no_response(data: bytes, kept: int) -> None:
    with pytest.raises(EOFError):
        read(data[: min(kept, len(data) - 1)], [])


def test_an_answer_without_a_body_ends_with_its_head() -> None:
    assert read(b"HTTP/1.1 204 No Content\r\n\r\n", []) == (204, b"")
    assert read(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", []) == (200, b"")


@pytest.mark.parametrize(
    "data",
    [
        b'{"version": 1, "error": {}}\r\n\r\n',
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"x" * (MAX_HEAD + 1),
    ],
)
def test_what_is_no_http_is_named(data: bytes) -> None:
    with pytest.raises(ControlError, match="answer"):
        ResponseReader().feed(data)


@given(st.binary(max_size=200))
def test_nothing_that_comes_breaks_the_reader(data: bytes) -> None:
    with contextlib.suppress(ControlError, EOFError):
        read(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + data, [])


def test_a_request_on_the_wire() -> None:
    request = Request("POST", "/1.0/endpoints", {"wait": "1", "x": "a b&c=é"}, b"{}")
    assert request.encode() == (
        b"POST /1.0/endpoints?wait=1&x=a%20b%26c%3D%C3%A9 HTTP/1.1\r\nHost: ringway\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )


@given(st.text())
def test_nothing_quoted_has_a_meaning(text: str) -> None:
    assert not set(quote(text)) & set("/?&=# \r\n")


@given(st.lists(st.integers(0, 40), max_size=8).map(sorted))
def test_lines_are_whole_and_empty_ones_are_nothing(marks: list[int]) -> None:
    data, lines = b'{"a":1}\n\n{"b":2}\r\n\n{"c":3}\n', Lines()
    found = [line for start, end in pairwise([0, *marks, len(data)]) for line in lines.feed(data[start:end])]
    assert [line.strip() for line in found] == [b'{"a":1}', b'{"b":2}', b'{"c":3}']
