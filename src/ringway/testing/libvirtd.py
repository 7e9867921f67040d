"""A libvirtd of one's own: in a folder, started, restarted and ended with all its guests.

    with Libvirtd(folder) as libvirtd:
        connection = libvirt.open(libvirtd.uri)

Configuration, state, logs, caches and sockets lie below the folder. In a mount namespace of its own the
daemon finds them where it always looks, so what this host has there is neither seen nor touched, and several
run side by side.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ringway.errors import GuestError
from ringway.testing.small_host import Popen
from ringway.testing.waiting import PATIENCE_S, wait_until

INSTALL_HINT: Final = "run `make system`, or apt-get install libvirt-daemon libvirt-daemon-driver-qemu"
_PROGRAMS: Final = ("libvirtd", "unshare", "mount")

#: What libvirtd keeps, and where in the folder it goes.
_PLACES: Final = {
    "/etc/libvirt": "etc",
    "/var/lib/libvirt": "lib",
    "/var/cache/libvirt": "cache",
    "/var/log/libvirt": "log",
    "/run/libvirt": "run",
}

#: Run with pairs of folders, "--" and a command: what is mounted, is mounted for that command alone.
#: Takes the mounts of others' FUSE along no further: who serves one waits until nobody has it.
_ENTER: Final = (
    "umount --all --lazy --types fuse || true; "
    'while [ "$1" != -- ]; do mkdir -p "$2"; mount --bind "$1" "$2"; shift 2; done; shift; exec "$@"'
)

#: Waits until its starter hangs up, however that comes about, and ends the daemon and its guests then.
_WARDEN: Final = """\
trap '' INT TERM HUP
read -r _
for file in libvirtd.pid run/qemu/*.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    case $(readlink /proc/$pid/exe) in */libvirtd* | */qemu-system*) kill -9 "$pid" ;; esac
    while [ -e /proc/$pid ] && ! grep -q ') Z' /proc/$pid/stat; do sleep 0.02; done
