"""Plain disks: names, places on controllers, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from msgspec.structs import replace

from ringway.errors import ConflictError, RingwayError, UsageError
from ringway.guest.aliases import volume_alias
from ringway.guest.document import (
    DiskFace,
    DiskSource,
    Document,
    MappedVolume,
    ScsiController,
    ScsiControllerInfo,
)
from ringway.guest.document.names import disk_index, disk_name
from ringway.model import DiskBus, DiskType

from .domains import domain

_FILE = DiskFace(volume="v", source=DiskSource.FILE, path="/srv/v.img")
_LUN = DiskFace(volume="l", source=DiskSource.BLOCK, path="/dev/sdb", device=DiskType.LUN)
_CD = DiskFace(volume="cd", source=DiskSource.FILE, path=None, device=DiskType.CDROM)
_FLOPPY = replace(_CD, device=DiskType.FLOPPY, bus=DiskBus.FDC)
_THREADS = "<iothreads>2</iothreads>"


def _disk(target: str, address: str = "", bus: str = "scsi") -> str:
    return f"<disk type='file'><target dev='{target}' bus='{bus}'/>{address}</disk>"


def _at(controller: int, unit: int, target: int = 0) -> str:
    return f"<address type='drive' controller='{controller}' bus='0' target='{target}' unit='{unit}'/>"


def _controller(index: int | None, model: str | None = "virtio-scsi") -> str:
    attributes = {"index": index, "model": model}
    shown = "".join(f" {name}='{value}'" for name, value in attributes.items() if value is not None)
    return f"<controller type='scsi'{shown}/>"


def _place(text: str) -> tuple[int, ...]:
    address = etree.fromstring(text).find("address")
    assert address is not None
    return tuple(int(address.get(name, "")) for name in ("controller", "bus", "target", "unit"))


def _name(text: str) -> str | None:
    target = etree.fromstring(text).find("target")
    return None if target is None else target.get("dev")


# Names


@given(st.integers(0, 475_253))
def test_names_are_counted(index: int) -> None:
    assert disk_index(disk_name("sd", index)) == index


def test_names_go_on_as_linux_counts_them() -> None:
    assert [disk_name("vd", index) for index in (0, 25, 26, 51, 52, 701, 702)] == [
        "vda", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa",
    ]  # fmt: skip
    assert [disk_index(name) for name in ("hdc", "sda1", "", "nvme0", "sd", "sdA")] == [2, 0, *[None] * 4]


# Controllers


def test_the_first_disk_brings_its_controller() -> None:
    document = Document(domain())
    options = ScsiController(queues=4)
    controller, disk = document.add_disk(replace(_FILE, discard="unmap", serial="a-1"), options)
    assert controller == (
        """<controller type='scsi' index='0' model='virtio-scsi'>
  <driver queues='4'/>
</controller>"""
    )
    assert disk == (
        """<disk type='file' device='disk'>
  <driver name='qemu' type='raw' discard='unmap'/>
  <source file='/srv/v.img'/>
  <target dev='sda' bus='scsi'/>
  <serial>a-1</serial>
  <alias name='ua-ringway-volume-v'/>
  <address type='drive' controller='0' bus='0' target='0' unit='0'/>
