"""One suite of the verbs that all engines have, and what only one of them has."""
