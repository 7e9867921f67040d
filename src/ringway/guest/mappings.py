"""Block-device mappings as people write them: the words of novaclient, of openstackclient, and ours.

    id=web0,source=volume,dest=volume,bus=virtio-scsi,type=lun,bootindex=0      novaclient's
    uuid=web0,source_type=volume,disk_bus=scsi,device_type=lun,boot_index=0     openstackclient's

A form is known by its keys. All of them become a :class:`~ringway.model.BlockDevice`. What a client would
drop, or leave for its server to refuse (an unknown key, a key that comes twice, a bus that no guest of KVM's
has), is refused here.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from ringway.errors import UsageError
from ringway.model import (
    MAX_BOOT_INDEX,
    MAX_TAG,
    MAX_TEXT,
    NO_BOOT,
    BlockDevice,
    Destination,
    DiskBus,
    DiskType,
    VolumeSource,
)
from ringway.model.validation import reason
from ringway.units import parse_size


class Form(StrEnum):
    """Who writes it so."""

    NOVA = "nova"  #: novaclient, and OpenStack's wiki
    OPENSTACK = "openstack"  #: openstackclient
    JSON = "json"  #: openstackclient's file
    TOML = "toml"  #: ours


#: A client's key, and the field of BlockDevice that it sets.
_NOVA: Final = {
    "id": "id",
    "source": "source",
    "dest": "destination",
    "bus": "bus",
    "type": "type",
    "device": "device",
    "size": "size_bytes",
    "format": "guest_format",
    "bootindex": "boot_index",
    "shutdown": "delete_on_termination",
    "tag": "tag",
    "volume_type": "volume_type",
}
_OPENSTACK: Final = {
    "uuid": "id",
    "source_type": "source",
    "destination_type": "destination",
    "disk_bus": "bus",
    "device_type": "type",
    "device_name": "device",
    "volume_size": "size_bytes",
    "guest_format": "guest_format",
    "boot_index": "boot_index",
    "delete_on_termination": "delete_on_termination",
    "tag": "tag",
    "volume_type": "volume_type",
}
_TOML: Final = {
    "id": "id",
    "source": "source",
    "destination": "destination",
    "bus": "bus",
    "type": "type",
    "device": "device",
    "size": "size_bytes",
    "format": "guest_format",
    "boot_index": "boot_index",
    "delete_on_termination": "delete_on_termination",
    "tag": "tag",
    "volume_type": "volume_type",
}
KEYS: Final[Mapping[Form, Mapping[str, str]]] = {
    Form.NOVA: _NOVA,
    Form.OPENSTACK: _OPENSTACK,
    Form.JSON: _OPENSTACK,
    Form.TOML: _TOML,
}
#: Sources whose disks a client makes on the guest's host, unless it is told otherwise.
_LOCAL: Final = {
    Form.NOVA: (VolumeSource.BLANK, VolumeSource.IMAGE),
    Form.OPENSTACK: (VolumeSource.BLANK,),
    Form.JSON: (VolumeSource.BLANK,),
    Form.TOML: (),
}
_FOREIGN: Final = {
    "xen": "a bus of Xen's guests",
    "lxc": "a bus of containers",
    "uml": "a bus of User Mode Linux",
    "fs": "a container's file system, and no disk",
}
_FLAGS: Final = {
    **dict.fromkeys(("1", "t", "true", "on", "y", "yes"), True),
    **dict.fromkeys(("0", "f", "false", "off", "n", "no"), False),
}
_DEVICE_NAME: Final = re.compile(r"(sd|vd|hd|fd)[a-z]{1,3}")
#: What novaclient and openstackclient had before; other names of devices than ours are Xen's.
_LEGACY: Final = re.compile(
    r"(/dev/)?x?(?P<device>(sd|vd|hd)[a-z]{1,3})=(?P<id>[^:,=]+)"
    r"(:(?P<type>volume|snapshot|snap|image)?(:(?P<size>\d*)(:[^:,]*)?)?)?"
)
_NUMBER: Final = re.compile(r"-?\d{1,18}", re.ASCII)
_GIB_BITS, _MIB_BITS = 30, 20
_UNITS: Final = ((40, "T"), (30, "G"), (20, "M"), (10, "K"))
_MOST_BYTES: Final = (1 << 63) - 1
_SWAP: Final = "swap"
TABLE: Final = "block_device"  #: of a TOML file


def parse(text: str) -> BlockDevice:
    """Read one mapping of ``key=value`` pairs.

    :raises UsageError: it is none, its forms are mixed, or it contradicts itself; says which part of it.
    """
    _refuse_legacy(text)
    pairs = _pairs(text)
    form = _form_of(pairs)
    return device_of(pairs, form)


def write(devices: Sequence[BlockDevice], form: Form) -> str:
    """Write mappings so that the same form reads them back alike; a line each, or tables of TOML.

    :raises UsageError: this form cannot say one of them.
    """
    if form is Form.TOML:
        return "\n".join(_toml(device) for device in devices)
    if form is Form.JSON:
        return "\n".join(json.dumps(_written(device, form), indent=2) for device in _alone(devices))
    return "\n".join(_line(device, form) for device in devices)


# Reading


def _refuse_legacy(text: str) -> None:
    """:raises UsageError: it is the older ``vda=ID:TYPE:SIZE:DELETE``; says what to write instead."""
    if (found := _LEGACY.fullmatch(text)) is None:
        return
    volume, kind, size = found["id"], found["type"] or "volume", found["size"]
    source = VolumeSource.SNAPSHOT if kind.startswith("snap") else kind
    words = [f"id={volume}", f"source={source}", "dest=volume", f"device={found['device']}"]
    raise UsageError(
        f"'{text}' is the form of --block-device-mapping, which clients gave up",
        hint=f"write {','.join([*words, *([f'size={size}'] if size else [])])}",
    )


def _pairs(text: str) -> dict[str, str]:
    """:raises UsageError: an empty part, one without ``=``, a key that comes twice."""
    pairs = dict[str, str]()
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise UsageError(
                f"'{part}' in the mapping '{text}' is no key=value",
                hint="write it as id=web0,source=volume,bus=scsi; no value can be empty or have a comma",
            )
        add_once(pairs, key, value)
    return pairs


def add_once(pairs: dict[str, Any], key: str, value: Any) -> None:
    """:raises UsageError: the key is there already."""
    if key in pairs:
        raise UsageError(f"'{key}' comes twice in one mapping", hint="clients take the last; leave one away")
    pairs[key] = value


def _form_of(keys: Iterable[str]) -> Form:
    """:raises UsageError: keys of both clients."""
    nova = [key for key in keys if key in _NOVA and key not in _OPENSTACK]
    openstack = [key for key in keys if key in _OPENSTACK and key not in _NOVA]
    if nova and openstack:
        raise UsageError(
            f"'{nova[0]}' is a key of novaclient's and '{openstack[0]}' one of openstackclient's",
            hint=f"write {_same(openstack[0], _NOVA)} for {openstack[0]}, "
            f"or {_same(nova[0], _OPENSTACK)} for {nova[0]}",
        )
    return Form.OPENSTACK if openstack else Form.NOVA


def _same(key: str, keys: Mapping[str, str]) -> str:
    """The key that means the same in another form."""
    meaning = next(each[key] for each in KEYS.values() if key in each)
    return next(name for name, field in keys.items() if field == meaning)


def device_of(pairs: Mapping[str, Any], form: Form) -> BlockDevice:
    """A mapping of one form's keys and values.

    :raises UsageError: an unknown key, an impossible value, a contradiction.
    """
    given = {_field(key, form): (key, value) for key, value in pairs.items()}
    values = {field: _READERS[field](key, value, form) for field, (key, value) in given.items()}
    if isinstance(values.get("size_bytes"), int) and form is not Form.TOML:
        values["size_bytes"] <<= _size_bits(values.get("guest_format"))
    values.setdefault("source", VolumeSource.VOLUME if form is Form.TOML else VolumeSource.BLANK)
    local = values["source"] in _LOCAL[form]
    values.setdefault("destination", Destination.LOCAL if local else Destination.VOLUME)
    values.setdefault("delete_on_termination", values["destination"] is Destination.LOCAL)
    try:
        return msgspec.convert(values, BlockDevice)
    except msgspec.ValidationError as error:
        words = reason(error, values)
        raise UsageError(f"no such mapping is possible: {words}", hint=f"keys are {_listed(form)}") from error


def _field(key: str, form: Form) -> str:
    """:raises UsageError: there is no such key; names the nearest."""
    keys = KEYS[form]
    if key in keys:
        return keys[key]
    if key == "no_device":
        raise UsageError(
            "'no_device' leaves out a disk that an image brings, and here no image brings any",
            hint="leave this mapping away",
        )
    if any(key in each for each in KEYS.values()):
        near = [_same(key, keys)]
    else:
        near = difflib.get_close_matches(key.strip().lower(), keys, 1, 0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"there is no key '{key}' in a mapping", hint=f"{hint}keys are {_listed(form)}")


def _listed(form: Form) -> str:
    return ", ".join(KEYS[form])


def _text(key: str, value: Any, _: Form) -> str:
    """:raises UsageError: not a text, or one that cannot stand in a document."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise UsageError(
            f"{key}={value!r} is not possible",
            hint=f"{key} is a text of 1 to {MAX_TEXT} printable characters",
        )
    return value


