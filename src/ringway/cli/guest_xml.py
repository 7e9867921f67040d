"""``ringway guest xml``: the XML of disks and ports, without a daemon and without libvirt."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ringway.cli.format import printable
from ringway.cli.remote import read_file
from ringway.errors import NotFoundError, UsageError
from ringway.model import EndpointSpec, GuestSpec, PortSpec, Via
from ringway.units import parse_size

if TYPE_CHECKING:
    from ringway.guest.document import Document
    from ringway.guest.layout import Endpoints
    from ringway.guest.volumes import Catalogue

_FORMS: Final = ("xml", "diff", "nova", "openstack", "json", "toml")
_RUN: Final = "/run/ringway/endpoint"
_ALONE: Final = "guest"  #: of elements that are for no domain yet
_EPILOG: Final = """\b
Examples:
  ringway guest xml --new web0 --memory 2G --vcpus 2 --volume root=/srv/web0.img \\
      --block-device id=root,source=volume,bus=virtio-scsi,bootindex=0 --validate
  ringway guest xml web0.xml --volume data=/dev/sdb \\
      --block-device id=data,source=volume,dest=volume,bus=virtio-scsi,type=lun -o diff
  virsh dumpxml --inactive web0 | ringway guest xml - --via endpoint \\
      --block-device id=/srv/data.img,source=volume > web0.xml
  ringway guest xml --vif id=net0,socket=/run/vpp/net0.sock,mode=client,queues=2
  ringway guest xml --block-device mapping.json -o nova

\b
A block device is a mapping as novaclient or openstackclient writes it, or the path of openstackclient's JSON
file or of a TOML file with tables [[block_device]]:
  id=ID|PATH,source=volume|image|snapshot|blank,dest=volume|local,bus=scsi|virtio|sata|ide|usb|fdc,
  type=disk|lun|cdrom|floppy,bootindex=N,device=sda,size=GIB,tag=TEXT,volume_type=TEXT
  uuid=...,source_type=...,destination_type=...,disk_bus=...,device_type=...,boot_index=...

\b
bus=scsi and bus=virtio-scsi are a virtio-scsi controller: one that the domain has, or a new one.
type=lun passes the guest's SCSI commands on, and takes a whole SCSI device of this host.

\b
A VIF is id=NAME,socket=PATH and mode=client|server, mac, queues, rx, tx, mtu, reconnect=SECONDS.
mode is QEMU's part: a client connects to the switch's socket, a server listens for the switch.
"""


def _size(_ctx: click.Context, _parameter: click.Parameter, text: str) -> int:
    return parse_size(text)


@click.command(epilog=_EPILOG, short_help="Print the XML of disks and ports; nothing is touched.")
@click.argument("domain", required=False, metavar="[DOMAIN.xml|-]")
@click.option("--new", "new", metavar="NAME", help="A whole new domain of this name.")
@click.option(
    "--block-device",
    "block_devices",
    multiple=True,
    metavar="MAPPING|FILE",
    help="A disk, as novaclient or openstackclient writes it; repeatable.",
)
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    metavar="ID=PATH",
    help="Where a volume's bytes are; with format=qcow2 and readonly behind commas; repeatable.",
)
@click.option(
    "--pool",
    "pools",
    multiple=True,
    metavar="[TYPE=]FOLDER",
    help="Where blank volumes (of a type) will be made; repeatable.",
)
@click.option("--vif", "vifs", multiple=True, metavar="PORT", help="A vhost-user network port; repeatable.")
@click.option(
    "--via",
    type=click.Choice([*map(str, Via)]),
    default="qemu",
    show_default=True,
    help="Who serves the disks: QEMU itself, or an endpoint of the daemon's.",
)
@click.option("--endpoint", metavar="NAME", help="The endpoint's name.  [default: the domain's]")
@click.option(
    "--sockets",
    metavar="FOLDER",
    default=_RUN,
    show_default=True,
    help="Where the daemon keeps its endpoints' sockets.",
)
@click.option(
    "--memory", callback=_size, metavar="SIZE", default="1G", show_default=True, help="Of a new domain."
)
@click.option("--vcpus", type=click.IntRange(1, 4096), default=1, show_default=True, help="Of a new domain.")
@click.option("--iothreads", type=click.IntRange(0, 256), default=0, help="I/O threads of a new controller.")
@click.option(
    "--queues", type=click.IntRange(1, 256), help="Of a new controller or endpoint; else one a vCPU."
)
@click.option("--emulate", is_flag=True, help="A new domain without KVM.")
@click.option(
    "--validate", is_flag=True, help="Ask libvirt's schema and its QEMU driver whether they take it."
)
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(_FORMS),
    default="xml",
    show_default=True,
    help="XML, what changes in DOMAIN, or the mappings in another form.",
)
def xml(**options: Any) -> None:
    """Print the XML of disks and network ports. No daemon is asked, and nothing is touched.

    With DOMAIN, the user's own document with them put in; with --new, a whole new domain; otherwise the
    elements alone.
    """
    from ringway.guest.mappings import Form, read_all, write

    asked = _Asked(**{name: options[name] for name in _Asked.__struct_fields__})
    if asked.form not in ("xml", "diff"):
        click.echo(write(read_all(asked.block_devices), Form(asked.form)).rstrip("\n"))
        return
    asked.check()
    _check_extra()
    before, document, elements, served = _made(asked)
    if asked.validate:
        _validate(document)
    _print(asked, before, document, elements)
    for note in _notes(asked, served):
        click.echo(f"{click.style('note:', fg='cyan', bold=True)} {printable(note)}", err=True)


def _check_extra() -> None:
    """:raises NotFoundError: what edits XML is not installed."""
    if importlib.util.find_spec("lxml") is None:
        raise NotFoundError("lxml is not installed", hint="pip install 'ringway[guest]'")


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The command line."""

    domain: str | None
    new: str | None
    block_devices: tuple[str, ...]
    volumes: tuple[str, ...]
    pools: tuple[str, ...]
    vifs: tuple[str, ...]
    via: str
    endpoint: str | None
    sockets: str
    memory: int
    vcpus: int
    iothreads: int
    queues: int | None
    emulate: bool
    validate: bool
    form: str

    def check(self) -> None:
        """:raises UsageError: options that do not go together."""
        if self.domain is not None and self.new is not None:
            raise UsageError("a domain is new, or there already", hint="leave --new or DOMAIN away")
        if self.form == "diff" and self.domain is None:
            raise UsageError("-o diff needs a domain to compare with", hint="name a file, or - for stdin")
        if self.new is None and not self.block_devices and not self.vifs:
            raise UsageError("nothing to put into XML", hint="say --block-device, --vif or --new")

    def spec(self) -> GuestSpec:
        """The guest as it would be new. :raises UsageError: a mapping, a volume or a port is wrong."""
        from ringway.guest.mappings import read_all
        from ringway.guest.volumes import parse_pool, parse_volume

        fields = {
            "name": self.new or _ALONE,
            "memory_bytes": self.memory,
            "vcpus": self.vcpus,
            "queues": self.queues,
            "iothreads": self.iothreads,
            "block_devices": read_all(self.block_devices),
            "volumes": _once(map(parse_volume, self.volumes), "volume"),
            "pools": _once(map(parse_pool, self.pools), "pool"),
            "ports": self.ports(),
            "via": self.via,
        }
        try:
            return msgspec.convert(fields, GuestSpec)
        except msgspec.ValidationError as error:
            raise UsageError(f"no such guest is possible: {error}", hint="see --help") from error

    def ports(self) -> tuple[PortSpec, ...]:
        """:raises UsageError: one is wrong."""
        from ringway.guest.vifs import parse_vif

        return tuple(map(parse_vif, self.vifs))

    def socket(self, endpoint: str) -> str:
        """Where the daemon's socket of an endpoint is."""
        return os.path.join(os.path.abspath(self.sockets), f"{endpoint}.sock")


