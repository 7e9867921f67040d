"""Guests: block-device mappings, a domain's document, libvirt.

``base``: what the host asks of a hypervisor. ``aliases`` tells which devices in a domain are ours;
``document`` edits a domain's XML. Only ``host`` and the command ``ringway guest`` import this.
"""
