"""Front ends that misbehave: whatever one does, the next is served, and nothing of it is left.

(The descriptor of an io_uring cannot come: no socket carries one.)
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from ringway.errors import RingwayError, UnreachableError
from ringway.testing.frontend import BlkFrontEnd
from ringway.testing.memory import GuestMemory
from ringway.testing.session import RefusedError
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import PATIENCE_S, wait_until
from ringway.vhost_user.connection import OwnedFd
from ringway.vhost_user.messages import HEADER, VERSION, Flag, Request

from ..conftest import Count
from ..disks import MIB

PAGE: Final = 4096
SEAL_SHRINK, SEAL_GROW, SEAL_WRITE = 2, 4, 8


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedTarget]:
    """One target for all of them: it must be the same process at the end."""
    folder = Path("/tmp") / f"rw-front-{os.getpid()}"
    folder.mkdir()
    try:
        user = f"--user={os.geteuid()}"  # its limits are set here
        with ServedTarget(folder, "--device", "blk", "--queues", "2", user, "ram:4M") as served:
            first = served.pid
            yield served
            assert served.pid == first
            assert served.stop() == 0
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_served(target: ServedTarget) -> None:
    """The next front end reads and writes, on both queues."""
    wait_until(lambda: not target.info().connected, "the last front end to be gone")
    with BlkFrontEnd(target.socket, queues=2).open() as front:
        for queue in (0, 1):
            data = os.urandom(512)
            assert front.write(queue, data, queue=queue).status == 0
            assert front.read(queue, 512, queue=queue).data == data


def holdings(target: ServedTarget) -> tuple[int, int]:
    """Descriptors and threads."""
    return tuple(len(os.listdir(f"/proc/{target.pid}/{what}")) for what in ("fd", "task"))  # type: ignore[return-value]


def resident(target: ServedTarget) -> int:
    """Bytes of private memory."""
    pages = Path(f"/proc/{target.pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * PAGE


@pytest.fixture(autouse=True)
def nothing_is_left(target: ServedTarget) -> Iterator[None]:
    """What is held after a test, and after it has served another, is what was held before."""
    check_served(target)
    wait_until(lambda: not target.info().connected, "the first to be gone")
    least = min(holdings(target) for _ in range(5))
    yield
    check_served(target)
    wait_until(lambda: holdings(target) <= least, f"what is held to become {least} again")


def connect(target: ServedTarget) -> socket.socket:
    endpoint = socket.socket(socket.AF_UNIX)
    endpoint.connect(target.socket)  # blocking: it waits for a place in the backlog
    endpoint.settimeout(PATIENCE_S)
    return endpoint


def message(request: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return HEADER.pack(request, VERSION | flags, len(payload)) + payload


def test_thousands_that_connect_leave_nothing_behind(target: ServedTarget, count: Count) -> None:
    """Some say nothing, some half a header, some a request whose answer they do not wait for."""
    words = (b"", b"\x01", message(Request.GET_FEATURES)[:7], message(Request.GET_FEATURES), b"\xff" * 64)
    number = count(2000, 20000)
    for at in range(number // 10):
        connect(target).close() if not words[at % 5] else _say(target, words[at % 5])
    check_served(target)
    before = resident(target)
    for at in range(number):
        _say(target, words[at % 5])
    check_served(target)
    wait_until(lambda: resident(target) < before + 4 * MIB, "its memory to stay as it was")


def _say(target: ServedTarget, words: bytes) -> None:
    with connect(target) as endpoint, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        endpoint.send(words, socket.MSG_NOSIGNAL)


def test_many_at_once_are_turned_away(target: ServedTarget) -> None:
    with BlkFrontEnd(target.socket, queues=2).open() as front:
        crowd = [connect(target) for _ in range(300)]
        assert all(_hung_up(each) for each in crowd)
        assert front.write(0, b"f" * 512).status == 0
        for each in crowd:
            each.close()


def _hung_up(endpoint: socket.socket) -> bool:
    try:
        return endpoint.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("words", [b"", message(Request.GET_FEATURES)[:7]], ids=["nothing", "half a header"])
def test_who_says_next_to_nothing_and_stays_makes_room(target: ServedTarget, words: bytes) -> None:
    with connect(target) as silent:
        silent.send(words)
        wait_until(lambda: target.info().connected, "it to be seen")

        def served() -> bool:
            with BlkFrontEnd(target.socket, queues=2) as front, contextlib.suppress(RingwayError, OSError):
                return front.open().write(0, bytes(512)).status == 0
            return False

        wait_until(served, "room")


# Descriptors


def start(front: BlkFrontEnd, connected: bool) -> None:
    if connected:
        front.share_memory()
    else:
        front.open()
    front.get_features()


def check_refused(front: BlkFrontEnd, *, connected: bool = False) -> None:
    """It is told no, or shown the door."""
    with pytest.raises((RefusedError, UnreachableError)):
        start(front, connected)


def pipe_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def one_socket() -> int:
    return socket.socket(socket.AF_UNIX).detach()


def write_only() -> int:
    path = f"/dev/shm/ringway-write-only-{os.getpid()}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.unlink(path)
    os.ftruncate(fd, 16 * MIB)
    return fd


def read_only() -> int:
    path = f"/dev/shm/ringway-read-only-{os.getpid()}"
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    os.truncate(path, 16 * MIB)
    fd = os.open(path, os.O_RDONLY)
    os.unlink(path)
    return fd


def too_small() -> int:
    fd = os.memfd_create("small")
    os.ftruncate(fd, MIB)
    return fd


def sealed() -> int:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 16 * MIB)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEAL_WRITE)
    return fd


NO_MEMORY: Final[dict[str, Callable[[], int]]] = {
    "a pipe": pipe_end,
    "a socket": one_socket,
    "a folder": lambda: os.open("/", os.O_RDONLY),
    "the null device": lambda: os.open("/dev/null", os.O_RDWR),
    "an eventfd": lambda: os.eventfd(0),
    "a path": lambda: os.open("/", os.O_PATH),
    "a file for writing": write_only,
    "a file for reading": read_only,
    "a file that is smaller than it says": too_small,
    "a file that is sealed against writing": sealed,
}


@pytest.mark.parametrize("make", NO_MEMORY.values(), ids=NO_MEMORY)
def test_what_is_no_memory_is_refused(target: ServedTarget, make: Callable[[], int]) -> None:
    memory = GuestMemory((16 * MIB,))
    fd = make()
    with BlkFrontEnd(target.socket, queues=2, memory=memory) as front:
        try:
            os.dup2(fd, memory.pieces[0].fd)
            check_refused(front)
        finally:
            os.close(fd)
    assert target.alive


def test_memory_that_is_sealed_against_shrinking_is_memory(target: ServedTarget) -> None:
    """The best there is: nobody can take it away."""
    memory = GuestMemory((16 * MIB,))
    fd = os.memfd_create("good", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 16 * MIB)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEAL_SHRINK | SEAL_GROW)
    piece = memory.pieces[0]
    os.dup2(fd, piece.fd)
    os.close(fd)
    with mmap.mmap(piece.fd, 16 * MIB) as seen:
        assert seen[:1] == b"\0"
    with BlkFrontEnd(target.socket, queues=2, memory=memory) as front:
        front.connect()
        front.share_memory()
        front.get_features()


@pytest.mark.parametrize("number", [1, 8, 32, 200])
def test_fds_with_messages_that_take_none_are_closed(target: ServedTarget, number: int) -> None:
    """Each message brings some, and uses none."""
    with connect(target) as endpoint, open("/dev/null") as null:
        before = holdings(target)
        for _ in range(20):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send_fds(endpoint, [message(Request.SET_OWNER)], [null.fileno()] * number)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            endpoint.send(message(Request.GET_FEATURES))
            endpoint.recv(64)
        wait_until(lambda: holdings(target)[0] <= before[0] + 1, "the descriptors to be closed")


def test_a_front_end_that_hangs_up_in_mid_answer(target: ServedTarget) -> None:
    """SIGPIPE: it asks for much, and takes none of it."""
    for _ in range(20):
        with connect(target) as endpoint:
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            with contextlib.suppress(OSError):
                endpoint.setblocking(False)
                for _ in range(2000):
                    endpoint.send(message(Request.GET_FEATURES), socket.MSG_NOSIGNAL)


# Limits


def limited(target: ServedTarget, what: int, soft: int) -> contextlib.ExitStack:
    """Lower a limit of the target; it comes back at the end."""
    old = resource.prlimit(target.pid, what)
    resource.prlimit(target.pid, what, (soft, old[1]))
    stack = contextlib.ExitStack()
    stack.callback(resource.prlimit, target.pid, what, old)
    return stack


def test_without_descriptors_a_front_end_has_to_wait(target: ServedTarget) -> None:
    target.forget_log()
    with limited(target, resource.RLIMIT_NOFILE, 3), connect(target) as endpoint:
        target.wait_message("a front end could not be accepted")
        endpoint.send(message(Request.GET_FEATURES))
    check_served(target)


def test_without_descriptors_for_its_memory_a_front_end_is_shown_the_door(target: ServedTarget) -> None:
    with BlkFrontEnd(target.socket, queues=2) as front:
        front.connect()
        front.get_features()
        with limited(target, resource.RLIMIT_NOFILE, 3):
            check_refused(front, connected=True)


def test_memory_that_is_too_large_for_the_target_is_refused(target: ServedTarget) -> None:
    used = int(Path(f"/proc/{target.pid}/statm").read_text().split()[0]) * PAGE
    memory = GuestMemory((512 * MIB,))
    with (
        BlkFrontEnd(target.socket, queues=2, memory=memory) as front,
        limited(target, resource.RLIMIT_AS, used + 128 * MIB),
    ):
        check_refused(front)


@pytest.mark.parametrize("size", [1 << 40, 1 << 56, (1 << 64) - PAGE])
def test_regions_beyond_all_memory_are_refused(target: ServedTarget, size: int) -> None:
    with connect(target) as endpoint, open("/dev/zero", "rb+", buffering=0) as zero:
        table = struct.pack("<IIQQQQ", 1, 0, 0, size, 0, 0)
        socket.send_fds(endpoint, [message(Request.SET_MEM_TABLE, table)], [zero.fileno()])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            endpoint.send(message(Request.GET_FEATURES))
            endpoint.recv(64)
    assert target.alive


@pytest.mark.parametrize(("queues", "size"), [(2, 0xFFFF), (0xFFFF, 32768), (0xFFFF, 0xFFFF)])
def test_inflight_regions_that_are_too_large_are_refused(
    target: ServedTarget, queues: int, size: int
) -> None:
    with connect(target) as endpoint:
        wanted = struct.pack("<QQHH", 0, 0, queues, size)
        endpoint.send(message(Request.GET_INFLIGHT_FD, wanted, Flag.NEED_REPLY))
        answer, fds, _, _ = socket.recv_fds(endpoint, 256, 4)
        for fd in fds:
            OwnedFd(fd).close()
        assert not fds or len(answer) > HEADER.size
    assert target.alive
