"""Least privilege: what a target gives up between having opened all that it serves and serving it.

For whom starts a target, and for its tests; of ``ringway``, it knows ``target.host`` and what lies below.
"""

from ringway.target.sandbox.confinement import Sandbox

__all__ = ["Sandbox"]
