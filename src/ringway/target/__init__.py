"""One endpoint's process: backstores, LUNs, the virtio device over the core, its sessions, its control
socket.

It may import ``vhost_user``, ``scsi``, ``_core`` and what lies below; of the command, ``serve``, ``program``,
``control``, ``bench`` and ``demo`` may import it.
"""
