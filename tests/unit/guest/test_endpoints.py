"""Endpoints and ports in a domain: which elements, what is refused, what goes with them."""

from __future__ import annotations

import re

import pytest
from lxml import etree
from msgspec.structs import replace

from ringway.errors import ConflictError, NotFoundError, RingwayError, UsageError
from ringway.guest.aliases import endpoint_alias
from ringway.guest.base import Wish
from ringway.guest.document import Attached, Document, PciAddress, Plugged
from ringway.guest.document.overrides import NAMESPACE
from ringway.model import Face, PortMode, PortSpec

from .domains import domain

_SCSI = Wish(endpoint="db0", face=Face.VHOST_USER_SCSI, socket="/run/db0.sock", queues=2)
_BLK = Wish(endpoint="b.k", face=Face.VHOST_USER_BLK, socket="/run/blk.sock")
_KERNEL = Wish(endpoint="lio_0", face=Face.VHOST_SCSI, wwpn="naa.5001405aa3a2c1f0")
_PORT = PortSpec(name="p0", mac="52:54:00:00:00:01", socket="/run/p0", mode=PortMode.CLIENT)


def test_vhost_user_scsi_is_a_disk_with_another_driver() -> None:
    document = Document(domain())
    wish = replace(_SCSI, protection=True)
    assert document.add_endpoint(wish, PciAddress(0, 5, 0, 0)) == (
        """<disk type='vhostuser' device='disk'>
  <driver name='qemu' type='raw'/>
  <source type='unix' path='/run/db0.sock'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <target dev='vda' bus='virtio'/>
  <alias name='ua-ringway-db0'/>
  <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>
</disk>""",
    )
    assert document.xml.endswith(
        """
  <qemu:override xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:device alias='ua-ringway-db0'>
      <qemu:frontend>
        <qemu:property name='driver' type='string' value='vhost-user-scsi-pci'/>
        <qemu:property name='num-queues' type='remove'/>
        <qemu:property name='queue-size' type='remove'/>
        <qemu:property name='num_queues' type='unsigned' value='2'/>
        <qemu:property name='t10_pi' type='bool' value='true'/>
      </qemu:frontend>
    </qemu:device>
  </qemu:override>
</domain>
"""
    )


def test_vhost_user_blk_is_libvirts_own() -> None:
    document = Document(domain("<disk type='file'><target dev='vda' bus='virtio'/></disk>"))
    assert document.add_endpoint(replace(_BLK, queues=4, reconnect_s=None)) == (
        """<disk type='vhostuser' device='disk'>
  <driver name='qemu' type='raw' queues='4'/>
  <source type='unix' path='/run/blk.sock'/>
  <target dev='vdb' bus='virtio'/>
  <alias name='ua-ringway-b_dk'/>
</disk>""",
    )
    assert "override" not in document.xml


def test_vhost_scsi_is_a_hostdev() -> None:
    document = Document(domain())
    assert document.add_endpoint(_KERNEL) == (
        """<hostdev mode='subsystem' type='scsi_host'>
  <source protocol='vhost' wwpn='naa.5001405aa3a2c1f0'/>
  <alias name='ua-ringway-lio__0'/>
</hostdev>""",
    )
    assert "override" not in document.xml


def test_endpoints_are_found_again() -> None:
    document = Document(domain())
    document.add_endpoint(_SCSI)
    document.add_endpoint(_BLK)
    document.add_endpoint(replace(_KERNEL, queues=3), PciAddress(0, 3, 0, 0))
    assert Document(document.xml).attachments() == (
        Attached(
            endpoint="db0",
            alias="ua-ringway-db0",
            face=Face.VHOST_USER_SCSI,
            socket="/run/db0.sock",
            queues=2,
        ),
        Attached(endpoint="b.k", alias="ua-ringway-b_dk", face=Face.VHOST_USER_BLK, socket="/run/blk.sock"),
        Attached(
            endpoint="lio_0",
            alias="ua-ringway-lio__0",
            face=Face.VHOST_SCSI,
            wwpn="naa.5001405aa3a2c1f0",
            queues=3,
            address=PciAddress(0, 3, 0, 0),
        ),
    )