done
"""

#: Guests run as root, who owns what tests make, and nothing of this host is labelled, confined or counted.
_QEMU: Final[Mapping[str, object]] = {
    "user": "root",
    "group": "root",
    "dynamic_ownership": 0,
    "remember_owner": 0,
    "security_driver": "none",
    "namespaces": [],
    "cgroup_controllers": [],
    "stdio_handler": "file",  # no virtlogd
}
#: How others come; by a real operator it would be TLS, or SSH and the socket.
_TCP: Final[Mapping[str, object]] = {"listen_tls": 0, "listen_tcp": 1, "auth_tcp": "none"}
_NOTHING: Final[Mapping[str, object]] = {}


class Libvirtd:
    """A private libvirtd. A context manager that starts it, and ends it with its guests.

    They end as well when this process dies without a word.

    :param folder: short enough for sockets in it.
    :param cache: where it remembers what QEMU can do, which takes seconds to find out; the folder's own, if
        not given.
    :param qemu: settings of ``qemu.conf`` beside, or instead of, those that suit tests.
    :param host: the host's UUID as libvirt sees it; a new one, if not given: guests move between hosts only.
    :param popen: starts its processes, on a host of their own for one; numbers in its files are that host's.
    :param listen: the host's name, if other hosts' libvirtds may come over TCP; whoever does is taken in.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cache: Path | None = None,
        qemu: Mapping[str, object] = _NOTHING,
        host: str | None = None,
        popen: Popen = subprocess.Popen,
        listen: str | None = None,
    ) -> None:
        self.folder = folder
        self._popen = popen
        self._listen = listen
        self._cache = cache or folder / "cache"
        self._qemu = {**_QEMU, **qemu}
        self._host = host or str(uuid.uuid4())
        self._process: subprocess.Popen[bytes] | None = None
        self._warden: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Where clients connect."""
        return self.folder / "run" / "libvirt-sock"

    @property
    def uri(self) -> str:
        """What ``libvirt.open`` and ``virsh -c`` take."""
        return f"qemu+unix:///system?socket={self.socket}"

    @property
    def remote_uri(self) -> str:
        """What a libvirtd on another host takes."""
        return f"qemu+tcp://{self._listen}/system"

    @property
    def pid(self) -> int:
        """Of the daemon that runs."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it said, in all its lives."""
        path = self.folder / "libvirtd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def guest_log(self, name: str) -> str:
        """What a guest's QEMU said, and its command line."""
        path = self.folder / "log" / "qemu" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def guest_pid(self, name: str) -> int:
        """Of a guest's QEMU. :raises GuestError: it does not run."""
        try:
            return int((self.folder / "run" / "qemu" / f"{name}.pid").read_text())
        except FileNotFoundError as error:
            raise GuestError(f"guest '{name}' does not run") from error

    # Its life

    def __enter__(self) -> Self:
        self._prepare()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"the end of libvirtd's log:\n{self.log[-2000:]}")
        self.close()

    def start(self) -> None:
        """Start it, and wait until it answers; guests that run are found again.

        :raises GuestError: it ended, or took too long.
        """
        self.socket.unlink(missing_ok=True)
        with (self.folder / "libvirtd.log").open("ab") as log:
            self._process = self._popen(self._command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._wait_ready()

    def stop(self) -> None:
        """Ask it to end; guests go on."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a word; guests go on."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """End it and start it again, as an upgrade does."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it and its guests; again is fine."""
        if self._warden is not None and self._warden.stdin is not None:
            self._warden.stdin.close()
            self._warden.wait(PATIENCE_S)
            self._warden = None
        if self._process is not None:
            self._process.wait(PATIENCE_S)
            self._process = None

    def virsh(self, *arguments: str, timeout_s: float = PATIENCE_S) -> str:
        """Run ``virsh``, as an administrator does beside us. :raises GuestError: it failed."""
        command = ["virsh", "-q", "-c", self.uri, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        if done.returncode != 0:
            raise GuestError(f"virsh {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    # Inside

    def _prepare(self) -> None:
        for name in (*_PLACES.values(), "log/qemu"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._cache.mkdir(parents=True, exist_ok=True)
        daemon: Mapping[str, object] = {
            "auth_unix_rw": "none",
            "auth_unix_ro": "none",
            "unix_sock_rw_perms": "0700",
            "host_uuid": self._host,
            "log_outputs": "3:stderr",
            **(_TCP if self._listen else {}),
        }
        (self.folder / "etc" / "libvirtd.conf").write_text(_settings(daemon))
        (self.folder / "etc" / "qemu.conf").write_text(_settings(self._qemu))
        self._warden = self._popen(
            ["sh", "-c", _WARDEN], cwd=self.folder, stdin=subprocess.PIPE, start_new_session=True
        )

    def _command(self) -> list[str]:
        pairs = [part for place, name in _PLACES.items() for part in (str(self._place(name)), place)]
        daemon = ["libvirtd", "-f", "/etc/libvirt/libvirtd.conf", "-p", str(self.folder / "libvirtd.pid")]
        daemon += ["--listen"] if self._listen else []
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        namespace = ["unshare", "--mount", "--propagation", "private", *user]
        return [*namespace, "sh", "-euc", _ENTER, "sh", *pairs, "--", *daemon]

    def _place(self, name: str) -> Path:
        return self._cache if name == "cache" else self.folder / name

    def _wait_ready(self) -> None:
        process = self._process
        assert process is not None
        wait_until(lambda: self._answers() or process.poll() is not None, "libvirtd")
        if process.poll() is not None:
            raise GuestError(f"libvirtd did not start\n{self.log[-2000:]}")

    def _answers(self) -> bool:
        """Whether somebody listens; a connection waits there until drivers are loaded."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)
        self._process.wait(PATIENCE_S)
        self._process = None


def check_programs() -> None:
    """:raises GuestError: something that a private libvirtd needs is not installed; the hint says how."""
    for name in _PROGRAMS:
        if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            raise GuestError(f"{name} is not installed", hint=INSTALL_HINT)


def _settings(values: Mapping[str, object]) -> str:
    return "".join(f"{name} = {_value(value)}\n" for name, value in values.items())


def _value(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[ {', '.join(map(_value, value))} ]"
    return f'"{value}"' if isinstance(value, str) else str(value)
