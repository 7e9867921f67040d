"""``ringway doctor``: what this host can do, and the command that mends what it cannot."""

from __future__ import annotations

import os
import platform
import pwd
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Final

import click
import msgspec

from ringway.errors import DegradedError, RingwayError
from ringway.units import format_size

_QEMU_MINIMUM: Final = (9, 2)  # the first whose sockets reconnect in milliseconds
_KERNEL_MINIMUM: Final = (5, 15)
_KERNEL_BEST: Final = (6, 1)  # the first whose io_uring defers its task work to the waiting thread
_MEMLOCK_BYTES: Final = 8 << 20
_QEMU_USERS: Final = ("libvirt-qemu", "qemu")


class Verdict(StrEnum):
    """How good it is."""

    OK = "ok"
    WARN = "warn"  #: it works, but something is slower or missing that not everybody needs
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """What one check found. ``fix`` is a command to paste, or a sentence where there is none."""

    verdict: Verdict
    detail: str
    fix: str | None = None


def _ok(detail: str) -> Finding:
    return Finding(Verdict.OK, detail)


def _warn(detail: str, fix: str) -> Finding:
    return Finding(Verdict.WARN, detail, fix)


def _fail(detail: str, fix: str) -> Finding:
    return Finding(Verdict.FAIL, detail, fix)


def check_core() -> Finding:
    """The Rust core loads."""
    try:
        from ringway import _core
    except ImportError as error:
        return _fail(f"the core does not load: {error}", "make build")
    return _ok(f"version {_core.__version__}")


def check_kernel() -> Finding:
    """The running kernel is new enough."""
    release = platform.release()
    if _version(release) < _KERNEL_MINIMUM:
        return _fail(f"Linux {release} is too old", "upgrade to a kernel of 5.15 or newer")
    if _version(release) < _KERNEL_BEST:
        return _warn(
            f"Linux {release}: I/O costs more CPU than it has to", "upgrade to a kernel of 6.1 or newer"
        )
    return _ok(f"Linux {release}")


def check_io_uring() -> Finding:
    """A worker can have an io_uring."""
    from ringway import _core

    try:
        _core.Device("blk", queues=1, engine="uring").close()
    except OSError as error:
        return _warn(
            f"io_uring cannot be used ({error}); --io-engine epoll is", "sysctl kernel.io_uring_disabled=0"
        )
    return _ok("usable")


def check_landlock() -> Finding:
    """A target can give up to open files, and to reach ports, sockets and processes."""
    from ringway.target.sandbox import landlock

    version = landlock.abi()
    missing = landlock.missing(version)
    if missing is not None:
        return _warn(
            f"the kernel lacks {missing}", "upgrade to Linux 6.12 or newer, and boot it with lsm=landlock"
        )
    return _ok(f"ABI {version}: files, TCP ports, abstract sockets, signals")


def check_seccomp() -> Finding:
    """A target can give up the system calls that it does not make."""
    from ringway.target.sandbox import filters

    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text()
    except OSError:
        actions = ""
    if "kill_process" not in actions.split():
        return _warn("the kernel has no seccomp filters", "run one with CONFIG_SECCOMP_FILTER")
    try:
        filters.library()
    except OSError as error:
        return _warn(f"{error.strerror}: system calls are not filtered", "apt-get install libseccomp2")
    return _ok("libseccomp is there, and the kernel kills with it")


def check_own_user() -> Finding:
    """A target that root starts can be a user of its own."""
    from ringway.target.sandbox import privileges

    if os.geteuid() != 0:
        return _ok("targets serve as who starts them")
    wanted = next(privileges.own_users()).uid
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    if any(int(first) <= wanted < int(first) + int(count) for first, _, count in ranges):
        return _ok(f"started by root, a target is a user of its own, from {privileges.FIRST_OWN_ID} on")
    return _warn(
        f"this user namespace has no user {wanted}: targets stay root", "name one it has with --user"
    )