</disk>"""
    )
    assert document.volumes() == (
        MappedVolume(volume="v", alias=volume_alias("v"), target="sda", place=(0, 0)),
    )


@pytest.mark.parametrize("model", ["virtio-scsi", "virtio-transitional", "virtio-non-transitional"])
def test_a_controller_that_is_there_is_shared(model: str) -> None:
    document = Document(domain(_controller(0, "lsilogic") + _controller(1, model) + _disk("sda", _at(1, 0))))
    (disk,) = document.add_disk(_LUN)
    assert (_place(disk), _name(disk)) == ((1, 0, 0, 1), "sdb")
    assert [found.disks for found in document.controllers()] == [0, 2]


@pytest.mark.parametrize("model", [None, "auto", "lsilogic"])
def test_a_controller_of_libvirts_default_is_none_of_virtio(model: str | None) -> None:
    """On x86 it is an LSI one."""
    document = Document(domain(_controller(0, model)))
    controller, disk = document.add_disk(_FILE)
    assert etree.fromstring(controller).get("index") == "1"
    assert _place(disk) == (1, 0, 0, 0)


def test_controllers_that_libvirt_will_add_are_counted() -> None:
    """For a disk without an address, by its name; and all below the highest."""
    document = Document(domain(_disk("sdo") + _controller(None)))
    assert document.controllers() == (
        ScsiControllerInfo(index=0, model="virtio-scsi"),
        ScsiControllerInfo(index=1, model=None),
        ScsiControllerInfo(index=2, model=None, disks=1),
    )
    (index,) = (
        etree.fromstring(text).get("index") for text in document.add_scsi_controller(ScsiController())
    )
    assert index == "3"


def test_a_gap_is_filled_before_libvirt_does() -> None:
    document = Document(domain(_controller(0, "lsilogic") + _controller(2, "lsilogic")))
    controller, disk = document.add_disk(_FILE)
    assert etree.fromstring(controller).get("index") == "1"
    assert _place(disk) == (1, 0, 0, 0)


def test_units_that_others_have_are_passed_over() -> None:
    host = f"<hostdev mode='subsystem' type='scsi'>{_at(0, 1)}</hostdev>"
    taken = _disk("sda", _at(0, 0)) + _disk("sdd") + host + _disk("sdx", _at(0, 2, target=1))
    document = Document(domain(_controller(0) + taken))
    units = [_place(document.add_disk(replace(_FILE, volume=name))[-1])[-1] for name in "abc"]
    assert units == [2, 4, 5]


def test_a_full_controller_is_followed_by_the_next() -> None:
    document = Document(domain())
    places, names = [], []
    for number in range(520):
        *_, disk = document.add_disk(replace(_FILE, volume=str(number)))
        places.append(_place(disk))
        names.append(_name(disk))
    assert places == [(number // 256, 0, 0, number % 256) for number in range(520)]
    assert names[:1] + names[25:27] + names[-1:] == ["sda", "sdz", "sdaa", "sdsz"]
    assert [found.disks for found in document.controllers()] == [256, 256, 8]
    document.remove(volume_alias("17"))
    assert _place(document.add_disk(replace(_FILE, volume="x"))[-1]) == (0, 0, 0, 17)


@pytest.mark.parametrize(
    ("options", "driver"),
    [
        (ScsiController(), None),
        (ScsiController(iothreads=(2,)), "<driver iothread='2'/>"),
        (
            ScsiController(queues=4, iothreads=(1, 2)),
            "<driver queues='4'>\n    <iothreads>\n      <iothread id='1'/>\n      <iothread id='2'/>\n"
            "    </iothreads>\n  </driver>",
        ),
    ],
)
def test_a_controller_has_io_threads(options: ScsiController, driver: str | None) -> None:
    (text,) = Document(domain(extra=_THREADS)).add_scsi_controller(options)
    start = "<controller type='scsi' index='0' model='virtio-scsi'"
    assert text == (f"{start}>\n  {driver}\n</controller>" if driver else f"{start}/>")


def test_a_disk_of_bus_virtio_is_its_own_controller() -> None:
    document = Document(domain(extra=_THREADS))
    (text,) = document.add_disk(replace(_FILE, bus=DiskBus.VIRTIO), ScsiController(queues=2, iothreads=(1,)))
    assert "<driver name='qemu' type='raw' queues='2' iothread='1'/>" in text
    (text,) = document.add_disk(
        replace(_FILE, volume="w", bus=DiskBus.VIRTIO), ScsiController(queues=4, iothreads=(1, 2))
    )
    threads = etree.fromstring(text).iterfind("driver/iothreads/iothread")
    assert [each.get("id") for each in threads] == ["1", "2"]
    before = document.xml
    with pytest.raises(UsageError, match="no I/O thread 3"):
        document.add_disk(
            replace(_FILE, volume="x", bus=DiskBus.VIRTIO), ScsiController(queues=4, iothreads=(3,))
        )
    assert document.xml == before


@pytest.mark.parametrize(
    ("threads", "there"),
    [
        ("", ()),
        ("<iothreads>2</iothreads>", (1, 2)),
        (
            "<iothreads>3</iothreads><iothreadids><iothread id='2'/><iothread id='7'/></iothreadids>",
            (1, 2, 7),
        ),
        ("<iothreadids><iothread id='4'/></iothreadids>", (4,)),
    ],
)
def test_io_threads_are_those_that_libvirt_makes(threads: str, there: tuple[int, ...]) -> None:
    for thread in range(1, 9):
        document = Document(domain(extra=threads))
        if thread in there:
            document.add_scsi_controller(ScsiController(iothreads=(thread,)))
        else:
            with pytest.raises(UsageError, match=f"no I/O thread {thread}"):
                document.add_scsi_controller(ScsiController(iothreads=(thread,)))


@pytest.mark.parametrize(
    "options",
    [
        ScsiController(queues=0),
        ScsiController(queues=1, iothreads=(1, 2)),
        ScsiController(iothreads=(1, 1)),
    ],
)
def test_a_controller_that_makes_no_sense_is_refused(options: ScsiController) -> None:
    document = Document(domain(extra=_THREADS))
    before = document.xml
    with pytest.raises(UsageError):
        document.add_disk(_FILE, options)
    assert document.xml == before


@pytest.mark.parametrize("text", ["-1", "x", "4000000000", "0x1"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    """libvirt would take four thousand million controllers for their word."""
    disk = f"<disk><target dev='sda' bus='scsi'/><address type='drive' controller='{text}'/></disk>"
    for devices in (disk, f"<controller type='scsi' index='{text}'/>"):
        with pytest.raises(UsageError, match="no number of a controller"):
            Document(domain(devices)).add_disk(_FILE)


# Other buses


def test_disks_on_other_buses() -> None:
    document = Document(domain(_disk("sda") + _disk("sdb", _at(0, 1), "sata") + _disk("sdc", bus="sata")))
    sata = [document.add_disk(replace(_CD, volume=str(n), bus=DiskBus.SATA))[0] for n in range(5)]
    assert [_place(text)[0::3] for text in sata] == [(0, 0), (0, 3), (0, 4), (0, 5), (1, 0)]
    assert [_name(text) for text in sata] == ["sdd", "sde", "sdf", "sdg", "sdh"]
    virtio = replace(_FILE, bus=DiskBus.VIRTIO, cache="none", io="native", format="qcow2", readonly=True)
    assert document.add_disk(virtio) == (
        """<disk type='file' device='disk'>
  <driver name='qemu' type='qcow2' cache='none' io='native'/>
  <source file='/srv/v.img'/>
  <target dev='vda' bus='virtio'/>
  <readonly/>
  <alias name='ua-ringway-volume-v'/>
