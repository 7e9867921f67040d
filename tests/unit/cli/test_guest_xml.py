"""``ringway guest xml``: what it prints, what it refuses; nothing of libvirt's is run."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ..volume_files import install_files
from .conftest import Run

WIKI = "id=root,source=volume,dest=volume,bus=virtio-scsi"
THERE = ["web0.xml", "--volume", "root=disk.img", "--block-device", WIKI]
DOMAIN = """\
<domain type='kvm'>
  <name>web0</name>
  <!-- mine -->
  <memory unit='MiB'>64</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <boot dev='hd'/>
  </os>
  <devices>
    <controller type='scsi' index='0' model='virtio-scsi'/>
    <disk type='file' device='disk'>
      <source file='/srv/mine.img'/>
      <target dev='sda' bus='scsi'/>
    </disk>
  </devices>
</domain>
"""


@pytest.fixture
def domain(tmp_path: Path) -> Path:
    path = tmp_path / "web0.xml"
    path.write_text(DOMAIN)
    return path


def targets(xml: str) -> list[str]:
    return [target.get("dev", "") for target in ElementTree.fromstring(xml).iterfind("devices/disk/target")]


def test_a_whole_new_domain(run: Run, image: Path, other: Path) -> None:
    done = run("guest", "xml", "--new", "web0", "--memory", "2G", "--vcpus", "2", "--volume", f"root={image}",
               "--block-device", WIKI, "--block-device", f"id={other},source=volume,bus=virtio")  # fmt: skip
    assert (done.status, done.err) == (0, "")
    root = ElementTree.fromstring(done.out)
    assert (root.findtext("name"), root.findtext("memory"), root.findtext("vcpu")) == ("web0", "2097152", "2")
    assert [disk.get("model") for disk in root.iterfind("devices/controller[@type='scsi']")] == [
        "virtio-scsi"
    ]
    first = root.find("devices/disk")
    assert first is not None
    assert first.find("boot[@order='1']") is not None
    assert targets(done.out) == ["sda", "vda"]


def test_a_volume_that_a_resolver_has_is_not_connected(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = install_files(tmp_path / "files", monkeypatch)
    done = run("guest", "xml", "--new", "web0", "--block-device", "id=files:root,source=volume")
    assert f"file='{files.image}'" in done.out
    assert "volume 'files:root' is not connected by this: the resolver 'files'" in done.err
    assert files.links() == []


@pytest.mark.parametrize("form", ["nova", "openstack", "json", "toml"])
def test_no_mappings_are_not_written(run: Run, form: str) -> None:
    """An empty line is no file of anybody's."""
    done = run("guest", "xml", "-o", form)
    assert (done.status, done.out) == (2, "")
    assert f"there are no mappings to write as {form}" in done.err


def test_a_domain_keeps_all_that_it_has(run: Run, domain: Path, image: Path) -> None:
    done = run("guest", "xml", domain, "--block-device", f"id={image},source=volume")
    assert done.status == 0
    assert "<!-- mine -->" in done.out
    assert targets(done.out) == ["sda", "sdb"]
    kept = [line for line in done.out.splitlines() if line in DOMAIN.splitlines()]
    assert kept[:6] == DOMAIN.splitlines()[:6]
    assert domain.read_text() == DOMAIN


def test_what_changes_in_a_domain(run: Run, domain: Path, image: Path) -> None:
    done = run("guest", "xml", domain, "--block-device", f"id={image},source=volume", "-o", "diff")
    changed = [line for line in done.out.splitlines() if line.startswith(("+", "-"))]
    assert changed[:2] == ["--- before", "+++ after"]
    assert not any(line.startswith("-") for line in changed[2:])
    assert any("target dev='sdb'" in line for line in changed)


def test_a_domain_from_a_pipe(run: Run, image: Path, tmp_path: Path) -> None:
    source = tmp_path / "pipe"
    source.write_text(DOMAIN)
    saved = os.dup(0)
    with source.open("rb") as file:
        os.dup2(file.fileno(), 0)
    try:
        done = run("guest", "xml", "-", "--block-device", f"id={image},source=volume")
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert targets(done.out) == ["sda", "sdb"]


def test_elements_alone(run: Run, image: Path) -> None:
    done = run("guest", "xml", "--block-device", f"id={image},source=volume", "--vif", "id=n,socket=/s")
    root = ElementTree.fromstring(f"<devices>{done.out}</devices>")
    assert [element.tag for element in root] == ["controller", "disk", "interface", "memoryBacking"]
    assert "note: port 'n': the guest does not start before the switch connects to /s" in done.err


