"""``ringway guest xml``: the XML of disks and ports, without a daemon and without libvirt."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ringway.cli.format import printable
from ringway.cli.guest_spec import describing, given, spec_of
from ringway.cli.remote import read_file
from ringway.errors import NotFoundError, UsageError
from ringway.model import EndpointSpec, EngineKind, GuestSpec, Via

if TYPE_CHECKING:
    from ringway.guest.catalogue import Catalogue
    from ringway.guest.document import Document
    from ringway.guest.fresh import Fresh, Put

_TAG: Final = re.compile(r"(<[\w:]+).*", re.DOTALL)
_MAPPINGS: Final = ("nova", "openstack", "json", "toml")
_RUN: Final = "/run/ringway/endpoint"
_ALONE: Final = "guest"  #: of elements that are for no domain yet
_EPILOG: Final = """\b
Examples:
  ringway guest xml --new web0 --memory 2G --volume root=/srv/web0.img \\
      --block-device id=root,source=volume,bus=virtio-scsi,bootindex=0
  ringway guest xml web0.xml --volume data=/dev/sdb -o diff \\
      --block-device id=data,source=volume,bus=virtio-scsi,type=lun
  virsh dumpxml --inactive web0 | ringway guest xml - --via endpoint \\
      --block-device id=/srv/data.img,source=volume > web0.xml
  ringway guest xml --vif id=net0,socket=/run/vpp/net0.sock,mode=client
  ringway guest xml --block-device mapping.json -o nova

\b
A block device is a mapping as novaclient or openstackclient writes it, or the
path of openstackclient's JSON file or of a TOML file with tables
[[block_device]]:
  id=ID|PATH,source=volume|image|snapshot|blank,dest=volume|local,
  bus=scsi|virtio|sata|ide|usb|fdc,type=disk|lun|cdrom|floppy,
  bootindex=N,device=sda,size=GIB,tag=TEXT,volume_type=TEXT
  uuid=...,source_type=...,destination_type=...,disk_bus=...,
  device_type=...,boot_index=...

\b
bus=scsi and bus=virtio-scsi are a virtio-scsi controller: one that the domain
has, or a new one. type=lun passes the guest's SCSI commands on, and takes a
whole SCSI device of this host.

\b
A VIF is id=NAME,socket=PATH and mode=client|server, mac, queues, rx, tx, mtu,
reconnect=SECONDS. mode is QEMU's part: a client connects to the switch's
socket, a server listens for the switch.
"""


@click.command(epilog=_EPILOG, short_help="Print the XML of disks and ports; nothing is touched.")
@click.argument("domain", required=False, metavar="[DOMAIN.xml|-]")
@click.option("--new", "new", metavar="NAME", help="A whole new domain of this name.")
@describing
@click.option("--endpoint", metavar="NAME", help="The endpoint's name.  [default: the domain's]")
@click.option(
    "--sockets",
    metavar="FOLDER",
    default=_RUN,
    show_default=True,
    help="Where the daemon keeps its endpoints' sockets.",
)
@click.option(
    "--validate",
    is_flag=True,
    help="Ask libvirt's schema and its QEMU driver whether they take it. The driver sees each port as a tap: "
    "of its socket it says nothing.",
)
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["xml", "elements", "diff", *_MAPPINGS]),
    default="xml",
    show_default=True,
    help="XML, the new elements alone, what changes in DOMAIN, or the mappings in another form.",
)
def xml(**options: Any) -> None:
    """Print the XML of disks and network ports. No daemon is asked, and nothing is touched.

    With DOMAIN, the user's own document with them put in; with --new, a whole new domain; otherwise the
    elements alone, and what they need of a domain besides. With -o elements, only what `virsh attach-device`
    takes, one after the other.
    """
    from ringway.guest.mappings import Form, write
    from ringway.net.drivers import refuse_unknown

    _refuse_idle(options)
    asked = _Asked(spec=spec_of(options["new"] or _ALONE, options), **options)
    if asked.form in _MAPPINGS:
        asked.check_mappings()
        click.echo(write(asked.spec.block_devices, Form(asked.form)).rstrip("\n"))
        return
    asked.check()
    for port in asked.spec.ports:
        refuse_unknown(port.switch)
    _check_extra()
    before, document, elements, made = _made(asked)
    if asked.validate:
        _validate(document)
    _print(asked, before, document, elements)
    for note in (*_besides(asked, before, document), *_notes(asked, made)):
        click.echo(f"{click.style('note:', fg='cyan', bold=True)} {printable(note)}", err=True)


def _refuse_idle(options: Mapping[str, Any]) -> None:
    """:raises UsageError: an option that would have no effect with the others."""
    there = given()
    if options["form"] in _MAPPINGS:
        _refuse(there - {"block_devices", "form"}, f"-o {options['form']} prints the mappings alone")
    if options["new"] is None:
        _refuse(there & {"memory", "vcpus", "emulate"}, "it is of a new domain", "say --new as well")
    if options["via"] != Via.ENDPOINT:
        _refuse(there & {"endpoint", "sockets"}, "it is of endpoints", "say --via endpoint as well")
    if options["engine"] == EngineKind.LIO:
        _refuse(there & {"sockets"}, "the kernel's endpoints have none")


def _refuse(names: Collection[str], reason: str, hint: str = "leave it away") -> None:
    """:raises UsageError: there are any; names the first, as it is typed."""
    for parameter in click.get_current_context().command.params:
        if parameter.name in names:
            shown = parameter.opts[0] if isinstance(parameter, click.Option) else "DOMAIN"
            raise UsageError(f"{shown} has no effect: {reason}", hint=hint)


def _check_extra() -> None:
    """:raises NotFoundError: what edits XML is not installed."""
    if importlib.util.find_spec("lxml") is None:
        raise NotFoundError("lxml is not installed", hint="pip install 'ringway[guest]'")


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The command line."""

    domain: str | None
    new: str | None
    spec: GuestSpec
    endpoint: str | None
    sockets: str
    validate: bool
    form: str

    def check(self) -> None:
        """:raises UsageError: options that do not go together."""
        if self.domain is not None and self.new is not None:
            raise UsageError("a domain is new, or there already", hint="leave --new or DOMAIN away")
        if self.form == "diff" and self.domain is None:
            raise UsageError("-o diff needs a domain to compare with", hint="name a file, or - for stdin")
        if self.form == "elements" and self.new is not None:
            raise UsageError("-o elements is for a domain that is there", hint="leave --new away")
        if self.new is None and not self.spec.block_devices and not self.spec.ports:
            raise UsageError("nothing to put into XML", hint="say --block-device, --vif or --new")

    def check_mappings(self) -> None:
        """:raises UsageError: there are none to write in another form."""
        if not self.spec.block_devices:
            raise UsageError(f"there are no mappings to write as {self.form}", hint="say --block-device")

    def socket(self, endpoint: str) -> str:
        """Where the daemon's socket of an endpoint is."""
        return os.path.join(os.path.abspath(self.sockets), f"{endpoint}.sock")


