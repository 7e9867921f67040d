"""A domain's XML is edited in place: endpoints, and what stays as it was."""

from __future__ import annotations

from ringway.guest.base import Wish
from ringway.guest.document import Document
from ringway.model import Face

_DOMAIN = """<?xml version='1.0'?>
<!-- the first -->
<domain type='qemu' id='3'>
  <name>first</name>  <!-- a name -->
  <memory unit='MiB'>64</memory>
  <vcpu>2</vcpu>
  <metadata><x:y xmlns:x='urn:x'><![CDATA[a < b]]></x:y></metadata>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>

    <disk type='file' device='disk'>
      <source file="it's"/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <memballoon model='none'/>
  </devices>
</domain>
<!-- the last -->
"""


def test_an_endpoint_comes_and_goes() -> None:
    document = Document(_DOMAIN)
    before = document.xml
    for number, face in enumerate((Face.VHOST_USER_SCSI, Face.VHOST_USER_BLK)):
        document.add_endpoint(Wish(endpoint=f"db{number}", face=face, socket=f"/run/{number}", queues=2))
    assert [(found.endpoint, found.face) for found in document.attachments()] == [
        ("db0", Face.VHOST_USER_SCSI),
        ("db1", Face.VHOST_USER_BLK),
    ]
    for found in document.attachments():
        document.remove(found.alias)
    assert document.xml == before
