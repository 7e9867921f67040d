"""Numbers of ``/dev/vhost-scsi``'s ioctls against the kernel's header."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ringway.testing import vhost_scsi

NAMES = {
    "GET_FEATURES": "VHOST_GET_FEATURES",
    "SET_FEATURES": "VHOST_SET_FEATURES",
    "SET_OWNER": "VHOST_SET_OWNER",
    "SET_MEM_TABLE": "VHOST_SET_MEM_TABLE",
    "SET_VRING_NUM": "VHOST_SET_VRING_NUM",
    "SET_VRING_ADDR": "VHOST_SET_VRING_ADDR",
    "SET_VRING_BASE": "VHOST_SET_VRING_BASE",
    "GET_VRING_BASE": "VHOST_GET_VRING_BASE",
    "SET_VRING_KICK": "VHOST_SET_VRING_KICK",
    "SET_VRING_CALL": "VHOST_SET_VRING_CALL",
    "SET_VRING_ERR": "VHOST_SET_VRING_ERR",
    "SET_ENDPOINT": "VHOST_SCSI_SET_ENDPOINT",
    "CLEAR_ENDPOINT": "VHOST_SCSI_CLEAR_ENDPOINT",
    "GET_ABI_VERSION": "VHOST_SCSI_GET_ABI_VERSION",
}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What a C compiler makes of the names."""
    program = tmp_path_factory.mktemp("header") / "numbers"
    lines = "".join(f'printf("%lu\\n", (unsigned long){name});' for name in NAMES.values())
    source = f"#include <linux/vhost.h>\n#include <stdio.h>\nint main(void) {{ {lines} return 0; }}\n"
    subprocess.run(["cc", "-x", "c", "-", "-o", program], input=source, text=True, check=True)
    numbers = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return dict(zip(NAMES, map(int, numbers), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_ioctl_has_the_kernels_number(header: dict[str, int], name: str) -> None:
    assert getattr(vhost_scsi, name) == header[name]


def test_user_addresses_are_addresses_of_this_process() -> None:
    memory = vhost_scsi.OwnMemory((1 << 20,))
    place = memory.allocate(64)
    memory.write(place, b"found")
    with Path("/proc/self/mem").open("rb") as own:
        own.seek(memory.user(place))
        assert own.read(5) == b"found"
    with pytest.raises(ValueError, match="one region"):
        memory.add(1 << 20, at=1 << 24)
    memory.close()
