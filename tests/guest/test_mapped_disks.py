"""Disks of block-device mappings, as libvirt, SeaBIOS and a Linux guest see them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lxml import etree

from ringway.guest.catalogue import Catalogue
from ringway.guest.document import Document, native, validate
from ringway.guest.fresh import bare, fresh, put
from ringway.guest.mapping_files import read_all
from ringway.guest.vifs import parse_vif
from ringway.guest.volumes import Volume, make
from ringway.model import BlockDevice, DiskBus, GuestSpec, Via
from ringway.testing.bootsector import Copy, install
from ringway.testing.domain import DomainGuest
from ringway.testing.libvirtd import Libvirtd
from ringway.testing.waiting import wait_until

from .serving import Target

MIB = 1 << 20


@pytest.fixture(scope="session")
def libvirt_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which libvirt remembers what QEMU can do."""
    return tmp_path_factory.mktemp("libvirt")


@pytest.fixture
def libvirtd(run_dir: Path) -> Iterator[Libvirtd]:
    with Libvirtd(run_dir / "libvirt") as daemon:
        yield daemon


def socket(name: str) -> str:
    return f"/run/ringway/endpoint/{name}.sock"


class MadeUp:
    """A volume for every mapping; those of LUNs are SCSI devices."""

    def find(self, device: BlockDevice) -> Volume:
        block = (device.id or "").startswith("dev")
        path = f"/{'dev' if block else 'srv'}/{device.id}"
        return Volume(path=path, block=block, scsi=None if block else "x")

    def connect(self, device: BlockDevice, guest: str) -> Volume:
        return self.find(device)

    def release(self, device: BlockDevice, guest: str) -> None:
        """It is everywhere."""


ONES = [
    f"id=dev-{bus}-{kind},source=volume,bus={bus},type={kind}"
    for bus, kinds in {
        "scsi": ("disk", "lun", "cdrom"),
        "virtio-scsi": ("disk", "lun", "cdrom"),
        "virtio": ("disk",),
        "sata": ("disk", "cdrom"),
        "usb": ("disk", "cdrom"),
        "fdc": ("floppy",),
    }.items()
    for kind in kinds
]
SEVERAL = {
    "every kind": [text.replace("=dev-", f"=dev{number}-") for number, text in enumerate(ONES)],
    "files": [text.replace("dev-", f"file{at}-") for at, text in enumerate(ONES) if "lun" not in text],
    "forty": [f"id=file{number},source=volume,bootindex={number}" for number in range(40)],
    "named": [f"id=file{name},source=volume,device={name}" for name in ("sdd", "sda", "vdb", "sdz", "sdaa")],
    "blank": ["source=blank,size=1", "source=blank,size=2,bus=virtio,tag=a b"],
}  # fmt: skip


def spec(texts: list[str], **fields: object) -> GuestSpec:
    pools = {"": "/tmp"}
    whole = {"name": "web0", "block_devices": read_all(texts), "pools": pools, **fields}
    return GuestSpec(**whole)  # type: ignore[arg-type]


def check(document: Document, root: Path) -> str:
    """All of libvirt that needs no daemon. :returns: QEMU's arguments."""
    validate(document.xml)
    return " ".join(native(document.xml, root).arguments)


@pytest.mark.parametrize("texts", [[text] for text in ONES] + list(SEVERAL.values()), ids=[*ONES, *SEVERAL])
def test_libvirt_takes_what_is_made(texts: list[str], libvirt_root: Path) -> None:
    catalogue = Catalogue(pools={"": "/tmp"}, resolvers={"all": MadeUp()})
    threaded = any(device.place in (DiskBus.SCSI, DiskBus.VIRTIO) for device in read_all(texts))
    made = fresh(spec(texts, iothreads=2 * threaded, vcpus=4), catalogue, socket, kvm=False)
    arguments = check(made.document, libvirt_root)
    assert "lsi" not in arguments
    controllers = arguments.count('"driver":"virtio-scsi-pci"')
    assert controllers == any(disk.mapping.place == "scsi" for disk in made.disks)


