"""Block-device mappings as a user gives them: a line, or a file with openstackclient's JSON or our TOML."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ringway.errors import UsageError
from ringway.guest.mappings import TABLE, Form, add_once, device_of, parse
from ringway.model import BlockDevice, check_together

_MOST_BYTES: Final = 1 << 20
_JSON: Final = re.compile(r"\s*(\{|\[\s*[{\]])")  #: an object, or a list of some; TOML begins with a table
_FORMS_HINT: Final = "write id=…,source=volume,bus=scsi, or the path of a JSON or TOML file"
_IMAGE_HINT: Final = "an image or a device is id={},source=volume,bus=scsi"


def read(text: str) -> tuple[BlockDevice, ...]:
    """Read what a user gave: a mapping, or the path of a JSON or TOML file with some.

    :raises UsageError: it is neither.
    """
    if not text:
        raise UsageError("a mapping is empty", hint=_FORMS_HINT)
    if "=" not in text or os.path.isfile(text):
        return read_file(Path(text))
    return (parse(text),)


def read_all(texts: Iterable[str]) -> tuple[BlockDevice, ...]:
    """Read all mappings of a guest. :raises UsageError: one is wrong, or two contradict each other."""
    devices = tuple(device for text in texts for device in read(text))
    check_together(devices)
    return devices


def read_file(path: Path) -> tuple[BlockDevice, ...]:
    """Read a file: openstackclient's, with one JSON object, or ours, with tables ``[[block_device]]``.

    :raises UsageError: it cannot be read, or is neither.
    """
    text = _text_of(path)
    try:
        return (parse_json(text),) if _JSON.match(text) else parse_toml(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from error


def parse_json(text: str) -> BlockDevice:
    """Read openstackclient's file. :raises UsageError: it is no such object."""
    try:
        data = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"no JSON: {error}", hint="see docs/reference/block-device-mappings.md") from error
    if not isinstance(data, dict):
        raise UsageError(
            "a JSON file holds the object of one mapping, as openstackclient reads it, and no list",
            hint="write a file for each, or a TOML file with them all",
        )
    return device_of({key: value for key, value in data.items() if value is not None}, Form.JSON)


def parse_toml(text: str) -> tuple[BlockDevice, ...]:
    """Read tables ``[[block_device]]``. :raises UsageError: there are none, or something else is there."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"no TOML: {error}", hint="see docs/reference/block-device-mappings.md") from error
    tables = data.pop(TABLE, None)
    if data or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(
            f"a file of mappings holds tables [[{TABLE}]], and nothing else",
            hint="see docs/reference/block-device-mappings.md",
        )
    return tuple(device_of(table, Form.TOML) for table in tables)


def _text_of(path: Path) -> str:
    """A file of mappings is small, and no more of it is read than that.

    :raises UsageError: it cannot be read, or is none: an image, say, or a device.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(_MOST_BYTES + 1) if regular else b"\0"
    except (OSError, ValueError) as error:
        raise UsageError(
            f"'{path}' is neither a mapping nor a file that can be read: {_reason(error)}",
            hint=_FORMS_HINT,
        ) from error
    if len(content) > _MOST_BYTES or b"\0" in content:
        raise UsageError(f"'{path}' is no file of mappings", hint=_IMAGE_HINT.format(path))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"'{path}' is no file of mappings: {error}", hint=_IMAGE_HINT.format(path)
        ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys come once."""
    found = dict[str, Any]()
    for key, value in pairs:
        add_once(found, key, value)
    return found


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
