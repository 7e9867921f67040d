"""Names that guests may have, and aliases: libvirt forbids no more than / and control characters."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from ringway.client import Client
from ringway.errors import ConflictError, NotFoundError
from ringway.guest.document import Document
from ringway.guest.fresh import bare
from ringway.model import AttachSpec, GuestSpec
from ringway.testing.daemon import Daemon
from ringway.testing.libvirtd import Libvirtd

from ..serving import MIB

NAMES = [
    *("Windows 10", "it's", 'q"q', "%s%n", "wéb-日本", "-h", "--help", "$(id)", "a;b", "*", "<b>"),
    *("\u202eevil", "x" * 120, "?a=b#c", "%2e%2e"),
]
FOREIGN = {
    "rng": "<rng model='virtio'><backend model='random'>/dev/urandom</backend>{}</rng>",
    "controller": "<controller type='scsi' model='virtio-scsi'>{}</controller>",
    "disk": "<disk type='file' device='disk'><source file='/x'/><target dev='sda' bus='sata'/>{}</disk>",
}


@pytest.fixture(scope="module")
def daemon(libvirtd: Libvirtd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One with an endpoint 'db0'."""
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    daemon.configure(f'[lio]\nenabled = false\n[guests]\nenabled = true\nuri = "{libvirtd.uri}"\n')
    daemon.start()
    with daemon:
        ram = {"target": 0, "lun": 0, "backstore": {"kind": "ram", "size_bytes": MIB}}
        daemon.ask("POST", "/1.0/endpoints", {"name": "db0", "luns": [ram]})
        yield daemon
        daemon.ask("DELETE", "/1.0/endpoints/db0?force=1")


@pytest.fixture
def client(daemon: Daemon) -> Client:
    return Client(str(daemon.api))


def define(libvirtd: Libvirtd, folder: Path, name: str, device: str = "") -> str:
    """Define a guest that does not run. :returns: its UUID."""
    document = bare(GuestSpec(name="template", memory_bytes=64 * MIB, emulate=True), kvm=False)
    document.share_memory()
    identity = str(uuid.uuid4())
    xml = document.xml.replace("<name>template</name>", f"<name>{escape(name)}</name><uuid>{identity}</uuid>")
    path = folder / "domain.xml"
    path.write_text(xml.replace("</devices>", f"{device}</devices>"))
    libvirtd.virsh("define", str(path))
    return identity


@pytest.mark.parametrize("name", NAMES)
def test_a_guest_of_any_name_gets_an_endpoint(
    libvirtd: Libvirtd, client: Client, tmp_path: Path, name: str
) -> None:
    identity = define(libvirtd, tmp_path, name)
    try:
        assert client.guests.attach(name, AttachSpec(endpoint="db0")).guest == name
        shown = client.guests.show(name)
        assert (shown.uuid, [each.endpoint for each in shown.attachments]) == (identity, ["db0"])
        assert name in {each.name for each in client.guests.list()}
        client.guests.detach(name, "db0")
        assert client.guests.show(name).attachments == ()
    finally:
        libvirtd.virsh("undefine", identity)


def test_a_guest_that_is_called_as_another_is_numbered(
    libvirtd: Libvirtd, client: Client, tmp_path: Path
) -> None:
    """What is asked of a guest reaches that guest."""
    good = define(libvirtd, tmp_path, "good")
    bad = define(libvirtd, tmp_path, good)
    try:
        client.guests.attach("good", AttachSpec(endpoint="db0"))
        assert "ua-ringway-db0" in libvirtd.virsh("dumpxml", "good")
        assert client.guests.show(good).name == "good"
        assert client.guests.show(bad).attachments == ()
        client.guests.detach("good", "db0")
        assert "ua-ringway-db0" not in libvirtd.virsh("dumpxml", "good")
    finally:
        for identity in (bad, good):
            libvirtd.virsh("undefine", identity)


@pytest.mark.parametrize("kind", FOREIGN)
def test_an_alias_of_ours_at_what_is_not(
    libvirtd: Libvirtd, client: Client, tmp_path: Path, kind: str
) -> None:
    """It is not taken for ours, not taken away, and named when it is in the way."""
    device = FOREIGN[kind].format("<alias name='ua-ringway-db0'/>")
    identity = define(libvirtd, tmp_path, "odd", device)
    try:
        before = libvirtd.virsh("dumpxml", "odd")
        assert client.guests.show("odd").attachments == ()
        words = f"something else with the alias ua-ringway-db0, in its <{kind}>"
        with pytest.raises(ConflictError, match=words):
            client.guests.attach("odd", AttachSpec(endpoint="db0"))
        with pytest.raises(NotFoundError, match="has no endpoint 'db0'"):
            client.guests.detach("odd", "db0")
        assert libvirtd.virsh("dumpxml", "odd") == before
        assert Document(before).attachments() == ()
    finally:
        libvirtd.virsh("undefine", identity)
