"""The user engine: one process of ours an endpoint, started by the spawner, adopted by whoever drives next.

``UserDriver`` has the verbs of :class:`ringway.engine.base.Driver`. ``spawner`` and ``birth`` are the other
program; only they know what a target is.
"""

from ringway.engine.user.driver import UserDriver

__all__ = ["UserDriver"]
