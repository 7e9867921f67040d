"""A daemon of a few lines on a real socket: it keeps endpoints in memory and serves none of them.

What the commands print and send is tested against it in milliseconds; whether the daemon agrees, by the tests
in ``tests/contract``.
"""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec.structs import replace

from ringway.errors import ConflictError, NotFoundError, PermissionDeniedError, RingwayError, UnreachableError
from ringway.model import (
    Action,
    BackstoreInfo,
    BackstoreSpec,
    Change,
    Check,
    DeviceKind,
    DiskSpec,
    EndpointInfo,
    EndpointSpec,
    EndpointState,
    EngineKind,
    EngineReport,
    Event,
    GuestDisk,
    GuestInfo,
    HostConfig,
    HostInfo,
    Latency,
    Limits,
    LunSpec,
    LunStatistics,
    LunStatus,
    OperationInfo,
    OperationState,
    Plan,
    PortInfo,
    TargetStatistics,
)

SIZE = 1 << 30


class FakeDaemon:
    """State, and a method for each route: ``(match, query, body) -> answer``."""

    def __init__(self, socket: Path) -> None:
        self.socket = str(socket)
        self.endpoints: dict[str, EndpointInfo] = {}
        self.operations: list[OperationInfo] = []
        self.results: dict[str, Any] = {}  #: what they answer, by their ids
        self.events: list[Event] = []
        self.guests: list[GuestInfo] | None = None  #: without, there is no libvirt
        self.ports: list[PortInfo] = []
        self.slow = False  #: changes become operations that end when they are waited for
        self.read_only = False
        self.asked: list[str] = []
        self.started = time.monotonic()

    # Answers

    def host(self, *_: Any) -> HostInfo:
        checks = (
            Check(name="io_uring", ok=True, detail="usable"),
            Check(name="landlock", ok=False, detail="too old", hint="upgrade Linux"),
        )
        report = EngineReport(
            engine=EngineKind.USER,
            usable=True,
            version="0.1.0",
            devices=(DeviceKind.SCSI, DeviceKind.BLK),
            backstores=("file", "ram"),
            limits=True,
            resize=True,
            migration=False,
            checks=checks,
        )
        degraded = sum(found.state == "degraded" for found in self.endpoints.values())
        return HostInfo(
            ringway="0.1.0",
            api="1.0",
            pid=7,
            hostname="host",
            kernel="6.12",
            uptime_s=3.0,
            read_only=self.read_only,
            engines=(report,),
            endpoints=len(self.endpoints),
            degraded=degraded,
        )

    def list(self, *_: Any) -> list[EndpointInfo]:
        return list(self.endpoints.values())

    def list_guests(self, *_: Any) -> Sequence[GuestInfo]:
        if self.guests is None:
            raise UnreachableError("this daemon has no libvirt, and knows no guests")
        return self.guests

    def show_guest(self, match: re.Match[str], *_: Any) -> GuestInfo:
        for guest in self.guests or ():
            if guest.name == match["guest"]:
                return guest
        raise NotFoundError(f"there is no guest '{match['guest']}'")

    def attach_disk(self, match: re.Match[str], query: dict[str, str], body: bytes) -> Any:
        guest, spec = self.show_guest(match), msgspec.json.decode(body, type=DiskSpec)
        if "dry_run" in query:
            return Plan(changes=(Change(action=Action.UPDATE, object=f"guest/{guest.name}"),))
        source = spec.volumes.get(spec.block_device.id or "")
        disk = GuestDisk(target="sda", bus="scsi", device="disk", source=source, volume=spec.block_device.id)
        return self.ended("attach", replace(disk, live=True, message="say so"), query)

    def detach(self, match: re.Match[str], query: dict[str, str], _body: bytes) -> Any:
        self.show_guest(match)
        return self.ended("detach", {}, query)

    def list_ports(self, *_: Any) -> Sequence[PortInfo]:
        return self.ports

    def show(self, match: re.Match[str], *_: Any) -> EndpointInfo:
        return self.find(match["name"])

    def create(self, _match: Any, query: dict[str, str], body: bytes) -> Any:
        spec = msgspec.json.decode(body, type=EndpointSpec)
        old = self.endpoints.get(spec.name)
        if old is not None and old.spec != spec:
            raise ConflictError(f"'{spec.name}' exists and is another", hint="take --or-update")
        return self.put(Action.CREATE, spec, query)

    def update(self, match: re.Match[str], query: dict[str, str], body: bytes) -> Any:
        self.find(match["name"])
        return self.put(Action.UPDATE, msgspec.json.decode(body, type=EndpointSpec), query)

    def delete(self, match: re.Match[str], query: dict[str, str], _body: bytes) -> Any:
        self.find(match["name"])
        if "dry_run" in query:
            return plan(Action.DELETE, match["name"])
        del self.endpoints[match["name"]]
        return self.ended(f"delete {match['name']}", {}, query)

    def statistics(self, match: re.Match[str], *_: Any) -> TargetStatistics:
        seconds = time.monotonic() - self.started
        count = int(seconds * 1000)
        luns = tuple(
            LunStatistics(
                lun.target,
                lun.lun,
                count,
                0,
                0,
                0,
                0,
                0,
                count * 4096,
                0,
                Latency(1000, 2000, 3000, ((1024, count // 2), (2048, count))),
                Latency(),
            )
            for lun in self.find(match["name"]).luns
        )
        return TargetStatistics(seconds, luns, (), ())

    def add_lun(self, match: re.Match[str], query: dict[str, str], body: bytes) -> Any:
        lun, spec = msgspec.json.decode(body, type=LunSpec), self.spec(match)
        return self.put(Action.UPDATE, replace(spec, luns=(*spec.luns, lun)), query)

    def change_lun(
        self, match: re.Match[str], query: dict[str, str], change: Callable[[LunSpec], Any]
    ) -> Any:
        spec = self.spec(match)
        address = (int(match["target"]), int(match["lun"]))
        if not any((lun.target, lun.lun) == address for lun in spec.luns):
            raise NotFoundError("no such LUN")
        luns = [change(lun) if (lun.target, lun.lun) == address else lun for lun in spec.luns]
        return self.put(Action.UPDATE, replace(spec, luns=tuple(filter(None, luns))), query)

    def remove_lun(self, match: re.Match[str], query: dict[str, str], _body: bytes) -> Any:
        return self.change_lun(match, query, lambda lun: None)

    def limit_lun(self, match: re.Match[str], query: dict[str, str], body: bytes) -> Any:
        limits = msgspec.json.decode(body, type=Limits)
        return self.change_lun(match, query, lambda lun: replace(lun, limits=limits))

    def resize_lun(self, match: re.Match[str], query: dict[str, str], body: bytes) -> Any:
        size = msgspec.json.decode(body).get("size_bytes")
        return self.change_lun(
            match, query, lambda lun: replace(lun, backstore=replace(lun.backstore, size_bytes=size))
        )

    def backstores(self, *_: Any) -> Any:
        return [
            BackstoreInfo(
                name=lun.backstore,
                engine=found.engine,
                kind=lun.kind,
                path=lun.path,
                size_bytes=lun.size_bytes,
                used_by=(f"{found.name}/{lun.target}:{lun.lun}",),
            )
            for found in self.endpoints.values()
            for lun in found.luns
        ]

    def probe(self, _match: Any, _query: Any, body: bytes) -> BackstoreInfo:
        spec = msgspec.json.decode(body, type=BackstoreSpec)
        return BackstoreInfo(
            name="probed", engine=EngineKind.USER, kind=spec.kind, path=spec.path, size_bytes=SIZE
        )

    def list_operations(self, *_: Any) -> Any:
        return self.operations

    def operation(self, match: re.Match[str], *_: Any) -> OperationInfo:
        for found in self.operations:
            if found.id == match["id"]:
                return found
        raise NotFoundError(f"there is no operation '{match['id']}'")

    def result(self, match: re.Match[str], *_: Any) -> Any:
        return self.results[match["id"]]

    def wait(self, match: re.Match[str], *_: Any) -> OperationInfo:
        return self.end(self.operation(match), OperationState.DONE)

    def cancel(self, match: re.Match[str], *_: Any) -> OperationInfo:
        return self.end(self.operation(match), OperationState.CANCELLED)

    def plan(self, _match: Any, query: dict[str, str], body: bytes) -> Plan:
        wanted = {spec.name: spec for spec in msgspec.json.decode(body, type=HostConfig).endpoint}
        changes = []
        for name, spec in wanted.items():
            old = self.endpoints.get(name)
            action = Action.CREATE if old is None else Action.KEEP if old.spec == spec else Action.UPDATE
            details = () if action is Action.KEEP else (f"{len(spec.luns)} luns",)
            changes.append(Change(action=action, object=f"endpoint/{name}", details=details))
        gone = self.endpoints.keys() - wanted.keys() if "prune" in query else set()
        changes += [Change(action=Action.DELETE, object=f"endpoint/{name}") for name in sorted(gone)]
        return Plan(changes=tuple(changes))

    def apply(self, match: Any, query: dict[str, str], body: bytes) -> Any:
        planned = self.plan(match, query, body)
        if "dry_run" not in query:
            for spec in msgspec.json.decode(body, type=HostConfig).endpoint:
                self.endpoints[spec.name] = info(spec)
            for change in planned.changes:
                if change.action is Action.DELETE:
                    del self.endpoints[change.name]
        return planned

    def export(self, _match: Any, query: dict[str, str], _body: bytes) -> Any:
        if query["format"] == "targetcli":
            return {"fabric_modules": [], "storage_objects": [], "targets": []}
        return HostConfig(endpoint=tuple(found.spec for found in self.endpoints.values() if found.spec))

    def import_(self, _match: Any, query: dict[str, str], body: bytes) -> Plan:
        detail = f"{len(msgspec.json.decode(body)['targets'])} targets"
        change = Change(action=Action.CREATE, object="endpoint/kernel", details=(detail, *query))
        return Plan(changes=(change,), notes=("iscsi iqn.x: skipped: another fabric",))

    # State

    def find(self, name: str) -> EndpointInfo:
        if name not in self.endpoints:
            raise NotFoundError(f"there is no endpoint '{name}'", hint="see ringway endpoint list")
        return self.endpoints[name]

    def spec(self, match: re.Match[str]) -> EndpointSpec:
        spec = self.find(match["name"]).spec
        assert spec is not None
        return spec

    def put(self, action: Action, spec: EndpointSpec, query: dict[str, str]) -> Any:
        if "dry_run" in query:
            return plan(action, spec.name)
        old = self.endpoints.get(spec.name)
        self.endpoints[spec.name] = replace(info(spec), generation=0 if old is None else old.generation + 1)
        return self.ended(f"{action} {spec.name}", self.endpoints[spec.name], query)

    def ended(self, description: str, value: Any, _query: dict[str, str]) -> Any:
        if not self.slow:
            return value
        self.results[f"op{len(self.operations)}"] = value
        self.operations.append(
            OperationInfo(
                id=f"op{len(self.operations)}",
                description=description,
                state=OperationState.RUNNING,
                created="2026-01-01T00:00:00Z",
                updated="2026-01-01T00:00:00Z",
            )
        )
        return self.operations[-1]

    def end(self, found: OperationInfo, state: OperationState) -> OperationInfo:
        ended = replace(found, state=state, progress=1.0)
        self.operations[self.operations.index(found)] = ended
        return ended

    @contextlib.contextmanager
    def serving(self) -> Iterator[FakeDaemon]:
        """Serve until the block is left."""
        with _Server(self.socket, type("Handler", (_Handler,), {"daemon": self})) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


def plan(action: Action, name: str) -> Plan:
    return Plan(changes=(Change(action=action, object=f"endpoint/{name}", details=("a detail",)),))


def info(spec: EndpointSpec) -> EndpointInfo:
    """What becomes of a specification."""
    luns = tuple(
        LunStatus(
            target=lun.target,
            lun=lun.lun,
            backstore=lun.backstore.name or f"{spec.name}-{lun.lun}",
            kind="file" if lun.backstore.path else str(lun.backstore.kind),
            path=lun.backstore.path,
            size_bytes=lun.backstore.size_bytes or SIZE,
            block_size=512,
            readonly=lun.backstore.readonly,
            limits=lun.limits,
        )
        for lun in spec.luns
    )
    return EndpointInfo(
        name=spec.name,
        engine=spec.engine,
        device=spec.device,
        state=EndpointState.READY,
        wwpn=spec.wwpn or "naa.5001405000000001",
        socket=f"/run/ringway/endpoint/{spec.name}.sock",
        pid=4711,
        connected=False,
        luns=luns,
        spec=spec,
    )


_NAME = r"/endpoints/(?P<name>[^/]+)"
_LUN = rf"{_NAME}/luns/(?P<target>\d+):(?P<lun>\d+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "", FakeDaemon.host),
    ("GET", "/endpoints", FakeDaemon.list),
    ("POST", "/endpoints", FakeDaemon.create),
    ("GET", _NAME, FakeDaemon.show),
    ("PUT", _NAME, FakeDaemon.update),
    ("DELETE", _NAME, FakeDaemon.delete),
    ("GET", f"{_NAME}/statistics", FakeDaemon.statistics),
    ("POST", f"{_NAME}/luns", FakeDaemon.add_lun),
    ("DELETE", _LUN, FakeDaemon.remove_lun),
    ("PUT", f"{_LUN}/limits", FakeDaemon.limit_lun),
    ("POST", f"{_LUN}/resize", FakeDaemon.resize_lun),
    ("GET", "/backstores", FakeDaemon.backstores),
    ("POST", "/backstores/probe", FakeDaemon.probe),
    ("GET", "/guests", FakeDaemon.list_guests),
    ("GET", "/guests/(?P<guest>[^/]+)", FakeDaemon.show_guest),
    ("POST", "/guests/(?P<guest>[^/]+)/disks", FakeDaemon.attach_disk),
    ("DELETE", "/guests/(?P<guest>[^/]+)/(disks|endpoints)/[^/]+", FakeDaemon.detach),
    ("GET", "/ports", FakeDaemon.list_ports),
    ("GET", "/operations", FakeDaemon.list_operations),
    ("GET", "/operations/(?P<id>[^/]+)", FakeDaemon.operation),
    ("DELETE", "/operations/(?P<id>[^/]+)", FakeDaemon.cancel),
    ("GET", "/operations/(?P<id>[^/]+)/wait", FakeDaemon.wait),
    ("GET", "/operations/(?P<id>[^/]+)/result", FakeDaemon.result),
    ("POST", "/plan", FakeDaemon.plan),
    ("POST", "/apply", FakeDaemon.apply),
    ("GET", "/config/export", FakeDaemon.export),
    ("POST", "/config/import", FakeDaemon.import_),
]


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    """Finds the route."""

    protocol_version = "HTTP/1.1"
    daemon: FakeDaemon

    def _answer(self) -> None:
        where = urlsplit(self.path)
        self.daemon.asked.append(f"{self.command} {self.path}")
        query = dict(parse_qsl(where.query))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if where.path == "/1.0/events":
            self._stream(query.get("kinds", ""))
            return
        try:
            if self.daemon.read_only and self.command != "GET":
                raise PermissionDeniedError("this socket only shows", hint="use api.sock")
            self._say(*self._found(where.path, query, body))
        except RingwayError as error:
            record = {"code": error.code, "message": error.message, "hint": error.hint}
            self._say(error.http_status, {"error": record})

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _found(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, object]:
        for method, pattern, route in ROUTES:
            match = re.fullmatch(f"/1.0{pattern}", path)
            if method == self.command and match:
                value = route(self.daemon, match, query, body)
                running = isinstance(value, OperationInfo) and value.state is OperationState.RUNNING
                return 202 if running and method != "GET" else 200, value
        raise NotFoundError(f"there is no {self.command} {path}")

    def _say(self, status: int, value: object) -> None:
        body = msgspec.json.encode(value)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, kinds: str) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for event in self.daemon.events:
            if event.kind.startswith(tuple(kinds.split(","))):
                self.wfile.write(msgspec.json.encode(event) + b"\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "a client"
