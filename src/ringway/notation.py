"""Read what a user calls a disk: ``disk.img``, ``/dev/sdb,readonly``, ``ram:4G``, ``2=disk.img``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import ValidationError, convert
from msgspec.structs import replace

from ringway.errors import UsageError
from ringway.model import (
    BLOCK_SIZES,
    MAX_LUN,
    MAX_TARGET,
    BackstoreSpec,
    Limits,
    LunSpec,
    Mapped,
    SpecKind,
    is_name,
)
from ringway.model.validation import reason
from ringway.scsi.identity import check_serial
from ringway.units import parse_duration, parse_size

__all__ = [
    "check_address",
    "check_block_size",
    "check_serial",
    "parse_address",
    "parse_backstore",
    "parse_limits",
    "parse_lun",
]

_ADDRESS: Final = re.compile(r"(?:(\d{1,5}):)?(\d{1,5})=(.*)", re.DOTALL | re.ASCII)
_ATTRIBUTE: Final = re.compile(r"([a-z0-9]+(?:_[a-z0-9]+)+)=(.*)", re.ASCII)
_OPTIONS_HINT: Final = (
    "options are readonly, direct, block-size=512|4096, serial=TEXT, mapped=on|off|auto; of a LUN also "
    "iops=COUNT, bandwidth=SIZE, burst=SECONDS; a comma in a path is written twice"
)
_LIMITS_HINT: Final = "write limits as iops=20k, bandwidth=100M (a second), burst=2s"
_LIMITS: Final = ("iops", "bandwidth", "burst")
_COUNT: Final = re.compile(r"(\d{1,12})([kM]?)", re.ASCII)


def parse_backstore(text: str, defaults: BackstoreSpec | None = None, *, host: bool = False) -> BackstoreSpec:
    """Read ``PATH|file:PATH|ram:SIZE|null:SIZE[,OPTION]…``.

    :param defaults: gives the options that ``text`` does not.
    :param host: it is for a host's daemon, which knows more: ``pscsi:PATH``, ``tcmu:NAME``, a ``name``, and
        attributes of the kernel engine's (``emulate_tpu=1``: all with an underscore).
    :raises UsageError: no such form or option.
    """
    place, *options = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    fields = _place(place, _HOST_PATHS if host else _PATHS)
    attributes = dict(defaults.attributes) if defaults else {}
    for option in options:
        if host and (match := _ATTRIBUTE.fullmatch(option)):
            attributes[match[1]] = match[2]
        else:
            field, value = _option(option, {**_OPTIONS, **_HOST_OPTIONS} if host else _OPTIONS)
            fields[field] = value
    return replace(defaults or BackstoreSpec(SpecKind.PATH), **fields, attributes=attributes)


def parse_lun(text: str, defaults: BackstoreSpec | None = None, *, host: bool = False) -> LunSpec:
    """Read ``LUN=BACKSTORE`` or ``TARGET:LUN=BACKSTORE``.

    :param host: as :func:`parse_backstore` has it.
    :raises UsageError: no such form, or a number out of range.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is not a LUN", hint="write it as --lun 0=disk.img or --lun 1:0=disk.img")
    target, lun = int(match[1] or 0), int(match[2])
    check_address(target, lun)
    place, limits = _split_limits(match[3])
    return LunSpec(target, lun, parse_backstore(place, defaults, host=host), limits)


def parse_limits(iops: str | None = None, bandwidth: str | None = None, burst: str | None = None) -> Limits:
    """Read ``20k``, ``100M`` (bytes a second) and ``2s``; what is not given is no limit.

    :raises UsageError: no such form.
    """
    fields = {
        "iops": 0 if iops is None else _parse_count(iops),
        "bytes_per_s": 0 if bandwidth is None else parse_size(bandwidth.removesuffix("/s")),
        "burst_s": 0.0 if burst is None else parse_duration(burst),
    }
    try:
        return convert(fields, Limits)
    except ValidationError as error:
        raise UsageError(f"no such limit is possible: {reason(error, fields)}", hint=_LIMITS_HINT) from error


