"""Numbers of Linux interfaces against the kernel's own headers, and the calls against real files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ringway.target import kernel

_HEADERS = {
    "TMPFS_MAGIC": "linux/magic.h",
    "RAMFS_MAGIC": "linux/magic.h",
    "HUGETLBFS_MAGIC": "linux/magic.h",
    "FALLOC_FL_KEEP_SIZE": "linux/falloc.h",
    "FALLOC_FL_PUNCH_HOLE": "linux/falloc.h",
    "STATX_DIOALIGN": "linux/stat.h",
    "STATX_ATTR_DAX": "linux/stat.h",
}
_IOCTLS = {"BLKROGET": 94, "BLKSSZGET": 104, "BLKPBSZGET": 123}


@pytest.mark.parametrize("name", _HEADERS)
def test_a_number_is_that_of_the_header(name: str) -> None:
    text = Path("/usr/include", _HEADERS[name]).read_text()
    match = re.search(rf"#define\s+{name}\s+(0x[0-9a-fA-F]+|\d+)", text)
    assert match is not None
    assert getattr(kernel, name) == int(match[1], 0)


@pytest.mark.parametrize("name", _IOCTLS)
def test_an_ioctl_is_that_of_the_header(name: str) -> None:
    text = Path("/usr/include/linux/fs.h").read_text()
    assert re.search(rf"#define {name}\s+_IO\(0x12,\s*{_IOCTLS[name]}\)", text)
    assert getattr(kernel, name) == 0x12 << 8 | _IOCTLS[name]


def test_the_size_ioctl_is_that_of_the_header() -> None:
    assert "#define BLKGETSIZE64 _IOR(0x12,114,size_t)" in Path("/usr/include/linux/fs.h").read_text()
    assert kernel.BLKGETSIZE64 == 2 << 30 | 8 << 16 | 0x12 << 8 | 114


def test_a_file_in_memory_is_known() -> None:
    fd = os.memfd_create("image")
    try:
        assert kernel.file_system_magic(fd) == kernel.TMPFS_MAGIC
        assert not kernel.is_dax(fd)
    finally:
        os.close(fd)


def test_a_bad_fd_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.file_system_magic(-1)


def test_a_hole_is_punched_only_behind_the_end(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * 8192)
    fd = os.open(image, os.O_RDWR)
    try:
        assert kernel.takes_punch_hole(fd, 8192)
    finally:
        os.close(fd)
    assert image.read_bytes() == b"x" * 8192


def test_direct_io_agrees_with_what_the_kernel_says(tmp_path: Path) -> None:
    """What STATX_DIOALIGN names works, so the way of older kernels (trying) and the new way agree."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 16))
    fd = os.open(image, os.O_RDONLY)
    try:
        align = kernel.direct_alignment(fd)
        if align is None or align.offset == 0:
            pytest.skip("this file system has no direct I/O")
        kernel.set_status_flags(fd, direct=True)
        assert kernel.direct_read_works(fd, align.offset)
        assert not kernel.direct_read_works(fd, align.offset // 2)
    finally:
        os.close(fd)
