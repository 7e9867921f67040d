"""The options that describe a guest, for XML of it and for the guest itself, or one disk of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from ringway.errors import UsageError
from ringway.model import BlockDevice, DiskBus, DiskSpec, EngineKind, GuestSpec, Via, is_name
from ringway.model.validation import reason
from ringway.units import parse_size

_AS_GIVEN: Final = ("vcpus", "queues", "iothreads", "via", "engine", "emulate")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _size(_ctx: click.Context, _parameter: click.Parameter, text: str) -> int:
    return parse_size(text)


_VOLUME: Final = click.option(
    "--volume",
    "volumes",
    multiple=True,
    metavar="ID=PATH",
    help="Where a volume's bytes are; with format=qcow2 and readonly behind commas; repeatable.",
)
_VIA: Final = click.option(
    "--via",
    type=click.Choice([*map(str, Via)]),
    default="qemu",
    show_default=True,
    help="Who serves the disks: QEMU itself, or an endpoint of the daemon's.",
)
_OPTIONS: Final = (
    click.option(
        "--block-device",
        "block_devices",
        multiple=True,
        metavar="MAPPING|FILE",
        help="A disk, as novaclient or openstackclient writes it; repeatable.",
    ),
    _VOLUME,
    click.option(
        "--pool",
        "pools",
        multiple=True,
        metavar="[TYPE=]FOLDER",
        help="Where blank volumes (of a type) will be made; repeatable.",
    ),
    click.option(
        "--vif", "vifs", multiple=True, metavar="PORT", help="A vhost-user network port; repeatable."
    ),
    _VIA,
    click.option(
        "--engine",
        type=click.Choice([*map(str, EngineKind)]),
        help="Of that endpoint: our own target, or the kernel's.  [default: user]",
    ),
    click.option(
        "--memory",
        callback=_size,
        metavar="SIZE",
        default="1G",
        show_default=True,
        help="Of a new domain.",
    ),
    click.option(
        "--vcpus", type=click.IntRange(1, 4096), default=1, show_default=True, help="Of a new domain."
    ),
    click.option(
        "--iothreads",
        type=click.IntRange(0, 256),
        metavar="COUNT",
        default=0,
        help="QEMU's I/O threads, for new virtio-scsi controllers and virtio disks.",
    ),
    click.option(
        "--queues",
        type=click.IntRange(1, 256),
        metavar="COUNT",
        help="Of a new controller, virtio disk or endpoint.  [default: one a vCPU]",
    ),
    click.option("--emulate", is_flag=True, help="A new domain without KVM."),
)


def given() -> frozenset[str]:
    """The names of the parameters of the command that runs that were not left away."""
    context = click.get_current_context()
    left_away = (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return frozenset(name for name in context.params if context.get_parameter_source(name) not in left_away)


def describing(command: Decorated) -> Decorated:
    """The options; the command gives what it got to :func:`spec_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def describing_a_disk(command: Decorated) -> Decorated:
    """The options of one plain disk; the command gives what it got to :func:`disk_spec_of`."""
    mapping = click.option(
        "--block-device",
        "block_device",
        metavar="MAPPING|FILE",
        help="A plain disk, which QEMU serves, as novaclient or openstackclient writes it.",
    )
    return mapping(_VOLUME(_VIA(command)))


def disk_spec_of(guest: str, options: dict[str, Any]) -> DiskSpec:
    """Take the options of one disk out of a command's.

    :raises UsageError: the mapping or a volume is wrong, or there are several; or it shall be an endpoint's,
        which takes two commands: they are spelled out.
    """
    from ringway.guest.mapping_files import read
    from ringway.guest.volumes import parse_volume

    devices = read(options.pop("block_device"))
    if len(devices) != 1:
        raise UsageError("a guest is given one disk at a time", hint="say each in a command of its own")
    volumes = _once(map(parse_volume, options.pop("volumes")), "volume")
    _check_named(volumes, {devices[0].id})
    if Via(options.pop("via")) is Via.ENDPOINT:
        raise UsageError(
            "--via endpoint is for guests that are made: here the endpoint is made first, and then attached",
            hint=" && ".join(_by_endpoint(guest, devices[0], volumes)),
        )
    live, persistent = options.pop("live"), options.pop("persistent")
    return DiskSpec(block_device=devices[0], volumes=volumes, live=live, persistent=persistent)


def _by_endpoint(guest: str, device: BlockDevice, volumes: dict[str, str]) -> tuple[str, str]:
    """The two commands that serve a disk to a guest through an endpoint."""
    name = device.id if device.id and is_name(device.id) else "NAME"
    path = volumes.get(device.id or "", device.id if (device.id or "").startswith("/") else "PATH")
    kind = ["--device", "blk"] if device.place is DiskBus.VIRTIO else []
    words = ["ringway", "endpoint", "create", name, *kind, "--lun", f"0={path}"]
    return shlex.join(words), shlex.join(["ringway", "guest", "attach", guest, name])


def spec_of(name: str, options: dict[str, Any], **more: Any) -> GuestSpec:
    """Take the options out of a command's. :raises UsageError: a mapping, a volume or a port is wrong."""
    import msgspec

    from ringway.guest.mapping_files import read_all
    from ringway.guest.vifs import parse_vif
    from ringway.guest.volumes import parse_pool, parse_volume

    devices = read_all(options.pop("block_devices"))
    volumes = _once(map(parse_volume, options.pop("volumes")), "volume")
    _check_named(volumes, {device.id for device in devices})
    fields = {
        "name": name,
        "memory_bytes": options.pop("memory"),
        "block_devices": devices,
        "volumes": volumes,
        "pools": _once(map(parse_pool, options.pop("pools")), "pool"),
        "ports": tuple(map(parse_vif, options.pop("vifs"))),
        **{field: options.pop(field) for field in _AS_GIVEN},
        **more,
    }
    try:
        return msgspec.convert(fields, GuestSpec)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"no such guest is possible: {reason(error, fields)}", hint="see: ringway guest create --help"
        ) from error


def _check_named(volumes: Collection[str], named: Collection[str | None]) -> None:
    """:raises UsageError: a volume is in no mapping, so the guest would not have it."""
    for volume in volumes:
        if volume not in named:
            raise UsageError(
                f"no --block-device names the volume '{volume}'",
                hint=f"add --block-device id={volume},source=volume, or leave the volume away",
            )


def _once(pairs: Iterator[tuple[str, str]], what: str) -> dict[str, str]:
    """:raises UsageError: one comes twice."""
    found = dict[str, str]()
    for name, value in pairs:
        if name in found:
            raise UsageError(f"the {what} '{name}' is named twice", hint="leave one away")
        found[name] = value
    return found