def test_new_elements_of_a_domain_alone(run: Run, domain: Path, image: Path) -> None:
    """As virsh attach-device takes them; what it does not take is told of."""
    done = run("guest", "xml", domain, "--block-device", f"id={image},source=volume", "-o", "elements")
    assert (done.status, done.err) == (0, "")
    assert [element.tag for element in ElementTree.fromstring(f"<all>{done.out}</all>")] == ["disk"]
    done = run("guest", "xml", domain, "--vif", "id=n,socket=/s,mtu=9000", "-o", "elements")
    assert [element.tag for element in ElementTree.fromstring(f"<all>{done.out}</all>")] == ["interface"]
    assert "what they need besides: <memoryBacking> and <qemu:override>\n" in done.err


def test_a_switch_is_told_of_no_port_of_xml(run: Run) -> None:
    done = run("guest", "xml", "--vif", "id=n,socket=/s,switch=ovs")
    assert (done.status, "nobody tells ovs of it" in done.err) == (0, True)


def test_an_endpoint_that_a_domain_has_already(run: Run, domain: Path, image: Path) -> None:
    words = ("--via", "endpoint", "--block-device", f"id={image},source=volume")
    domain.write_text(run("guest", "xml", domain, *words).out)
    done = run("guest", "xml", domain, *words)
    assert (done.status, "hint: name the new one with --endpoint" in done.err) == (6, True)


def test_an_image_is_no_domain(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "a.img").open("wb") as file:
        file.truncate((16 << 20) + 1)
    done = run("guest", "xml", "a.img", "--vif", "id=n,socket=/s")
    assert (done.status, "hint: name a file that describes a domain" in done.err) == (2, True)


def test_elements_for_no_domain_yet_have_addresses_of_nobody(run: Run) -> None:
    once, again = (run("guest", "xml", "--vif", "id=n,socket=/s").out for _ in range(2))
    assert "52:54:00:" in once
    assert once != again


def test_disks_through_an_endpoint(run: Run, image: Path) -> None:
    done = run("guest", "xml", "--new", "web0", "--via", "endpoint", "--vcpus", "2",
               "--volume", f"root={image}", "--block-device", WIKI)  # fmt: skip
    assert "/run/ringway/endpoint/web0.sock" in done.out
    assert "vhost-user-scsi-pci" in done.out
    assert "mode='shared'" in done.out
    command = f"ringway endpoint create web0 --device scsi --queues 2 --lun 0={image},serial=root"
    assert f"note: first: {command}\n" in done.err


def test_disks_through_the_kernels_endpoint(run: Run, image: Path) -> None:
    done = run("guest", "xml", "--new", "web0", "--via", "endpoint", "--engine", "lio",
               "--volume", f"root={image}", "--block-device", WIKI)  # fmt: skip
    source = ElementTree.fromstring(done.out).find("devices/hostdev[@type='scsi_host']/source")
    assert source is not None
    command = f"ringway endpoint create web0 --engine lio --wwpn {source.get('wwpn')}"
    assert f"note: first: {command} --lun 0={image},serial=root\n" in done.err
    assert "libvirt does not move a guest with" in done.err


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("nova", "id=root,source=volume,bus=scsi"),
        ("openstack", "uuid=root,source_type=volume,disk_bus=scsi"),
        ("toml", '[[block_device]]\nid = "root"\nsource = "volume"\nbus = "scsi"'),
    ],
)
def test_mappings_in_another_form(run: Run, form: str, said: str) -> None:
    assert run("guest", "xml", "--block-device", WIKI, "-o", form).out == f"{said}\n"


