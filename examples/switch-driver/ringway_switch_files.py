"""A driver for a switch that reads its ports from a folder: one JSON file each.

Installed beside Ringway (``pip install ./examples/switch-driver``) it is there by its name::

    ringway port create web0 --switch files
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ringway.errors import NotFoundError, PermissionDeniedError, UnreachableError
from ringway.model import Check, PortMode, PortSpec, PortState, socket_of
from ringway.net.base import (
    Condition,
    Notify,
    Settings,
    check_others,
    resolve_port,
    take_options,
)
from ringway.net.places import check_place, default_socket, forget_socket, make_place
from ringway.net.sockets import look


class FilesSwitch:
    """Any thread may call: a port is a file, and a file is replaced as a whole."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = Path(settings.options.get("folder", "/run/files-switch"))

    @property
    def name(self) -> str:
        return "files"

    def probe(self) -> tuple[Check, ...]:
        """Say whether the switch's folder is there."""
        there = self._folder.is_dir()
        hint = None if there else "start the switch"
        return (Check(name="folder", ok=there, detail=str(self._folder), hint=hint),)

    def resolve(self, spec: PortSpec) -> PortSpec:
        take_options(spec, frozenset({"vlan"}))
        return resolve_port(spec, default_socket(spec, self._settings))

    def check(self, spec: PortSpec, others: tuple[PortSpec, ...]) -> None:
        check_others(spec, others)
        check_place(spec, self._settings)
        self._there()

    def create(self, spec: PortSpec) -> None:
        make_place(spec, self._settings)
        known = self._read(spec) or {}
        self._write(spec, {**_wanted(spec), "guest": known.get("guest")})

    def delete(self, spec: PortSpec) -> None:
        """Remove the file; what QEMU left of the socket goes too."""
        self._there()
        self._file(spec).unlink(missing_ok=True)
        forget_socket(spec, self._settings)

    def plug(self, spec: PortSpec, guest: str) -> None:
        if self._read(spec) is None:
            raise NotFoundError(f"the switch has no port '{spec.name}'")
        self._write(spec, {**_wanted(spec), "guest": guest})

    def unplug(self, spec: PortSpec) -> None:
        if self._read(spec) is not None:
            self._write(spec, _wanted(spec))

    def show(self, spec: PortSpec) -> Condition:
        """Say whether both sides have come."""
        if self._read(spec) is None:
            raise NotFoundError(f"the switch has no port '{spec.name}'")
        up = look(socket_of(spec)).connected
        return Condition(PortState.UP if up else PortState.READY)

    def watch(self, notify: Notify) -> None:
        """Files do not change by themselves."""

    def close(self) -> None:
        """Nothing is open."""

    def _file(self, spec: PortSpec) -> Path:
        return self._folder / f"{spec.name}.json"

    def _there(self) -> None:
        if not self._folder.is_dir():
            raise UnreachableError(f"the switch has no folder '{self._folder}'", hint="start the switch")

    def _read(self, spec: PortSpec) -> dict[str, object] | None:
        self._there()
        try:
            found: dict[str, object] = json.loads(self._file(spec).read_text())
        except FileNotFoundError:
            return None
        return found

    def _write(self, spec: PortSpec, port: dict[str, object]) -> None:
        self._there()
        partial = self._folder / f".{spec.name}.partial"
        try:
            partial.write_text(json.dumps(port))
            os.replace(partial, self._file(spec))
        except PermissionError as error:
            raise PermissionDeniedError(f"'{self._folder}' is not writable") from error


def _wanted(spec: PortSpec) -> dict[str, object]:
    """What the switch reads; it connects to the sockets where QEMU is the server."""
    return {
        "socket": spec.socket,
        "connects": spec.mode is PortMode.SERVER,
        "mac": spec.mac,
        "mtu": spec.mtu,
        "vlan": spec.options.get("vlan"),
    }
