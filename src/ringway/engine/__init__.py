"""Engines: who moves the data of endpoints. ``user`` runs our vhost-user targets, ``lio`` writes the kernel's
configfs; both have the verbs of :class:`ringway.engine.base.Driver`.

``host`` imports this; it imports ``model`` and what lies below. Targets are started as programs.
"""
