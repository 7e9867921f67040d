"""``python -m ringway``: the command."""

from ringway.cli.entry import ringway

if __name__ == "__main__":
    ringway()
