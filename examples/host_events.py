"""Follow what happens on this host while several endpoints are made at once.

    python examples/host_events.py 3

The daemon's client for asyncio: creations run side by side, and a stream tells of them meanwhile. The
endpoints have disks of memory, and are deleted at the end.
"""

from __future__ import annotations

import asyncio
import sys

import ringway
from ringway.errors import RingwayError
from ringway.model import BackstoreSpec, EndpointSpec, LunSpec, SpecKind

_RAM = LunSpec(0, 0, BackstoreSpec(SpecKind.RAM, size_bytes=16 << 20))


async def main(count: int) -> None:
    """Make endpoints, hear of each, and delete them."""
    client = ringway.AsyncClient(timeout_s=60)
    names = [f"event-{number}" for number in range(count)]
    async with client.events.follow(kinds=["endpoint.created", "endpoint.deleted"]) as events:
        made = [client.endpoints.create(EndpointSpec(name=name, luns=(_RAM,))) for name in names]
        await asyncio.gather(*made)
        await asyncio.gather(*(client.endpoints.delete(name) for name in names))
        expected = 2 * count
        async for event in events:
            print(f"{event.sequence} {event.kind} {event.object}")
            expected -= event.object.removeprefix("endpoint/") in names
            if not expected:
                return


if __name__ == "__main__":
    try:
        asyncio.run(main(int(sys.argv[1])))
    except RingwayError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}" if error.hint else f"error: {error}")