def _tag(key: str, value: Any, form: Form) -> str:
    """:raises UsageError: no tag of Nova's."""
    text = _text(key, value, form)
    if len(text) > MAX_TAG or "/" in text or "," in text:
        raise UsageError(
            f"'{text}' is no tag", hint=f"a tag has {MAX_TAG} characters at most, and neither , nor /"
        )
    return text


def _choice(
    kind: type[StrEnum], also: Mapping[str, StrEnum] | None = None
) -> Callable[[str, Any, Form], Any]:
    """A reader of one word out of some. :param also: other words for them."""
    words: dict[str, StrEnum] = {**{str(each): each for each in kind}, **(also or {})}

    def read_choice(key: str, value: Any, _: Form) -> StrEnum:
        if isinstance(value, str) and value in words:
            return words[value]
        if isinstance(value, str) and value in _FOREIGN:
            raise UsageError(f"{key}={value}: that is {_FOREIGN[value]}", hint=f"{key} is {_or(words)}")
        near = difflib.get_close_matches(str(value).strip().lower(), words, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{key}={value} is not possible", hint=f"{hint}{key} is {_or(words)}")

    return read_choice


def _or(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}"


def _device_name(key: str, value: Any, form: Form) -> str:
    """:raises UsageError: no name that libvirt gives a disk."""
    name = _text(key, value, form).removeprefix("/dev/")
    if not _DEVICE_NAME.fullmatch(name):
        raise UsageError(
            f"{key}={value} is no name of a guest's disk", hint="write it as sda, vdb, hda or /dev/sda"
        )
    return name


def _size(key: str, value: Any, form: Form) -> int:
    """Bytes of TOML's, otherwise the number as it is. :raises UsageError: no size."""
    if form is Form.TOML and isinstance(value, str):
        value = parse_size(value)
    number = _whole_number(value)
    if number is None or not 0 < number <= _MOST_BYTES >> (0 if form is Form.TOML else _GIB_BITS):
        unit = (
            '"10G", or bytes' if form is Form.TOML else "a whole number of GiB (of MiB where format is swap)"
        )
        raise UsageError(f"{key}={value} is no size of a disk", hint=f"{key} is {unit}")
    return number


def _boot_index(key: str, value: Any, _: Form) -> int:
    """:raises UsageError: no place in an order; a negative one is none, of any size."""
    number = _whole_number(value)
    if number is None or number > MAX_BOOT_INDEX:
        raise UsageError(
            f"{key}={value} is no place in the order of boot",
            hint=f"write 0 for the disk to boot from, 1 for the next, up to {MAX_BOOT_INDEX}, -1 for never",
        )
    return max(number, NO_BOOT)


def _whole_number(value: Any) -> int | None:
    """A number, or its digits; ``True`` is none."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _deleted(key: str, value: Any, form: Form) -> bool:
    """:raises UsageError: neither yes nor no."""
    words = {"remove": True, "preserve": False} if form is Form.NOVA else _FLAGS
    if isinstance(value, bool) and form in (Form.JSON, Form.TOML):
        return value
    word = value if form is Form.NOVA else str(value).strip().lower()
    if form is Form.TOML or word not in words:
        usual = "remove or preserve" if form is Form.NOVA else "true or false"
        raise UsageError(f"{key}={value} is not possible", hint=f"{key} is {usual}")
    return words[word]


def _size_bits(guest_format: str | None) -> int:
    """Clients count swap in MiB, and all else in GiB."""
    return _MIB_BITS if guest_format == _SWAP else _GIB_BITS


_READERS: Final[Mapping[str, Callable[[str, Any, Form], Any]]] = {
    "id": _text,
    "source": _choice(VolumeSource),
    "destination": _choice(Destination),
    "bus": _choice(DiskBus, {"virtio-scsi": DiskBus.SCSI}),
    "type": _choice(DiskType),
    "device": _device_name,
    "size_bytes": _size,
    "guest_format": _text,
    "boot_index": _boot_index,
    "delete_on_termination": _deleted,
    "tag": _tag,
    "volume_type": _text,
}


# Writing


def _alone(devices: Sequence[BlockDevice]) -> Sequence[BlockDevice]:
    """:raises UsageError: openstackclient reads one object from a file, and nothing behind it."""
    if len(devices) > 1:
        raise UsageError(
            f"openstackclient's file holds one mapping, and these are {len(devices)}",
            hint="write each to a file of its own, or all in one of the forms nova, openstack and toml",
        )
    return devices


def _line(device: BlockDevice, form: Form) -> str:
    """:raises UsageError: a value has a comma."""
    pairs = _written(device, form)
    for key, value in pairs.items():
        if "," in str(value):
            raise UsageError(f"{key} cannot be written with a comma: '{value}'", hint="write JSON or TOML")
    return ",".join(f"{key}={value}" for key, value in pairs.items())


def _toml(device: BlockDevice) -> str:
    lines = [f"{key} = {_toml_value(value)}" for key, value in _written(device, Form.TOML).items()]
    return "\n".join([f"[[{TABLE}]]", *lines, ""])


def _toml_value(value: object) -> str:
    """What is printable has the same escapes in JSON as in TOML."""
    return json.dumps(value, ensure_ascii=False)


def _written(device: BlockDevice, form: Form) -> dict[str, Any]:
    """Keys and values of one mapping, without what the form's client would choose itself."""
    own = {key: getattr(device, field) for key, field in KEYS[form].items()}
    local = device.source in _LOCAL[form]
    usual = {
        "destination": Destination.LOCAL if local else Destination.VOLUME,
        "delete_on_termination": device.destination is Destination.LOCAL,
    }
    kept = {
        key: value
        for key, value in own.items()
        if value is not None and (KEYS[form][key] not in usual or value != usual[KEYS[form][key]])
    }
    return {key: _WRITERS.get(KEYS[form][key], _plain)(value, device, form) for key, value in kept.items()}


def _plain(value: Any, _: BlockDevice, __: Form) -> Any:
    return str(value) if isinstance(value, StrEnum) else value


def _written_size(size: int, device: BlockDevice, form: Form) -> int | str:
    """:raises UsageError: clients have no such small units."""
    if form is Form.TOML:
        return next((f"{size >> bits}{unit}" for bits, unit in _UNITS if size % (1 << bits) == 0), str(size))
    bits = _size_bits(device.guest_format)
    if size % (1 << bits):
        raise UsageError(
            f"{size} bytes are no whole number of {'GiB' if bits == _GIB_BITS else 'MiB'}", hint="write TOML"
        )
    return size >> bits


def _written_flag(value: bool, _: BlockDevice, form: Form) -> bool | str:
    if form is Form.NOVA:
        return "remove" if value else "preserve"
    return str(value).lower() if form is Form.OPENSTACK else value


_WRITERS: Final[Mapping[str, Callable[[Any, BlockDevice, Form], Any]]] = {
    "size_bytes": _written_size,
    "delete_on_termination": _written_flag,
}
