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


def test_qemu_connects_again_where_it_is_the_client() -> None:
    assert resolve_port(PortSpec(name="web0", mode=PortMode.CLIENT), SOCKET).reconnect_s == 1
    assert SPEC.reconnect_s is None


def test_no_port_is_where_no_socket_can_be() -> None:
    with pytest.raises(UsageError, match="108 bytes"):
        resolve_port(PortSpec(name="web0"), "/" + "x" * 107)


def test_chosen_macs_differ() -> None:
    assert len({random_mac() for _ in range(32)}) > 30


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
