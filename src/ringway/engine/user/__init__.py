"""The user engine: one process of ours an endpoint, started by the spawner, adopted by whoever drives next.

``driver`` has the verbs of :class:`ringway.engine.base.Driver`. ``choices`` and ``conflicts`` come before a
change; ``client`` has the spawner start a target; ``endpoint`` is one that runs, with its ``records``,
``places`` and ``processes``; ``changes`` are made to it; ``watch`` hears of its end, and ``words`` are its
last. ``spawner`` and ``birth`` are the other program, which gets ``orders``; only they know what a target
is.
"""

from ringway.engine.user.driver import UserDriver

__all__ = ["UserDriver"]
