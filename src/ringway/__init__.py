"""Ringway: disks and network ports for KVM guests over vhost.

Layers, from the ground up: ``model`` and ``errors``; ``vhost_user`` and ``scsi`` over the Rust core;
``target``, one endpoint's process; ``client``, who asks a host's daemon; ``cli`` and ``testing`` on top.
``tests/style`` holds the arrows.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringway.client import AsyncClient, Client
else:

    def __getattr__(name: str) -> object:
        """Import the clients when they are asked for: most of those who import this are no clients."""
        if name not in ("AsyncClient", "Client"):
            raise AttributeError(f"module 'ringway' has no attribute {name!r}")
        from ringway import client

        return getattr(client, name)


__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]
