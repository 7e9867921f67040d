"""Network ports: read, refused, put into a document."""

from __future__ import annotations

import contextlib
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.errors import UsageError
from ringway.guest.fresh import bare
from ringway.guest.vifs import KEYS, add_ports, derived_mac, notes, parse_vif
from ringway.model import GuestSpec, PortMode, PortSpec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("id=net0", PortSpec(name="net0")),
        (
            "id=net0,path=/run/a.sock,mode=client,queues=4,rx=1024,tx=512,mtu=9000,reconnect=2s",
            PortSpec(
                name="net0",
                socket="/run/a.sock",
                mode=PortMode.CLIENT,
                queues=4,
                rx_queue_size=1024,
                tx_queue_size=512,
                mtu=9000,
                reconnect_s=2,
            ),
        ),
        (
            "id=n,mac=52:54:00:AA:bb:01,switch=ovs,ovs.bridge=br0",
            PortSpec(name="n", mac="52:54:00:aa:bb:01", switch="ovs", options={"bridge": "br0"}),
        ),
    ],
)
def test_a_port_is_read(text: str, spec: PortSpec) -> None:
    assert parse_vif(text) == spec


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("socket=/a", "has no id", "id=net0"),
        ("id=a b", "no name of a port", "letters"),
        ("id=a,id=b", "says again", "leave one away"),
        ("id=a,path=/a,socket=/b", "'socket' says again", "leave one away"),
        ("id=a,sockt=/a", "no key 'sockt'", "did you mean socket"),
        ("id=a,,mode=client", "no key=value", "id=net0"),
        ("id=a,socket=run/a", "whole and plain", "from the root"),
        (f"id=a,socket=/{'x' * 107}", "has 108 bytes", "107 bytes"),
        ("id=a,mac=52:54:00:00:00", "no MAC address", "52:54:00"),
        ("id=a,mac=53:54:00:00:00:01", "no MAC address", "even"),
        ("id=a,mode=listen", "mode=listen", "QEMU connects"),
        ("id=a,queues=0", "0 queues", "1 to 256"),
        ("id=a,queues=257", "257 queues", "1 to 256"),
        ("id=a,queues=x", "no number", "id=net0"),
        ("id=a,rx=100", "no receive ring of 100", "256, 512, 1024"),
        ("id=a,tx=2048", "no transmit ring of 2048", "1024"),
        ("id=a,mtu=20", "MTU of 20", "68 to 65535"),
        ("id=a,reconnect=1", "QEMU listens at its socket", "mode=client"),
        ("id=a,mode=server,reconnect=1", "QEMU listens at its socket", "mode=client"),
        ("id=a,mode=client,reconnect=500ms", "reconnect=500ms", "whole seconds"),
        ("id=a,mode=client,reconnect=0", "reconnect=0", "whole seconds"),
        ("id=a,ovs.bridge=br0", "not of the switch 'external'", "switch=ovs"),
    ],
)
def test_a_port_that_would_be_refused_later(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_vif(text)
    assert message in refused.value.message
    assert hint in (refused.value.hint or "")


@given(
    pairs=st.lists(st.tuples(st.sampled_from([*KEYS, "", "x"]), st.text("a1:/=,-.", max_size=8)), max_size=5)
)
def test_any_text_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    with contextlib.suppress(UsageError):
        parse_vif(",".join(f"{key}={value}" for key, value in pairs))


def test_what_a_user_should_know_of_a_port() -> None:
    (waits,) = notes(parse_vif("id=a,socket=/s"))
    assert "does not start before the switch connects to /s" in waits
    (refused,) = notes(parse_vif("id=a,socket=/s,mode=client"))
    assert "unless the switch listens at /s" in refused


def test_a_port_in_a_document() -> None:
    document = bare(GuestSpec(name="web0"))
    (element,) = add_ports(document, [parse_vif("id=n,socket=/s,mode=client,queues=2,reconnect=1,mtu=1400")])
    assert document.shares_memory
    assert "mtu" not in element, "libvirt takes none"
    assert re.search("name=.host_mtu. type=.unsigned. value=.1400.", document.xml)
    assert "queues='2'" in element
    assert f"<mac address='{derived_mac('web0', 'n')}'/>" in element
    (found,) = document.ports()
    assert (found.port, found.socket, found.mode) == ("n", "/s", PortMode.CLIENT)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("mode=client", "1"), ("mode=client,reconnect=7", "7"), ("mode=server", None)],
)
def test_qemu_connects_again_as_with_a_port_of_the_daemons(text: str, seconds: str | None) -> None:
    document = bare(GuestSpec(name="web0"))
    (element,) = add_ports(document, [parse_vif(f"id=n,socket=/s,{text}")])
    found = ElementTree.fromstring(element).find("source/reconnect")
    assert (None if found is None else found.get("timeout")) == seconds


def test_two_guests_with_ports_of_one_name_have_two_addresses() -> None:
    texts = [
        add_ports(bare(GuestSpec(name=name)), [parse_vif("id=n,socket=/s")]) for name in ("web0", "web1")
    ]
    assert texts[0] != texts[1]
    uuid = "5b1f6a0e-9c1f-4a83-9d0b-5d3c7f0a9d11"
    (element,) = add_ports(bare(GuestSpec(name="web0"), uuid=uuid), [parse_vif("id=n,socket=/s")])
    assert derived_mac(uuid, "n") in element


def test_a_port_without_a_socket_is_for_nobody() -> None:
    with pytest.raises(UsageError, match="has no socket"):
        add_ports(bare(GuestSpec(name="web0")), [PortSpec(name="n")])


def test_a_guest_without_ports_keeps_its_memory() -> None:
    document = bare(GuestSpec(name="web0"))
    assert add_ports(document, []) == ()
    assert not document.shares_memory


def test_a_derived_address_is_of_one_station_and_the_same_each_time() -> None:
    mac = derived_mac("web0", "net0")
    assert mac == derived_mac("web0", "net0") != derived_mac("web0", "net1")
    assert parse_vif(f"id=a,mac={mac}").mac == mac
