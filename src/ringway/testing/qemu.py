"""One QEMU process under TCG: its command line, its monitor, its console, its end."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ringway.errors import GuestError
from ringway.testing.qmp import Message, Qmp
from ringway.testing.stream import Stream
from ringway.testing.waiting import PATIENCE_S

BINARY = "qemu-system-x86_64"
INSTALL_HINT = "run `make system` as root"

# Guests' instructions are translated everywhere alike; a /dev/kvm may exist and yet be slower than that. The
# features that are taken away cost a page walk or a fence each time in translation and are of no use here.
_ACCELERATOR = ("-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,-la57,-smap,-smep,-pku")

#: The stream of a guest of 64 MiB, nearly all of it zeros, has 500 KB.
_STREAM_BYTES = 1 << 16

_running: weakref.WeakSet[Qemu] = weakref.WeakSet()


def machine(*, memory_mib: int, cpus: int) -> list[str]:
    """Arguments of a q35 machine without default devices, its memory shared with vhost-user back ends."""
    return [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        *_ACCELERATOR,
        "-smp",
        str(cpus),
        "-m",
        str(memory_mib),
        "-object",
        f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on",
        "-machine",
        "q35,memory-backend=memory,vmport=off,smbus=off",
    ]


def vhost_user_scsi(
    path: Path, *, name: str = "hba", queues: int = 1, reconnect_ms: int = 50, options: str = ""
) -> list[str]:
    """Arguments of a SCSI host bus adapter whose back end listens at ``path``.

    :param reconnect_ms: how soon QEMU tries again after the back end has gone.
    :param options: further device properties, such as ``"bootindex=0"``.
    """
    device = f"vhost-user-scsi-pci,id={name},chardev={name}-socket,num_queues={queues}"
    return [*_back_end(path, name, reconnect_ms), "-device", _joined(device, options)]


def vhost_user_blk(
    path: Path, *, name: str = "disk", queues: int = 1, reconnect_ms: int = 50, options: str = ""
) -> list[str]:
    """Arguments of a virtio-blk disk whose back end listens at ``path``; as :func:`vhost_user_scsi`."""
    device = f"vhost-user-blk-pci,id={name},chardev={name}-socket,num-queues={queues}"
    return [*_back_end(path, name, reconnect_ms), "-device", _joined(device, options)]


def vhost_user_net(
    path: Path,
    *,
    mac: str,
    server: bool,
    name: str = "net",
    queues: int = 1,
    reconnect_ms: int = 50,
    options: str = "",
) -> list[str]:
    """Arguments of a network card whose back end is a switch's port.

    :param server: QEMU listens at ``path``, and does not wait for the switch; else it connects.
    :param options: further device properties, such as ``"host_mtu=9000"``.
    """
    side = "server=on,wait=off" if server else f"reconnect-ms={reconnect_ms}"
    multiple = f"mq=on,vectors={2 * queues + 2}" if queues > 1 else ""
    device = _joined(f"virtio-net-pci,netdev={name},mac={mac}", multiple)
    return [
        *("-chardev", f"socket,id={name}-socket,path={_quoted(path)},{side}"),
        *("-netdev", f"vhost-user,id={name},chardev={name}-socket,queues={queues}"),
        *("-device", _joined(device, options)),
    ]


def vhost_scsi(wwpn: str, *, name: str = "hba", queues: int = 1, options: str = "") -> list[str]:
    """Arguments of a SCSI host bus adapter whose endpoint is the kernel's."""
    device = f"vhost-scsi-pci,id={name},wwpn={wwpn},num_queues={queues}"
    return ["-device", _joined(device, options)]


def emulated_scsi(image: Path, *, options: str = "") -> list[str]:
    """Arguments of QEMU's own virtio-scsi adapter with one raw disk: what our own target is compared with."""
    return [
        "-device",
        "virtio-scsi-pci,id=emulated",
        "-blockdev",
        f"driver=raw,node-name=emulated0,file.driver=file,file.filename={_quoted(image)},discard=unmap",
        "-device",
        _joined("scsi-hd,bus=emulated.0,drive=emulated0", options),
    ]


def _back_end(path: Path, name: str, reconnect_ms: int) -> list[str]:
    return ["-chardev", f"socket,id={name}-socket,path={_quoted(path)},reconnect-ms={reconnect_ms}"]


def _quoted(path: Path) -> str:
    """Write a path so that QEMU's option parser takes a comma in it for a letter."""
    return str(path).replace(",", ",,")


def _joined(device: str, options: str) -> str:
    return f"{device},{options}" if options else device