def parse_address(text: str) -> tuple[int, int]:
    """Read ``LUN`` or ``TARGET:LUN``. :raises UsageError: no such form, or a number out of range."""
    match = _ADDRESS.fullmatch(f"{text}=")
    if match is None:
        raise UsageError(f"'{text}' is not the address of a LUN", hint="write it as 0 or 1:0")
    target, lun = int(match[1] or 0), int(match[2])
    check_address(target, lun)
    return target, lun


def check_address(target: int, lun: int) -> None:
    """:raises UsageError: a number that virtio-scsi cannot carry. Spec: virtio 1.3, 5.6.6.1."""
    if target > MAX_TARGET:
        raise UsageError(f"target {target} is out of range", hint=f"targets go from 0 to {MAX_TARGET}")
    if lun > MAX_LUN:
        raise UsageError(f"LUN {lun} is out of range", hint=f"LUNs go from 0 to {MAX_LUN}")


def check_block_size(size: int) -> int:
    """:raises UsageError: no logical block size that guests understand everywhere."""
    if size not in BLOCK_SIZES:
        raise UsageError(f"a block size of {size} is not possible", hint="take 512 or 4096")
    return size


def _split_limits(text: str) -> tuple[str, Limits]:
    """A LUN's backstore as it was written, and what behind its commas limits the LUN."""
    place, *options = text.replace(",,", "\0").split(",")
    limits = {}
    for option in options:
        name, _, value = option.partition("=")
        if name in _LIMITS:
            limits[name] = value
    rest = [option for option in options if option.partition("=")[0] not in _LIMITS]
    return ",".join([place, *rest]).replace("\0", ",,"), parse_limits(**limits)


def _parse_count(text: str) -> int:
    """:raises UsageError: not ``500``, ``20k`` or ``1M``."""
    if not (match := _COUNT.fullmatch(text)):
        raise UsageError(f"'{text}' is no number of requests", hint=_LIMITS_HINT)
    return int(match[1]) * {"": 1, "k": 1000, "M": 1000_000}[match[2]]


def _place(text: str, kinds: Mapping[str, SpecKind]) -> dict[str, Any]:
    """The fields that say where the bytes are. :param kinds: those with a path, by their prefixes."""
    prefix, colon, rest = text.partition(":")
    if colon and prefix in ("ram", "null"):
        return {"kind": SpecKind(prefix), "size_bytes": _positive_size(prefix, rest)}
    kind = kinds.get(prefix) if colon else None
    path = text if kind is None else rest
    if not path or "\0" in path:
        raise UsageError("a disk without a path", hint="write a path, ram:SIZE or null:SIZE")
    return {"kind": kind or SpecKind.PATH, "path": path}


def _positive_size(kind: str, text: str) -> int:
    """:raises UsageError: no size, or zero."""
    if size := parse_size(text):
        return size
    raise UsageError(f"a {kind} disk of no bytes", hint=f"give it a size, as in {kind}:4G")


def _flag(value: str) -> bool:
    """``readonly`` alone means on."""
    if value not in ("", "on", "off"):
        raise ValueError(value)
    return value != "off"


def _name(value: str) -> str:
    """:raises ValueError: no name of an object."""
    if not is_name(value):
        raise ValueError(value)
    return value


_OPTIONS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "readonly": ("readonly", _flag),
    "direct": ("direct", _flag),
    "block-size": ("block_size", lambda value: check_block_size(parse_size(value))),
    "serial": ("serial", check_serial),
    "mapped": ("mapped", Mapped),
}
_HOST_OPTIONS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {"name": ("name", _name)}
_PATHS: Final = {"file": SpecKind.PATH}
_HOST_PATHS: Final = {**_PATHS, "pscsi": SpecKind.PSCSI, "tcmu": SpecKind.TCMU}


def _option(text: str, known: Mapping[str, tuple[str, Callable[[str], Any]]]) -> tuple[str, Any]:
    """Field name and value of one option."""
    name, _, value = text.partition("=")
    if name not in known:
        raise UsageError(f"'{text}' is not an option of a disk", hint=_OPTIONS_HINT)
    field, convert = known[name]
    try:
        return field, convert(value)
    except ValueError as error:
        raise UsageError(f"'{text}' is not possible", hint=_OPTIONS_HINT) from error
