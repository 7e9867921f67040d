"""``python -m ringway``: the command."""

from ringway.cli.main import main

if __name__ == "__main__":
    main()