class Qemu:
    """A QEMU process with a monitor and named streams.

    A stream called ``console`` appears to QEMU as the character device of that id, and so on. The process
    never outlives this interpreter's regular end. A context manager; leaving it kills the process.

    :param arguments: everything but the monitor and the streams' character devices.
    :param streams: ids of character devices to make.
    """

    def __init__(self, arguments: Sequence[str], *, streams: Sequence[str] = ("console",)) -> None:
        self.streams = {name: Stream(name) for name in streams}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._qmp_socket, theirs = socket.socketpair()
        command = [find_qemu(), *self._wiring(theirs.fileno()), *arguments]
        inherited = [theirs.fileno(), *(stream.fileno_for_child() for stream in self.streams.values())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors, pass_fds=inherited
        )
        _running.add(self)
        theirs.close()
        for stream in self.streams.values():
            stream.start()
        self.qmp = Qmp(self._qmp_socket)
        self._negotiate()

    @property
    def console(self) -> Stream:
        """The stream called ``console``."""
        return self.streams["console"]

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.describe())
        self.close()

    def alive(self) -> bool:
        """Tell whether the process still runs."""
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> int:
        """Wait for QEMU's end.

        :returns: its exit status, negative for a signal.
        :raises GuestError: it still runs; it is left running.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise GuestError(f"QEMU still runs after {timeout_s:g} s\n{self.describe()}") from error

    def quit(self, timeout_s: float = PATIENCE_S) -> None:
        """End QEMU in an orderly way: devices are stopped and back ends are told.

        :raises GuestError: it does not end in time, or ends with an error.
        """
        self.qmp.execute("quit", timeout_s=timeout_s)
        if (status := self.wait(timeout_s)) != 0:
            raise GuestError(f"QEMU ended with status {status}\n{self.describe()}")

    def reset(self) -> None:
        """Press the reset button."""
        self.qmp.execute("system_reset")

    def close(self) -> None:
        """Kill QEMU if it runs, and let go of everything; doing so again changes nothing."""
        if self.alive():
            self._process.kill()
        self._process.wait()
        for stream in self.streams.values():
            stream.close()
        self._qmp_socket.close()
        self._errors.close()
        _running.discard(self)

    def describe(self) -> str:
        """Say what a person needs to see after a failure: state, messages, the end of each stream."""
        status = self._process.poll()
        parts = [f"QEMU (pid {self.pid}) " + ("runs" if status is None else f"ended with status {status}")]
        parts += [f"--- its messages\n{self._messages()}"]
        parts += [f"--- {name}\n{stream.tail()}" for name, stream in self.streams.items()]
        return "\n".join(parts)

    def _wiring(self, qmp: int) -> list[str]:
        arguments = ["-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"]
        for name, stream in self.streams.items():
            arguments += ["-chardev", f"socket,id={name},fd={stream.fileno_for_child()}"]
        return arguments

    def _negotiate(self) -> None:
        try:
            self.qmp.negotiate(PATIENCE_S)
        except GuestError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)  # it has hung up, so its status and last words are near
            text = self.describe()
            self.close()
            raise GuestError(f"QEMU did not start\n{text}") from error

    def _messages(self) -> str:
        if self._errors.closed:
            return ""
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace")[-4000:]


class QemuGuest:
    """What every kind of guest is: a context manager around a QEMU; leaving it kills the guest.

    An error that leaves it carries a note with the state of QEMU and the ends of its streams.
    """

    qemu: Qemu

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.qemu.__exit__(kind, error, trace)


def migrate(
    source: Qemu,
    destination: Qemu,
    *,
    timeout_s: float = 300.0,
    while_active: Callable[[], None] = lambda: None,
    at_switchover: Callable[[], None] = lambda: None,
) -> Message:
    """Move a running guest to a second QEMU that was started with ``-incoming defer`` and the same devices.

    When ``while_active`` is called dirty pages are logged, and the guest runs until it returns: nobody reads
    the stream before, and most of its memory does not fit into the socket's buffer. The source is paused and
    has drained its back ends when ``at_switchover`` is called.

    :returns: the source's final ``query-migrate``.
    :raises GuestError: the migration failed; which side runs is for the caller to find out.
    """
    capabilities = [
        {"capability": name, "state": True} for name in ("events", "return-path", "pause-before-switchover")
    ]
    for side in (source, destination):
        side.qmp.execute("migrate-set-capabilities", capabilities=capabilities)
    with _stream() as (out, into):
        _allow_downtime(source, 0)
        source.qmp.execute("getfd", fdname="stream", fds=[out.fileno()])
        source.qmp.execute("migrate", uri="fd:stream")
        _await_status(source, "active", timeout_s)
        while_active()
        destination.qmp.execute("getfd", fdname="stream", fds=[into.fileno()])
        destination.qmp.execute("migrate-incoming", uri="fd:stream")
        _allow_downtime(source, 300)
    _await_status(source, "pre-switchover", timeout_s)
    at_switchover()
    source.qmp.execute("migrate-continue", state="pre-switchover")
    _await_status(source, "completed", timeout_s)
    _await_status(destination, "completed", timeout_s)
    result: Message = source.qmp.execute("query-migrate")
    return result


@contextlib.contextmanager
def _stream() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection that holds much less than the state of any guest."""
    out, into = socket.socketpair()
    with out, into:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _STREAM_BYTES)
        yield out, into


def _allow_downtime(source: Qemu, limit_ms: int) -> None:
    """Without any it goes on copying for as long as there is anything left."""
    source.qmp.execute("migrate-set-parameters", downtime_limit=limit_ms)


def _await_status(side: Qemu, status: str, timeout_s: float) -> None:
    ends = {status, "failed", "cancelled"}
    seen = side.qmp.wait_event("MIGRATION", timeout_s, lambda data: data["status"] in ends)
    if seen["status"] != status:
        reason = side.qmp.execute("query-migrate").get("error-desc", "no reason given")
        raise GuestError(f"migration {seen['status']}: {reason}\n{side.describe()}")


def find_qemu() -> str:
    """Return the path of QEMU.

    :raises GuestError: it is not installed; the hint names the way to get it.
    """
    found = shutil.which(BINARY)
    if found is None:
        raise GuestError(f"{BINARY} is not installed", hint=INSTALL_HINT)
    return found


@atexit.register
def _kill_remaining() -> None:
    for qemu in list(_running):
        qemu.close()
