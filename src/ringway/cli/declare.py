"""``ringway plan`` and ``ringway apply``: a host as a file says it shall be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from ringway.cli.remote import (
    Performer,
    as_output,
    connect,
    dry_run,
    output,
    print_plan,
    read_file,
    remote,
    waiting,
)
from ringway.errors import UsageError

if TYPE_CHECKING:
    from ringway.model import HostConfig

_EPILOG: Final = """\b
A file is TOML, or JSON if its name ends in .json or it begins with a brace:
  [[endpoint]]
  name = "db0"
  luns = ["0=/dev/vg0/db0", "1=/srv/logs.img,readonly"]

\b
What an endpoint may say is what `ringway config export` shows; a disk may be
written as above. Relative paths begin at the file's directory.
"""


_file = click.argument("file", type=click.Path(allow_dash=True))
_prune = click.option("--prune", is_flag=True, help="Endpoints that FILE does not name are deleted.")


@click.command(epilog=_EPILOG, short_help="Say what `ringway apply` would change.")
@_file
@_prune
@remote
@output
def plan(file: str, prune: bool, remote: str | None, **options: Any) -> None:
    """Say what it would take to make this host as FILE says. Nothing is changed."""
    print_plan(connect(remote).config.plan(read_config(file), prune=prune), as_output(options))


@click.command(epilog=_EPILOG, short_help="Make this host's endpoints as a file says.")
@_file
@_prune
@click.option("--force", is_flag=True, help="What a guest uses is taken away all the same.")
@dry_run
@waiting
@remote
@output
def apply(file: str, prune: bool, force: bool, **options: Any) -> None:
    """Make this host's endpoints as FILE says, each of them wholly or not at all.

    Endpoints that FILE does not name stay as they are. What was changed is printed. An endpoint that would
    take a disk from a guest is not changed, unless --force is given.
    """
    performer = Performer.of(options)
    wanted = read_config(file)
    planned = connect(performer.socket).config.plan(wanted, prune=prune)
    if performer(lambda client: client.config.apply, wanted, prune=prune, force=force) is not None:
        print_plan(planned, performer.output)


def read_config(file: str) -> HostConfig:
    """Read a file. :raises UsageError: it is no such file; says where it goes wrong."""
    text = read_file(file)
    folder = os.getcwd() if file == "-" else os.path.dirname(os.path.abspath(file))
    return parse_config(text, file, folder)


def parse_config(text: bytes, name: str, folder: str) -> HostConfig:
    """Parse a configuration.

    :param name: for messages, and to tell JSON from TOML. :param folder: where relative paths begin.
    :raises UsageError: it is none.
    """
    import msgspec

    from ringway.model import HostConfig
    from ringway.model.validation import reason

    try:
        data = _without_notation(_parsed(text, name), folder)
        return msgspec.convert(data, HostConfig)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"'{name}' is no configuration: {reason(error, data)}", hint="see ringway plan --help"
        ) from error
    except ValueError as error:
        raise UsageError(f"'{name}' is no configuration: {error}", hint="see ringway plan --help") from error


def _parsed(text: bytes, name: str) -> Any:
    """:raises ValueError: neither TOML nor JSON."""
    if name.endswith(".json") or text.lstrip().startswith(b"{"):
        import msgspec

        return msgspec.json.decode(text)
    import tomllib

    return tomllib.loads(text.decode())


def _without_notation(data: Any, folder: str) -> Any:
    """The same with each disk as a table, and each path from the root. What is no endpoint stays as it is."""
    endpoints = data.get("endpoint") if isinstance(data, dict) else None
    if not isinstance(endpoints, list):
        return data
    return {**data, "endpoint": [_endpoint(each, folder) for each in endpoints]}


def _endpoint(data: Any, folder: str) -> Any:
    luns = data.get("luns") if isinstance(data, dict) else None
    if not isinstance(luns, list):
        return data
    return {**data, "luns": [_lun(lun, folder) for lun in luns]}


def _lun(data: Any, folder: str) -> Any:
    if isinstance(data, str):
        import msgspec

        from ringway.notation import parse_lun

        data = msgspec.to_builtins(parse_lun(data, host=True))
    backstore = data.get("backstore") if isinstance(data, dict) else None
    if not isinstance(backstore, dict) or backstore.get("kind") not in ("path", "pscsi"):
        return data
    path = backstore.get("path")
    if not isinstance(path, str):
        return data
    return {**data, "backstore": {**backstore, "path": os.path.normpath(os.path.join(folder, path))}}
