"""Which libvirt and which QEMU are new enough for what goes into a domain here.

Several I/O threads of a controller came with libvirt 11.2, milliseconds until a character device connects
again with QEMU 9.2. Nothing is tried with older ones than those that are named here.
"""

from __future__ import annotations

from typing import Final

from ringway.model import Check

_LIBVIRT: Final = 11_003_000
_QEMU: Final = 10_000_000


def check_libvirt(version: int, uri: str) -> Check:
    """Say whether a libvirt will do. :param version: as libvirt counts it, 11003000 is 11.3.0."""
    return _check("libvirt", version, _LIBVIRT, f" at {uri}", "libvirt-daemon-system")


def check_qemu(version: int) -> Check:
    """Say whether a QEMU will do. :param version: as :func:`check_libvirt`."""
    return _check("qemu", version, _QEMU, "", "qemu-system-x86")


def _check(name: str, version: int, least: int, where: str, package: str) -> Check:
    found = f"{_shown(version)}{where}"
    if version >= least:
        return Check(name=name, ok=True, detail=found)
    return Check(
        name=name,
        ok=False,
        detail=f"{found}, and {_shown(least)} is the least that will do",
        hint=f"take it from the distribution's backports: apt-get install -t bookworm-backports {package}",
    )


def _shown(number: int) -> str:
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
