"""What confines QEMU beside its user: AppArmor, by a profile that libvirt makes for each guest, or SELinux.

The sockets of ports are in a profile, those of vhost-user disks are not (libvirt 11.3): rules of ours are
for them. Not every host asks a profile who may connect to a socket's path: that takes a kernel that can, and
profiles that were compiled for it. Ubuntu's do, those of Debian 12 and 13 do not. Each asks when libvirt
sends the kernel's vhost-scsi to a guest that runs, and that is missing as well. For SELinux there are no
rules of ours, and whether somebody has others is not asked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from lxml import etree
from msgspec import Struct

from ringway.errors import ConflictError
from ringway.guest.aliases import spoken
from ringway.model import Check

RULES: Final = Path("/etc/apparmor.d/abstractions/libvirt-qemu.d/ringway")
#: Where the kernel says what it can do.
FEATURES: Final = Path("/sys/kernel/security/apparmor/features")
PARSER: Final = Path("/etc/apparmor/parser.conf")
_LOADED: Final = Path("/sys/kernel/security/apparmor/profiles")
_PROFILES: Final = Path("/etc/apparmor.d/libvirt")
ENFORCING: Final = Path("/sys/fs/selinux/enforce")
_MODEL: Final = "apparmor"
_SELINUX: Final = "selinux"
_VHOST_SCSI: Final = "/dev/vhost-scsi"
_SOCKETS: Final = "af_unix"  #: the feature
#: The kernel that profiles are compiled for, if that is not the one that runs.
_PINNED: Final = re.compile(r"^\s*policy-features\s*=\s*(\S+)", re.MULTILINE)
#: Takes a question and answers it, to anybody. libapparmor 3.0 asks it for a path without its last letter.
_ASK: Final = Path("/sys/kernel/security/apparmor/.access")
_ANSWER_BYTES: Final = 4096
_ALLOWED: Final = re.compile(rb"allow (0x[0-9a-f]+)\n")
_FILES: Final = 2  #: AA_CLASS_FILE
_READ_AND_WRITE: Final = 1 << 2 | 1 << 1  #: AA_MAY_READ, AA_MAY_WRITE


class Profile(Struct, frozen=True):
    """What confines a guest's QEMU. :ivar name: the kernel's for it; empty: libvirt makes it at the start."""

    name: str


def confinement(
    capabilities: str,
    rules: Path = RULES,
    features: Path = FEATURES,
    parser: Path = PARSER,
    enforcing: Path = ENFORCING,
) -> Check:
    """Say whether libvirt confines QEMU by more than a user. :param capabilities: libvirt's, as XML."""
    models = _models(capabilities)
    detail = " and ".join(sorted(models)) or "by its user alone"
    if _SELINUX in models and _text(enforcing).strip() != "0":
        lacks = "unless you have rules for it, QEMU may not connect to endpoints, and would wait for ever"
        hint = "let svirt_t connect to them; ausearch -m avc -ts recent shows what was denied"
        return Check(name="confinement", ok=False, detail=f"{detail}: {lacks}", hint=hint)
    if _MODEL not in models or rules.exists():
        return Check(name="confinement", ok=True, detail=detail)
    lacks = (
        "QEMU may not connect to endpoints, and would wait for ever for it"
        if looks_at_sockets(features, parser)
        else "guests that run get no endpoints of the kernel engine"
    )
    return Check(name="confinement", ok=False, detail=f"{detail}: {lacks}", hint=_install(rules))


def profile_of(domain: str, capabilities: str) -> Profile | None:
    """Read it from a guest's XML and libvirt's capabilities. :returns: ``None``: nothing confines QEMU."""
    root = etree.fromstring(domain.encode())
    exempt = any(label.get("model", _MODEL) == _MODEL for label in root.iterfind("seclabel[@type='none']"))
    if _MODEL not in _models(capabilities) or exempt:
        return None
    return Profile(str(root.xpath(f"string(seclabel[@model='{_MODEL}']/label)")).strip())


def check_socket(path: str, alias: str, profile: Profile | None) -> None:
    """Refuse an endpoint's socket at which QEMU would wait for ever, as its profile does not have it.

    :param alias: the device that is to connect there. :raises ConflictError: that is so.
    """
    if looks_at_sockets():
        _check(path, alias, profile)


def check_hot_plug(alias: str, profile: Profile | None) -> None:
    """Refuse an endpoint of the kernel's that libvirt could not send to a QEMU that runs.

    libvirt 11.3 puts another path into the profile, and takes the endpoint for used when it has failed.

    :raises ConflictError: that is so.
    """
    _check(_VHOST_SCSI, alias, profile)


def _check(path: str, alias: str, profile: Profile | None) -> None:
    if profile is None:
        return
    allowed = may_use(profile.name, path) if profile.name else None
    if (RULES.exists() if allowed is None else allowed) or _only_complains(profile):
        return
    lacking = f"see that {RULES} has {path}" if RULES.exists() else _install(RULES)
    reload = f", then apparmor_parser -r {_PROFILES / profile.name}" if profile.name else ""
    raise ConflictError(f"AppArmor does not let QEMU use {path}, for {spoken(alias)}", hint=lacking + reload)


def looks_at_sockets(features: Path = FEATURES, parser: Path = PARSER) -> bool:
    """Whether profiles say here who may connect to a socket's path; so, if it cannot be told.

    :param features: what the kernel can do. :param parser: how profiles are compiled.
    """
    if features.is_dir() and not any(features.glob(f"network*/{_SOCKETS}")):
        return False
    pinned = _PINNED.search(_text(parser))
    return pinned is None or _SOCKETS in _text(Path(pinned[1]))


def may_use(profile: str, path: str) -> bool | None:
    """Ask the kernel whether a profile may read and write at a path, wherever a link leads.

    :returns: ``None``: the kernel has no such profile, or cannot be asked.
    """
    place = str(Path(path).resolve())
    try:
        with _ASK.open("r+b", buffering=0) as file:
            file.write(b"label\0%s\0%c%s" % (profile.encode(), _FILES, place.encode()))
            answer = _ALLOWED.match(file.read(_ANSWER_BYTES))
    except OSError:
        return None
    return None if answer is None else not _READ_AND_WRITE & ~int(answer[1], 16)


def _only_complains(profile: Profile) -> bool:
    """Whether the kernel writes down what a profile does not have, and lets it pass."""
    return f"{profile.name} (complain)" in _text(_LOADED).splitlines()


def _models(capabilities: str) -> set[str]:
    models = etree.fromstring(capabilities.encode()).xpath("//secmodel/model/text()")
    return set(map(str, models)) - {"dac", "none"}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _install(rules: Path) -> str:
    return f"install packaging/apparmor/ringway as {rules}"