def test_libvirt_takes_endpoints_and_ports(libvirt_root: Path) -> None:
    texts = ["id=file0,source=volume,bus=virtio-scsi", "id=file1,source=volume,bus=virtio"]
    ports = (
        parse_vif("id=n0,socket=/run/n0.sock,mode=client,queues=2,rx=1024,tx=1024,reconnect=1,mtu=9000"),
        parse_vif("id=n1,socket=/run/n1.sock,mode=server"),
    )
    catalogue = Catalogue(resolvers={"all": MadeUp()})
    made = fresh(spec(texts, via=Via.ENDPOINT, vcpus=2, ports=ports), catalogue, socket, kvm=False)
    arguments = check(made.document, libvirt_root)
    assert '"driver":"vhost-user-scsi-pci"' in arguments
    assert '"driver":"vhost-user-blk-pci"' in arguments
    assert arguments.count("virtio-net") == 2


@pytest.mark.parametrize("model", ["virtio-scsi", "lsilogic", None])
def test_a_controller_that_is_there_is_shared_if_it_can_be(model: str | None, libvirt_root: Path) -> None:
    document = bare(GuestSpec(name="web0"), kvm=False)
    root = etree.fromstring(document.xml)
    devices = root.find("devices")
    assert devices is not None
    etree.SubElement(
        devices, "controller", {"type": "scsi", "index": "0"} | ({"model": model} if model else {})
    )
    theirs = Document(etree.tostring(root, encoding="unicode"))
    put(theirs, spec(["id=file0,source=volume"]), Catalogue(resolvers={"all": MadeUp()}), socket)
    arguments = check(theirs, libvirt_root)
    assert arguments.count('"driver":"virtio-scsi-pci"') == 1
    bus = "scsi0.0" if model == "virtio-scsi" else "scsi1.0"
    assert f'"driver":"scsi-hd","bus":"{bus}"' in arguments


# Guests


def test_a_guest_boots_from_a_volume_by_the_wikis_string(libvirtd: Libvirtd, run_dir: Path) -> None:
    """SeaBIOS finds it on the virtio-scsi controller, and reads and writes it."""
    image = run_dir / "root.img"
    image.write_bytes(os.urandom(MIB))
    other = run_dir / "other.img"
    other.write_bytes(bytes(MIB))
    before = image.read_bytes()
    install(image, Copy(source=4, target=9, sectors=3))
    texts = [f"id={other},source=volume,bootindex=-1", "id=web0,source=volume,dest=volume,bus=virtio-scsi"]
    catalogue = Catalogue({"web0": str(image)}, resolvers={})
    wanted = GuestSpec(name="web0", memory_bytes=64 * MIB, block_devices=read_all(texts))
    xml = run_dir / "web0.xml"
    xml.write_text(fresh(wanted, catalogue, socket, kvm=False).document.xml)
    libvirtd.virsh("create", "--validate", str(xml))
    expected = bytes(byte ^ 0xFF for byte in before[4 * 512 :][: 3 * 512])
    wait_until(lambda: image.read_bytes()[9 * 512 :][: 3 * 512] == expected, "the boot sector's writing")
    libvirtd.virsh("destroy", "web0")
    assert other.read_bytes() == bytes(MIB)


def test_a_guest_boots_from_a_volume_through_an_endpoint(libvirtd: Libvirtd, run_dir: Path) -> None:
    """The same string, served over vhost-user-scsi; the boot volume is LUN 0."""
    image = run_dir / "root.img"
    image.write_bytes(os.urandom(MIB))
    before = image.read_bytes()
    install(image, Copy(source=4, target=9, sectors=3))
    mappings = read_all(["id=web0,source=volume,dest=volume,bus=virtio-scsi"])
    wanted = GuestSpec(name="web0", memory_bytes=64 * MIB, block_devices=mappings, via=Via.ENDPOINT)
    with Target(run_dir, image) as target:
        made = fresh(
            wanted, Catalogue({"web0": str(image)}, resolvers={}), lambda _: str(target.socket), kvm=False
        )
        xml = run_dir / "web0.xml"
        xml.write_text(made.document.xml)
        libvirtd.virsh("create", "--validate", str(xml))
        expected = bytes(byte ^ 0xFF for byte in before[4 * 512 :][: 3 * 512])
        wait_until(lambda: image.read_bytes()[9 * 512 :][: 3 * 512] == expected, "the boot sector's writing")
        libvirtd.virsh("destroy", "web0")


#: Unit, size in sectors and serial number (VPD page 80h) of each SCSI disk.
LIST = """\
for disk in /sys/block/sd*; do
    echo "$(ls $disk/device/scsi_device) $(cat $disk/size) $(tail -c +5 $disk/device/vpd_pg80)"
done
"""


