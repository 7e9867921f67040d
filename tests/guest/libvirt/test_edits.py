"""A domain's document is edited while others edit it. libvirt's own test driver has the domain."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libvirt
import pytest

from ringway.errors import ConflictError, UsageError
from ringway.guest.base import Wish
from ringway.guest.document import Document
from ringway.guest.libvirt.additions import rewrite
from ringway.guest.libvirt.looks import persistent_document
from ringway.model import Face

_WISH = Wish(endpoint="db0", face=Face.VHOST_USER_BLK, socket="/run/db0.sock")
_DOMAIN = """
<domain type='qemu'>
  <name>first</name>
  <memory unit='MiB'>64</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
  </os>
  <devices/>
</domain>
"""


@pytest.fixture
def web0() -> Iterator[libvirt.virDomain]:
    """A domain that is defined; the driver's world ends with its last connection."""
    connection = libvirt.open("test:///default")
    yield connection.defineXML(_DOMAIN)
    connection.close()


class Interrupted:
    """Attaches an endpoint, and others edit the domain meanwhile, as often as wanted."""

    def __init__(self, web0: libvirt.virDomain, edits: int) -> None:
        self._web0 = web0
        self._edits = edits
        self.done = 0

    def __call__(self, document: Document) -> None:
        if self.done < self._edits:
            self.done += 1
            theirs = self._web0.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            named = re.sub(r"</name>(\s*<title>.*</title>)?", f"</name><title>{self.done}</title>", theirs)
            self._web0.connect().defineXML(named)
        document.add_endpoint(_WISH)


def _next_start(web0: libvirt.virDomain) -> Document:
    document = persistent_document(web0)
    assert document is not None
    return document


@pytest.mark.parametrize("edits", [0, 1, 4])
def test_what_others_changed_in_between_stays(web0: libvirt.virDomain, edits: int) -> None:
    edit = Interrupted(web0, edits)
    rewrite(web0, edit)
    document = _next_start(web0)
    assert (edit.done, [each.endpoint for each in document.attachments()]) == (edits, ["db0"])
    assert (f"<title>{edits}</title>" in document.xml) == bool(edits)


def test_who_never_stops_is_left_alone(web0: libvirt.virDomain) -> None:
    edit = Interrupted(web0, 1 << 30)
    with pytest.raises(ConflictError, match="somebody else changes guest 'first' all the time"):
        rewrite(web0, edit)
    document = _next_start(web0)
    assert f"<title>{edit.done}</title>" in document.xml
    assert document.attachments() == ()


def test_a_next_start_that_goes_in_between_does_not_come_back(web0: libvirt.virDomain) -> None:
    web0.create()

    def edit(document: Document) -> None:
        document.add_endpoint(_WISH)
        web0.undefine()

    with pytest.raises(ConflictError, match="no next start any more"):
        rewrite(web0, edit)
    assert (web0.isPersistent(), web0.isActive()) == (0, 1)


def test_what_libvirt_refuses_changes_nothing(web0: libvirt.virDomain) -> None:
    before = _next_start(web0).xml

    def edit(document: Document) -> None:
        document.share_memory()
        document.add_endpoint(
            Wish(endpoint="db0", face=Face.VHOST_USER_BLK, socket="/run/db0", queues=1 << 40)
        )

    with pytest.raises(UsageError, match="libvirt does not take the document of guest 'first'"):
        rewrite(web0, edit)
    assert _next_start(web0).xml == before
