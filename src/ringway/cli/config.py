"""``ringway config``: a host's configuration, out and in."""

from __future__ import annotations

from typing import Any, Final

import click

from ringway.cli.format import Output
from ringway.cli.remote import (
    NounGroup,
    Performer,
    connect,
    dry_run,
    output,
    print_plan,
    read_file,
    remote,
    waiting,
)
from ringway.errors import UsageError

_EPILOG: Final = """\b
Examples:
  ringway config export > host.json && ringway plan host.json
  ringway config import --adopt --dry-run \\
      /etc/rtslib-fb-target/saveconfig.json
"""


@click.group(cls=NounGroup, epilog=_EPILOG, short_help="Export a host's endpoints; take over targetcli's.")
def config() -> None:
    """Export a host's endpoints to a file, and take over those of targetcli."""


@config.command("export")
@click.option(
    "--format",
    "dialect",
    type=click.Choice(["ringway", "targetcli", "fabric-spec"]),
    default="ringway",
    show_default=True,
    help="For ringway apply; a saveconfig.json of the kernel's endpoints; or the fabric's vhost.spec.",
)
@click.option(
    "-o", "--output", "format_", type=click.Choice(["json", "yaml"]), default="json", show_default=True
)
@remote
def export(dialect: str, format_: str, remote: str | None) -> None:
    """Print the endpoints that are wanted on this host; `ringway apply` takes it."""
    import msgspec

    found = msgspec.json.decode(connect(remote).config.export(dialect))
    if dialect == "fabric-spec":
        click.echo(found["fabric_spec"], nl=False)
    else:
        Output(format_).show_value(found)


@config.command("import")
@click.argument("file", required=False, type=click.Path(allow_dash=True))
@click.option("--adopt", is_flag=True, help="Take over live objects in place; no guest notices.")
@dry_run
@waiting
@remote
@output
def import_(file: str | None, adopt: bool, **options: Any) -> None:
    """Take over what targetcli's saveconfig.json describes, and print what was changed.

    A fabric spec file (vhost.spec) is compared with what the kernel engine drives; it changes nothing.

    With --adopt and no FILE, all is taken over that is live and foreign.
    """
    if file is None and not adopt:
        raise UsageError("there is nothing to import", hint="name a file, or take over what is live: --adopt")
    performer, saved = Performer.of(options), b"" if file is None else read_file(file)
    planned = connect(performer.socket).config.import_.plan(saved, adopt=adopt)
    if performer(lambda client: client.config.import_, saved, adopt=adopt) is not None:
        print_plan(planned, performer.output)
