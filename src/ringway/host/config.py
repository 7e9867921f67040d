"""The configuration: TOML files, the last one wins, and each value remembers where it came from."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from ringway.errors import UsageError
from ringway.host.places import Places
from ringway.model.validation import reason

BUILT_IN: Final = "built in"


class LogLevel(StrEnum):
    """What is worth a line of log."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Period = Annotated[
    float, Meta(ge=1, le=3600, description="Seconds between two comparisons of what is wanted with what is.")
]
Parallel = Annotated[int, Meta(ge=1, le=64, description="Endpoints that are restored at once.")]
Level = Annotated[LogLevel, Meta(description="What is worth a line of log: debug, info, warning or error.")]
Connections = Annotated[int, Meta(ge=8, le=4096, description="Open connections of each socket, at most.")]
Enabled = Annotated[bool, Meta(description="Whether this daemon runs the engine.")]
KernelEnabled = Annotated[
    bool | None,
    Meta(description="The same; if it is not said, root's daemon does, but not with --directory."),
]
AdminGroup = Annotated[str, Meta(description="Who may change things, which is as good as root.")]
ReadGroup = Annotated[str, Meta(description="Who may look.")]
SocketGroup = Annotated[
    str | None,
    Meta(
        description="The group of the sockets that front ends connect to; "
        "if it is not said, kvm, and with --directory nobody else's."
    ),
]
TargetUser = Annotated[str, Meta(description="Who targets are; empty: of root's, each a user of its own.")]
GuestsEnabled = Annotated[
    bool | None,
    Meta(description="Whether it knows libvirt's guests; if it is not said, root's daemon does."),
]
Uri = Annotated[str, Meta(description="Which libvirt.")]
QemuUser = Annotated[
    str | None,
    Meta(
        description="Who libvirt runs QEMU as, whose rights decide where ports' sockets lie; "
        "if it is not said, libvirt-qemu or qemu, whoever is there, and with --directory who runs the daemon."
    ),
]
Switches = Annotated[
    dict[str, dict[str, str]],
    Meta(description="What each switch's driver is told, as in `[net.switch.ovs]`."),
]
Configfs = Annotated[str, Meta(description="Where the kernel's target is mounted.")]
Sysfs = Annotated[str, Meta(description="Where sysfs is mounted.")]
Kmsg = Annotated[str, Meta(description="The kernel's log, which its reasons are read from.")]


class DaemonConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How the daemon works."""

    reconcile_s: Period = 30.0
    parallel: Parallel = 8
    log_level: Level = LogLevel.INFO


class ApiConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may come by the sockets that the daemon makes; systemd's own say it themselves."""

    admin_group: AdminGroup = "ringway-admin"
    read_group: ReadGroup = "ringway"
    connections: Connections = 256


class UserConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The user engine."""

    enabled: Enabled = True
    group: SocketGroup = None
    user: TargetUser = ""


class LioConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The kernel engine."""

    enabled: KernelEnabled = None
    configfs: Configfs = "/sys/kernel/config/target"
    sysfs: Sysfs = "/sys"
    kmsg: Kmsg = "/dev/kmsg"


class GuestsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Guests, which are libvirt's."""

    enabled: GuestsEnabled = None
    uri: Uri = "qemu:///system"


class NetConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Ports, and the switches that they are of."""

    qemu_user: QemuUser = None
    switch: Switches = {}


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """All tables of the files."""

    daemon: DaemonConfig = DaemonConfig()
    api: ApiConfig = ApiConfig()
    user: UserConfig = UserConfig()
    lio: LioConfig = LioConfig()
    guests: GuestsConfig = GuestsConfig()
    net: NetConfig = NetConfig()


class Value(Struct, frozen=True):
    """A value, and the file that set it."""

    name: str  #: ``daemon.reconcile_s``
    value: Any
    origin: str


class Loaded(Struct, frozen=True):
    """A configuration, and where its values came from."""

    config: Config
    values: tuple[Value, ...]

    def differences(self, other: Loaded) -> tuple[str, ...]:
        """The names of the values that differ."""
        theirs = {value.name: value.value for value in other.values}
        return tuple(value.name for value in self.values if theirs[value.name] != value.value)


def files_of(places: Places) -> list[Path]:
    """The files that exist, in the order in which they are read."""
    main = [places.config] if places.config.exists() else []
    return main + sorted(places.parts.glob("*.toml"))


def load(files: list[Path]) -> Loaded:
    """Read all files.

    :raises UsageError: one cannot be read, is no TOML, or names what is not known or out of range; it says
        which file and which value.
    """
    merged: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    for path in files:
        tables = _read(path)
        _convert(tables, path)  # by itself, so that the message names the right file
        for table, values in tables.items():
            merged.setdefault(table, {}).update(values)
            origins.update({f"{table}.{name}": str(path) for name in values})
    config = msgspec.convert(merged, Config)
    return Loaded(config, tuple(_values(config, origins)))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"'{path}' is no TOML: {error}", hint="see toml.io for the format") from error


def _convert(tables: dict[str, Any], path: Path) -> None:
    try:
        msgspec.convert(tables, Config)
    except msgspec.ValidationError as error:
        hint = "docs/reference/configuration.md has all values"
        raise UsageError(f"'{path}': {reason(error, tables)}", hint=hint) from error


def _values(config: Config, origins: Mapping[str, str]) -> Iterator[Value]:
    """All values, the built-in ones too, in the order of their definition."""
    for table in config.__struct_fields__:
        section = getattr(config, table)
        for field in section.__struct_fields__:
            name = f"{table}.{field}"
            yield Value(name, getattr(section, field), origins.get(name, BUILT_IN))
