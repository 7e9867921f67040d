"""How new libvirt and QEMU have to be."""

from __future__ import annotations

import pytest

from ringway.guest.libvirt.versions import check_libvirt, check_qemu
from ringway.model import Check


@pytest.mark.parametrize(
    ("check", "detail"),
    [
        (check_libvirt(11_003_000, "qemu:///system"), "11.3.0 at qemu:///system"),
        (check_libvirt(12_000_001, "qemu:///system"), "12.0.1 at qemu:///system"),
        (check_qemu(10_000_002), "10.0.2"),
    ],
)
def test_what_is_new_enough(check: Check, detail: str) -> None:
    assert (check.ok, check.detail, check.hint) == (True, detail, None)


@pytest.mark.parametrize(
    ("check", "versions"),
    [
        (check_libvirt(9_000_000, "qemu:///system"), ("9.0.0 at qemu:///system", "11.3.0")),
        (check_libvirt(11_002_999, "qemu:///session"), ("11.2.999", "11.3.0")),
        (check_qemu(7_002_015), ("7.2.15", "10.0.0")),
    ],
)
def test_what_is_too_old_is_told_with_what_would_do(check: Check, versions: tuple[str, str]) -> None:
    assert not check.ok
    assert all(version in check.detail for version in versions)
    assert "backports" in (check.hint or "")
