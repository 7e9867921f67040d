"""Guests: block-device mappings, the domain's document, libvirt.

``base``: what the host asks of a hypervisor. ``host`` imports this; so does the command that prints XML.
"""
