"""The tree: what a host has, a node each, with one line of health; fetched anew for every line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from ringway.cli.format import coloured, has_colour, printable
from ringway.cli.views import limits_text
from ringway.errors import NotFoundError, UnreachableError
from ringway.model import (
    AttachmentInfo,
    AttachmentState,
    BackstoreInfo,
    EndpointInfo,
    EndpointState,
    EngineReport,
    GuestDisk,
    GuestInfo,
    GuestState,
    LunStatus,
    OperationInfo,
    OperationState,
    PlugInfo,
    PortInfo,
    PortState,
)
from ringway.units import format_size

if TYPE_CHECKING:
    from ringway.client import Client

_MARGIN: Final = 2
_GOOD: Final = "green"
_BAD: Final = "red"
_UNDER_WAY: Final = "yellow"
_STATES: Final = {
    EndpointState.READY: _GOOD,
    EndpointState.STARTING: _UNDER_WAY,
    EndpointState.DELETING: _UNDER_WAY,
    EndpointState.DEGRADED: _BAD,
    EndpointState.LOST: _BAD,
    EndpointState.FOREIGN: None,
}
_GUESTS: Final = {GuestState.RUNNING: _GOOD, GuestState.PAUSED: _UNDER_WAY}
_HELD: Final = {
    AttachmentState.ATTACHING: _UNDER_WAY,
    AttachmentState.ATTACHED: _GOOD,
    AttachmentState.DETACHING: _UNDER_WAY,
    AttachmentState.FOREIGN: _BAD,
}
_OPERATIONS: Final = {OperationState.RUNNING: _UNDER_WAY, OperationState.DONE: _GOOD}


class Kind(Enum):
    """What a node is, and so which commands it has."""

    ROOT = auto()
    ENDPOINTS = auto()
    ENDPOINT = auto()
    LUNS = auto()
    LUN = auto()
    BACKSTORES = auto()
    BACKSTORE = auto()
    GUESTS = auto()
    GUEST = auto()
    ATTACHMENTS = auto()
    ATTACHMENT = auto()
    DISKS = auto()
    DISK = auto()
    PLUGS = auto()
    PLUG = auto()
    PORTS = auto()
    PORT = auto()
    OPERATIONS = auto()
    OPERATION = auto()
    ENGINES = auto()
    ENGINE = auto()


@dataclass(frozen=True, slots=True)
class Node:
    """A node. ``alias`` is another name that finds it: the WWPN of an endpoint."""

    kind: Kind
    name: str
    health: str
    colour: str | None = None
    children: tuple[Node, ...] = ()
    alias: str | None = None

    def child(self, name: str) -> Node | None:
        """The child of this name or alias."""
        for child in self.children:
            if name in (child.name, child.alias):
                return child
        return None


Path = tuple[str, ...]


class Tree:
    """The host, branch by branch."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def find(self, path: Path) -> list[Node]:
        """The nodes from the root to ``path``. :raises NotFoundError: there is no such node."""
        if path and path[0] not in _BRANCHES:
            raise _no_node(path, path[0], _BRANCHES)
        wanted = path[:1] or tuple(_BRANCHES)
        found = [_root([_BRANCHES[name](self._client) for name in wanted])]
        for name in path:
            child = found[-1].child(name)
            if child is None:
                raise _no_node(path, name, [each.name for each in found[-1].children])
            found.append(child)
        return found

    def names(self, path: Path) -> list[tuple[str, bool]]:
        """What lies under a path, and whether more lies under it; aliases as well."""
        if not path:
            return [(name, True) for name in _BRANCHES]
        children = self.find(path)[-1].children
        return [
            (name, bool(child.children)) for child in children for name in (child.name, child.alias) if name
        ]


def _no_node(path: Path, name: str, there: Iterable[str]) -> NotFoundError:
    names = list(there)
    more = f"{', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
    return NotFoundError(
        f"there is no '{name}' on the way to /{'/'.join(path)}",
        hint=f"there are {more}" if names else "there is nothing at all",
    )


