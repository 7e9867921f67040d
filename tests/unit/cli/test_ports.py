"""What is told of a port."""

from __future__ import annotations

from ringway.cli.port import describe
from ringway.model import PortInfo, PortMode, PortSpec, PortState

SPEC = PortSpec(
    name="web0",
    mac="52:54:00:00:00:01",
    socket="/run/web0.sock",
    mode=PortMode.CLIENT,
    queues=2,
    rx_queue_size=1024,
    tx_queue_size=512,
    mtu=9000,
    reconnect_s=2,
    options={"bridge": "br0"},
)
INFO = PortInfo(
    name="web0",
    switch="ovs",
    state=PortState.UP,
    mac="52:54:00:00:00:01",
    socket="/run/web0.sock",
    mode=PortMode.CLIENT,
    spec=SPEC,
)


def test_all_that_a_port_was_made_with_is_shown() -> None:
    lines = list(describe(INFO))
    values = {line[:11].rstrip(): line[12:] for line in lines}
    shown = [values[name] for name in ("queues", "rx ring", "tx ring", "mtu", "reconnect")]
    assert shown == ["2", "1024", "512", "9000", "2 s"]
    assert lines[-1] == "bridge      br0"
