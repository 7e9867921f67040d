"""Any bytes, messages and fds in any order: the server outlives them, drops them, and serves the next."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringway.testing.frontend import QEMU, FrontEnd
from ringway.testing.recorder import RecorderDevice
from ringway.vhost_user import Server
from ringway.vhost_user.messages import (
    HEADER,
    REQUESTS,
    ConfigSpace,
    Inflight,
    LogArea,
    MemoryRegion,
    Request,
    VringAddress,
    VringFd,
    VringState,
)

MEMORY = 1 << 20
pytestmark = pytest.mark.usefixtures("server")


def _read_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def _memory() -> int:
    fd = os.memfd_create("hostile")
    os.ftruncate(fd, MEMORY)
    return fd


FDS: Sequence[Callable[[], int]] = (
    _memory,
    _memory,
    lambda: os.eventfd(0),
    _read_end,
    lambda: os.open("/", os.O_RDONLY),
    lambda: os.open("/dev/zero", os.O_RDWR),
    lambda: os.open("/etc/passwd", os.O_RDONLY),
    lambda: socket.socket(socket.AF_UNIX).detach(),
    lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
)

near = st.integers(0, 4)  # ring numbers and the like that often exist
u16 = near | st.integers(0, 0xFFFF)
u32 = near | st.integers(0, 0xFFFF_FFFF)
address = st.integers(0, MEMORY // 16).map(lambda n: 16 * n) | st.integers(0, (1 << 64) - 1)
region = st.builds(MemoryRegion, address, st.just(MEMORY) | address, address, st.just(0) | address)
config = st.binary(max_size=256).flatmap(
    lambda data: st.builds(ConfigSpace, u32, st.just(len(data)), u32, st.just(data))
)
u64 = st.integers(0, (1 << 64) - 1)
PAYLOADS: dict[Request, st.SearchStrategy[object]] = dict.fromkeys(REQUESTS, st.none())
PAYLOADS |= {
    Request.SET_FEATURES: st.sampled_from([0, 1 << 26, 1 << 30, 1 << 32 | 1 << 29]) | u64,
    Request.SET_PROTOCOL_FEATURES: st.sampled_from([0, 1 << 3, 0x1B22B]) | u64,
    Request.SET_STATUS: near | u64,
    Request.SET_MEM_TABLE: st.lists(region, max_size=3).map(tuple),
    Request.SET_LOG_BASE: st.builds(LogArea, st.just(MEMORY) | address, st.just(0) | address),
    Request.SET_VRING_ADDR: st.builds(VringAddress, near, near, address, address, address, address),
    Request.GET_CONFIG: config,
    Request.SET_CONFIG: config,
    Request.ADD_MEM_REG: region,
    Request.REM_MEM_REG: region,
}
PAYLOADS |= dict.fromkeys(
    (Request.GET_INFLIGHT_FD, Request.SET_INFLIGHT_FD),
    st.builds(Inflight, st.just(MEMORY) | address, st.just(0) | address, u16, st.just(8) | u16),
)
PAYLOADS |= dict.fromkeys(
    (Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.GET_VRING_BASE, Request.SET_VRING_ENABLE),
    st.builds(VringState, near, st.just(8) | u32),
)
PAYLOADS |= dict.fromkeys(
    (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR),
    st.builds(VringFd, near, st.booleans()),
)

Act = tuple[bytes, list[int]]


@st.composite
def messages(draw: st.DrawFn) -> Act:
    """A well-framed message that makes some sense, and the kinds of fds that come along."""
    request = draw(st.sampled_from(list(PAYLOADS)))
    payload = REQUESTS[request].pack(draw(PAYLOADS[request]))
    header = HEADER.pack(request, draw(st.sampled_from([1, 9, 5])), len(payload))
    return header + payload, draw(st.lists(st.integers(0, len(FDS) - 1), max_size=3))


nonsense: st.SearchStrategy[Act] = st.tuples(
    st.binary(max_size=64), st.lists(st.integers(0, len(FDS) - 1), max_size=3)
)
framed: st.SearchStrategy[Act] = st.builds(
    lambda request, flags, payload, fds: (HEADER.pack(request, flags, len(payload)) + payload, fds),
    st.integers(0, 50) | u32,
    st.sampled_from([1, 9]),
    st.binary(max_size=48),
    st.lists(st.integers(0, len(FDS) - 1), max_size=3),
)

many = settings(
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _act(endpoint: socket.socket, act: Act) -> None:
    data, kinds = act
    fds = [FDS[kind]() for kind in kinds]
    try:
        socket.send_fds(endpoint, [data], fds)
    finally:
        for fd in fds:
            os.close(fd)


def _play(path: Path, acts: list[Act]) -> None:
    with socket.socket(socket.AF_UNIX) as endpoint, contextlib.suppress(ConnectionError):
        endpoint.connect(str(path))
        for act in acts:
            _act(endpoint, act)


def _next_is_served(path: Path, device: RecorderDevice) -> int:
    with FrontEnd(path, queues=2, queue_size=8, order=QEMU) as front:
        front.open()
        front.get_features()
        assert set(device.running) == device.enabled == {0, 1}
        device.calls.clear()
        return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kind", ["messages", "framed", "nonsense"])
def test_the_next_front_end_is_served_whatever_the_last_one_did(
    path: Path, device: RecorderDevice, kind: str
) -> None:
    acts = {"messages": messages(), "framed": messages() | framed, "nonsense": messages() | nonsense}[kind]
    gc.collect()  # what earlier tests left open must not be closed while we count
    fds = _next_is_served(path, device)

    @many
    @given(st.lists(acts, max_size=30))
    def play(script: list[Act]) -> None:
        _play(path, script)
        assert _next_is_served(path, device) == fds

    play()


def test_two_servers_know_nothing_of_each_other(
    tmp_path: Path, path: Path, device: RecorderDevice, server: Server
) -> None:
    other = RecorderDevice()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "other.sock"))
        listener.listen()
        with (
            Server(listener.dup(), other),
            FrontEnd(tmp_path / "other.sock", queues=2, queue_size=8) as front,
        ):
            front.open()
            _play(path, [(b"\xff" * 64, [0])])
            front.get_features()
            assert set(other.running) == {0, 1}
