"""Network ports as people write them: ``id=net0,socket=/run/vpp/net0.sock,mode=client,queues=2,rx=1024``.

What libvirt would refuse later, or hang on, is refused or told of here: it takes no reconnection of a socket
that QEMU listens on, and a guest whose port listens does not start before the switch has connected.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from ringway.errors import UsageError
from ringway.guest.document import Document
from ringway.model import PortMode, PortSpec, is_name, resolved_port
from ringway.units import parse_duration

#: A key, and the field of PortSpec that it sets.
KEYS: Final = {
    "id": "name",
    "switch": "switch",
    "mac": "mac",
    "socket": "socket",
    "path": "socket",
    "mode": "mode",
    "queues": "queues",
    "rx": "rx_queue_size",
    "rx_queue_size": "rx_queue_size",
    "tx": "tx_queue_size",
    "tx_queue_size": "tx_queue_size",
    "mtu": "mtu",
    "reconnect": "reconnect_s",
}
_HINT: Final = (
    "write it as id=net0,socket=/run/net0.sock,mode=client; keys are id, switch, mac, socket or path, mode, "
    "queues, rx, tx, mtu, reconnect, and a switch's own as ovs.bridge=br0"
)
_OWN: Final = re.compile(r"([a-z][a-z0-9-]*)\.([A-Za-z0-9_-]+)", re.ASCII)


def parse_vif(text: str) -> PortSpec:
    """Read a port. A comma cannot be in a value.

    :raises UsageError: no such form, or what libvirt or QEMU would refuse.
    """
    fields, options = dict[str, Any](), dict[str, str]()
    for key, value in _pairs(text):
        own = _OWN.fullmatch(key)
        if own:
            options[key] = value
            continue
        field = _field(key)
        if field in fields:
            raise UsageError(f"'{key}' says again what was said before", hint="leave one away")
        fields[field] = _READERS[field](key, value)
    if "name" not in fields:
        raise UsageError(f"the port '{text}' has no id", hint=_HINT)
    return PortSpec(**fields, options=_options(options, fields.get("switch", "external")))


def notes(spec: PortSpec) -> Iterator[str]:
    """What a user should know of a port that is in XML alone, a sentence each."""
    if spec.switch != "external":
        yield f"port '{spec.name}': nobody tells {spec.switch} of it; ringway port create does"
    if spec.mode is PortMode.SERVER:
        yield f"port '{spec.name}': the guest does not start before the switch connects to {spec.socket}"
    else:
        yield f"port '{spec.name}': the guest does not start unless the switch listens at {spec.socket}"


def add_ports(document: Document, ports: Sequence[PortSpec]) -> tuple[str, ...]:
    """Put ports into a document, and share its memory with their switches.

    What is open is chosen as for ports of the daemon's. One without a MAC address gets one that follows
    from the domain and its own name.

    :returns: their elements. :raises UsageError: one has no socket. :raises ConflictError: one is there.
    """
    if ports:
        document.share_memory()
    guest = document.uuid or document.name
    whole = (resolved_port(spec, mac=derived_mac(guest, spec.name)) for spec in ports)
    return tuple(element for spec in whole for element in document.add_port(spec))


def derived_mac(guest: str, port: str) -> str:
    """A MAC address of QEMU's own range: the same each time, and for each guest and port another."""
    digest = hashlib.sha256(f"{guest}/{port}".encode()).digest()
    return "52:54:00:" + digest[:3].hex(":")


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"'{part}' in the port '{text}' is no key=value", hint=_HINT)
        yield key, value


def _field(key: str) -> str:
    """:raises UsageError: there is no such key; names the nearest."""
    if key in KEYS:
        return KEYS[key]
    near = difflib.get_close_matches(key.strip().lower(), KEYS, 1, 0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"there is no key '{key}' of a port", hint=hint + _HINT)


def _options(found: Mapping[str, str], switch: str) -> dict[str, str]:
    """A switch's own. :raises UsageError: another's."""
    options = dict[str, str]()
    for key, value in found.items():
        owner, _, name = key.partition(".")
        if owner != switch:
            raise UsageError(f"'{key}' is not of the switch '{switch}'", hint=f"say switch={owner} too")
        options[name] = value
    return options


def _name(key: str, value: str) -> str:
    if not is_name(value):
        raise UsageError(
            f"{key}={value} is no name of a port",
            hint="take letters, digits, _, . and -, 63 at most; the first is a letter or a digit",
        )
    return value


def _text(_key: str, value: str) -> str:
    return value


def _mode(key: str, value: str) -> PortMode:
    if value not in [*map(str, PortMode)]:
        raise UsageError(
            f"{key}={value} is not possible",
            hint="client: the switch listens, and QEMU connects; server: QEMU listens",
        )
    return PortMode(value)


def _count(key: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,6}", value, re.ASCII):
        raise UsageError(f"{key}={value} is no number", hint=_HINT)
    return int(value)


def _seconds(key: str, value: str) -> int:
    """Whole seconds, at least one, as libvirt has it."""
    seconds = parse_duration(value)
    if seconds != int(seconds) or not 1 <= seconds <= 86400:
        raise UsageError(f"{key}={value} is not possible", hint="give whole seconds, as in reconnect=1s")
    return int(seconds)


_READERS: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "name": _name,
    "switch": _name,
    "mac": _text,
    "socket": _text,
    "mode": _mode,
    "queues": _count,
    "rx_queue_size": _count,
    "tx_queue_size": _count,
    "mtu": _count,
    "reconnect_s": _seconds,
}
