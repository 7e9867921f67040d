"""``ringway shell``: a host as a tree that one walks.

``tree`` is what one sees, ``words`` reads a line, ``session`` carries it out by the other commands,
``keyboard`` is the terminal's side. It holds no lock and keeps nothing: each line asks the
daemon, and is kept by it.
"""
