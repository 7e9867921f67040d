"""What a guest is told, where the switch knows nothing of it."""

from __future__ import annotations

import socket
from pathlib import Path

from ringway.testing.guest import LinuxGuest
from ringway.testing.qemu import vhost_user_net
from ringway.testing.recorder import RecorderDevice
from ringway.testing.waiting import wait_until
from ringway.vhost_user.server import Server

from .traffic import mtu

_VIRTIO_NET_F_MTU = 1 << 3


def test_a_switch_that_has_no_mtu_holds_none_back(run_dir: Path) -> None:
    """QEMU answers for it. Our sessions know no NET_SET_MTU, and the device has no such feature."""
    device = RecorderDevice(kind="scsi", queues=4)
    assert not device.features & _VIRTIO_NET_F_MTU
    path = run_dir / "net"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Server(listener.dup(), device):
            card = vhost_user_net(path, mac="52:54:00:00:00:01", server=False, options="host_mtu=4000")
            with LinuxGuest(card) as guest:
                assert mtu(guest) == "4000"
                guest.run("ip link set eth0 up")
                wait_until(lambda: bool(device.enabled), "rings that are enabled")
