"""A domain's XML as a tree and as text again: what nobody touched stays as it was.

Kept: the order of everything, comments, processing instructions, CDATA, unknown elements and attributes,
prefixes and where they are declared, white space between elements, what is before and after the root, the
root's start tag, and the quotes around attributes as long as all are alike.

Not kept, for lxml does not tell: quotes of the rarer sort, white space inside of tags, ``<a></a>`` (it
becomes ``<a/>``), the place of ``xmlns`` among attributes below the root, characters written as references
(``&#65;``), line ends other than ``\\n``. What is only written differently means the same.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Final

from lxml import etree
from msgspec import Struct

from ringway.errors import UsageError

Element = etree._Element

MAX_BYTES: Final = 4 << 20  #: the longest text that libvirt takes in a call
_PROLOG: Final = re.compile(r"\ufeff?(?>\s+|<\?.*?\?>|<!--.*?-->)*+", re.DOTALL)
_START_TAG: Final = re.compile(r"""<[^"'>]*+(?:"[^"]*+"[^"'>]*+|'[^']*+'[^"'>]*+)*+>""")
_TOKEN: Final = re.compile(r"<!--.*?-->|<!\[CDATA\[.*?\]\]>|<\?.*?\?>|<[^>]+>", re.DOTALL)
_IN_DOUBLE: Final = re.compile(r'="([^"]*)"')
_UNWRITABLE: Final = re.compile("[^\\t\\n\\r\\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INDENT: Final = "  "


class Source(Struct, frozen=True):
    """What lxml would not give back: text around the root, and how it was written."""

    prolog: str
    start_tag: str
    epilog: str
    single_quotes: bool


def parse(xml: str) -> tuple[Element, Source]:
    """Read a document. No entity is resolved, no file and no address is opened.

    :raises UsageError: it is no XML, has a document type, or more than :data:`MAX_BYTES`.
    """
    text = _bytes_of(xml)
    if xml.startswith("<!DOCTYPE", _prolog_end(xml)):
        raise UsageError("the XML has a document type, which a domain has not")
    try:
        root = etree.fromstring(text, _parser())
    except etree.XMLSyntaxError as error:
        raise UsageError(f"this is no XML: {error.msg}") from error
    return root, _source(xml)


def text_of(root: Element, source: Source) -> str:
    """Print a document as it was read, but for what was changed in it."""
    body = etree.tostring(root, encoding="unicode", with_tail=False)
    start = _START_TAG.match(body)
    rest = body[start.end() if start else 0 :]
    return (
        source.prolog
        + source.start_tag
        + (_single_quoted(rest) if source.single_quotes else rest)
        + source.epilog
    )


def text_of_part(element: Element) -> str:
    """Print an element by itself, without what follows it; it starts at the left margin."""
    lone = copy.deepcopy(element)
    _indent(lone, "\n", _INDENT)
    return _single_quoted(etree.tostring(lone, encoding="unicode", with_tail=False))


def _bytes_of(xml: str) -> bytes:
    try:
        text = xml.encode()
    except UnicodeEncodeError as error:
        raise UsageError("the XML has characters that are none") from error
    if len(text) > MAX_BYTES:
        raise UsageError(f"the XML has {len(text)} bytes, and libvirt takes {MAX_BYTES}")
    return text


def _parser() -> etree.XMLParser:
    """A new one each time: lxml lets threads wait for one that is shared."""
    return etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, load_dtd=False, strip_cdata=False
    )


def _prolog_end(xml: str) -> int:
    match = _PROLOG.match(xml)
    return match.end() if match else 0


def _source(xml: str) -> Source:
    begin = _prolog_end(xml)
    start = _START_TAG.match(xml, begin)
    return Source(
        prolog=xml[:begin],
        start_tag=start[0] if start else "",
        epilog=xml[_body_end(xml) :],
        single_quotes=xml.count("='") > xml.count('="'),
    )


def _body_end(xml: str) -> int:
    """Where the root ends: behind it are comments, instructions and white space alone."""
    end = len(xml)
    while True:
        if xml[end - 1].isspace():
            end -= 1
        elif xml.endswith("-->", 0, end):
            end = xml.rindex("<!--", 0, end)
        elif xml.endswith("?>", 0, end):
            end = xml.rindex("<?", 0, end)
        else:
            return end


def _single_quoted(text: str) -> str:
    """Put attributes into single quotes, as libvirt does."""
    return _TOKEN.sub(lambda token: token[0] if token[0][1] in "!?" else _single(token[0]), text)


def _single(tag: str) -> str:
    return _IN_DOUBLE.sub(lambda value: "='" + value[1].replace("'", "&apos;") + "'", tag)


# Change


def make(tag: str, attributes: Mapping[str, object] | None = None, *children: Element | None) -> Element:
    """Make an element; attributes and children that are ``None`` are left out."""
    element = etree.Element(tag)
    for name, value in (attributes or {}).items():
        if value is not None:
            element.set(name, _writable(value))
    element.extend([child for child in children if child is not None])
    return element


def make_text(tag: str, text: object) -> Element:
    """Make an element with text in it."""
    element = etree.Element(tag)
    element.text = _writable(text)
    return element


def _writable(value: object) -> str:
    """:raises UsageError: XML has no way to write it, not even as a reference."""
    text = str(value)
    if _UNWRITABLE.search(text):
        raise UsageError(f"{text!r} has characters that XML does not have")
    return text


def insert(parent: Element, element: Element) -> None:
    """Put an element behind the last of its tag, or behind all; indented as its neighbours are."""
    alike = [index for index, child in enumerate(parent) if child.tag == element.tag]
    insert_at(parent, element, alike[-1] + 1 if alike else len(parent))


def insert_at(parent: Element, element: Element, index: int) -> None:
    """Put an element at a place among the children of its parent; indented as its neighbours are."""
    outer, inner = _margin(parent), _inner_margin(parent)
    if inner is not None:
        _indent(element, inner, _step(outer, inner))
    if len(parent) == 0:
        parent.text, element.tail = inner, outer
    elif index == 0:
        element.tail = parent.text
    else:
        before = parent[index - 1]
        element.tail, before.tail = before.tail, inner
    parent.insert(index, element)


def remove(element: Element) -> None:
    """Take an element out, with the white space that :func:`insert` put there for it."""
    parent, before = element.getparent(), element.getprevious()
    if parent is None:
        raise ValueError("the root stays")
    if before is not None:
        before.tail = element.tail
    elif len(parent) == 1:
        parent.text = None
    parent.remove(element)


def _margin(element: Element) -> str | None:
    """The line end and the white space in front of an element; ``None`` if it does not begin its line."""
    parent, before = element.getparent(), element.getprevious()
    if parent is None:
        return "\n"
    return _last_line(before.tail if before is not None else parent.text)


def _inner_margin(parent: Element) -> str | None:
    """The margin of the children of ``parent``, also of one that has none yet."""
    if len(parent):
        return _last_line(parent.text)
    outer, grandparent = _margin(parent), parent.getparent()
    if outer is None or grandparent is None:
        return outer and outer + _INDENT
    return outer + _step(_margin(grandparent), outer)


def _last_line(space: str | None) -> str | None:
    """The last line of some text if it is blank, with the line end before it."""
    _, end, blank = (space or "").rpartition("\n")
    return end + blank if end and not blank.strip() else None


def _step(outer: str | None, inner: str) -> str:
    """By how much children are indented."""
    return inner.removeprefix(outer) if outer and inner.startswith(outer) and inner != outer else _INDENT


def _indent(element: Element, margin: str, step: str) -> None:
    """Indent what is below an element that stands behind ``margin``; text that says something stays."""
    if not len(element):
        return
    if not (element.text or "").strip():
        element.text = margin + step
    for child in element:
        _indent(child, margin + step, step)
        if not (child.tail or "").strip():
            child.tail = margin + step
    element[-1].tail = margin
