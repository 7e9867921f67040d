"""libvirt as a host sees it: the verbs of ``guest.base`` over one connection that comes back by itself.

``connection`` keeps it, ``monitor`` and ``hotplug`` speak to QEMU where libvirt has no element, ``reach``
tells whether QEMU gets to a socket, ``versions`` how new both have to be. Needs libvirt-python, which is
imported with this.
"""

from ringway.guest.libvirt.hypervisor import LibvirtHypervisor

__all__ = ["LibvirtHypervisor"]
