"""A wheel installs and serves where there is no Rust."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.sockets import wait_for_socket

ROOT = Path(__file__).parents[3]
INQUIRY = bytes.fromhex("120000002400")


@pytest.mark.timeout(600)
def test_a_wheel_serves_without_rust(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    build = ["maturin", "build", "--release", "--locked", "--out", str(wheels)]
    subprocess.run([sys.executable, "-m", *build], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    assert "abi3" in wheel.name

    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    # the wheel first, then this environment for click and msgspec; no checkout, no toolchain
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path}
    socket = tmp_path / "s"
    serve = [sys.executable, "-m", "ringway", "serve", "--socket", str(socket), "ram:16M"]
    with subprocess.Popen(serve, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL) as target:
        try:
            wait_for_socket(socket)
            with ScsiFrontEnd(socket).open() as guest:
                assert guest.command(INQUIRY, data_in=36).data[8:15] == b"RINGWAY"
            origin = Path(f"/proc/{target.pid}/maps").read_text()
            assert str(site / "ringway" / "_core") in origin
        finally:
            target.terminate()
    assert target.returncode == 0
