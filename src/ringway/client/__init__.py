"""Ask the daemon of a host: a blocking client and one for asyncio, over one transport seam.

``wire`` is HTTP without I/O, ``sockets`` the transports, ``verbs`` what makes one definition serve both,
``resources`` the verbs. Imports ``model`` and ``errors``; anybody may import it.
"""

from ringway.client.client import AsyncClient, Client
from ringway.client.sockets import AsyncTransport, Transport, candidates
from ringway.client.verbs import AsyncEventStream, Begun, EventStream, Progress
from ringway.client.wire import Request, Response

__all__ = [
    "AsyncClient",
    "AsyncEventStream",
    "AsyncTransport",
    "Begun",
    "Client",
    "EventStream",
    "Progress",
    "Request",
    "Response",
    "Transport",
    "candidates",
]
