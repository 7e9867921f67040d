"""``ringway completion``: what a shell needs to complete our command lines."""

from __future__ import annotations

from typing import Final

import click

from ringway.errors import UsageError

VARIABLE: Final = "_RINGWAY_COMPLETE"
_EPILOG: Final = """\b
Examples:
  ringway completion bash > /etc/bash_completion.d/ringway
  ringway completion zsh > ~/.zfunc/_ringway
  ringway completion fish > ~/.config/fish/completions/ringway.fish
"""


@click.command(epilog=_EPILOG, short_help="Print what a shell needs to complete command lines.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what SHELL needs to complete command lines of ringway.

    Names of endpoints, disks and operations come from the daemon; if it does not answer within 200 ms, none
    are offered.
    """
    from click.shell_completion import get_completion_class

    from ringway.cli.main import cli

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"this version of click knows no {shell}", hint="upgrade it: pip install -U click")
    script = found(cli, {}, "ringway", VARIABLE)
    click.echo(script.source_template % script.source_vars())