def test_mappings_as_json(run: Run) -> None:
    done = run("guest", "xml", "--block-device", WIKI, "-o", "json")
    assert json.loads(done.out) == {"uuid": "root", "source_type": "volume", "disk_bus": "scsi"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "nothing to put into XML"),
        (["web0.xml", "--new", "web0", "--block-device", WIKI], 2, "a domain is new, or there already"),
        (["-o", "diff", "--block-device", WIKI], 2, "needs a domain to compare with"),
        (["none.xml", "--block-device", "id=disk.img,source=volume"], 2, "'none.xml' cannot be read"),
        (["none", "--vif", "id=n,socket=/s"], 2, "'none' cannot be read"),
        (["--block-device", WIKI], 3, "nobody knows where volume 'root' is"),
        (["--block-device", WIKI, "--volume", "root=a", "--volume", "root=b"], 2, "'root' is named twice"),
        (["--block-device", WIKI, "--volume", "root"], 2, "'root' is no volume"),
        (["--new", "web0", "--volume", "root=disk.img"], 2, "no --block-device names the volume 'root'"),
        (["--block-device", "id=root,sourc=volume"], 2, "no key 'sourc'"),
        (["--block-device", f"{WIKI},type=lun", "--volume", "root=disk.img"], 2, "a LUN: it is a file"),
        (["--new", "a b"], 2, "no such guest is possible"),
        (["--new", "a", "--memory", "1K"], 2, "no such guest is possible"),
        (["--new", "a", "--memory", "much"], 2, "is not a size"),
        (["--vif", "id=n"], 2, "has no socket"),
        (["--vif", "id=n,socket=/s,switch=nope"], 3, "there is no switch 'nope'"),
        (["--new", "web0", "-o", "elements"], 2, "-o elements is for a domain that is there"),
        ([*THERE, "--via", "endpoint", "--engine", "lio", "--sockets", "/run"], 2, "--sockets has no effect"),
        (["web0.xml", "--volume", "root=disk.img", "--block-device", f"{WIKI},device=sda"], 6, "'sda'"),
        ([*THERE, "--iothreads", "1"], 2, "are of nobody: the disks go to a controller that is there"),
        ([*THERE, "--queues", "4"], 2, "queues are of nobody"),
        ([*THERE, "--memory", "4G"], 2, "--memory has no effect: it is of a new domain"),
        ([*THERE, "--vcpus", "8"], 2, "--vcpus has no effect"),
        ([*THERE, "--emulate"], 2, "--emulate has no effect"),
        ([*THERE, "--endpoint", "db0"], 2, "--endpoint has no effect: it is of endpoints"),
        ([*THERE, "--engine", "lio"], 2, "an engine is of endpoints"),
        ([*THERE, "--sockets", "/run"], 2, "--sockets has no effect"),
        ([*THERE, "--via", "endpoint", "--iothreads", "1"], 2, "no I/O threads of QEMU's"),
        (["--new", "web0", "--queues", "4"], 2, "queues are of nobody: no new disk is on bus scsi or virtio"),
        (["--new", "web0", "--via", "endpoint", "--queues", "4"], 2, "no disk for one"),
        (["--block-device", WIKI, "-o", "nova", "--validate"], 2, "--validate has no effect: -o nova prints"),
        (["web0.xml", "--block-device", WIKI, "-o", "json"], 2, "DOMAIN has no effect"),
        (["--volume", "root=disk.img", "--block-device", "id=root,source=volume,bus=ide"], 2, "no bus ide"),
    ],
)  # fmt: skip
def test_what_cannot_be(
    run: Run, domain: Path, image: Path, arguments: list[str], status: int, message: str
) -> None:
    done = run("guest", "xml", *arguments)
    assert done.status == status
    assert message in done.err
    assert done.out == ""
    assert "\nhint: " in done.err


def test_queues_and_threads_are_of_all_that_is_new(run: Run, image: Path, other: Path) -> None:
    """Of the controller, and of a disk that has none."""
    done = run("guest", "xml", "--new", "web0", "--vcpus", "4", "--iothreads", "2", "--queues", "4",
               "--volume", f"root={image}", "--block-device", WIKI,
               "--block-device", f"id={other},source=volume,bus=virtio")  # fmt: skip
    assert (done.status, done.err) == (0, "")
    root = ElementTree.fromstring(done.out)
    assert root.findtext("iothreads") == "2"
    drivers = [root.find("devices/controller[@type='scsi']/driver"), *root.iterfind("devices/disk/driver")]
    assert [None if each is None else each.get("queues") for each in drivers] == ["4", None, "4"]
    assert [None if each is None else len(each.findall("iothreads/iothread")) for each in drivers] == [
        2,
        0,
        2,
    ]


def test_a_domain_that_is_no_text(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.xml").write_bytes(b"<domain>\xff</domain>")
    done = run("guest", "xml", "bad.xml", "--vif", "id=n,socket=/s")
    assert (done.status, "no UTF-8" in done.err) == (2, True)


def test_validation_needs_libvirts_programs(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run("guest", "xml", "--new", "web0", "--validate")
    assert (done.status, done.out) == (3, "")
    assert "there is no program 'virt-xml-validate'" in done.err
    assert "apt-get install" in done.err


def test_an_editor_of_xml_that_is_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mappings are read without it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lxml" else find(name))
    done = run("guest", "xml", "--new", "web0")
    assert (done.status, "pip install 'ringway[guest]'" in done.err) == (3, True)
    assert run("guest", "xml", "--block-device", WIKI, "-o", "nova").status == 0