def _once(pairs: Iterator[tuple[str, str]], what: str) -> dict[str, str]:
    """:raises UsageError: one comes twice."""
    found = dict[str, str]()
    for name, value in pairs:
        if name in found:
            raise UsageError(f"the {what} '{name}' is named twice", hint="leave one away")
        found[name] = value
    return found


def _catalogue(spec: GuestSpec) -> Catalogue:
    from ringway.guest.volumes import Catalogue

    return Catalogue(spec.volumes, spec.pools)


def _made(asked: _Asked) -> tuple[str, Document, tuple[str, ...], Endpoints]:
    """The XML before, the document, the elements that were put in, and endpoints that it needs."""
    from ringway.guest import fresh

    spec = asked.spec()
    if asked.new is not None:
        made = fresh.fresh(spec, _catalogue(spec), asked.socket, name=asked.endpoint, kvm=not asked.emulate)
        return "", made.document, (), made.endpoints
    document = _document(asked, spec)
    before = document.xml
    put = fresh.put(document, spec, _catalogue(spec), asked.socket, name=asked.endpoint)
    return before, document, put.elements, put.endpoints


def _document(asked: _Asked, spec: GuestSpec) -> Document:
    """The user's, or one for elements alone. :raises UsageError: it is none."""
    from ringway.guest.document import Document
    from ringway.guest.fresh import bare

    if asked.domain is None:
        return bare(spec, kvm=not asked.emulate)
    try:
        return Document(read_file(asked.domain).decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"'{asked.domain}' is no UTF-8: {error}", hint="see virsh dumpxml") from error


def _validate(document: Document) -> None:
    """:raises RingwayError: libvirt's schema or its driver does not take it."""
    from ringway.guest.document import native, validate

    validate(document.xml)
    native(document.xml)


def _print(asked: _Asked, before: str, document: Document, elements: tuple[str, ...]) -> None:
    from ringway.guest.document import difference
    from ringway.guest.fresh import surroundings

    if asked.form == "diff":
        click.echo(difference(before, document.xml), nl=False)
    elif asked.domain is None and asked.new is None:
        click.echo("\n".join((*elements, *surroundings(document))))
    else:
        click.echo(document.xml, nl=not document.xml.endswith("\n"))


def _notes(asked: _Asked, served: Endpoints) -> Iterator[str]:
    from ringway.guest.vifs import notes

    for spec in served.specs:
        yield f"first: {_creation(spec)}"
    for port in asked.ports():
        yield from notes(port)


def _creation(spec: EndpointSpec) -> str:
    """The command that makes an endpoint."""
    words = [
        "ringway",
        "endpoint",
        "create",
        spec.name,
        "--device",
        str(spec.device),
        "--queues",
        str(spec.queues),
    ]
    for lun in spec.luns:
        path = (lun.backstore.path or "").replace(",", ",,")
        serial = f",serial={lun.backstore.serial}" if lun.backstore.serial else ""
        readonly = ",readonly" if lun.backstore.readonly else ""
        words += ["--lun", f"{lun.lun}={path}{serial}{readonly}"]
    return shlex.join(words)
