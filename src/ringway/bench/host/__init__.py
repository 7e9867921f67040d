"""The host's benchmark: endpoints by the thousand, ours beside rtslib's and targetcli's.

``python -m ringway.bench.host`` boots a guest with a kernel target in which ``inside`` runs each side in
turn; ``user`` measures the user engine on this host. ``figures`` has what came of it, and the goals.
"""
