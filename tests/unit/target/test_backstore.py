"""Opening what a disk is made of: bad input gets a sentence and a hint, and nothing is touched."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ringway.errors import (
    BackstoreError,
    BusyError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RingwayError,
    UsageError,
)
from ringway.model import BackstoreSpec, Mapped, OwnershipState, SpecKind, StoreKind
from ringway.target import kernel
from ringway.target.backstore import Backstore, create_image, open_backstore
from ringway.testing.waiting import PATIENCE_S

from .conftest import MIB, Spawn, python


@pytest.fixture
def opened() -> Iterator[Callable[..., Backstore]]:
    """Open backstores that are closed at the end."""
    stores: list[Backstore] = []

    def open_one(spec: BackstoreSpec, *, claim: bool = True, fd: int | None = None) -> Backstore:
        stores.append(open_backstore(spec, claim=claim, fd=fd))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


Opened = Callable[..., Backstore]


def file(path: Path, **fields: Any) -> BackstoreSpec:
    return BackstoreSpec(SpecKind.PATH, str(path), **fields)


def refused(spec: BackstoreSpec, kind: type[RingwayError]) -> RingwayError:
    """Open a backstore in vain: nothing stays open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(kind) as caught:
        open_backstore(spec)
    error = caught.value.with_traceback(None)
    del caught  # its frames keep what they had opened
    assert len(os.listdir("/proc/self/fd")) == before
    return error


# Files


def test_a_file_is_served_as_it_is(image: Path, opened: Opened) -> None:
    store = opened(file(image))
    assert (store.kind, store.geometry.size_bytes, store.geometry.block_size) == (
        StoreKind.FILE,
        16 * MIB,
        512,
    )
    assert store.ownership.state is OwnershipState.HELD
    store.store.write(4096, b"x" * 512)
    assert image.read_bytes()[4096:4608] == b"x" * 512


def test_a_missing_image(tmp_path: Path) -> None:
    error = refused(file(tmp_path / "missing.img"), NotFoundError)
    assert "does not exist" in error.message
    assert "truncate -s 10G" in str(error.hint)
    assert not list(tmp_path.iterdir())


def test_a_directory(tmp_path: Path) -> None:
    error = refused(file(tmp_path), BackstoreError)
    assert "is a directory" in error.message
    assert error.hint


