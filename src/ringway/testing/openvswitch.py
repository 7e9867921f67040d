"""A private Open vSwitch for a test: database and switch in a folder of their own, ended by their ids.

With DPDK it takes huge pages from the machine for as long as it runs, and a core. One such switch runs at a
time, whoever starts it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ringway.errors import GuestError
from ringway.testing.initramfs import find_program
from ringway.testing.waiting import PATIENCE_S

#: 2 MiB each.
HUGEPAGES: Final = 512
_COUNT: Final = Path("/proc/sys/vm/nr_hugepages")
_LOCK: Final = Path(tempfile.gettempdir()) / "ringway-hugepages.lock"
SCHEMA: Final = Path("/usr/share/openvswitch/vswitch.ovsschema")
_DAEMON: Final = Path("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk")
_PACKAGE: Final = "openvswitch-switch-dpdk"
_ATTEMPTS: Final = 10  #: at huge pages: each makes the kernel move some more of what is in their way
_STEP_S: Final = 0.02
#: The switch has no core to itself here: threads that find nothing to do sleep a little.
_CONFIG: Final = {
    "dpdk-init": "true",
    "dpdk-lcore-mask": "0x1",
    "pmd-cpu-mask": "0x1",
    "pmd-maxsleep": "100",  # of 3.1
    "pmd-sleep-max": "100",  # of later ones
    "dpdk-socket-mem": str(HUGEPAGES * 2),
    "dpdk-extra": "--no-pci --no-telemetry",
}


@contextlib.contextmanager
def hugepages(count: int = HUGEPAGES) -> Iterator[None]:
    """Have huge pages for a while, alone with them; then the machine has as many as before.

    :raises GuestError: this host gives none.
    """
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = _COUNT.read_text() if _COUNT.exists() else "0"
        try:
            _reserve(int(before) + count, int(before))
            yield
        finally:
            with contextlib.suppress(OSError):
                _COUNT.write_text(before)


def _reserve(wanted: int, before: int) -> None:
    try:
        for _ in range(_ATTEMPTS):
            _COUNT.write_text(str(wanted))
            if (got := int(_COUNT.read_text())) >= wanted:
                break
    except OSError as error:
        raise GuestError(f"no huge pages: {error.strerror}", hint="run the tests as root") from error
    if got < wanted:
        _COUNT.write_text(str(before))
        raise GuestError(
            f"this host has no {wanted} huge pages of 2 MiB, only {got}", hint="free some memory"
        )


class OpenVSwitch:
    """A context manager; leaving it ends both processes.

    :param folder: for all that they make; its path must leave room for sockets' names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.remote = f"unix:{folder}/db.sock"
        self._environment = {**os.environ, "OVS_RUNDIR": str(folder), "OVS_LOGDIR": str(folder)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._asked = itertools.count()
        if not SCHEMA.exists():
            raise GuestError("Open vSwitch is not installed", hint=f"apt-get install {_PACKAGE}")
        self._call("ovsdb-tool", "create", str(folder / "conf.db"), str(SCHEMA))

    def __enter__(self) -> Self:
        self.start_database()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.describe())
        self.close()

    def start_database(self) -> None:
        """Start ovsdb-server, and wait until it answers."""
        server = str(find_program("ovsdb-server", "openvswitch-switch"))
        self._start(
            "ovsdb-server", server, "conf.db", f"--remote=p{self.remote}", "--unixctl=db.ctl", "--no-chdir"
        )
        self._await("ovsdb-server", lambda: self.vsctl("--no-wait", "init"))

    def stop_database(self) -> None:
        self._stop("ovsdb-server")

    def start_switch(self) -> None:
        """Start ovs-vswitchd with DPDK, and wait until it forwards. Huge pages are the caller's.

        A bridge has a network card of its name, which would outlive the switch: they are in a namespace of
        their own, and go with it.

        :raises GuestError: it does not start; the message has its last words.
        """
        if not _DAEMON.exists():
            raise GuestError(f"{_DAEMON} is not installed", hint=f"apt-get install {_PACKAGE}")
        settings = [f"other_config:{name}={_quoted(value)}" for name, value in _CONFIG.items()]
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *settings)
        pid_file = f"--pidfile={self.folder}/ovs-vswitchd.pid"
        unshare = str(find_program("unshare", "util-linux"))
        options = [self.remote, pid_file, "--unixctl=switch.ctl", "--no-chdir"]
        self._start("ovs-vswitchd", unshare, "--net", str(_DAEMON), *options)
        self._await("ovs-vswitchd", self._hear)

    def stop_switch(self) -> None:
        """End it as the machine would: at once, without a word to the guests."""
        self._stop("ovs-vswitchd")

    def end_switch(self) -> None:
        """End it in good order: it removes its sockets."""
        process = self._processes.pop("ovs-vswitchd")
        process.terminate()
        process.wait(PATIENCE_S)

    def vsctl(self, *arguments: str) -> str:
        """Run ovs-vsctl. :raises GuestError: it failed; the message has what it said."""
        return self._call("ovs-vsctl", f"--db={self.remote}", *arguments)

    def appctl(self, *arguments: str) -> str:
        """Ask the switch itself. :raises GuestError: as :meth:`vsctl`."""
        return self._call("ovs-appctl", "-t", str(self.folder / "switch.ctl"), *arguments)

    def close(self) -> None:
        for name in tuple(self._processes):
            self._stop(name)

    def describe(self) -> str:
        """The last words of both."""
        logs = [self.folder / f"{name}.log" for name in ("ovsdb-server", "ovs-vswitchd")]
        return "\n".join(f"--- {log.name}\n{log.read_text()[-12000:]}" for log in logs if log.exists())

    def _hear(self) -> str:
        """Have the switch do something: what changes nothing is done before it has begun."""
        heard = f"external_ids:heard={next(self._asked)}"
        return self.vsctl("--timeout=10", "set", "Open_vSwitch", ".", heard)

    def _call(self, tool: str, *arguments: str) -> str:
        done = subprocess.run(
            [find_program(tool, _PACKAGE), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=self._environment,
        )
        if done.returncode:
            raise GuestError(f"{tool} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*command, "-vsyslog:off", "-vfile:off"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )

    def _stop(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def _await(self, name: str, ready: Callable[[], str]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                ready()
                return
            except GuestError as error:
                if self._processes[name].poll() is not None or time.monotonic() > deadline:
                    raise GuestError(f"{name} did not start: {error}\n{self.describe()}") from error
                time.sleep(_STEP_S)


def _quoted(value: str) -> str:
    """As ovs-vsctl wants a value with blanks and commas in it."""
    return f'"{value}"'
