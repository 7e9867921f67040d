"""What a domain's XML says of the guest, and its memory."""

from __future__ import annotations

import pytest

from ringway.errors import UsageError
from ringway.guest.document import Chipset, Document
from ringway.model import GuestDisk

from .domains import SHARED, domain

_CELLS = "<cpu><numa>{}</numa></cpu>"


def test_a_domain_is_described() -> None:
    document = Document(domain())
    assert (document.name, document.uuid, document.arch) == ("first", None, "x86_64")
    assert (document.machine, document.chipset) == ("q35", Chipset.Q35)
    assert (document.memory_bytes, document.vcpus) == (64 << 20, 2)
    assert Document(domain().replace("<vcpu", "<uuid> a-b </uuid><vcpu")).uuid == "a-b"


@pytest.mark.parametrize(
    ("machine", "chipset"),
    [
        ("pc-q35-10.0", Chipset.Q35),
        ("pc", Chipset.I440FX),
        ("pc-i440fx-10.0", Chipset.I440FX),
        ("microvm", Chipset.OTHER),
        ("virt-9.2", Chipset.OTHER),
    ],
)
def test_a_machine_has_a_chipset(machine: str, chipset: Chipset) -> None:
    assert Document(domain(machine=machine)).chipset is chipset


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        ("<memory>64</memory>", 64 << 10),
        ("<memory unit='b'>1000</memory>", 1000),
        ("<memory unit='KB'>64</memory>", 64_000),
        ("<memory unit='GiB'> 3 </memory>", 3 << 30),
        ("<memory unit='t'>1</memory>", 1 << 40),
        (_CELLS.format("<cell memory='2' unit='MiB'/><cell memory='1024'/>"), 3 << 20),
        ("", 0),
    ],
)
def test_memory_has_a_size(memory: str, size: int) -> None:
    assert Document(domain().replace("<memory unit='MiB'>64</memory>", memory)).memory_bytes == size


@pytest.mark.parametrize("memory", ["<memory>x</memory>", "<memory/>", "<memory unit='cows'>3</memory>"])
def test_a_size_that_is_none_is_refused(memory: str) -> None:
    with pytest.raises(UsageError, match="no size of memory"):
        _ = Document(domain().replace("<memory unit='MiB'>64</memory>", memory)).memory_bytes


@pytest.mark.parametrize(
    ("vcpu", "count"),
    [("", 1), ("<vcpu placement='static'>4</vcpu>", 4), ("<vcpu current='2'>4</vcpu>", 2)],
)
def test_virtual_cpus_are_counted(vcpu: str, count: int) -> None:
    assert Document(domain().replace("<vcpu>2</vcpu>", vcpu)).vcpus == count


def test_a_number_of_virtual_cpus_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="'many' is no number"):
        _ = Document(domain().replace("<vcpu>2<", "<vcpu>many<")).vcpus


def test_disks_are_listed() -> None:
    disks = """<disk type='block' device='lun'><source dev='/dev/sdb'/><target dev='sda' bus='scsi'/></disk>
    <disk type='network'><source protocol='rbd' name='a/b'/><target dev='vda' bus='virtio'/></disk>
    <disk type='volume' device='cdrom'><source pool='p' volume='v'/><target dev='sdb' bus='sata'/>
      <alias name='ua-x'/></disk>
    <disk device='floppy'><target dev='fda'/></disk><disk/>"""
    assert Document(domain(disks)).disks() == (
        GuestDisk(target="sda", bus="scsi", device="lun", source="/dev/sdb"),
        GuestDisk(target="vda", bus="virtio", device="disk", source="rbd:a/b"),
        GuestDisk(target="sdb", bus="sata", device="cdrom", source="p/v", alias="ua-x", readonly=True),
        GuestDisk(target="fda", bus="", device="floppy", source=None),
        GuestDisk(target="", bus="", device="disk", source=None),
    )


# Memory

_MEMFD_ALONE = "<memoryBacking><source type='memfd'/></memoryBacking>"
_HUGE = "<memoryBacking><hugepages/><access mode='private'/></memoryBacking>"
_DIMM = "<memory model='dimm' access='private'/>"


@pytest.mark.parametrize(
    ("memory", "extra", "devices", "obstacles"),
    [
        (SHARED, "", "", []),
        ("<memoryBacking><access mode='shared'/></memoryBacking>", "", "", []),
        ("", "", "", ["its memory is private"]),
        (_MEMFD_ALONE, "", "", ["its memory is private"]),
        (_HUGE, "", "", ["its memory is private"]),
        (SHARED, _CELLS.format("<cell id='0'/>"), "", []),
        (SHARED, _CELLS.format("<cell id='0' memAccess='private'/>"), "", ["NUMA cell 0 is private"]),
        (
            "",
            _CELLS.format("<cell id='0' memAccess='shared'/><cell id='1'/>"),
            "",
            ["NUMA cell 1 is private"],
        ),
        ("", _CELLS.format("<cell id='0' memAccess='shared'/>"), "", []),
        (SHARED, "", _DIMM, ["memory device 0 is private"]),
    ],
)
def test_memory_that_is_not_shared_is_found_and_mended(
    memory: str, extra: str, devices: str, obstacles: list[str]
) -> None:
    document = Document(domain(devices, memory=memory, extra=extra))
    before = document.xml
    found = document.memory_obstacles
    assert [reason.partition(" (")[0] for reason in found] == obstacles
    assert document.shares_memory is not bool(obstacles)
    difference = document.share_memory()
    assert document.shares_memory
    assert bool(difference) is bool(obstacles)
    assert (document.xml == before) is not bool(obstacles)
    assert document.share_memory() == ""


def test_a_difference_is_a_unified_diff() -> None:
    assert Document(domain(memory="")).share_memory() == (
        "--- before\n+++ after\n@@ -1,6 +1,10 @@\n <domain type='qemu'>\n   <name>first</name>\n"
        "   <memory unit='MiB'>64</memory>\n+  <memoryBacking>\n+    <source type='memfd'/>\n"
        "+    <access mode='shared'/>\n+  </memoryBacking>\n   <vcpu>2</vcpu>\n   <os>\n"
        "     <type arch='x86_64' machine='q35'>hvm</type>\n"
    )


def test_hugepages_stay_what_the_memory_is_made_of() -> None:
    document = Document(domain(memory=_HUGE))
    document.share_memory()
    assert "<memoryBacking><hugepages/><access mode='shared'/></memoryBacking>" in document.xml
