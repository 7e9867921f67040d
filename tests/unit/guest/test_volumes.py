"""Where the bytes of a mapping are."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ringway.errors import (
    BackstoreError,
    ConflictError,
    NotFoundError,
    RingwayError,
    UsageError,
)
from ringway.guest.catalogue import Catalogue, backstores_of
from ringway.guest.mappings import parse
from ringway.guest.volumes import (
    Volume,
    look,
    make,
    no_scsi,
    parse_pool,
    parse_volume,
    unmake,
)
from ringway.model import BackstoreInfo, BlockDevice, EngineKind

MIB = 1 << 20
QCOW2 = b"QFI\xfb" + bytes(20) + (5 << 30).to_bytes(8)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "web0.img"
    path.write_bytes(bytes(MIB))
    return path


def backstore(name: str, path: Path | None, **fields: Any) -> BackstoreInfo:
    kind = "file" if path else "ram"
    return BackstoreInfo(
        name=name,
        engine=EngineKind.USER,
        kind=kind,
        path=str(path) if path else None,
        size_bytes=MIB,
        **fields,
    )


def test_a_volume_that_is_named(image: Path) -> None:
    found = Catalogue({"web0": str(image)}, resolvers={}).find(BlockDevice(id="web0"), "n")
    assert found == Volume(path=str(image), size_bytes=MIB)


def test_an_id_that_is_a_path_stands_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "a,b"
    path.write_bytes(bytes(512))
    assert Catalogue(resolvers={}).find(BlockDevice(id=str(path)), "n").path == str(path)


def test_paths_are_made_whole(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image.parent)
    assert parse_volume("a=web0.img,readonly") == ("a", f"{image},readonly")
    assert parse_pool("fast=x") == ("fast", f"{image.parent}/x")


def test_a_path_from_elsewhere_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'web0\.img' is no path from the root"):
        Catalogue({"a": "web0.img"}, resolvers={}).find(BlockDevice(id="a"), "n")
    with pytest.raises(UsageError, match=r"'\.' is no path from the root"):
        Catalogue(pools={"": "."}, resolvers={}).find(parse("source=blank,size=1"), "n")


def test_a_medium_is_never_written(image: Path) -> None:
    catalogue = Catalogue({"iso": str(image)}, resolvers={})
    assert catalogue.find(parse("id=iso,source=image,type=cdrom"), "n").readonly
    assert catalogue.find(parse("id=iso,source=volume,type=cdrom"), "n").readonly


def test_backstores_of_a_host_go_by_name_and_by_serial(image: Path) -> None:
    known = backstores_of([backstore("a", image, serial="b"), backstore("b", None)])
    catalogue = Catalogue(backstores=known, resolvers={})
    assert catalogue.find(BlockDevice(id="a"), "n").path == str(image)
    with pytest.raises(UsageError, match="'b' is ram, which QEMU cannot open"):
        catalogue.find(BlockDevice(id="b"), "n")
    with pytest.raises(NotFoundError, match="nobody knows where volume 'c' is"):
        catalogue.find(BlockDevice(id="c"), "n")


# New volumes


def test_a_blank_volume_is_made_in_its_folder(tmp_path: Path) -> None:
    catalogue = Catalogue(pools={"": str(tmp_path), "fast": "/nowhere"}, resolvers={})
    found = catalogue.find(parse("source=blank,size=2"), "web0-sda")
    path = tmp_path / "web0-sda.raw"
    assert found == Volume(path=str(path), size_bytes=2 << 30, new=True)
    assert not path.exists()
    inode = make(found)
    assert (path.stat().st_size, path.stat().st_blocks) == (2 << 30, 0)
    with pytest.raises(ConflictError, match="is there already"):
        make(found)
    with pytest.raises(ConflictError, match="is there already"):
        catalogue.find(parse("source=blank,size=2"), "web0-sda")
    for _ in range(2):
        unmake(found.path, inode)
    assert not path.exists()
    with pytest.raises(NotFoundError, match="no folder /nowhere"):
        catalogue.find(parse("source=blank,size=2,dest=volume,volume_type=fast"), "n")


def test_a_file_of_anothers_is_not_taken_away(image: Path, tmp_path: Path) -> None:
    unmake(str(image), image.stat().st_ino + 1)
    unmake(str(image), None)  # it was not made, or it was, and nobody could have written to it
    assert image.read_bytes() == bytes(MIB)
    make(Volume(path=str(tmp_path / "x.raw"), size_bytes=MIB, new=True))
    unmake(str(tmp_path / "x.raw"), None)
    assert not (tmp_path / "x.raw").exists()


def test_a_new_volume_that_somebody_uses_by_now_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "x.raw"
    inode = make(Volume(path=str(path), size_bytes=MIB, new=True))
    with path.open("r+b") as file:
        file.seek(MIB // 2)
        file.write(b"theirs")
    unmake(str(path), inode)
    assert path.stat().st_ino == inode


def test_what_is_no_file_is_not_taken_away(tmp_path: Path) -> None:
    """Nobody waits for who writes into a pipe, or looks where a link leads."""
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    inode = make(Volume(path=str(target), size_bytes=MIB, new=True))
    link.symlink_to(target)
    os.mkfifo(pipe)
    unmake(str(link), inode)
    unmake(str(link), None)
    unmake(str(pipe), None)
    assert {path.name for path in tmp_path.iterdir()} == {"target", "link", "pipe"}


def test_a_volume_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BackstoreError, match="cannot make"):
        make(Volume(path=str(tmp_path / "none" / "x.raw"), size_bytes=1, new=True))
    too_large = Volume(path=str(tmp_path / "x.raw"), size_bytes=(1 << 63) - 1, new=True)
    try:
        inode = make(too_large)
    except BackstoreError:
        assert not any(tmp_path.iterdir())
    else:  # this file system has no such limit
        unmake(too_large.path, inode)


# Refusals


@pytest.mark.parametrize(
    ("text", "kind", "message", "hint"),
    [
        ("source=blank,size=1", UsageError, "no place for new volumes", "--pool FOLDER"),
        ("source=blank,size=1,dest=volume,volume_type=x", UsageError, "of type 'x'", "--pool x=FOLDER"),
        ("id=i,source=image", UsageError, "no disk can be made from image 'i'", "qemu-img convert"),
        ("id=s,source=snapshot", UsageError, "no disk can be made from snapshot 's'", "qemu-img convert"),
        ("id=i,source=image,type=cdrom", NotFoundError, "nobody knows where image 'i' is", "--volume i=PATH"),
        ("id=v,source=volume", NotFoundError, "nobody knows where volume 'v' is", "--volume v=PATH"),
        ("id=/nowhere,source=volume", NotFoundError, "is not at /nowhere", "check the path"),
        ("id=/,source=volume", UsageError, "neither a file nor a block device", "/dev/vg0"),
        ("id=/dev/null,source=volume", UsageError, "neither a file nor a block device", "/dev/vg0"),
        ("id=v,source=volume,shutdown=remove", UsageError, "no volume is deleted here", "shutdown=remove"),
        ("source=blank,size=1,format=ext4", UsageError, "a disk is not formatted", "leave the format away"),
    ],
)
def test_what_one_host_cannot_do(text: str, kind: type[RingwayError], message: str, hint: str) -> None:
    with pytest.raises(kind) as refused:
        Catalogue(resolvers={}).find(parse(text), "n")
    assert message in refused.value.message
    assert hint in (refused.value.hint or "")


def test_a_volume_that_is_too_small(image: Path) -> None:
    with pytest.raises(UsageError, match="'web0' has 1 MiB, and its mapping says 1 GiB"):
        Catalogue({"web0": str(image)}, resolvers={}).find(parse("id=web0,source=volume,size=1"), "n")


def test_a_format_is_said_and_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "web0.qcow2"
    path.write_bytes(QCOW2)
    with pytest.raises(UsageError, match="begins like a qcow2 image") as refused:
        look(str(path), "web0")
    assert "format=qcow2" in (refused.value.hint or "")
    assert look(f"{path},format=qcow2", "web0") == Volume(path=str(path), format="qcow2", size_bytes=5 << 30)
    assert look(f"{path},format=raw,readonly", "web0") == Volume(path=str(path), size_bytes=32, readonly=True)


def test_what_is_no_qcow2_is_not_called_so(image: Path) -> None:
    with pytest.raises(UsageError, match="is no qcow2 image"):
        look(f"{image},format=qcow2", "web0")


@pytest.mark.parametrize(
    "text", ["", "web0", "web0=", "=/x", "web0=/x,format=vmdk", "web0=/x,fast", "a=,readonly"]
)
def test_a_volume_is_written_wrong(text: str) -> None:
    with pytest.raises(UsageError):
        parse_volume(text)


def test_volumes_and_pools_on_a_command_line() -> None:
    assert parse_volume("web0=/srv/a,,b=c.img,readonly") == ("web0", "/srv/a,,b=c.img,readonly")
    assert (parse_pool("/srv"), parse_pool("fast=/nvme")) == (("", "/srv"), ("fast", "/nvme"))
    for text in ("", "fast="):
        with pytest.raises(UsageError, match="names no folder"):
            parse_pool(text)


# Devices


def _device(folder: Path, *files: str, uuid: str | None = None) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    if uuid is not None:
        (folder / "dm" / "uuid").write_text(f"{uuid}\n")
    return folder


@pytest.mark.parametrize(
    ("files", "uuid", "reason"),
    [
        (("device/scsi_level",), None, None),
        (("dm/name",), "mpath-36001405", None),
        (("dm/name",), "LVM-abc", "a device mapper's volume"),
        (("dm/name",), None, "a device mapper's volume"),
        (("partition", "device/scsi_level"), None, "a partition"),
        (("loop/backing_file",), None, "no SCSI device"),
    ],
)
def test_which_devices_take_a_guests_commands(
    tmp_path: Path, files: tuple[str, ...], uuid: str | None, reason: str | None
) -> None:
    found = no_scsi(_device(tmp_path, *files, uuid=uuid))
    assert found is None if reason is None else reason in (found or "")


def test_a_block_device_is_told_from_a_file(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of a number that no device has: only root could make one."""
    stat = os.stat

    def as_node(path: Any, **options: Any) -> Any:
        if path == str(image):
            return SimpleNamespace(st_mode=0o060600, st_rdev=os.makedev(241, 9))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", as_node)
    found = look(str(image), "disk")
    assert found == Volume(path=str(image), block=True, scsi="it is no SCSI device", size_bytes=None)
