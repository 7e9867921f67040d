"""What no port can be, whoever asks for it."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from ringway.errors import UsageError
from ringway.model import PortMode, PortSpec, mac_of, socket_of

PORT = PortSpec(name="p0")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mac": "01:00:5e:00:00:01"}, "of a single station"),
        ({"mac": "00:00:00:00:00:00"}, "of a single station"),
        ({"mac": "52:54:00"}, "of a single station"),
        ({"queues": 0}, "0 queues"),
        ({"queues": 257}, "257 queues"),
        ({"rx_queue_size": 128}, "receive ring of 128"),
        ({"tx_queue_size": 2048}, "transmit ring of 2048"),
        ({"tx_queue_size": 300}, "transmit ring of 300"),
        ({"mtu": 67}, "an MTU of 67"),
        ({"mtu": 65536}, "an MTU of 65536"),
        ({"reconnect_s": 1}, "QEMU listens"),
        ({"reconnect_s": 0, "mode": PortMode.CLIENT}, "cannot wait 0 s"),
        ({"socket": "web0.sock"}, "whole and plain"),
        ({"socket": "/run/../web0.sock"}, "whole and plain"),
        ({"socket": "/run/web0\n.sock"}, "whole and plain"),
        ({"socket": "/" + "x" * 107}, "108 bytes"),
        ({"socket": "/" + "ä" * 54}, "109 bytes"),
    ],
)
def test_a_port_that_cannot_be_is_none(changes: dict[str, object], reason: str) -> None:
    """However it is made: from JSON, or from another one."""
    with pytest.raises(UsageError, match=f"port 'p0': .*{reason}"):
        replace(PORT, **changes)
    with pytest.raises((UsageError, msgspec.ValidationError)):
        msgspec.convert({"name": "p0", **changes}, PortSpec)


@pytest.mark.parametrize(
    "changes",
    [
        {"socket": "/" + "x" * 106},
        {"queues": 256, "rx_queue_size": 1024, "tx_queue_size": 256},
        {"mtu": 68},
        {"mtu": 65535},
        {"mode": PortMode.CLIENT, "reconnect_s": 1},
    ],
)
def test_limits_can_be_had(changes: dict[str, object]) -> None:
    wanted = replace(PORT, **changes)
    assert msgspec.json.decode(msgspec.json.encode(wanted), type=PortSpec) == wanted


def test_what_is_open_yet_is_asked_of_nobody() -> None:
    with pytest.raises(UsageError, match="has no MAC address"):
        mac_of(PORT)
    with pytest.raises(UsageError, match="has no socket"):
        socket_of(PORT)