def test_a_linux_guest_sees_disks_in_the_order_of_their_names(libvirtd: Libvirtd, run_dir: Path) -> None:
    """Twenty on one controller, each at the unit that its name says, with its serial number and size.

    Linux looks at them side by side, and may give its own letters in another order.
    """
    images = {f"vol{number:02}": (number + 1) * MIB for number in range(20)}
    for name, size in images.items():
        (run_dir / name).touch()
        os.truncate(run_dir / name, size)
    texts = [f"id={name},source=volume" for name in images] + [f"id={run_dir}/cd,source=image,type=cdrom"]
    (run_dir / "cd").write_bytes(bytes(MIB))
    catalogue = Catalogue({name: str(run_dir / name) for name in images}, resolvers={})
    document = bare(GuestSpec(name="web0"), kvm=False)
    elements = put(document, spec(texts), catalogue, socket).elements
    assert [disk.target for disk in document.disks()][:2] == ["sda", "sdb"]
    with DomainGuest(libvirtd, "web0", run_dir, devices="".join(elements)) as guest:
        lines = guest.run(LIST).splitlines()
        seen = {
            int(place.rpartition(":")[2]): (name, int(sectors) * 512)
            for place, sectors, name in map(str.split, lines)
        }
        assert [seen[unit] for unit in sorted(seen)] == list(images.items())
        assert guest.run("cat /sys/class/scsi_device/*:20/device/type").strip() == "5"
        disk = guest.run("ls -d /sys/class/scsi_device/*:19/device/block/*").strip().rpartition("/")[2]
        guest.run(f"echo ours | dd of=/dev/{disk} conv=notrunc,fsync")
    assert (run_dir / "vol19").read_bytes().startswith(b"ours\n")


def test_two_io_threads_serve_four_queues(libvirtd: Libvirtd, run_dir: Path) -> None:
    """Each CPU of the guest has a queue of its own; QEMU's threads take them in turn."""
    (run_dir / "root.img").write_bytes(bytes(MIB))
    wanted = spec([f"id={run_dir}/root.img,source=volume"], iothreads=2, queues=4)
    document = bare(GuestSpec(name="web0", iothreads=2), kvm=False)
    elements = "".join(put(document, wanted, Catalogue(resolvers={}), socket).elements)
    given = "<iothreads>2</iothreads>"
    with DomainGuest(libvirtd, "web0", run_dir, devices=elements, extra=given, cpus=4) as guest:
        assert len(guest.run("ls -d /sys/block/sda/mq/*").split()) == 4
        query = libvirtd.virsh("qemu-monitor-command", "web0", '{"execute": "query-iothreads"}')
        threads = {each["thread-id"] for each in json.loads(query)["return"]}
        assert len(threads) == 2
        assert {busiest(guest, cpu, threads) for cpu in range(4)} == threads


def busiest(guest: DomainGuest, cpu: int, threads: set[int]) -> int:
    """Read a disk on one of a guest's CPUs. :returns: which thread of QEMU's worked most."""

    def worked() -> dict[int, int]:
        """For how many nanoseconds."""
        places = {thread: Path(f"/proc/{guest.pid}/task/{thread}/schedstat") for thread in threads}
        return {thread: int(place.read_text().split()[0]) for thread, place in places.items()}

    before = worked()
    guest.run(f"taskset {1 << cpu:x} dd if=/dev/sda of=/dev/null bs=4k iflag=direct 2>/dev/null")
    after = worked()
    return max(threads, key=lambda thread: after[thread] - before[thread])


def test_the_new_volume_of_a_mapping_is_there_for_its_guest(libvirtd: Libvirtd, run_dir: Path) -> None:
    wanted = GuestSpec(name="web0", block_devices=read_all(["source=blank,size=1"]), pools={"": str(run_dir)})
    made = fresh(wanted, Catalogue(pools=wanted.pools, resolvers={}), socket, kvm=False)
    for disk in made.disks:
        make(disk.volume)
    xml = run_dir / "web0.xml"
    xml.write_text(made.document.xml)
    libvirtd.virsh("create", "--validate", str(xml))
    assert "1073741824" in libvirtd.virsh("domblkinfo", "web0", "sda")
    libvirtd.virsh("destroy", "web0")
