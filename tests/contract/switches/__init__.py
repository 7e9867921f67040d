"""One suite of the verbs that all switches have, and what only Open vSwitch's has, on a real ovsdb-server."""
