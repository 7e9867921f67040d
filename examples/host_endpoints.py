"""Keep an endpoint on this host: create it, limit a disk of it, look at it, delete it.

    python examples/host_endpoints.py example /srv/example.img

It asks the daemon, ``ringwayd``, which has to run. ``RINGWAY_SOCKET`` says where it listens if that is not
its usual place.
"""

from __future__ import annotations

import os
import sys

import ringway
from ringway.errors import RingwayError
from ringway.model import BackstoreSpec, EndpointSpec, Limits, LunSpec, SpecKind


def main(name: str, image: str) -> None:
    """Go through an endpoint's life."""
    client = ringway.Client(timeout_s=60)
    host = client.host.info()
    print(f"{host.hostname}: ringwayd {host.ringway}, {host.endpoints} endpoints")

    disk = LunSpec(target=0, lun=0, backstore=BackstoreSpec(SpecKind.PATH, path=os.path.abspath(image)))
    spec = EndpointSpec(name=name, luns=(disk,), queues=2)
    for change in client.endpoints.create.plan(spec).changes:
        print(f"{change.action} {change.name}: {'; '.join(change.details)}")

    endpoint = client.endpoints.create(spec)
    print(f"{endpoint.name} is {endpoint.state}, QEMU connects to {endpoint.socket}")

    limited = client.luns.limit(name, 0, 0, Limits(iops=5000, burst_s=10))
    print(f"LUN 0 may do {limited.luns[0].limits.iops} requests a second")

    client.endpoints.delete(name)
    print(f"{name} is gone, {image} is not")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except RingwayError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}" if error.hint else f"error: {error}")
