"""What the user engine chooses, and whom it asks."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ringway.engine.user import choices, orders
from ringway.engine.user.client import SpawnerClient
from ringway.engine.user.orders import Failed, Probe, Serve
from ringway.errors import BusyError
from ringway.model import BackstoreSpec, DeviceKind, EndpointSpec, LunSpec, SpecKind, TargetConfig
from ringway.scsi.identity import parse_wwpn
from ringway.target.backstore import serial_of
from ringway.testing.waiting import PATIENCE_S


def test_an_image_has_the_serial_number_that_a_target_would_give_it(tmp_path: Path) -> None:
    """An endpoint that was served by hand before keeps what its guest knows it by."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk")
    for path in (tmp_path / "disk", link):
        disk = BackstoreSpec(SpecKind.PATH, path=str(path))
        chosen = choices.resolved(EndpointSpec(name="db0", luns=(LunSpec(0, 0, disk),))).luns[0].backstore
        assert (chosen.serial, chosen.name) == (serial_of(disk, 0, 0), "db0-0-0")


def test_a_name_in_the_fabric_is_one_and_of_this_endpoint_alone() -> None:
    names = {choices.resolved(EndpointSpec(name="db0")).wwpn for _ in range(50)}
    assert len(names) == 50
    assert all(re.fullmatch("naa[.]3[0-9a-f]{15}", name or "") for name in names)
    for name in names:
        parse_wwpn(name or "")


def test_a_blk_device_has_no_name_in_the_fabric() -> None:
    disk = BackstoreSpec(SpecKind.NULL, size_bytes=512)
    spec = EndpointSpec(name="db0", device=DeviceKind.BLK, luns=(LunSpec(0, 0, disk),))
    assert choices.resolved(spec).wwpn is None


@pytest.mark.parametrize("log", [None, "/run/x.log"])
def test_an_order_of_any_length_arrives(log: str | None) -> None:
    disk = BackstoreSpec(SpecKind.PATH, path="/" + "x" * 4000)
    config = TargetConfig(DeviceKind.SCSI, tuple(LunSpec(0, number, disk) for number in range(200)))
    order = Serve(config=config, socket="/run/x.sock", log=log)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for each in (order, Probe(config.luns)):
            orders.send_order(ours, each)
            said, fds, _, _ = socket.recv_fds(theirs, orders.MAX_PATH, 1)
            assert said.decode() == (log if each is order and log else orders.NO_LOG)
            assert orders.read_order(fds[0]) == each
        orders.send_answer(theirs, Failed.of(BusyError("no", hint="later")))
        answer, fd = orders.receive_answer(ours)
        assert (answer, fd) == (Failed.of(BusyError("no", hint="later")), None)
        theirs.close()
        assert orders.receive_answer(ours) == (None, None)


def spawner(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ringway.engine.user.spawner", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


#: Become the spawner with a socket as number 3, and with this process's number in the environment.
_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "ringway.engine.user.spawner"])
"""


def test_a_service_manager_hands_a_socket_and_is_told(tmp_path: Path) -> None:
    """As systemd does it: the socket is number 3, and the spawner ends when its path is gone."""
    path, told = tmp_path / "spawner.sock", tmp_path / "notify"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        listener.bind(str(path))
        listener.listen()
        manager.bind(str(told))
        manager.settimeout(PATIENCE_S)
        environment = {**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(told)}
        command = [sys.executable, "-c", _AS_SYSTEMD, str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()], env=environment) as process:
            assert manager.recv(100) == b"READY=1"
            disk = LunSpec(0, 0, BackstoreSpec(SpecKind.NULL, size_bytes=512))
            assert SpawnerClient(str(path)).probe((disk,))[0].size_bytes == 512
            path.unlink()
            process.terminate()
            assert process.wait(PATIENCE_S) == 0


def test_a_spawner_that_its_manager_starts_again_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INVOCATION_ID", "x")
    path = tmp_path / "spawner.sock"
    command = [sys.executable, "-m", "ringway.engine.user.spawner", "--socket", str(path)]
    with subprocess.Popen(command) as process:
        disk = LunSpec(0, 0, BackstoreSpec(SpecKind.NULL, size_bytes=512))
        client = SpawnerClient(str(path))
        assert client.probe((disk,))
        assert client.pid() == process.pid
        process.terminate()
    assert not path.exists()


def test_a_spawner_says_what_it_lacks(tmp_path: Path) -> None:
    nowhere = spawner()
    assert (nowhere.returncode, nowhere.stderr.splitlines()[0]) == (2, "error: there is nowhere to listen")
    gone = spawner("--socket", str(tmp_path / "gone" / "x"))
    assert gone.returncode == 3
    assert "hint: make it with" in gone.stderr
    assert spawner("--no-such-option").returncode == 2
    assert "Ending it ends no target" in spawner("--help").stdout
    log = spawner("--socket", str(tmp_path / "x"), "--detach", str(tmp_path / "gone" / "log"))
    assert "cannot be written" in log.stderr
    assert os.listdir(tmp_path) == []
