"""A running target from outside: the control socket, traces, the bench, examples and the wheel."""
