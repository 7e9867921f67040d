"""What is chosen for a port and what no switch can do, whatever switch it is on."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ringway.errors import ConflictError, UsageError
from ringway.model import PortMode, PortSpec
from ringway.net.base import check_others, random_mac, resolve_port, take_options

SOCKET = "/run/ringway/port/web0.sock"
SPEC = resolve_port(PortSpec(name="web0"), SOCKET)


def test_what_is_open_is_chosen_and_what_was_said_is_kept() -> None:
    assert SPEC.socket == SOCKET
    assert SPEC.mac is not None
    assert SPEC.mac.startswith("52:54:00:")
    assert resolve_port(SPEC, "/other.sock") == SPEC


def test_chosen_macs_differ() -> None:
    assert len({random_mac() for _ in range(32)}) > 30


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mac": "01:00:5e:00:00:01"}, "a group's address"),
        ({"mac": "00:00:00:00:00:00"}, "nobody's"),
        ({"queues": 0}, "1 to 256"),
        ({"queues": 257}, "1 to 256"),
        ({"rx_queue_size": 128}, "256, 512, 1024"),
        ({"tx_queue_size": 2048}, "256, 512, 1024"),
        ({"tx_queue_size": 300}, "256, 512, 1024"),
        ({"mtu": 67}, "68 to 65535"),
        ({"mtu": 65536}, "68 to 65535"),
        ({"reconnect_s": 1}, "mode=client"),
        ({"reconnect_s": 0, "mode": PortMode.CLIENT}, "from 1 on"),
        ({"socket": "web0.sock"}, "whole and plain"),
        ({"socket": "/run/../web0.sock"}, "whole and plain"),
        ({"socket": "/run/web0\n.sock"}, "whole and plain"),
        ({"socket": "/" + "x" * 107}, "108 bytes"),
        ({"socket": "/" + "ä" * 54}, "109 bytes"),
    ],
)
def test_what_no_switch_can_do_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        resolve_port(replace(SPEC, **changes), SOCKET)


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
    wanted = replace(SPEC, **changes)
    assert resolve_port(wanted, SOCKET) == wanted


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"socket": "/run/db0.sock"}, "MAC"), ({"mac": "52:54:00:00:00:01"}, "socket")],
)
def test_two_ports_have_neither_socket_nor_mac_in_common(changes: dict[str, object], reason: str) -> None:
    other = replace(SPEC, name="db0", **changes)
    with pytest.raises(ConflictError, match=f"'db0' has the {reason}"):
        check_others(SPEC, (other,))
    check_others(SPEC, (SPEC,))  # itself, as it is now
    check_others(SPEC, (replace(other, socket="/run/db0.sock", mac="52:54:00:00:00:01"),))


def test_an_option_that_the_switch_does_not_know_is_refused() -> None:
    spec = replace(SPEC, options={"bridge": "br0", "brigde": "br0"})
    with pytest.raises(UsageError, match="no option 'brigde'") as caught:
        take_options(spec, frozenset({"bridge", "create"}))
    assert caught.value.hint == "it knows bridge, create"