@pytest.mark.parametrize("declared", [False, True])
def test_the_namespace_is_declared_once(declared: bool) -> None:
    xml = domain().replace("'qemu'>", f"'qemu' xmlns:q='{NAMESPACE}'>" if declared else "'qemu'>")
    document = Document(xml)
    for name in ("a", "b", "c"):
        document.add_endpoint(replace(_SCSI, endpoint=name, socket=f"/run/{name}"))
    assert document.xml.count(NAMESPACE) == 1
    assert document.xml.count("q:override>" if declared else "</qemu:override>") == (2 if declared else 1)
    for name in ("b", "a"):
        document.remove(endpoint_alias(name))
    assert [found.face for found in document.attachments()] == [Face.VHOST_USER_SCSI]
    document.remove(endpoint_alias("c"))
    assert document.xml == xml


def test_others_overrides_stay() -> None:
    theirs = f"<o:override xmlns:o='{NAMESPACE}'><o:device alias='net0'/></o:override>"
    xml = domain(extra=theirs)
    document = Document(xml)
    document.add_endpoint(_SCSI)
    assert "<o:device alias='ua-ringway-db0'>" in document.xml
    assert document.xml.count(NAMESPACE) == 1
    assert document.remove(endpoint_alias("db0")).startswith("<disk type='vhostuser'")
    assert document.xml == xml


def test_what_is_not_there_is_not_removed() -> None:
    with pytest.raises(NotFoundError, match="guest 'first' has no endpoint 'db0'"):
        Document(domain()).remove(endpoint_alias("db0"))


def test_an_element_is_the_one_that_was_added() -> None:
    document = Document(domain())
    (added,) = document.add_endpoint(_BLK)
    assert document.remove(endpoint_alias("b.k")) == added


@pytest.mark.parametrize(
    ("wish", "error", "reason"),
    [
        (_SCSI, ConflictError, "has endpoint 'db0' already"),
        (
            replace(_BLK, socket=_SCSI.socket),
            ConflictError,
            "first' has /run/db0.sock already, in its <disk>",
        ),
        (replace(_BLK, socket=_PORT.socket), ConflictError, "has /run/p0 already, in its <interface>"),
        (replace(_KERNEL, endpoint="x"), ConflictError, "has naa.5001405aa3a2c1f0 already"),
        (replace(_BLK, socket=None), UsageError, "no socket's path"),
        (replace(_BLK, socket="run/a"), UsageError, "no socket's path"),
        (replace(_BLK, protection=True), UsageError, "no protection information"),
        (replace(_BLK, queues=0), UsageError, "at least one queue"),
        (replace(_BLK, boot_order=0), UsageError, "begins with 1"),
        (replace(_BLK, reconnect_s=0), UsageError, "at least a second"),
        (replace(_KERNEL, wwpn=None), UsageError, "no WWPN"),
        (replace(_KERNEL, wwpn="naa.60014050123456789abcdef012345678"), UsageError, "no WWPN"),
        (
            replace(_KERNEL, endpoint="y", wwpn="naa.5001405000000009", boot_order=0),
            UsageError,
            "begins with",
        ),
    ],
)
def test_what_libvirt_would_refuse_is_refused_and_changes_nothing(
    wish: Wish, error: type[RingwayError], reason: str
) -> None:
    document = Document(domain("<disk type='file'><boot order='1'/></disk>"))
    document.add_endpoint(_SCSI, PciAddress(0, 7, 0, 0))
    document.add_endpoint(_KERNEL)
    document.add_port(_PORT)
    before = document.xml
    with pytest.raises(error, match=reason):
        document.add_endpoint(wish)
    assert document.xml == before