</disk>""",
    )
    assert _name(document.add_disk(_FLOPPY)[0]) == "fda"
    assert "<readonly/>" in sata[0]


@pytest.mark.parametrize(
    ("face", "error", "reason"),
    [
        (replace(_FILE, volume="x", target="sda"), ConflictError, "a disk 'sda' already"),
        (replace(_FILE, target="sdb"), ConflictError, "has volume 'v' already"),
        (replace(_FILE, volume="x", target="sda1"), UsageError, "no disk's name"),
        (replace(_FILE, volume="x", target="disk"), UsageError, "no disk's name"),
        (replace(_FILE, volume="x", path=None), UsageError, "has to have a source"),
        (replace(_LUN, bus=DiskBus.VIRTIO), UsageError, "a LUN cannot be on bus virtio"),
        (replace(_LUN, source=DiskSource.FILE), UsageError, "no block device"),
        (replace(_LUN, format="qcow2"), UsageError, "no format 'qcow2'"),
        (replace(_LUN, serial="a"), UsageError, "the serial of its device"),
        (replace(_CD, bus=DiskBus.VIRTIO), UsageError, "no cdrom"),
        (replace(_FLOPPY, bus=DiskBus.SCSI), UsageError, "a floppy cannot be on bus scsi"),
        (replace(_CD, bus=DiskBus.FDC), UsageError, "a cdrom cannot be on bus fdc"),
        (replace(_FILE, volume="x", bus=DiskBus.IDE), UsageError, "no bus ide"),
        (replace(_FILE, volume="x", io="native"), UsageError, "needs cache=none"),
        (replace(_FILE, volume="x", readonly=True, bus=DiskBus.SATA), UsageError, "cannot be read-only"),
        (replace(_FILE, volume="x", serial="ü"), UsageError, "serial 'ü'"),
        (replace(_FILE, volume="x", boot_order=0), UsageError, "begins with 1"),
    ],
)
def test_a_disk_that_libvirt_would_refuse_is_refused(
    face: DiskFace, error: type[RingwayError], reason: str
) -> None:
    document = Document(domain(extra=_THREADS))
    document.add_disk(_FILE)
    before = document.xml
    with pytest.raises(error, match=reason):
        document.add_disk(face)
    assert document.xml == before


@pytest.mark.parametrize(("bus", "device", "count"), [("ide", "disk", 4), ("fdc", "floppy", 2)])
def test_a_bus_that_is_full_is_refused(bus: str, device: str, count: int) -> None:
    document = Document(domain(machine="pc"))
    face = replace(_FILE, bus=DiskBus(bus), device=DiskType(device))
    for number in range(count):
        document.add_disk(replace(face, volume=str(number)))
    with pytest.raises(ConflictError, match=f"{bus} bus has {count} drives"):
        document.add_disk(face)
