"""What stands in the kernel's configfs, as a test looks at it."""

from __future__ import annotations

import os
from pathlib import Path

from ringway.testing.fake_kernel import FakeKernel

#: An endpoint of most tests.
WWPN = "naa.6001405000000abc"


def tree(kernel: FakeKernel) -> set[str]:
    """All folders below the kernel's target, but for those that are always there."""
    found = (str(Path(folder).relative_to(kernel.configfs)) for folder, _, _ in os.walk(kernel.configfs))
    return {path for path in found if path.startswith(("core/", "vhost/")) and "alua" not in path} - {
        "vhost/discovery_auth"
    }


def value(kernel: FakeKernel, path: str) -> str:
    return (kernel.configfs / path).read_text().strip()


def device_of(kernel: FakeKernel, wwpn: str, target: int = 0, lun: int = 0) -> str:
    """The device that a LUN maps, as a path below the target."""
    folder = kernel.configfs / f"vhost/{wwpn}/tpgt_{target}/lun/lun_{lun}"
    link = next(entry for entry in folder.iterdir() if entry.is_symlink())
    return "core/" + os.readlink(link).partition("/core/")[2]