def _catalogue(spec: GuestSpec) -> Catalogue:
    from ringway.guest.catalogue import Catalogue

    return Catalogue(spec.volumes, spec.pools)


def _made(asked: _Asked) -> tuple[str, Document, tuple[str, ...], Fresh | Put]:
    """The XML before, the document, the elements that were put in, and what it needs."""
    from ringway.guest import fresh

    spec = asked.spec
    if asked.new is not None:
        made = fresh.fresh(spec, _catalogue(spec), asked.socket, name=asked.endpoint, kvm=not spec.emulate)
        return "", made.document, (), made
    document = _document(asked, spec)
    before = document.xml
    put = fresh.put(document, spec, _catalogue(spec), asked.socket, name=asked.endpoint)
    return before, document, put.elements, put


def _document(asked: _Asked, spec: GuestSpec) -> Document:
    """The user's, or one for elements alone. :raises UsageError: it is none."""
    from ringway.guest.document import Document
    from ringway.guest.fresh import bare

    if asked.domain is None:  # whose it will be, nobody knows: its MAC addresses are no other domain's
        return bare(spec, uuid=str(uuid.uuid4()))
    try:
        return Document(read_file(asked.domain, "a domain").decode())
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
    elif asked.form == "elements":
        click.echo("\n".join(elements))
    elif asked.domain is None and asked.new is None:
        click.echo("\n".join((*elements, *surroundings(document))))
    else:
        click.echo(document.xml, nl=not document.xml.endswith("\n"))


def _besides(asked: _Asked, before: str, document: Document) -> Iterator[str]:
    """What of the domain changes and is none of the elements that are printed."""
    from ringway.guest.document import Document
    from ringway.guest.fresh import surroundings

    if asked.form == "elements":
        there = surroundings(Document(before))
        texts = [text for text in surroundings(document) if text not in there]
        if tags := " and ".join(_TAG.sub(r"\1>", text) for text in texts):
            yield f"virsh attach-device does not give the domain what they need besides: {tags}"


def _notes(asked: _Asked, made: Fresh | Put) -> Iterator[str]:
    from ringway.guest.base import NOT_MOVABLE
    from ringway.guest.vifs import notes

    for disk in made.disks:
        if disk.volume.resolver is not None:
            yield (
                f"volume '{disk.mapping}' is not connected by this: the resolver '{disk.volume.resolver}' "
                "brings it here for ringway guest create, and its path may be another then"
            )
    for spec in made.endpoints.specs:
        yield f"first: {_creation(spec)}"
        if spec.engine is EngineKind.LIO:
            yield NOT_MOVABLE
    for port in asked.spec.ports:
        yield from notes(port)


def _creation(spec: EndpointSpec) -> str:
    """The command that makes an endpoint."""
    words = ["ringway", "endpoint", "create", spec.name]
    if spec.engine is EngineKind.LIO:
        words += ["--engine", "lio", "--wwpn", spec.wwpn or ""]
    else:
        words += ["--device", str(spec.device), "--queues", str(spec.queues)]
    for lun in spec.luns:
        path = (lun.backstore.path or "").replace(",", ",,")
        serial = f",serial={lun.backstore.serial}" if lun.backstore.serial else ""
        readonly = ",readonly" if lun.backstore.readonly else ""
        words += ["--lun", f"{lun.lun}={path}{serial}{readonly}"]
    return shlex.join(words)
