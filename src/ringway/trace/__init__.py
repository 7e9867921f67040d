"""What a trace amounts to: a request's way as steps, their figures, and pictures of them.

``steps`` and ``figures`` compute; ``svg`` and ``perfetto`` draw. Only ``cli`` imports this.
"""
