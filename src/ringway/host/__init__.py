"""The daemon's inside: desired state on disk, what the engines have, and the loop that makes one the other.

``Host`` is the way in. One event loop; engines' calls block and run on threads. ``api`` imports this; it
imports ``engine`` and ``model``.
"""
