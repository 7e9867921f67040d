"""``ringway guest``: libvirt's domains, and what of ours they have."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from ringway.cli import complete
from ringway.cli.format import COLOURS as STATE_COLOURS
from ringway.cli.format import Column, View, coloured, printable, table, terminal_width
from ringway.cli.guest_spec import describing, describing_a_disk, disk_spec_of, spec_of
from ringway.cli.guest_xml import xml
from ringway.cli.remote import (
    NounGroup,
    Performer,
    as_output,
    connect,
    dry_run,
    output,
    parse_timeout,
    remote,
    waiting,
)
from ringway.errors import NotFoundError, UsageError
from ringway.model import AttachmentInfo, AttachSpec, GuestDisk, GuestInfo, PlugInfo, PlugSpec
from ringway.units import format_size

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_EPILOG: Final = """\b
Examples:
  ringway guest attach web0 db0
  ringway guest attach web0 db0 --fix-memory --dry-run
  ringway guest detach web0 db0
  ringway guest attach web0 --volume v1=/srv/v1.img \\
      --block-device id=v1,source=volume,bus=virtio-scsi
  ringway guest detach web0 v1
  ringway guest xml --block-device id=v1,source=volume,bus=virtio-scsi \\
      --volume v1=/srv/v1.img
"""

#: What virsh does with the guests themselves.
_VIRSH: Final = {
    "rm": "virsh undefine",
    "delete": "virsh undefine",
    "define": "virsh define",
    "edit": "virsh edit",
    "start": "virsh start",
    "stop": "virsh shutdown",
    "shutdown": "virsh shutdown",
    "destroy": "virsh destroy",
    "reboot": "virsh reboot",
}


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


VIEW: Final = View[GuestInfo](
    {
        "name": Column(lambda found: found.name),
        "uuid": Column(lambda found: found.uuid),
        "state": Column(lambda found: found.state, coloured=True),
        "vcpus": Column(lambda found: found.vcpus, right=True),
        "memory": Column(lambda found: found.memory_bytes, format_size, right=True),
        "machine": Column(lambda found: found.machine),
        "shared": Column(lambda found: found.shared_memory, _yes_no),
        "persistent": Column(lambda found: found.persistent, _yes_no),
        "disks": Column(lambda found: len(found.disks), right=True),
        "volumes": Column(lambda found: ", ".join(one.volume for one in found.disks if one.volume) or None),
        "endpoints": Column(lambda found: ", ".join(one.endpoint for one in found.attachments) or None),
        "ports": Column(lambda found: ", ".join(one.port for one in found.ports) or None),
        "message": Column(lambda found: found.message),
    },
    ("name", "state", "vcpus", "memory", "shared", "endpoints", "volumes", "ports", "message"),
    lambda found: found.name,
)

ATTACHMENTS: Final = View[AttachmentInfo](
    {
        "guest": Column(lambda found: found.guest),
        "endpoint": Column(lambda found: found.endpoint),
        "as": Column(lambda found: found.face),
        "state": Column(lambda found: found.state, coloured=True),
        "now": Column(lambda found: found.live, _yes_no),
        "next start": Column(lambda found: found.persistent, _yes_no),
        "address": Column(lambda found: found.address),
        "migratable": Column(lambda found: found.migratable, _yes_no),
        "alias": Column(lambda found: found.alias),
        "message": Column(lambda found: found.message),
    },
    ("guest", "endpoint", "as", "state", "now", "next start", "address"),
    lambda found: f"{found.guest}/{found.endpoint}",
)

_PLUGS: Final = View[PlugInfo](
    {
        "guest": Column(lambda found: found.guest),
        "port": Column(lambda found: found.port),
        "state": Column(lambda found: found.state, coloured=True),
        "now": Column(lambda found: found.live, _yes_no),
        "next start": Column(lambda found: found.persistent, _yes_no),
        "message": Column(lambda found: found.message),
    },
    ("guest", "port", "state", "now", "next start"),
    lambda found: f"{found.guest}/{found.port}",
)

_DISKS: Final = View[GuestDisk](
    {
        "disk": Column(lambda found: found.target),
        "volume": Column(lambda found: found.volume),
        "bus": Column(lambda found: found.bus),
        "device": Column(lambda found: found.device),
        "source": Column(lambda found: found.source),
        "serial": Column(lambda found: found.serial),
        "readonly": Column(lambda found: found.readonly, _yes_no),
        "state": Column(lambda found: found.state, coloured=True),
        "now": Column(lambda found: found.live, _yes_no),
        "next start": Column(lambda found: found.persistent, _yes_no),
        "alias": Column(lambda found: found.alias),
        "message": Column(lambda found: found.message),
    },
    ("disk", "volume", "bus", "device", "source", "now", "next start"),
    lambda found: found.target,
)


def describe(found: GuestInfo) -> Iterator[str]:
    """All about a guest, for a person."""
    for name in ("name", "uuid", "state", "vcpus", "memory", "machine", "shared", "persistent"):
        column = VIEW.columns[name]
        if (value := column.value(found)) is not None:
            text = printable(column.text(value))
            yield f"{name:<11} {coloured(text, STATE_COLOURS.get(text) if column.coloured else None)}"
    if found.attachments:
        yield ""
        chosen = ATTACHMENTS.chosen("endpoint,as,state,now,next start,address,migratable")
        yield from table(found.attachments, chosen, width=terminal_width())
        said = ((each.endpoint, each.message) for each in found.attachments)
        yield from (f"{endpoint}: {printable(message)}" for endpoint, message in said if message)
    if found.ports:
        yield ""
        columns = _PLUGS.chosen("port,state,now,next start,message")
        yield from table(found.ports, columns, width=terminal_width())
    shown = {each.alias for each in found.attachments}
    if disks := [disk for disk in found.disks if disk.alias not in shown]:
        yield ""
        yield from table(disks, _DISKS.chosen(None), width=terminal_width())
        yield from (f"{disk.target}: {printable(disk.message)}" for disk in disks if disk.message)


@click.group(
    cls=NounGroup,
    elsewhere=_VIRSH,
    epilog=_EPILOG,
    short_help="Attach endpoints and disks to libvirt's guests, plug ports in.",
)
def guest() -> None:
    """Attach endpoints and plain disks to libvirt's guests, and plug network ports into them.

    GUEST is a domain's name or UUID. What is attached stays attached: the guest that runs has it at once, and
    its definition says so for the next start. Nothing else of the domain is changed.
    """


_guest = click.argument("name", metavar="GUEST", shell_complete=complete.guests)
_port = click.argument("port", shell_complete=complete.ports)
_fix_memory = click.option(
    "--fix-memory",
    is_flag=True,
    help="Make the guest's memory shared, as vhost-user needs, from its next start on.",
)


def _to(command: Decorated) -> Decorated:
    """Whom an addition is for; the command gets ``live`` and ``persistent``, or ``None`` for what suits."""
    live = click.option("--live/--no-live", default=None, help="The guest that runs.  [default: if it runs]")
    persistent = click.option(
        "--persistent/--no-persistent", default=None, help="Its next start.  [default: if it is defined]"
    )
    return live(persistent(command))


def _from(command: Decorated) -> Decorated:
    """From whom something is taken."""
    live = click.option("--live/--no-live", default=True, help="From the guest that runs.  [default: live]")
    persistent = click.option(
        "--persistent/--no-persistent", default=True, help="From its next start.  [default: persistent]"
    )
    release = click.option(
        "--release",
        "release_s",
        metavar="TIME",
        callback=parse_timeout,
        default="30s",
        show_default=True,
        help="How long the guest may take to let it go.",
    )
    return live(persistent(release(command)))


@guest.command("list")
@remote
@output
def list_(remote: str | None, **options: Any) -> None:
    """List all guests, with what is attached to them."""
    as_output(options).show_list(connect(remote).guests.list(), VIEW)


@guest.command()
@_guest
@remote
@output
def show(name: str, remote: str | None, **options: Any) -> None:
    """Show a guest, its disks, and what is attached to it."""
    as_output(options).show_one(connect(remote).guests.show(name), VIEW, describe)


@guest.command()
@_guest
@click.argument("endpoint", required=False, shell_complete=complete.endpoints)
@describing_a_disk
@_to
@click.option("--queues", type=click.IntRange(min=1), help="Request queues.  [default: the endpoint's]")
@click.option(
    "--boot-order", type=click.IntRange(min=1), help="Its place in the boot order; at a start only."
)
@click.option("--protection", is_flag=True, help="lio: let the guest use T10 protection information.")
@_fix_memory
@dry_run
@waiting
@remote
@output
def attach(name: str, endpoint: str | None, **options: Any) -> None:
    """Give a guest an endpoint: its disks come at once, and stay over a restart of the guest.

    With --block-device in place of ENDPOINT, a plain disk, which QEMU serves. With --dry-run the changes of
    the domain's XML are shown.
    """
    if (endpoint is None) is (options["block_device"] is None):
        raise UsageError(
            "a guest is given an endpoint or a disk", hint="name ENDPOINT, or say --block-device"
        )
    if endpoint is None:
        _attach_disk(name, options)
        return
    _refuse("volumes", "via", hint="say --block-device in place of ENDPOINT")
    settings = ("live", "persistent", "queues", "boot_order", "protection", "fix_memory")
    options = {key: value for key, value in options.items() if key not in ("block_device", "volumes", "via")}
    spec = AttachSpec(endpoint=endpoint, **{setting: options.pop(setting) for setting in settings})
    performer = Performer.of(options)
    found = performer(lambda client: client.guests.attach, name, spec)
    if found is not None:
        performer.output.show_list([found], ATTACHMENTS)
        performer.output.show_note(found.message)


def _attach_disk(name: str, options: dict[str, Any]) -> None:
    hint = "an order of boot is said in the mapping, as bootindex=0; a plain disk needs nothing of the others"
    for setting in ("queues", "boot_order", "protection", "fix_memory"):
        _refuse(setting, hint=hint)
        del options[setting]
    spec = disk_spec_of(name, options)
    performer = Performer.of(options)
    found = performer(lambda client: client.guests.attach_disk, name, spec)
    if found is not None:
        performer.output.show_list([found], _DISKS)
        performer.output.show_note(found.message)


def _refuse(*settings: str, hint: str) -> None:
    """:raises UsageError: one was said that means nothing here."""
    context = click.get_current_context()
    for option in context.command.params:
        said = context.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT
        if option.name in settings and said:
            raise UsageError(f"{option.opts[0]} means nothing here", hint=hint)


@guest.command()
@_guest
@click.argument("thing", metavar="ENDPOINT|DISK", shell_complete=complete.attached)
@_from
@dry_run
@waiting
@remote
@output
def detach(name: str, thing: str, live: bool, persistent: bool, release_s: float, **options: Any) -> None:
    """Take an endpoint from a guest, or a plain disk that it was given by us. What is behind it stays.

    DISK is what `ringway guest show` calls it: its volume, target, serial number or alias.
    """
    _refuse_nothing(live, persistent)
    performer = Performer.of(options)
    endpoint, disk = _meant(connect(performer.socket).guests.show(name), thing)
    performer(
        lambda client: client.guests.detach if disk is None else client.guests.detach_disk,
        name,
        endpoint if disk is None else disk,
        live=live,
        persistent=persistent,
        timeout_s=release_s,
    )


def _meant(found: GuestInfo, thing: str) -> tuple[str, str | None]:
    """Which of what a guest has is called so: an endpoint, or the alias of a disk.

    :raises NotFoundError: nothing is. :raises UsageError: an endpoint and a disk are.
    """
    endpoints = [each for each in found.attachments if thing in (each.endpoint, each.alias)]
    aliases = {each.alias for each in found.attachments}
    disks = [each for each in found.disks if thing in each.names and each.alias not in aliases]
    if endpoints and disks:
        several = ", ".join([*(each.alias for each in endpoints), *(str(each.alias) for each in disks)])
        raise UsageError(
            f"guest '{found.name}' has an endpoint and a disk that are called '{thing}'",
            hint=f"take an alias: {several}",
        )
    if not endpoints and not disks:
        raise NotFoundError(
            f"guest '{found.name}' has no endpoint and no disk '{thing}'",
            hint=f"see: ringway guest show {found.name}",
        )
    if endpoints:
        return endpoints[0].endpoint, None
    one = disks[0] if len(disks) == 1 else None
    return thing, (one.alias if one and one.volume and one.alias else thing)


@guest.command()
@_guest
@_port
@_to
@_fix_memory
@dry_run
@waiting
@remote
@output
def plug(name: str, port: str, **options: Any) -> None:
    """Give a guest a network port (see `ringway port create`).

    A guest that runs is told the port's MTU at its next start: set it in the guest until then.
    """
    settings = ("live", "persistent", "fix_memory")
    spec = PlugSpec(port=port, **{setting: options.pop(setting) for setting in settings})
    performer = Performer.of(options)
    found = performer(lambda client: client.guests.plug, name, spec)
    if found is not None:
        performer.output.show_list([found], _PLUGS)
        performer.output.show_note(found.message)


@guest.command()
@_guest
@_port
@_from
@dry_run
@waiting
@remote
@output
def unplug(name: str, port: str, live: bool, persistent: bool, release_s: float, **options: Any) -> None:
    """Take a network port from a guest. The port stays."""
    _refuse_nothing(live, persistent)
    Performer.of(options)(
        lambda client: client.guests.unplug,
        name,
        port,
        live=live,
        persistent=persistent,
        timeout_s=release_s,
    )


def _refuse_nothing(live: bool, persistent: bool) -> None:
    """:raises UsageError: it would be taken from nobody."""
    if not (live or persistent):
        raise UsageError(
            "neither the guest that runs nor its next start is meant",
            hint="leave out --no-live or --no-persistent",
        )


@guest.command(short_help="Make a guest, with its disks and ports, and start it.")
@click.argument("name")
@describing
@click.option("--start/--no-start", default=True, help="Start it.  [default: start]")
@dry_run
@waiting
@remote
@output
def create(name: str, start: bool, **options: Any) -> None:
    """Make a guest of libvirt's, with its disks and ports, and start it.

    Mappings, volumes and VIFs are written as for `ringway guest xml`. With --via endpoint, an endpoint of the
    guest's name serves its disks; ports that are not there are made. When it fails, nothing of it is left.
    """
    spec = spec_of(name, options, start=start)
    performer = Performer.of(options)
    found = performer(lambda client: client.guests.create, spec)
    if found is not None:
        performer.output.show_list([found], VIEW)


@guest.command(short_help="Connect to a guest's serial console; Ctrl-] leaves it.")
@_guest
@click.option("--connect", "uri", metavar="URI", help="Which libvirt.  [default: virsh's own]")
@click.option("--force", is_flag=True, help="Take it from whoever has it.")
def console(name: str, uri: str | None, force: bool) -> None:
    """Connect to a guest's serial console, by virsh; Ctrl-] leaves it. No daemon is asked."""
    words = ["virsh", *(["--connect", uri] if uri else []), "console", *(["--force"] if force else [])]
    try:
        os.execvp("virsh", [*words, "--", name])
    except FileNotFoundError as error:
        raise NotFoundError("virsh is not there", hint="Debian's package is libvirt-clients") from error


guest.add_command(xml)
