"""A domain's text: what nobody touched stays, byte for byte, and what is no domain is refused."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from ringway.errors import UsageError
from ringway.guest.aliases import endpoint_alias, port_alias, volume_alias
from ringway.guest.base import Wish
from ringway.guest.document import DiskFace, DiskSource, Document, PciAddress
from ringway.guest.document.tree import MAX_BYTES
from ringway.model import DiskBus, Face, PortMode, PortSpec

from .domains import domain, domains


def _scsi(document: Document) -> str:
    address = PciAddress(0, 9, 0, 0)
    document.add_endpoint(Wish(endpoint="a", face=Face.VHOST_USER_SCSI, socket="/a", queues=2), address)
    return endpoint_alias("a")


def _blk(document: Document) -> str:
    document.add_endpoint(Wish(endpoint="b", face=Face.VHOST_USER_BLK, socket="/b", reconnect_s=None))
    return endpoint_alias("b")


def _kernel(document: Document) -> str:
    document.add_endpoint(
        Wish(endpoint="c", face=Face.VHOST_SCSI, wwpn="naa.5001405000000001", protection=True)
    )
    return endpoint_alias("c")


def _disk(document: Document) -> str:
    document.add_disk(DiskFace(volume="v", source=DiskSource.FILE, path="/v&<>'\"", bus=DiskBus.VIRTIO))
    return volume_alias("v")


def _port(document: Document) -> str:
    document.add_port(
        PortSpec(name="p", mac="52:54:00:00:00:01", socket="/p", mode=PortMode.CLIENT, reconnect_s=3)
    )
    return port_alias("p")


_ADDITIONS = st.permutations([_scsi, _blk, _kernel, _disk, _port]).flatmap(
    lambda order: st.integers(1, 5).map(lambda count: order[:count])
)


@given(domains())
def test_what_nobody_touches_stays(xml: str) -> None:
    assert Document(xml).xml == xml


@given(domains(), _ADDITIONS, st.randoms())
def test_what_comes_and_goes_leaves_nothing(
    xml: str, additions: list[Callable[[Document], str]], random: Random
) -> None:
    document = Document(xml)
    aliases = [add(document) for add in additions]
    grown = document.xml
    assert Document(grown).xml == grown, "a change is there when it is read again"
    random.shuffle(aliases)
    for alias in aliases:
        document.remove(alias)
    assert document.xml == xml


def _canonical(xml: str) -> str:
    return etree.canonicalize(etree.fromstring(xml.encode(), etree.XMLParser(encoding="utf-8")))


@pytest.mark.parametrize(
    "xml",
    [
        domain("<disk  type='file' ><source file=\"it's\"/></disk>"),
        domain("<disk type='file'></disk><!-- a\r\n b -->\r\n<x>&#65;&quot;</x>"),
        domain("<x:y b='1' xmlns:x='urn:x' a=\"2\"/>").replace("'qemu'", '"kvm"'),
        "\ufeff<?xml version='1.0' encoding='latin-1'?><!-- a --><domain type='kvm'><name>ü</name></domain>",
    ],
)
def test_what_is_written_differently_means_the_same(xml: str) -> None:
    printed = Document(xml).xml
    assert _canonical(printed) == _canonical(xml)
    assert Document(printed).xml == printed


_LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
_BOMB = f'<!DOCTYPE domain [<!ENTITY l0 "ha">{_LAUGHS}]><domain type="kvm"><name>&l9;</name></domain>'
_STEAL = (
    '<!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/passwd">]><domain type="kvm"><name>&x;</name></domain>'
)


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("", "no XML"),
        ("first", "no XML"),
        ("<domain type='kvm'><name>a</name>", "no XML"),
        ("<domain type='kvm'><name>&x;</name></domain>", "no XML"),
        ("<domain type='kvm'><name>a\x00</name></domain>", "no XML"),
        ("<domain type='kvm'><name>\ud800</name></domain>", "characters that are none"),
        (f"<domain type='kvm'><name>a</name>{'<a>' * 999}{'</a>' * 999}</domain>", "no XML"),
        (f"<domain type='kvm'><name>{'a' * MAX_BYTES}</name></domain>", "bytes"),
        (_BOMB, "document type"),
        (_STEAL, "document type"),
        (f"<?xml version='1.0'?>\n<!-- <!DOCTYPE -->\n{_BOMB}", "document type"),
        (f"\ufeff{_BOMB}", "document type"),
        ("<network><name>a</name></network>", "its root is <network>"),
        ("<domain xmlns='urn:x' type='kvm'><name>a</name></domain>", "<domain> in a namespace"),
        ("<x:domain xmlns:x='urn:x' type='kvm'><name>a</name></x:domain>", "in a namespace"),
        ("<domain type='xen'><name>a</name></domain>", "has a type 'xen'"),
        ("<domain><name>a</name></domain>", "no type"),
        ("<domain type='kvm'/>", "no name"),
        ("<domain type='kvm'><name> </name></domain>", "no name"),
    ],
)
def test_what_is_no_domain_of_qemus_is_refused(xml: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Document(xml)


@given(st.text("<>&;'\"!?-=[]/ \nabCDAT:", max_size=60) | st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    for xml in (text, f"<domain type='kvm'><name>a</name>{text}</domain>", domain(text)):
        try:
            document = Document(xml)
        except UsageError:
            continue
        assert Document(document.xml).xml == document.xml


def test_many_comments_are_read_once() -> None:
    """Each way of looking at the text goes over it once."""
    comments = "<!---->" * 190_000
    xml = f"{comments}{domain(comments)}{comments}"
    assert Document(xml).xml == xml


@pytest.mark.parametrize("text", ["a\x00b", "\x1b", "\ud800", "\ufffe"])
def test_what_xml_cannot_say_is_refused(text: str) -> None:
    document = Document(domain())
    before = document.xml
    with pytest.raises(UsageError, match="characters that XML does not have"):
        document.add_endpoint(Wish(endpoint="a", face=Face.VHOST_USER_BLK, socket=f"/{text}"))
    assert document.xml == before
