"""What serve prints to be copied survives the copying."""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET

from ringway.cli.howto import libvirt_hint, qemu_arguments
from ringway.model import BackstoreSpec, DeviceKind, LunSpec, SpecKind, TargetConfig


def config(device: DeviceKind) -> TargetConfig:
    return TargetConfig(device, (LunSpec(0, 0, BackstoreSpec(SpecKind.NULL, size_bytes=1 << 20)),), queues=4)


def test_a_shell_gives_qemu_the_path_as_it_is() -> None:
    """Once a pasted line ran what stood in a file's name."""
    line = next(
        line for line in qemu_arguments(config(DeviceKind.SCSI), "we ird;$(x),y.sock") if "chardev" in line
    )
    assert shlex.split(line)[1] == "socket,id=ringway,path=we ird;$(x),,y.sock,reconnect-ms=1000"


def test_libvirt_gets_queues_and_reconnects() -> None:
    _, disk = libvirt_hint(config(DeviceKind.BLK), "/run/<x>.sock").split("\n", 1)
    element = ET.fromstring(disk)
    assert element.find("driver").attrib["queues"] == "4"  # type: ignore[union-attr]
    assert element.find("source").attrib["path"] == "/run/<x>.sock"  # type: ignore[union-attr]
    assert element.find("source/reconnect") is not None
