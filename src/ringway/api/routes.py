"""What a route is: what is asked for, what is answered, and who does it. OpenAPI is made from that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from ringway.host.host import Host
from ringway.host.specs import Address
from ringway.host.transfer import Format
from ringway.model import ErrorRecord

MAX_BODY: Final = 1 << 20  #: bytes
MAX_FILE: Final = 64 << 20  #: bytes of a whole host's configuration
#: libvirt's names have spaces and more.
GUEST: Final = r"[^/\x00-\x1f\x7f]{1,255}"
ADDRESS: Final = r"[0-9]{1,3}:[0-9]{1,5}"
#: What a disk is called by: the id of its volume is any text, and a path has to be said by an alias.
DISK: Final = r"[^/\x00-\x1f\x7f]{1,255}"
IDENTITY: Final = r"[0-9a-f]{16}"

Seconds = Annotated[float, Meta(ge=0, le=3600)]
Wait = Annotated[Seconds, Meta(description="Seconds to wait; if it goes on then, its operation is answered.")]
DryRun = Annotated[bool, Meta(description="Say what would change, and change nothing.")]
Force = Annotated[bool, Meta(description="Even while a guest uses it.")]
Live = Annotated[bool, Meta(description="From the guest that runs.")]
Persistent = Annotated[bool, Meta(description="From its next start.")]
Patience = Annotated[Seconds, Meta(description="Seconds that the guest may take to let it go.")]
Prune = Annotated[bool, Meta(description="Endpoints that the file does not name shall go.")]
Adopt = Annotated[
    bool, Meta(description="What is live in the kernel is taken over in place; without a body, all of it.")
]
Kinds = Annotated[
    str, Meta(description="Only these, with commas between; 'endpoint' is all of 'endpoint.…'.")
]
Since = Annotated[int, Meta(ge=0, le=1 << 62, description="Begin with the kept events behind this number.")]
Size = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]


class ErrorBody(Struct, frozen=True):
    """What every answer of 400 and more carries."""

    error: ErrorRecord


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing behind the path."""


class ChangeQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How a change is asked for."""

    wait: Wait = 30.0
    dry_run: DryRun = False


class ForceQuery(ChangeQuery, frozen=True, forbid_unknown_fields=True):
    """A change that may take something away."""

    force: Force = False


class PlanQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How a file is compared."""

    prune: Prune = False


class ApplyQuery(ForceQuery, frozen=True, forbid_unknown_fields=True):
    """How a file is applied."""

    prune: Prune = False


class ExportQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """What a host is written as."""

    format: Format = Format.RINGWAY


class ImportQuery(ChangeQuery, frozen=True, forbid_unknown_fields=True):
    """How targetcli's file is imported."""

    adopt: Adopt = False


class WaitQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait."""

    timeout: Seconds = 30.0


class EventsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which events."""

    kinds: Kinds = ""
    since: Since | None = None


class DetachQuery(ChangeQuery, frozen=True, forbid_unknown_fields=True):
    """How something is taken from a guest."""

    live: Live = True
    persistent: Persistent = True
    timeout: Patience = 30.0


class ResizeBody(Struct, frozen=True, forbid_unknown_fields=True):
    """For a disk that has no size but the one that it is told."""

    size_bytes: Size | None = None


class Call(Struct, frozen=True, kw_only=True):
    """One request, understood."""

    host: Host
    query: Any = None
    body: Any = None
    name: str = ""
    guest: str = ""  #: a name or a UUID
    endpoint: str = ""
    disk: str = ""  #: its volume, alias, target or serial number
    port: str = ""
    address: Address = (0, 0)
    identity: str = ""
    read_only: bool = False


class Route(Struct, frozen=True, kw_only=True):
    """A line of the table.

    ``answer`` is what comes with ``status``; ``begins`` says that 202 with an operation may come instead, or
    with ``dry_run`` a plan. ``kind`` is the answer's media type.
    """

    method: str
    path: str
    summary: str
    handler: Callable[[Call], Awaitable[Any]]
    answer: Any = None
    query: type[Struct] = NoQuery
    body: Any = None
    body_optional: bool = False
    max_body: int = MAX_BODY
    status: int = 200
    changes: bool = False
    begins: bool = False
    kind: str = "application/json"

    @property
    def verb(self) -> str:
        """A word for logs and for OpenAPI's operationId: the handler's name."""
        return self.handler.__name__
