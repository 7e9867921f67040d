"""The Linux kernel that guests run: a Debian kernel package, unpacked and never installed.

``tools/system kernel`` puts it below ``$RINGWAY_KERNELS`` (by default ``~/.cache/ringway/kernel``) as
``RELEASE/vmlinuz`` and ``RELEASE/modules``.
"""

from __future__ import annotations

import ctypes
import functools
import lzma
import mmap
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ringway.errors import GuestError

MINIMUM = (6, 12)
_HINT = "run `make system`"


@dataclass(frozen=True)
class Module:
    """A kernel module as it lies in the package, and what it says of itself.

    :param content: the decompressed ELF file.
    """

    name: str
    content: bytes

    @property
    def depends(self) -> tuple[str, ...]:
        """Names of the modules that have to be there before."""
        # .modinfo is a run of "key=value" strings, each ended by a NUL.
        found = re.search(rb"\0depends=([^\0]*)\0", self.content)
        return tuple(name for name in found[1].decode().split(",") if name) if found else ()


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel.

    :param folder: where it lies; the folder's name is the release.
    """

    folder: Path

    @property
    def release(self) -> str:
        """What ``uname -r`` says in the guest."""
        return self.folder.name

    def vmlinux(self) -> Path:
        """Return the ELF image, which boots by PVH a second sooner than bzImage, whose self-extraction is
        slow in TCG.

        Unpacked at the first call; one process may do so while others do too.

        :raises GuestError: it is compressed in a way that this machine cannot undo.
        """
        image = self.folder / "vmlinux"
        if not image.exists():
            partial = self.folder / f".vmlinux.{os.getpid()}"
            partial.write_bytes(_decompressed(_payload((self.folder / "vmlinuz").read_bytes())))
            partial.rename(image)
        return image

    def modules(self, names: Iterable[str]) -> list[Module]:
        """Return the named modules and all that they depend on, in an order in which they can be loaded.

        Names of what is built in are left out.

        :raises GuestError: the package has no such module.
        """
        ordered: dict[str, Module] = {}
        for name in names:
            self._load_after_dependencies(_underscored(name), ordered)
        return list(ordered.values())

    def _load_after_dependencies(self, name: str, ordered: dict[str, Module]) -> None:
        if name in ordered or name in self._built_in:
            return
        module = self._module(name)
        for dependency in module.depends:
            self._load_after_dependencies(_underscored(dependency), ordered)
        ordered[name] = module

    def _module(self, name: str) -> Module:
        path = self._loadable.get(name)
        if path is None:
            raise GuestError(f"kernel {self.release} has no module {name}", hint=_HINT)
        return Module(name, _read_module(self.folder / "modules" / path))

    @functools.cached_property
    def _built_in(self) -> frozenset[str]:
        return frozenset(self._listed("modules.builtin"))

    @functools.cached_property
    def _loadable(self) -> dict[str, str]:
        return self._listed("modules.order")

    def _listed(self, index: str) -> dict[str, str]:
        paths = (self.folder / "modules" / index).read_text().split()
        return {_underscored(Path(path).stem): path for path in paths}


def find_kernel() -> Kernel:
    """Return the newest unpacked kernel that is new enough.

    :raises GuestError: there is none.
    """
    root = _root()
    kernels = (Kernel(image.parent) for image in root.glob("*/vmlinuz"))
    found = [kernel for kernel in kernels if _version(kernel.release) >= MINIMUM]
    if not found:
        raise GuestError(f"no kernel >= {'.'.join(map(str, MINIMUM))} below {root}", hint=_HINT)
    return max(found, key=lambda kernel: _version(kernel.release))


def command_line(extra: Sequence[str] = ()) -> str:
    """Return kernel parameters for a quick boot under TCG, with the console on the first serial port.

    The clock is told its frequency: left to calibrate under load it can run several times too fast.
    """
    clock = (f"tsc_early_khz={tsc_khz()}", "tsc=reliable", "no_timer_check", "lpj=4000000")
    quick = ("nokaslr", "no5lvl", "mitigations=off", "cryptomgr.notests", "audit=0")
    # A guest may stand still for minutes while its back end is dead or the host is busy: no watchdog may
    # fire.
    patient = ("nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1")
    # Emulated processors side by side now and then run code while the kernel patches it (an int3 oops). A
    # guest that oopses as it boots boots again; as soon as it is ready it stays as it is, to be looked at.
    again = ("oops=panic", "panic=1")
    return " ".join(("console=ttyS0", "quiet", *again, *clock, *quick, *patient, *extra))


@functools.cache
def tsc_khz() -> int:
    """Return the frequency of this machine's time stamp counter, which a TCG guest reads as its own."""
    begin_s, begin = _moment()
    time.sleep(0.05)
    end_s, end = _moment()
    return round((end - begin) / (end_s - begin_s) / 1000)


def _moment() -> tuple[float, int]:
    """Seconds and the counter at once: the closest of some looks, since a busy host interrupts some."""
    looks = [(time.monotonic(), _read_tsc(), time.monotonic()) for _ in range(16)]
    before_s, ticks, after_s = min(looks, key=lambda look: look[2] - look[0])
    return (before_s + after_s) / 2, ticks


def _read_tsc() -> int:
    # rdtsc; shl rdx, 32; or rax, rdx; ret
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))
        cell = ctypes.c_char.from_buffer(page)
        value = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(cell))()
        del cell  # the mapping cannot be closed while something points into it
    return int(value)


def _root() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("RINGWAY_KERNELS") or cache / "ringway" / "kernel")


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release)[:3])


def _underscored(name: str) -> str:
    return name.replace("-", "_")


def _read_module(path: Path) -> bytes:
    compressed = path.with_name(path.name + ".xz")
    return lzma.decompress(compressed.read_bytes()) if compressed.exists() else path.read_bytes()


def _payload(image: bytes) -> bytes:
    """Cut the compressed kernel out of a bzImage. Spec: Linux 6.12, Documentation/arch/x86/boot.rst."""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    return image[begin : begin + length]


def _decompressed(payload: bytes) -> bytes:
    # The payload ends with its unpacked size, 4 bytes that are no part of the compressed stream.
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstd(payload[:-4])
    raise GuestError(f"a kernel image with an unknown compression: {payload[:6].hex()}")


def _zstd(data: bytes) -> bytes:
    tool = shutil.which("zstd")
    if tool is None:
        raise GuestError("zstd is not installed", hint=_HINT)
    return subprocess.run([tool, "-dqc"], input=data, stdout=subprocess.PIPE, check=True).stdout
