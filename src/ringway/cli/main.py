"""The command ``ringway``: its subcommands, its errors, its exit statuses.

Nothing is imported here that ``ringway --help`` does not need.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

import ringway
from ringway.errors import PermissionDeniedError, RingwayError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

INTERRUPTED: Final = 130

#: Subcommand: where it is, and its line in ``ringway --help``.
COMMANDS: Final = {
    "endpoint": (
        "ringway.cli.endpoint:endpoint",
        "Create, list, change and delete a host's endpoints.",
    ),
    "lun": ("ringway.cli.lun:lun", "Add, remove, limit and resize the disks of endpoints."),
    "backstore": (
        "ringway.cli.backstore:backstore",
        "List what a host's disks are made of; look whether one could be.",
    ),
    "guest": ("ringway.cli.guest:guest", "Attach endpoints and disks to libvirt's guests, plug ports in."),
    "port": ("ringway.cli.port:port", "Create, list and delete vhost-user network ports."),
    "plan": ("ringway.cli.declare:plan", "Say what `ringway apply` would change."),
    "apply": ("ringway.cli.declare:apply", "Make this host's endpoints as a file says."),
    "config": ("ringway.cli.config:config", "Export a host's endpoints; take over targetcli's."),
    "operation": (
        "ringway.cli.operation:operation",
        "List, cancel and await what the daemon is doing.",
    ),
    "monitor": ("ringway.cli.monitor:monitor", "Follow what happens on this host, a line an event."),
    "shell": ("ringway.cli.shell.command:shell", "Walk through a host as through a tree."),
    "host": ("ringway.cli.host:host", "Look at the daemon, and at what its host can do."),
    "serve": ("ringway.cli.serve:serve", "Serve disks to a guest over vhost-user."),
    "demo": ("ringway.cli.demo:demo", "Boot a real guest on a new disk, and show what happens."),
    "doctor": ("ringway.cli.doctor:doctor", "Say what this host can do, and how to mend what it cannot."),
    "bench": (
        "ringway.cli.bench:bench",
        "Measure vhost-user targets, ours and a peer's, in one run.",
    ),
    "target": ("ringway.cli.control:target", "Look into a running target, and change its disks."),
    "top": ("ringway.cli.top:top", "Watch the disks of this host, or a running target."),
    "trace": ("ringway.cli.trace:trace", "See where the time of a target's requests goes."),
    "completion": (
        "ringway.cli.completion:completion",
        "Print what a shell needs to complete command lines.",
    ),
}

_EPILOG: Final = """\b
Exit statuses: 0 done, 1 failed, 2 usage, 3 not found,
4 unreachable or not permitted, 5 timed out, 6 in conflict, 7 degraded,
130 interrupted.

\b
A first disk:
  ringway serve --create 10G disk.img
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        gc.enable()
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Offer commands without importing them, and options."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=summary)
            for name, (_, summary) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ringway.__version__, prog_name="ringway", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="On an error, show where it came from as well.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Disks for KVM guests over vhost, at close to bare-metal speed."""
    ctx.color = _colour()


def _colour() -> bool | None:
    """``None``: on a terminal. Spec of the variable: no-color.org."""
    return False if os.environ.get("NO_COLOR") else None


def main() -> NoReturn:
    """Run the command, and exit with its status."""
    run(cli, "ringway")


def run(command: click.Command, name: str, arguments: list[str] | None = None) -> NoReturn:
    """Run a click command, print what went wrong as ``error:`` and ``hint:``, and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or bool(os.environ.get("RINGWAY_DEBUG"))
    sys.exit(exit_status(lambda: command.main(arguments, prog_name=name, standalone_mode=False), debug=debug))


def exit_status(work: Callable[[], Any], *, debug: bool = False) -> int:
    """Run ``work`` and turn what it raises into a message on stderr and an exit status.

    :returns: 0, or what ``work`` returned if that is a number.
    """
    try:
        result = work()
    except Exception as error:
        return _status_of(error, debug)
    except KeyboardInterrupt:
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _status_of(error: Exception, debug: bool) -> int:
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case click.Abort():
            return INTERRUPTED
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return error.exit_code
        case click.ClickException():
            return _report_usage(error)
        case RingwayError():
            return _report(error, error.exit_status, error.message, error.hint, debug)
    return _report_unforeseen(error, debug)


def _report_unforeseen(error: Exception, debug: bool) -> int:
    """What the kernel refused is the host's, all else is our fault."""
    if isinstance(error, OSError) and error.strerror:
        what = "" if error.filename is None else f"'{error.filename}': "
        status = PermissionDeniedError.exit_status if isinstance(error, PermissionError) else 1
        return _report(error, status, f"{what}{error.strerror}", None, debug)
    hint = "this is a fault of Ringway's; run it again with --debug and report it"
    return _report(error, 1, f"{type(error).__name__}: {error}", hint, debug)


def _report_usage(error: click.ClickException) -> int:
    hint = "see --help"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"see {error.ctx.command_path} --help"
    return _report(error, error.exit_code, error.format_message(), hint, debug=False)


def _report(error: Exception, status: int, message: str, hint: str | None, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True, color=_colour())
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan', bold=True)} {hint}", err=True, color=_colour())
    return status


if __name__ == "__main__":
    main()
