"""The program ``ringwayd``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

import ringway
from ringway.cli.main import run

_EPILOG = """\b
Signals: SIGTERM and SIGINT end the daemon, and endpoints go on; SIGHUP reads the
configuration again.
Exit statuses: 0 done, 1 failed, 2 usage, 4 not permitted, 6 another daemon runs.

\b
As root, as a service:
  systemctl enable --now ringway.socket ringway-ro.socket ringwayd.service
As anybody, in the foreground:
  ringwayd --directory ~/ringway
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ringway.__version__, prog_name="ringwayd", message="%(prog)s %(version)s")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep everything in this folder: ringway.toml, conf.d, run and state. User engine only.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Read this file, and conf.d beside it.  [default: /etc/ringway/ringway.toml as root]",
)
@click.option("--check", is_flag=True, help="Say what the configuration is and where each value is from.")
@click.option(
    "--log",
    type=click.Choice(["auto", "json", "text"]),
    default="auto",
    show_default=True,
    help="How to log on stderr: auto is text on a terminal, and JSON lines elsewhere.",
)
@click.option("--debug", is_flag=True, help="On an error, show where it came from as well.")
def daemon(directory: Path | None, config: Path | None, check: bool, log: str, debug: bool) -> None:
    """Keep a host's endpoints: make them, restart them, and answer for them on a unix socket.

    As root it keeps its sockets in /run/ringway and its state in /var/lib/ringway, and runs both engines.
    As anybody else it keeps them in the user's own folders and runs the user engine. Endpoints outlive it:
    neither its end nor its crash stops a guest's disk, and it finds them again when it starts.
    """
    from ringway.host.config import files_of, load

    places = _places(directory, config)
    loaded = load(files_of(places))
    if check:
        _show(places, loaded)
        return
    handler = _log_to(log)
    run_daemon = _runner()
    handler.start()
    run_daemon(places, loaded)


def _places(directory: Path | None, config: Path | None) -> Any:
    from msgspec.structs import replace

    from ringway.host import places

    if directory is not None:
        found = places.below(directory.absolute())
    else:
        found = places.of_system() if os.geteuid() == 0 else places.of_user()
    return found if config is None else replace(found, config=config, parts=config.parent / "conf.d")


def _show(places: Any, loaded: Any) -> None:
    """Each value as TOML would say it, and its origin."""
    click.echo(f"# sockets and endpoints in {places.run}, state in {places.state}")
    for value in loaded.values:
        shown = str(value.value).lower() if isinstance(value.value, bool) else value.value
        shown = f'"{shown}"' if isinstance(value.value, str) else shown
        click.echo(f"{value.name} = {shown}  # {value.origin}")


def _log_to(log: str) -> Any:
    from ringway import logs

    if log == "text" or (log == "auto" and sys.stderr.isatty()):
        return logs.log_as_text(lambda line: logs.write_line(sys.stderr.fileno(), line))
    return logs.log_as_json()


def _runner() -> Any:
    """:raises RingwayError: the packages of the daemon are missing."""
    from ringway.errors import RingwayError

    try:
        from ringway.api.daemon import run as run_daemon
    except ModuleNotFoundError as error:
        raise RingwayError(
            f"the daemon needs a package that is not installed: {error.name}",
            hint="install them: pip install 'ringway[daemon]'",
        ) from error
    return run_daemon


def main() -> NoReturn:
    """Run the program, and exit with its status."""
    run(daemon, "ringwayd")


if __name__ == "__main__":
    main()
