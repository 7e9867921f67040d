"""What libvirt says of a document, without its daemon: its schema, and the command that starts QEMU."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from msgspec import Struct

from ringway.errors import NotFoundError, PermissionDeniedError, RingwayError, TimedOutError, UsageError
from ringway.guest.document.tree import parse

_TIMEOUT_S: Final = 60.0  #: the first look at a QEMU takes seconds
_FILE: Final = "domain.xml"
_LOG_LINE: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S* ")
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_NO_SCHEMA: Final = 4  #: exit status of virt-xml-validate
_INSTALL: Final = "apt-get install libvirt-clients libvirt-daemon-driver-qemu libxml2-utils"


class NativeCommand(Struct, frozen=True):
    """How libvirt would start QEMU for a document. Network devices are shown as taps, whatever they are."""

    environment: dict[str, str]
    arguments: tuple[str, ...]  #: the program first


def validate(xml: str) -> None:
    """Hold a document against libvirt's schema, with ``virt-xml-validate``.

    :raises UsageError: it does not validate; the message has what the schema says.
    :raises NotFoundError: the program or the schema is not there.
    """
    parse(xml)  # who validates it after us reads document types
    with tempfile.TemporaryDirectory(prefix="ringway-validate-") as folder:
        done = _run(Path(folder), xml, "virt-xml-validate", _FILE, "domain")
    if done.returncode == _NO_SCHEMA:
        raise NotFoundError("libvirt's schema is not there", hint=_INSTALL)
    if done.returncode != 0:
        raise UsageError(f"libvirt's schema does not take it: {_reasons(done.stderr)}")


def native(xml: str, root: Path | None = None) -> NativeCommand:
    """Ask libvirt for QEMU's command line; nothing is defined and nothing started.

    :param root: a folder for libvirt's state, which may serve again and is then faster; one of its own
        if ``None``.
    :raises UsageError: libvirt refuses the document; the message has its reason.
    :raises PermissionDeniedError: libvirt's QEMU driver does not run for this user.
    :raises NotFoundError: the program is not there.
    """
    parse(xml)
    with tempfile.TemporaryDirectory(prefix="ringway-native-") as folder:
        state = root or Path(folder) / "root"
        state.mkdir(parents=True, exist_ok=True)
        uri = f"qemu:///embed?root={state}"
        done = _run(Path(folder), xml, "virsh", "-q", "-c", uri, "domxml-to-native", "qemu-argv", _FILE)
    if done.returncode != 0:
        raise _refusal(_reasons(done.stderr))
    return _command(done.stdout)


def _run(folder: Path, xml: str, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / _FILE).write_text(xml)
    home = {name: str(folder) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR")}
    environment = {**os.environ, **home, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no program '{command[0]}'", hint=_INSTALL) from error
    except subprocess.TimeoutExpired as error:
        raise TimedOutError(f"'{command[0]}' did not end within {_TIMEOUT_S:.0f} s") from error


def _reasons(text: str) -> str:
    """The sentences in what a program of libvirt's complains of."""
    lines = (line.strip() for line in text.splitlines() if line.strip() and not _LOG_LINE.match(line))
    sentences = (line.removeprefix("error: ") for line in lines if "fails to validate" not in line)
    return "; ".join(dict.fromkeys(sentences)) or "no reason given"


def _refusal(reasons: str) -> RingwayError:
    if "failed to connect to the hypervisor" in reasons:
        return PermissionDeniedError(
            f"libvirt's QEMU driver does not start: {reasons}", hint="run it as root"
        )
    return UsageError(f"libvirt refuses it: {reasons}")


def _command(text: str) -> NativeCommand:
    words = shlex.split(text)
    environment = {}
    while words and (match := _ASSIGNMENT.fullmatch(words[0])):
        environment[match[1]] = match[2]
        del words[0]
    return NativeCommand(environment, tuple(words))