def check_memfd() -> Finding:
    """Memory can be shared with QEMU."""
    try:
        os.close(os.memfd_create("ringway-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        return _fail(f"memfd_create fails: {error.strerror}", "run outside of the sandbox that forbids it")
    return _ok("usable")


def check_locked_memory() -> Finding:
    """The limit on locked memory leaves room for io_uring's rings (older kernels count them)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= _MEMLOCK_BYTES:
        return _ok("no limit" if soft == resource.RLIM_INFINITY else format_size(soft))
    return _warn(f"limited to {format_size(soft)}", f"ulimit -l {_MEMLOCK_BYTES // 1024}")


def check_cpus() -> Finding:
    """A worker and a guest can run at the same time."""
    count = len(os.sched_getaffinity(0))
    if count == 1:
        return _warn("one CPU: the target and its guest take turns", "nothing; keep away from --poll poll")
    return _ok(f"{count} CPUs")


def check_qemu() -> Finding:
    """QEMU is there and can come back to a restarted target."""
    binary = f"qemu-system-{platform.machine()}"
    found = shutil.which(binary)
    install = "apt-get install -t $(lsb_release -cs)-backports qemu-system-x86"
    if found is None:
        return _fail(f"{binary} is not installed", install)
    text = subprocess.run(
        [found, "--version"], capture_output=True, text=True, check=False, timeout=30
    ).stdout
    version = _version(text.partition("version ")[2])
    if version < _QEMU_MINIMUM:
        return _fail(f"QEMU {_dotted(version)} is too old: 9.2 is needed", install)
    return _ok(f"QEMU {_dotted(version)}")


def check_kvm() -> Finding:
    """Guests can run at full speed."""
    if not os.path.exists("/dev/kvm"):
        return _warn("no /dev/kvm: guests are emulated, slowly", "modprobe kvm_intel || modprobe kvm_amd")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return _warn("/dev/kvm may not be used", "usermod -aG kvm $USER")
    return _ok("/dev/kvm is usable")


def check_qemu_user() -> Finding:
    """The user that libvirt runs QEMU as reaches sockets in this directory (trap T13)."""
    user = next((name for name in _QEMU_USERS if _user_exists(name)), None)
    if user is None:
        return _ok("libvirt is not installed; QEMU runs as who starts it")
    blocked = _unreachable(Path.cwd(), pwd.getpwnam(user))
    if blocked is not None:
        return _warn(
            f"{user} does not reach '{blocked}': libvirt's guests cannot use sockets here",
            "install -d -g kvm -m 2770 /run/ringway, and --socket /run/ringway/NAME.sock",
        )
    return _ok(f"{user} reaches this directory")


def check_guest_kernel() -> Finding:
    """``ringway demo`` has a kernel to boot."""
    from ringway.testing.kernel import find_kernel

    try:
        return _ok(find_kernel().release)
    except RingwayError as error:
        return _warn(f"{error}: ringway demo cannot run", "make system")


Check = Callable[[], Finding]

CHECKS: Final[dict[str, Check]] = {
    "core": check_core,
    "kernel": check_kernel,
    "io_uring": check_io_uring,
    "landlock": check_landlock,
    "seccomp": check_seccomp,
    "own user": check_own_user,
    "memfd": check_memfd,
    "locked memory": check_locked_memory,
    "cpus": check_cpus,
    "qemu": check_qemu,
    "kvm": check_kvm,
    "qemu's user": check_qemu_user,
    "guest kernel": check_guest_kernel,
}


@click.command(short_help="Say what this host can do, and how to mend what it cannot.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def doctor(output: str) -> None:
    """Say what this host can do; each failure comes with the command that mends it.

    The exit status is 7 when something failed that Ringway cannot do without.
    """
    findings = {name: run_check(check) for name, check in CHECKS.items()}
    if output == "json":
        rows = [{"check": name, **msgspec.to_builtins(finding)} for name, finding in findings.items()]
        click.echo(msgspec.json.format(msgspec.json.encode(rows)).decode())
    else:
        _print_table(findings)
    failed = [name for name, finding in findings.items() if finding.verdict is Verdict.FAIL]
    if failed:
        raise DegradedError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")


def run_check(check: Check) -> Finding:
    """Run a check. One that breaks has failed, and keeps no other from running."""
    try:
        return check()
    except Exception as error:
        return _fail(f"the check itself failed: {error}", "make build, then ringway doctor again")


def _print_table(findings: dict[str, Finding]) -> None:
    colours = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}
    for number, (name, finding) in enumerate(findings.items(), 1):
        mark = click.style(f"{finding.verdict:<4}", fg=colours[finding.verdict])
        click.echo(f"{number:2}  {mark}  {name:<14} {finding.detail}")
        if finding.fix is not None:
            click.echo(f"{'':24}fix: {finding.fix}")


def _version(text: str) -> tuple[int, int]:
    """Major and minor; (0, 0) when there is none."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _unreachable(directory: Path, user: pwd.struct_passwd) -> Path | None:
    """The first directory on the way that ``user`` may not pass; ``None`` when all can be."""
    groups = set(os.getgrouplist(user.pw_name, user.pw_gid))
    for step in (*reversed(directory.parents), directory):
        status = step.stat()
        shift = 6 if status.st_uid == user.pw_uid else 3 if status.st_gid in groups else 0
        if not status.st_mode >> shift & 1:
            return step
    return None
