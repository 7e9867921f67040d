"""What the API answers: objects, operations, plans, and errors that name what is wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest

from ringway.api import requests
from ringway.api.peers import Access
from ringway.api.table import ROUTES
from ringway.testing.engine import World
from ringway.testing.waiting import PATIENCE_S

from .asking import ME
from .conftest import Start

pytestmark = pytest.mark.anyio

RAM = {"kind": "ram", "size_bytes": 1 << 20}
LUN: dict[str, Any] = {"target": 0, "lun": 0, "backstore": RAM}
DB0 = {"name": "db0", "luns": [LUN]}


async def test_an_endpoints_life(start: Start) -> None:
    async with start() as ask:
        made = await ask("POST", "/1.0/endpoints", DB0)
        assert made.status == 201
        assert (made.json["name"], made.json["state"]) == ("db0", "ready")
        assert (await ask("GET", "/1.0/endpoints")).json == [made.json]
        assert (await ask("GET", "/1.0/endpoints/db0")).json == made.json
        more = {"target": 0, "lun": 1, "backstore": RAM}
        changed = await ask("POST", "/1.0/endpoints/db0/luns", more)
        assert (changed.status, len(changed.json["luns"])) == (200, 2)
        limited = await ask("PUT", "/1.0/endpoints/db0/luns/0:1/limits", {"iops": 100})
        assert limited.json["luns"][1]["limits"]["iops"] == 100
        sized = await ask("POST", "/1.0/endpoints/db0/luns/0:1/resize", {"size_bytes": 1 << 30})
        assert sized.json["spec"]["luns"][1]["backstore"]["size_bytes"] == 1 << 30
        assert (await ask("POST", "/1.0/endpoints/db0/luns/0:1/resize")).status == 200
        fewer = await ask("DELETE", "/1.0/endpoints/db0/luns/0:1")
        assert len(fewer.json["luns"]) == 1
        put = await ask("PUT", "/1.0/endpoints/db0", {**DB0, "luns": []})
        assert put.json["luns"] == []
        assert "uptime_s" in (await ask("GET", "/1.0/endpoints/db0/statistics")).json
        assert (await ask("DELETE", "/1.0/endpoints/db0")).json == {}
        assert (await ask("GET", "/1.0/endpoints")).json == []
        assert [one["state"] for one in (await ask("GET", "/1.0/operations")).json] == ["done"] * 8


async def test_the_host_tells_what_it_is(start: Start) -> None:
    async with start() as ask:
        await ask("POST", "/1.0/endpoints", DB0)
        info = (await ask("GET", "/1.0")).json
        assert (info["api"], info["endpoints"], info["degraded"], info["read_only"]) == ("1.0", 1, 0, False)
        assert [engine["engine"] for engine in info["engines"]] == ["user"]
        looked = await ask("GET", "/1.0", access=Access(read_only=True))
        assert looked.json["read_only"] is True
        probed = await ask("POST", "/1.0/backstores/probe", RAM)
        assert (probed.json["kind"], probed.json["size_bytes"]) == ("ram", 1 << 20)
        assert [one["used_by"] for one in (await ask("GET", "/1.0/backstores")).json] == [["db0/0:0"]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({**DB0, "colour": 1}, "unknown field 'colour'"),
        ({"name": "a", "luns": [{**LUN, "backstore": {**RAM, "x": 1}}]}, "'x' in luns[0].backstore"),
        ({"name": "../a"}, "name has to be made of letters"),
        ({"name": "a" * 64}, "name has to be of 63 characters at most"),
        ({"name": "a", "wwpn": "naa.5"}, "wwpn has to be"),
        ({"name": "a", "luns": [{**LUN, "target": 256}]}, "target"),
        ({"name": "a", "luns": [LUN, LUN]}, "same target and LUN"),
        ({"name": "a", "luns": [{**LUN, "backstore": {"kind": "path", "path": "a\0b"}}]}, "path"),
        ({}, "name"),
        ([], "it has to be a table"),
    ],
)
async def test_what_makes_no_sense_is_named(start: Start, body: Any, message: str) -> None:
    async with start() as ask:
        answer = await ask("POST", "/1.0/endpoints", body)
        assert answer.status == 400
        assert answer.error["code"] == "usage"
        assert message in answer.error["message"]


async def test_a_name_with_a_slash_is_no_way_to_another_object(start: Start) -> None:
    """``endpoint delete a/luns/0:1`` removed the LUN."""
    async with start() as ask:
        await ask("POST", "/1.0/endpoints", DB0)
        answer = await ask("DELETE", "/1.0/endpoints/db0%2Fluns%2F0:0")
        assert (answer.status, answer.error["code"]) == (400, "usage")
        assert len((await ask("GET", "/1.0/endpoints/db0")).json["luns"]) == 1


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b'"' + b"\xff" * 10 + b'"', b"[" * 100_000])
async def test_what_is_no_json_is_refused(start: Start, raw: bytes) -> None:
    async with start() as ask:
        assert (await ask("POST", "/1.0/endpoints", pieces=[raw])).status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/1.0/endpoints/none", 404),
        ("DELETE", "/1.0/endpoints/none", 404),
        ("DELETE", "/1.0/endpoints/db0/luns/0:7", 404),
        ("DELETE", "/1.0/endpoints/db0/luns/0:99999", 404),
        ("DELETE", "/1.0/endpoints/db0/luns/zero", 404),
        ("GET", "/1.0/endpoints/%2e%2e%2fetc", 404),
        ("GET", "/1.0/operations/0123456789abcdef", 404),
        ("GET", "/2.0", 404),
        ("PATCH", "/1.0/endpoints/db0", 405),
        ("GET", "/1.0/endpoints?x=1", 400),
        ("DELETE", "/1.0/endpoints/db0?force=maybe", 400),
        ("DELETE", "/1.0/endpoints/db0?wait=-1", 400),
        ("DELETE", "/1.0/endpoints/db0?wait=1&wait=2", 400),
        ("GET", "/1.0/operations/0123456789abcdef/wait?timeout=soon", 400),
    ],
)
async def test_what_is_not_there_is_an_error_as_json(
    start: Start, method: str, path: str, status: int
) -> None:
    async with start() as ask:
        await ask("POST", "/1.0/endpoints", DB0)
        answer = await ask(method, path)
        assert answer.status == status
        assert answer.error["message"]
        assert len((await ask("GET", "/1.0/endpoints")).json) == 1


async def test_a_conflict_says_who(start: Start, world: World) -> None:
    async with start() as ask:
        made = await ask("POST", "/1.0/endpoints", DB0)
        again = await ask("POST", "/1.0/endpoints", {**DB0, "queues": 2})
        assert (again.status, again.error["code"]) == (409, "conflict")
        assert "'db0' already" in again.error["message"]
        other = await ask("POST", "/1.0/endpoints", {"name": "b", "wwpn": made.json["wwpn"]})
        assert "endpoint 'db0'" in other.error["message"]
        world.connected.add("db0")
        busy = await ask("DELETE", "/1.0/endpoints/db0")
        assert (busy.status, busy.error["code"]) == (409, "busy")
        assert (await ask("DELETE", "/1.0/endpoints/db0?force=1")).status == 200


async def test_a_guest_is_given_an_endpoint_and_a_port(start: Start) -> None:
    async with start() as ask:
        await ask("POST", "/1.0/endpoints", DB0)
        plan = await ask("POST", "/1.0/guests/web/endpoints?dry_run=1", {"endpoint": "db0"})
        assert plan.json["changes"][0]["details"] == ["attach db0 now", "attach db0 at its next start"]
        assert (await ask("POST", "/1.0/guests/web/endpoints", {"endpoint": "db0"})).json["live"]
        port = {"name": "p0", "switch": "memory"}
        assert (await ask("POST", "/1.0/ports?dry_run=1", port)).json["changes"]
        assert (await ask("POST", "/1.0/ports", port)).status == 201
        assert (await ask("POST", "/1.0/guests/web/ports", {"port": "p0"})).json["guest"] == "web"
        (guest,) = (await ask("GET", "/1.0/guests")).json
        assert ([one["endpoint"] for one in guest["attachments"]], guest["ports"][0]["port"]) == (
            ["db0"],
            "p0",
        )
        assert (await ask("DELETE", "/1.0/endpoints/db0")).status == 409
        for path in ("endpoints/db0", "ports/p0"):
            assert (await ask("DELETE", f"/1.0/guests/web/{path}?dry_run=1")).json["changes"]
            assert (await ask("DELETE", f"/1.0/guests/web/{path}")).status == 200
            assert (await ask("DELETE", f"/1.0/guests/web/{path}")).status == 404
        assert (await ask("DELETE", "/1.0/ports/p0")).status == 200
        assert (await ask("GET", "/1.0/guests/nobody")).status == 404


async def test_a_guest_is_given_a_plain_disk(start: Start, tmp_path_factory: pytest.TempPathFactory) -> None:
    image = tmp_path_factory.mktemp("disks") / "v1.img"
    image.write_bytes(bytes(1 << 20))
    disk = {"block_device": {"id": "v1", "bus": "scsi"}, "volumes": {"v1": str(image)}}
    async with start() as ask:
        plan = await ask("POST", "/1.0/guests/web/disks?dry_run=1", disk)
        assert plan.json["changes"][0]["details"] == ["attach v1 now", "attach v1 at its next start"]
        given = await ask("POST", "/1.0/guests/web/disks", disk)
        assert (given.json["target"], given.json["volume"], given.json["live"]) == ("sda", "v1", True)
        assert (await ask("GET", "/1.0/guests/web")).json["disks"] == [given.json]
        for name in ("v1", "sda", given.json["alias"]):
            path = f"/1.0/guests/web/disks/{name}"
            assert (await ask("DELETE", f"{path}?dry_run=1")).json["changes"]
        assert (await ask("DELETE", path)).status == 200
        assert (await ask("DELETE", path)).status == 404
        unknown = await ask("POST", "/1.0/guests/web/disks", {**disk, "block_device": {"bus": "xen"}})
        assert unknown.status == 400


@pytest.mark.parametrize("route", [route for route in ROUTES if route.changes], ids=lambda route: route.verb)
async def test_who_may_look_may_not_change(start: Start, world: World, route: Any) -> None:
    async with start() as ask:
        names = {"name": "db0", "guest": "web", "endpoint": "db0", "disk": "v1", "port": "p0"}
        path = route.path.format(**names, address="0:0", identity="0" * 16)
        for access in (Access(read_only=True, peer=ME), Access(read_only=True)):
            answer = await ask(route.method, path, DB0, access=access)
            assert (answer.status, answer.error["code"]) == (403, "permission-denied")
        assert world.calls == []


async def test_a_dry_run_changes_nothing(start: Start, world: World) -> None:
    async with start() as ask:
        await ask("POST", "/1.0/endpoints", DB0)
        calls = list(world.calls)
        for method, path, body, action in (
            ("POST", "/1.0/endpoints", {"name": "new"}, "create"),
            ("PUT", "/1.0/endpoints/db0", {"name": "db0"}, "update"),
            ("POST", "/1.0/endpoints/db0/luns", {"target": 0, "lun": 3, "backstore": RAM}, "update"),
            ("POST", "/1.0/endpoints/db0/luns/0:0/resize", {"size_bytes": 8192}, "update"),
            ("DELETE", "/1.0/endpoints/db0", None, "delete"),
            ("POST", "/1.0/apply", {"endpoint": [DB0]}, "keep"),
        ):
            answer = await ask(method, f"{path}?dry_run=1", body)
            assert answer.status == 200
            assert [change["action"] for change in answer.json["changes"]] == [action]
        assert world.calls == calls
        assert len((await ask("GET", "/1.0/operations")).json) == 1


async def test_what_takes_longer_is_an_operation(start: Start, world: World) -> None:
    release = threading.Event()
    world.before = lambda _verb, _name: _hold(release)
    async with start() as ask:
        begun = await ask("POST", "/1.0/endpoints?wait=0", DB0)
        assert begun.status == 202
        location = begun.headers["location"]
        assert location == f"/1.0/operations/{begun.json['id']}"
        assert (await ask("GET", f"{location}/wait?timeout=0.01")).json["state"] == "running"
        while (await ask("GET", location)).json["cancellable"] or not world.calls:
            await asyncio.sleep(0.01)
        assert (await ask("GET", "/1.0/endpoints/db0")).json["state"] == "starting"
        assert (await ask("DELETE", location)).status == 409
        assert (await ask("GET", f"{location}/result")).status == 409
        release.set()
        ended = await ask("GET", f"{location}/wait")
        assert (ended.json["state"], ended.json["progress"]) == ("done", 1.0)
        assert (await ask("GET", f"{location}/result")).json["name"] == "db0"
        assert (await ask("GET", "/1.0/endpoints/db0")).json["state"] == "ready"


def _hold(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


async def test_events_are_lines(start: Start) -> None:
    async with start() as ask:
        await ask("POST", "/1.0/endpoints", DB0)
        following = asyncio.create_task(ask("GET", "/1.0/events?since=0&kinds=endpoint,nothing.else"))
        everything = asyncio.create_task(ask("GET", "/1.0/events"))
        while len(ask.host.events._readers) < 2:
            await asyncio.sleep(0.01)
        await ask("DELETE", "/1.0/endpoints/db0")
        ask.host.events.close()
        events = [json.loads(line) for line in (await following).body.splitlines()]
        assert [event["kind"] for event in events] == ["endpoint.created", "endpoint.deleted"]
        assert {event["object"] for event in events} == {"endpoint/db0"}
        new = [json.loads(line)["kind"] for line in (await everything).body.splitlines()]
        assert new == ["endpoint.deleted", "operation.ended"]


async def test_apply_and_plan(start: Start, world: World) -> None:
    config = {"endpoint": [DB0, {"name": "b"}]}
    async with start() as ask:
        plan = await ask("POST", "/1.0/plan?prune=1", config)
        assert [change["action"] for change in plan.json["changes"]] == ["create", "create"]
        assert (await ask("POST", "/1.0/apply", config)).json == plan.json
        assert world.endpoints.keys() == {"db0", "b"}
        assert (await ask("POST", "/1.0/plan", {"endpoints": []})).status == 400


async def test_a_body_has_a_limit_in_size_and_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as ask:
        piece = b" " * (1 << 16)
        assert (await ask("POST", "/1.0/endpoints", pieces=[piece] * 17)).status == 413
        whole = [b" " * 65000] * 16 + [json.dumps(DB0).encode()]
        assert (await ask("POST", "/1.0/endpoints?dry_run=1", pieces=whole)).status == 200
        monkeypatch.setattr(requests, "BODY_TIMEOUT_S", 0.05)
        assert (await ask("POST", "/1.0/endpoints", pieces=[b" "], ends=False)).status == 408


async def test_every_change_is_logged_with_its_author(
    start: Start, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("ringway").propagate = True
    caplog.set_level(logging.INFO, "ringway.event")
    async with start() as ask:
        await ask("POST", "/1.0/endpoints", DB0)
        await ask("POST", "/1.0/endpoints", {**DB0, "queues": 3})
        await ask("POST", "/1.0/endpoints", {"x": 1})
        await ask("DELETE", "/1.0/endpoints/db0?dry_run=1")
        await ask("GET", "/1.0/endpoints")
        await ask("DELETE", "/1.0/endpoints/db0", access=Access(read_only=True, peer=ME))
    found = [record.fields for record in caplog.records if record.fields["event"] == "change"]  # type: ignore[attr-defined]
    assert [(entry["verb"], entry["object"], entry["result"]) for entry in found] == [
        ("create_endpoint", "endpoint/db0", "done"),
        ("create_endpoint", "/1.0/endpoints", "conflict"),
        ("create_endpoint", "/1.0/endpoints", "usage"),
        ("delete_endpoint", "db0", "permission-denied"),
    ]
    for entry in found:
        assert (entry["uid"], entry["gid"], entry["pid"], entry["command"]) == (1000, 1000, 4711, "tester")


async def test_metrics_are_what_prometheus_reads(start: Start, world: World) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async with start() as ask:
        await ask("POST", "/1.0/endpoints", DB0)
        answer = await ask("GET", "/metrics", access=Access(read_only=True))
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    reads = [s for s in families["ringway_lun_operations"].samples if s.labels["operation"] == "read"]
    assert [(s.labels["endpoint"], s.labels["engine"], s.labels["lun"], s.value) for s in reads] == [
        ("db0", "user", "0:0", 1.0)
    ]
    latency = families["ringway_lun_latency_seconds"].samples
    assert [s.value for s in latency if s.name.endswith("_count")] == [1.0]
    assert [s.value for s in latency if s.labels.get("le") == "2e-06"] == [1.0]
    ready = [s.value for s in families["ringway_endpoint_state"].samples if s.labels["state"] == "ready"]
    assert ready == [1.0]
    assert families["ringway_endpoint_restarts"].samples[0].value == 0.0
