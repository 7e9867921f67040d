"""A kernel target that is none: a FUSE file system that behaves as ``/sys/kernel/config/target`` does, with
the modules of ``/sys`` beside it, in a process of its own.

What it answers was measured on Linux 6.12; it moves no data. Tests drive the kernel engine against it where
there is no vhost-scsi: :class:`FakeKernel` starts one, and plays the guest. ``python -m
ringway.testing.fake_kernel MOUNTPOINT`` is the program.
"""

from ringway.testing.fake_kernel.handle import FakeKernel

__all__ = ["FakeKernel"]
