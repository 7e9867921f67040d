"""The command. It begins in ``entry``; ``main`` finds subcommands by name and imports only the one that runs.

``serve``, ``program``, ``control``, ``bench`` and ``demo`` may import ``target``; ``demo`` and ``bench`` also
``testing``.
"""
