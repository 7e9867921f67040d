"""The back end's side of the vhost-user protocol: messages, a front end's session, the server of sessions.

Nothing here knows SCSI, virtio-blk or a disk: a session drives a :class:`~ringway.vhost_user.device.Device`.
``target`` may import this folder, ``testing`` its wire format; it imports ``errors`` and ``_core`` itself.
"""

from ringway.vhost_user.device import Device, RingSetup
from ringway.vhost_user.server import Server

__all__ = ["Device", "RingSetup", "Server"]
