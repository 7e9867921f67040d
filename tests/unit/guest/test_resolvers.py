"""Resolvers find volumes, bring them here, and let them go; the example does, when it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ringway.errors import BackstoreError, ConflictError, NotFoundError, PermissionDeniedError, UsageError
from ringway.guest.catalogue import Catalogue
from ringway.guest.mappings import parse
from ringway.guest.resolvers import Connection, Resolvers, installed
from ringway.guest.volumes import Volume
from ringway.model import BlockDevice

from ..volume_files import Files, install_files, install_resolver

ROOT = BlockDevice(id="files:root")
HERE = Connection(resolver="files", device=ROOT)


class Cloud:
    """Knows one volume, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked = list[str | None]()

    def find(self, device: BlockDevice) -> Volume | None:
        self.asked.append(device.id)
        return Volume(path="/dev/rbd0", block=True) if device.id == "cloud" else None

    def connect(self, device: BlockDevice, guest: str) -> Volume:
        return Volume(path=f"/dev/{guest}", block=True, size_bytes=1 << 20)

    def release(self, device: BlockDevice, guest: str) -> None:
        """Nothing is kept."""


class Broken(Cloud):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def find(self, device: BlockDevice) -> Volume | None:
        raise self._error

    def release(self, device: BlockDevice, guest: str) -> None:
        raise self._error


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return install_files(tmp_path / "files", monkeypatch)


def test_a_resolver_is_asked_for_what_nobody_else_knows(tmp_path: Path) -> None:
    image = tmp_path / "web0.img"
    image.write_bytes(bytes(512))
    cloud, behind = Cloud(), Cloud()
    catalogue = Catalogue({"web0": str(image)}, resolvers={"cloud": cloud, "behind": behind})
    for text in ("id=cloud,source=volume", "id=cloud,source=snapshot", "id=cloud,source=image"):
        found = catalogue.find(parse(text), "n")
        assert (found.path, found.resolver) == ("/dev/rbd0", "cloud")
    assert catalogue.find(BlockDevice(id="web0"), "n").resolver is None
    assert (cloud.asked, behind.asked) == (["cloud"] * 3, [])


def test_a_resolver_refuses_with_its_own_words_or_is_named() -> None:
    with pytest.raises(PermissionDeniedError, match="no ticket"):
        Catalogue(resolvers={"a": Broken(PermissionDeniedError("no ticket"))}).find(ROOT, "n")
    with pytest.raises(BackstoreError, match=r"resolver 'a' failed: SystemExit\(2\)"):
        Catalogue(resolvers={"a": Broken(SystemExit(2))}).find(ROOT, "n")
    broken = {"files": Broken(KeyError("x"))}
    with pytest.raises(BackstoreError, match="resolver 'files' failed: KeyError"):
        Catalogue(resolvers=broken).find(ROOT, "n")
    with pytest.raises(BackstoreError, match="resolver 'files' failed: KeyError"):
        Resolvers(broken).release(HERE, "g")
    with pytest.raises(BackstoreError, match="resolver 'files' is gone"):
        Resolvers({}).release(HERE, "g")


def test_what_is_connected_is_as_large_as_its_mapping_says() -> None:
    small = Connection(resolver="cloud", device=parse("id=cloud,source=volume,size=1"))
    with pytest.raises(UsageError, match="has 1 MiB, and its mapping says 1 GiB"):
        Resolvers({"cloud": Cloud()}).connect(small, "g")


# The example


def test_the_example_connects_and_releases(files: Files) -> None:
    found = Catalogue().find(ROOT, "n")
    assert (found.path, found.resolver, found.size_bytes) == (str(files.image), "files", 1 << 20)
    assert files.links() == []
    resolvers = Resolvers()
    for _ in range(2):
        volume = resolvers.connect(HERE, "web")
        assert (volume.path, files.links()) == (f"{files.run}/web/root.img", ["web/root.img"])
    resolvers.connect(HERE, "mail")
    for _ in range(2):
        resolvers.release(HERE, "web")
        assert files.links() == ["mail/root.img"]


def test_the_example_knows_its_own_only(files: Files) -> None:
    with pytest.raises(NotFoundError, match="the store has no volume 'files:lost'"):
        Catalogue().find(BlockDevice(id="files:lost"), "n")
    for other in ("files:", "files:a/../root", "root"):
        with pytest.raises(NotFoundError, match="nobody knows"):
            Catalogue().find(BlockDevice(id=other), "n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("", "AttributeError"),
        ("def Resolver(): raise ValueError('no login')", "ValueError"),
        ("def Resolver(): return object()", "it has no find, connect, release"),
    ],
)
def test_a_broken_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    site = install_resolver(tmp_path, monkeypatch, "shoddy", "shoddy_volumes:Resolver")
    (site / "shoddy_volumes.py").write_text(text)
    sys.modules.pop("shoddy_volumes", None)
    with pytest.raises(BackstoreError, match="resolver 'shoddy' cannot be loaded") as caught:
        Catalogue().find(ROOT, "n")
    assert reason in caught.value.message


def test_nobody_takes_the_name_of_another(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "ringway_volume_files:FilesResolver"
    install_resolver(tmp_path / "more", monkeypatch, "files", value, "impostor")
    with pytest.raises(ConflictError, match="two packages bring a volume resolver 'files'"):
        installed()