# Branches


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _root(branches: Sequence[Node]) -> Node:
    bad = [branch.name for branch in branches if branch.colour == _BAD]
    health = f"look at {', '.join(bad)}" if bad else "all is well"
    return Node(Kind.ROOT, "/", health, _BAD if bad else _GOOD, tuple(branches))


def endpoints_node(found: Sequence[EndpointInfo]) -> Node:
    """All endpoints."""
    degraded = sum(each.state is EndpointState.DEGRADED for each in found)
    health = _count(len(found), "endpoint") + (f", {degraded} degraded" if degraded else "")
    children = tuple(map(endpoint_node, found))
    return Node(Kind.ENDPOINTS, "endpoints", health, _BAD if degraded else _GOOD, children)


def endpoint_node(found: EndpointInfo) -> Node:
    """An endpoint, and its LUNs below it."""
    guest = {True: "guest connected", False: "no guest", None: ""}[found.connected]
    words = [found.state, guest, f"{found.engine} {found.device}", found.wwpn, found.message]
    luns = tuple(map(lun_node, found.luns))
    below = Node(Kind.LUNS, "luns", _count(len(luns), "disk"), _GOOD if luns else None, luns)
    health = ", ".join(word for word in words if word)
    return Node(Kind.ENDPOINT, found.name, health, _STATES[found.state], (below,), found.wwpn)


def lun_node(found: LunStatus) -> Node:
    """A LUN."""
    size = None if found.size_bytes is None else format_size(found.size_bytes)
    lost = found.ownership if found.ownership not in (None, "held") else None
    words = [
        found.path or found.kind,
        size,
        "readonly" if found.readonly else None,
        limits_text(found.limits),
        lost,
    ]
    health = ", ".join(word for word in words if word)
    return Node(Kind.LUN, f"{found.target}:{found.lun}", health, _UNDER_WAY if lost else _GOOD)


def backstores_node(found: Sequence[BackstoreInfo]) -> Node:
    """All backstores."""
    return Node(
        Kind.BACKSTORES,
        "backstores",
        _count(len(found), "backstore"),
        _GOOD,
        tuple(
            Node(Kind.BACKSTORE, each.name, _backstore(each), None if each.foreign else _GOOD)
            for each in found
        ),
    )


def _backstore(found: BackstoreInfo) -> str:
    size = None if found.size_bytes is None else format_size(found.size_bytes)
    used = f"used by {' '.join(found.used_by)}" if found.used_by else "not used"
    words = [found.kind, found.path, size, used, "foreign" if found.foreign else None]
    return ", ".join(word for word in words if word)


def _guests(client: Client) -> Node:
    """All guests; a host that has no libvirt says so, and is well."""
    try:
        return guests_node(client.guests.list())
    except UnreachableError as error:
        client.host.info()  # it is the daemon that says so
        return Node(Kind.GUESTS, "guests", error.message)


def guests_node(found: Sequence[GuestInfo]) -> Node:
    """All guests."""
    children = tuple(map(guest_node, found))
    return Node(Kind.GUESTS, "guests", _count(len(found), "guest"), _GOOD, children)


def guest_node(found: GuestInfo) -> Node:
    """A guest, and what it has of ours below it."""
    attachments = tuple(_held(Kind.ATTACHMENT, each.endpoint, each) for each in found.attachments)
    disks = tuple(_disk(each) for each in found.disks if each.volume is not None)
    plugs = tuple(_held(Kind.PLUG, each.port, each) for each in found.ports)
    below = (
        Node(Kind.ATTACHMENTS, "endpoints", _count(len(attachments), "endpoint"), None, attachments),
        Node(Kind.DISKS, "disks", _count(len(disks), "plain disk"), None, disks),
        Node(Kind.PLUGS, "ports", _count(len(plugs), "port"), None, plugs),
    )
    health = f"{found.state}, {_count(found.vcpus, 'CPU')}, {format_size(found.memory_bytes)}"
    return Node(Kind.GUEST, found.name, health, _GUESTS.get(found.state), below)


