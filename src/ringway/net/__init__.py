"""Ports and switches: network cards of guests over vhost-user.

A switch has a driver with the verbs of :class:`ringway.net.base.Switch`: ``ovs`` and ``external`` are here,
others come by the entry point group ``ringway.switches``. ``host`` imports this; it imports ``errors``,
``units`` and ``model``. No guest is touched here, and no packet passes through.
"""