def test_a_place_is_taken_once() -> None:
    document = Document(domain())
    document.add_endpoint(_SCSI, PciAddress(0, 7, 0, 0))
    with pytest.raises(ConflictError, match=r"at PCI address 0000:07:00\.0 already"):
        document.add_endpoint(_BLK, PciAddress(0, 7, 0, 0))
    assert [each.endpoint for each in document.attachments()] == ["db0"]


def test_a_guest_boots_from_the_kernels_endpoints_by_an_override() -> None:
    """libvirt refuses ``<boot>`` there; who was first moves back, of whichever kind it is."""
    document = Document(domain("<disk type='file'><boot order='1'/></disk>"))
    document.add_endpoint(replace(_KERNEL, endpoint="a", wwpn="naa.5001405000000001", boot_order=1))
    document.add_endpoint(replace(_KERNEL, endpoint="b", wwpn="naa.5001405000000002", boot_order=1))
    orders = {each.endpoint: each.boot_order for each in document.attachments()}
    assert orders == {"a": 2, "b": 1}
    assert "<boot order='3'/>" in document.xml or '<boot order="3"/>' in document.xml
    assert "<boot" not in document.remove("ua-ringway-a")


def test_a_boot_index_of_the_first_is_one_that_libvirt_gives_nobody() -> None:
    document = Document(domain())
    document.add_endpoint(replace(_KERNEL, boot_order=1))
    assert re.search("name=.bootindex. type=.unsigned. value=.0.", document.xml)
    document.add_endpoint(replace(_BLK, boot_order=1))
    assert {each.endpoint: each.boot_order for each in document.attachments()} == {"lio_0": 2, "b.k": 1}


# Ports


def test_a_port_is_an_interface() -> None:
    document = Document(domain())
    spec = replace(_PORT, queues=2, rx_queue_size=1024, tx_queue_size=512, reconnect_s=5)
    assert document.add_port(spec) == (
        """<interface type='vhostuser'>
  <mac address='52:54:00:00:00:01'/>
  <source type='unix' path='/run/p0' mode='client'>
    <reconnect enabled='yes' timeout='5'/>
  </source>
  <model type='virtio'/>
  <driver queues='2' rx_queue_size='1024' tx_queue_size='512'/>
  <alias name='ua-ringway-port-p0'/>
</interface>""",
    )
    assert document.ports() == (
        Plugged(
            port="p0",
            alias="ua-ringway-port-p0",
            mac="52:54:00:00:00:01",
            socket="/run/p0",
            mode=PortMode.CLIENT,
        ),
    )


def test_a_port_says_no_more_than_it_is_told() -> None:
    document = Document(domain())
    (text,) = document.add_port(replace(_PORT, mode=PortMode.SERVER))
    assert {child.tag for child in etree.fromstring(text)} == {"mac", "source", "model", "alias"}
    assert document.ports()[0].mode is PortMode.SERVER


def test_what_a_port_overrides_goes_with_it() -> None:
    document = Document(domain())
    document.add_port(_PORT)
    assert "override" not in document.xml
    document.remove("ua-ringway-port-p0")
    document.add_port(replace(_PORT, mtu=9000))
    assert re.search("name=.host_mtu. type=.unsigned. value=.9000.", document.xml)
    document.remove("ua-ringway-port-p0")
    assert "host_mtu" not in document.xml


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        (_PORT, ConflictError, "has port 'p0' already"),
        (replace(_PORT, name="q", mac="52:54:00:00:00:02"), ConflictError, "has /run/p0 already"),
        (replace(_PORT, name="q", socket="/q"), ConflictError, "has 52:54:00:00:00:01 already"),
        (replace(_PORT, name="q", socket=None), UsageError, "has no socket"),
        (replace(_PORT, name="q", mac=None), UsageError, "has no MAC address"),
    ],
)
def test_a_port_that_libvirt_would_refuse_is_refused(
    spec: PortSpec, error: type[RingwayError], reason: str
) -> None:
    document = Document(domain())
    document.add_port(_PORT)
    before = document.xml
    with pytest.raises(error, match=reason):
        document.add_port(spec)
    assert document.xml == before
