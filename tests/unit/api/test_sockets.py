"""Real connections: who they are, what they may do, and how little a hostile one can do."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from ringway.api import notify, server
from ringway.api.doors import open_doors
from ringway.errors import UsageError
from ringway.host import places
from ringway.host.config import ApiConfig
from ringway.host.events import Kind
from ringway.host.places import Places
from ringway.testing.waiting import PATIENCE_S

from .conftest import Served

pytestmark = pytest.mark.anyio
Serve = Callable[[], AbstractAsyncContextManager[Served]]


async def ask(path: Path, request: str) -> bytes:
    """Send a request that ends the connection. :returns: all that comes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return answer


async def _all(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side hangs up, politely or not."""
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    except ConnectionError:
        return b""


async def test_each_door_lets_in_for_what_it_is(serve: Serve) -> None:
    async with serve() as served:
        for path, read_only in ((served.api, False), (served.read_only, True)):
            head, _, body = (await ask(path, "GET /1.0")).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert json.loads(body)["read_only"] is read_only
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        denied = await ask(served.read_only, "DELETE /1.0/endpoints/a")
        assert denied.startswith(b"HTTP/1.1 403")
    assert not served.api.exists()


async def test_a_change_is_logged_with_the_process_that_asked(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ringway.event")
    async with serve() as served:
        await ask(served.api, "DELETE /1.0/endpoints/a")
    (entry,) = [record.fields for record in caplog.records if record.fields["event"] == "change"]  # type: ignore[attr-defined]
    assert (entry["uid"], entry["gid"], entry["pid"]) == (os.getuid(), os.getgid(), os.getpid())
    assert entry["command"] == Path("/proc/self/comm").read_text().strip()


async def test_more_than_fit_are_shown_out_and_the_other_door_stays_open(serve: Serve) -> None:
    async with serve() as served:
        crowd = [await asyncio.open_unix_connection(str(served.read_only)) for _ in range(8)]
        reader, writer = await asyncio.open_unix_connection(str(served.read_only))
        assert await _all(reader) == b""
        writer.close()
        assert b"200 OK" in await ask(served.api, "GET /1.0")
        for _, each in crowd:
            each.close()
        while served.doors[1].inside:
            await asyncio.sleep(0.01)
        assert b"200 OK" in await ask(served.read_only, "GET /1.0")


@pytest.mark.parametrize("begun", [b"", b"GET /1.0 HT"])
async def test_who_never_ends_a_header_is_hung_up_on(
    serve: Serve, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEADER_TIMEOUT_S", 0.1)
    async with serve() as served:
        reader, writer = await asyncio.open_unix_connection(str(served.api))
        writer.write(begun)
        assert await _all(reader) == b""
        writer.close()


async def test_who_never_ends_his_second_header_is_hung_up_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEADER_TIMEOUT_S", 0.1)
    async with serve() as served:
        reader, writer = await asyncio.open_unix_connection(str(served.api))
        writer.write(b"GET /1.0/endpoints HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"[]")
        writer.write(b"GET /1")
        assert await _all(reader) == b""
        writer.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 100_000,
        b"GET /" + b"a" * 200_000,
        b"GET /1.0 HTTP/1.1\r\n" + b"x: y\r\n" * 50_000,
        b"POST /1.0/endpoints HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        b"POST /1.0/endpoints HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /1.0\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /1.0/endpoints?\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /1.0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[:24]),
)
async def test_rubbish_harms_nobody_else(serve: Serve, raw: bytes) -> None:
    async with serve() as served:
        reader, writer = await asyncio.open_unix_connection(str(served.api))
        writer.write(raw)
        writer.write_eof()
        answer = await _all(reader)
        writer.close()
        assert b" 500 " not in answer.split(b"\r\n", 1)[0]
        assert b"200 OK" in await ask(served.api, "GET /1.0")


async def test_who_follows_events_and_reads_nothing_costs_little(serve: Serve) -> None:
    async with serve() as served:
        _, writer = await asyncio.open_unix_connection(str(served.read_only))
        writer.write(b"GET /1.0/events HTTP/1.1\r\nHost: x\r\n\r\n")
        while not served.host.events._readers:
            await asyncio.sleep(0.01)
        for number in range(5000):
            served.host.events.tell(Kind.READY, f"endpoint/{number}", "x" * 200)
        assert max(reader.qsize() for reader in served.host.events._readers) <= 1000
        assert b"200 OK" in await ask(served.api, "GET /1.0")
        writer.close()


# Doors


def test_a_door_of_roots_is_its_groups(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a socket to a group")
    where = Places(config=tmp_path / "c", parts=tmp_path / "d", run=tmp_path, state=tmp_path, private=False)
    opened = open_doors(where, ApiConfig(admin_group="daemon", read_group="no such group"))
    modes = [(path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) for path in (where.api, where.read_only)]
    for door in opened:
        door.socket.close()
    assert modes == [(1, 0o660), (0, 0o600)]  # one whose group is missing is nobody's


def test_a_path_that_is_too_long_is_said(tmp_path: Path) -> None:
    where = places.below(tmp_path / ("x" * 100))
    where.make()
    with pytest.raises(UsageError, match="too long"):
        open_doors(where, ApiConfig())


def test_sockets_of_systemd_are_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as api, socket.socket(socket.AF_UNIX) as ro:
        first = max(os.dup(api.fileno()), os.dup(ro.fileno())) + 1
        fds = [os.dup2(each.fileno(), first + number) for number, each in enumerate((ro, api))]
        monkeypatch.setattr(notify, "_FIRST", first)
        environment = {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "ro:api"}
        found = notify.handed_over(environment)
    assert {name: each.fileno() for name, each in found.items()} == {"ro": fds[0], "api": fds[1]}
    assert environment == {}
    for each in found.values():
        assert not each.get_inheritable()
        each.close()
    assert notify.handed_over({"LISTEN_FDS": "2", "LISTEN_PID": "1"}) == {}


def test_words_reach_the_service_manager_and_children_know_no_way_to_it(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000000", "HOME": "/"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        manager = notify.Manager(environment)
        manager.tell("READY=1", "STATUS=fine")
        assert listener.recv(100) == b"READY=1\nSTATUS=fine"
    manager.tell("STOPPING=1")  # nobody listens any more
    assert manager.watchdog_s == 10.0
    assert environment == {"HOME": "/"}
    assert notify.Manager({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert notify.Manager({}).watchdog_s is None