def _disk(found: GuestDisk) -> Node:
    words = [found.state, found.source, _when(found), found.message]
    health = ", ".join(word for word in words if word)
    return Node(Kind.DISK, found.target, health, _HELD[found.state], alias=found.volume)


def _when(found: AttachmentInfo | PlugInfo | GuestDisk) -> str:
    places = {"now": found.live, "at its next start": found.persistent}
    return " and ".join(place for place, there in places.items() if there)


def _held(kind: Kind, name: str, found: AttachmentInfo | PlugInfo) -> Node:
    words = [found.state, _when(found), found.message]
    return Node(kind, name, ", ".join(word for word in words if word), _HELD[found.state])


def ports_node(found: Sequence[PortInfo]) -> Node:
    """All ports."""
    degraded = sum(each.state is PortState.DEGRADED for each in found)
    health = _count(len(found), "port") + (f", {degraded} degraded" if degraded else "")
    return Node(Kind.PORTS, "ports", health, _BAD if degraded else _GOOD, tuple(map(port_node, found)))


def port_node(found: PortInfo) -> Node:
    """A port."""
    guest = f"guest {found.guest}" if found.guest else "no guest"
    words = [found.state, guest, f"{found.switch} {found.mode}", found.mac, found.message]
    health = ", ".join(word for word in words if word)
    colour = _BAD if found.state is PortState.DEGRADED else _GOOD
    return Node(Kind.PORT, found.name, health, colour)


def operations_node(found: Sequence[OperationInfo]) -> Node:
    """What runs; what has ended is left to ``ringway operation list``."""
    running = [each for each in found if each.state is OperationState.RUNNING]
    children = tuple(
        Node(Kind.OPERATION, each.id, f"{each.description}, {each.progress:.0%}", _OPERATIONS.get(each.state))
        for each in running
    )
    return Node(Kind.OPERATIONS, "operations", f"{len(running)} running", _GOOD, children)


def engines_node(found: Sequence[EngineReport]) -> Node:
    """The engines. One that is not usable is no ill: not every host has both."""
    children = tuple(Node(Kind.ENGINE, each.engine, *_engine(each)) for each in found)
    usable = [each.engine for each in found if each.usable]
    health = f"{', '.join(usable)} usable" if usable else "none is usable"
    return Node(Kind.ENGINES, "engines", health, _GOOD if usable else _BAD, children)


def _engine(found: EngineReport) -> tuple[str, str | None]:
    if found.usable:
        return f"usable, {found.version}", _GOOD
    missing = next((check.detail for check in found.checks if not check.ok), "")
    return f"not usable: {missing}", None


_BRANCHES: Final[dict[str, Callable[[Client], Node]]] = {
    "endpoints": lambda client: endpoints_node(client.endpoints.list()),
    "backstores": lambda client: backstores_node(client.backstores.list()),
    "guests": _guests,
    "ports": lambda client: ports_node(client.ports.list()),
    "operations": lambda client: operations_node(client.operations.list()),
    "engines": lambda client: engines_node(client.host.info().engines),
}


# Drawing


def draw(node: Node, depth: int | None, width: int | None) -> Iterator[str]:
    """Lines of the tree below a node.

    :param depth: levels below it; ``None``: all. :param width: of a line.
    """
    rows = list(_rows(node, depth))
    margin = max(len(left) for left, _ in rows) + _MARGIN
    for left, each in rows:
        health = printable(each.health)
        if width is not None and len(health) > (room := max(width - margin - 3, 8)):
            health = f"{health[: room - 1]}…"
        dots = "." * (margin - len(left) - 1)
        yield f"{left} {dots} [{coloured(health, each.colour if has_colour() else None)}]"


def _rows(node: Node, depth: int | None) -> Iterator[tuple[str, Node]]:
    """Each node with what stands left of its health; a bar leads from a node to the next on its level."""
    yield f"o- {printable(node.name)}", node
    if depth == 0:
        return
    for child in node.children:
        last = child is node.children[-1]
        for row, (left, each) in enumerate(_rows(child, None if depth is None else depth - 1)):
            bar = "" if row == 0 else "  " if last else "| "
            yield f"  {bar}{left[2:] if bar else left}", each
