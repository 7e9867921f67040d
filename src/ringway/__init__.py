"""Ringway: disks and network ports for KVM guests over vhost.

Layers, from the ground up: ``model`` and ``errors``; ``vhost_user`` and ``scsi`` over the Rust core;
``target``, one endpoint's process; ``cli`` and ``testing`` on top. ``tests/style`` holds the arrows.
"""

__version__ = "0.1.0"