@pytest.mark.parametrize("kind", ["fifo", "socket", "character device"])
def test_what_is_neither_file_nor_device(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    else:
        path.symlink_to("/dev/null")
    assert "neither a file nor a block device" in refused(file(path), BackstoreError).message


def test_an_empty_image(tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    error = refused(file(tmp_path / "empty.img"), BackstoreError)
    assert "is empty" in error.message
    assert "truncate -s" in str(error.hint)


@pytest.mark.parametrize(("size", "block_size", "whole"), [(1000, None, 1024), (4608, 4096, 8192)])
def test_a_size_that_is_no_multiple(image: Path, size: int, block_size: int | None, whole: int) -> None:
    os.truncate(image, size)
    error = refused(file(image, block_size=block_size), BackstoreError)
    assert f"{size} bytes" in error.message
    assert f"truncate -s {whole}" in str(error.hint)
    assert image.stat().st_size == size


@pytest.mark.parametrize(("mode", "readonly"), [(0o444, False), (0o000, True)])
def test_no_permission(image: Path, spawn: Spawn, mode: int, readonly: bool) -> None:
    """As an ordinary user: root may do everything."""
    image.chmod(mode)
    for folder in image.parents:
        if folder.stat().st_mode & 0o1 == 0 and os.geteuid() == 0:
            folder.chmod(folder.stat().st_mode | 0o1)
    script = """
import os, sys
from ringway.errors import PermissionDeniedError
from ringway.model import BackstoreSpec, SpecKind
from ringway.target.backstore import open_backstore
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    open_backstore(BackstoreSpec(SpecKind.PATH, sys.argv[1], readonly=sys.argv[2] == "1"))
except PermissionDeniedError as error:
    print(error.message, "//", error.hint)
"""
    output, _ = spawn(python(script, image, str(int(readonly)))).communicate(timeout=PATIENCE_S)
    assert (b"may not be read" if readonly else b"may not be written") in output, output
    assert b"check its owner and mode" in output


def test_an_image_that_another_process_writes(image: Path, spawn: Spawn) -> None:
    script = """
import sys
from ringway.model import BackstoreSpec, SpecKind
from ringway.target.backstore import open_backstore
store = open_backstore(BackstoreSpec(SpecKind.PATH, sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""
    process = spawn(python(script, image))
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    error = refused(file(image), BusyError)
    assert isinstance(error, BusyError)
    assert f"pid {process.pid}" in str(error.holder)
    assert str(process.pid) in error.message
    assert error.hint
    refused(file(image, readonly=True), BusyError)


def test_the_same_image_twice_in_one_target(image: Path, opened: Opened) -> None:
    opened(file(image))
    assert "another disk of this target" in refused(file(image), BusyError).message


def test_readers_share(image: Path, opened: Opened) -> None:
    image.chmod(0o444)
    assert not opened(file(image, readonly=True)).store.writable
    assert opened(file(image, readonly=True)).readonly


def test_without_a_claim_nothing_is_locked(image: Path, opened: Opened) -> None:
    opened(file(image))
    incoming = opened(file(image), claim=False)
    assert incoming.ownership.state is OwnershipState.RELEASED


def test_a_file_that_was_handed_over(image: Path, opened: Opened) -> None:
    fd = os.open(image, os.O_RDWR | os.O_NONBLOCK)
    store = opened(file(Path("only-a-name")), fd=fd)
    os.close(fd)
    assert store.geometry.size_bytes == 16 * MIB
    store.store.flush()


def test_a_file_that_was_handed_over_for_reading_only(image: Path) -> None:
    fd = os.open(image, os.O_RDONLY)
    with pytest.raises(PermissionDeniedError, match="not open for writing"):
        open_backstore(file(image), fd=fd)
    os.close(fd)


# Options


def test_blocks_of_4096(image: Path, opened: Opened) -> None:
    geometry = opened(file(image, block_size=4096)).geometry
    assert (geometry.block_size, geometry.physical_block_size) == (4096, 4096)


def test_direct_io(image: Path, opened: Opened) -> None:
    fd = os.open(image, os.O_RDONLY)
    align = kernel.direct_alignment(fd)
    os.close(fd)
    if align is None or align.offset == 0:
        pytest.skip("this file system has no direct I/O")
    store = opened(file(image, direct=True))
    assert store.direct
    assert store.geometry.block_size >= align.offset
    store.store.write(0, b"y" * 4096, fua=True)
    assert store.store.read(0, 4096) == b"y" * 4096


def test_direct_and_mapped_contradict(image: Path) -> None:
    assert refused(file(image, direct=True, mapped=Mapped.ON), UsageError).hint


@pytest.mark.parametrize(
    ("mapped", "expected"), [(Mapped.AUTO, False), (Mapped.ON, True), (Mapped.OFF, False)]
)
def test_a_file_on_a_disk_is_mapped_on_demand(
    image: Path, opened: Opened, mapped: Mapped, expected: bool
) -> None:
    with open(image, "rb") as handle:
        if kernel.file_system_magic(handle.fileno()) == kernel.TMPFS_MAGIC:
            pytest.skip("the temporary directory lies in memory")
    store = opened(file(image, mapped=mapped))
    assert store.mapped is expected
    assert store.store.kind == ("mapped" if expected else "file")


@pytest.mark.parametrize(
    ("mapped", "expected"), [(Mapped.AUTO, True), (Mapped.ON, True), (Mapped.OFF, False)]
)
def test_a_file_in_memory_is_mapped(opened: Opened, mapped: Mapped, expected: bool) -> None:
    fd = os.memfd_create("image")
    os.truncate(fd, MIB)
    store = opened(file(Path("memfd"), mapped=mapped, direct=mapped is Mapped.AUTO), fd=fd)
    os.close(fd)
    assert store.mapped is expected
    assert not store.direct


def test_a_serial_number_follows_the_path(image: Path, opened: Opened, tmp_path: Path) -> None:
    link = tmp_path / "link.img"
    link.symlink_to(image)
    first = opened(file(image, readonly=True)).serial(0, 0)
    assert first == opened(file(link, readonly=True)).serial(1, 7)
    assert len(first) <= 20
    assert opened(file(image, readonly=True, serial="mine")).serial(0, 0) == "mine"


def test_serial_numbers_of_memory_follow_the_address(opened: Opened) -> None:
    store = opened(BackstoreSpec(SpecKind.NULL, size_bytes=MIB))
    assert store.serial(0, 0) != store.serial(0, 1)


# Memory


@pytest.mark.parametrize("kind", [SpecKind.RAM, SpecKind.NULL])
def test_memory(opened: Opened, kind: SpecKind) -> None:
    store = opened(BackstoreSpec(kind, size_bytes=MIB))
    assert store.kind == kind.value
    assert store.store.size_bytes == MIB
    assert store.ownership.held


def test_memory_of_an_odd_size() -> None:
    refused(BackstoreSpec(SpecKind.NULL, size_bytes=1000), BackstoreError)


def test_memory_that_may_not_be_written() -> None:
    refused(BackstoreSpec(SpecKind.RAM, size_bytes=MIB, readonly=True), UsageError)


# Sizes that change


def test_an_image_that_grew(image: Path, opened: Opened) -> None:
    store = opened(file(image))
    assert not store.reload()
    before = store.store
    os.truncate(image, 32 * MIB)
    assert store.reload()
    assert store.store is not before
    assert store.geometry.size_bytes == store.store.size_bytes == 32 * MIB
    assert store.ownership.epoch == 1


def test_an_image_that_grew_by_half_a_block_stays_as_it_was(image: Path, opened: Opened) -> None:
    store = opened(file(image))
    before = store.store
    os.truncate(image, 16 * MIB + 100)
    with pytest.raises(BackstoreError, match="no multiple"):
        store.reload()
    assert store.store is before
    assert store.geometry.size_bytes == 16 * MIB


def test_a_null_disk_takes_any_size_and_a_file_its_own(image: Path, opened: Opened) -> None:
    null = opened(BackstoreSpec(SpecKind.NULL, size_bytes=MIB))
    assert null.reload(size_bytes=2 * MIB)
    assert null.geometry.size_bytes == 2 * MIB
    with pytest.raises(UsageError):
        opened(file(image)).reload(size_bytes=MIB)
    with pytest.raises(UsageError):
        opened(BackstoreSpec(SpecKind.RAM, size_bytes=MIB)).reload(size_bytes=2 * MIB)


def test_a_file_may_be_replaced_by_itself_only(image: Path, opened: Opened, tmp_path: Path) -> None:
    store = opened(file(image))
    os.truncate(image, 32 * MIB)
    with open(image, "r+b") as same, open(tmp_path / "other", "w+b") as other:
        with pytest.raises(ConflictError):
            store.reload(fd=other.fileno())
        assert store.reload(fd=same.fileno())
    assert store.geometry.size_bytes == 32 * MIB


def test_a_file_that_is_replaced_takes_the_claim_with_it(image: Path, opened: Opened) -> None:
    """What a target that dies has under way is on the new file: its locks must last as long as that I/O."""
    store = opened(file(image))
    os.truncate(image, 32 * MIB)
    with open(image, "r+b") as same, open(image, "r+b") as late:
        assert store.reload(fd=same.fileno())
        store.ownership.drop_old()
        assert not kernel.ofd_is_locked_by_others(same.fileno(), 201), "its own open file has the lock"
        assert kernel.ofd_is_locked_by_others(late.fileno(), 201)


def test_a_backstore_that_is_closed_cannot_be_reloaded(image: Path) -> None:
    store = open_backstore(file(image))
    store.close()
    with pytest.raises(ConflictError, match="closed"):
        store.reload()


# New images


def test_a_new_image_is_sparse(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    create_image(str(path), 1 << 40)
    status = path.stat()
    assert (status.st_size, status.st_blocks) == (1 << 40, 0)
    assert stat.S_ISREG(status.st_mode)


def test_a_new_image_replaces_nothing(image: Path) -> None:
    with pytest.raises(ConflictError, match="exists already"):
        create_image(str(image), MIB)
    assert image.stat().st_size == 16 * MIB


def test_a_new_image_that_cannot_be_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BackstoreError):
        create_image(str(tmp_path / "huge.img"), (1 << 63) - 1)
    with pytest.raises(NotFoundError):
        create_image(str(tmp_path / "missing" / "new.img"), MIB)
    assert not list(tmp_path.iterdir())


def test_force_is_not_a_way_around_an_images_lock(image: Path, opened: Opened) -> None:
    opened(file(image))
    refused(replace(file(image), force=True), BusyError)


@pytest.mark.parametrize("form", ["qcow2", "vmdk", "vhdx", "vpc", "vdi"])
def test_an_image_of_another_format_is_refused(tmp_path: Path, form: str) -> None:
    """Once its bytes were served as a disk, and the first write of a guest destroyed it."""
    image = tmp_path / f"image.{form}"
    subprocess.run(["qemu-img", "create", "-q", "-f", form, image, "64M"], check=True)
    spec = BackstoreSpec(SpecKind.PATH, path=str(image))
    before = image.read_bytes()
    with pytest.raises(BackstoreError, match=f"is a {form} image"):
        open_backstore(spec)
    assert image.read_bytes() == before
