"""What each route does: a few lines on the host. A change gives back its operation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec.structs import replace

from ringway.api import metrics
from ringway.api.routes import Call
from ringway.errors import BusyError, UsageError
from ringway.host import specs
from ringway.host.changes import Change
from ringway.model import (
    BackstoreInfo,
    EndpointInfo,
    EndpointSpec,
    Event,
    GuestInfo,
    HostInfo,
    OperationInfo,
    OperationState,
    Plan,
    PortInfo,
    TargetStatistics,
)


async def host_info(call: Call) -> HostInfo:
    """GET /1.0."""
    return await call.host.info(read_only=call.read_only)


# Endpoints


async def list_endpoints(call: Call) -> tuple[EndpointInfo, ...]:
    """GET …/endpoints."""
    return await call.host.endpoints()


async def create_endpoint(call: Call) -> Any:
    """POST …/endpoints."""
    if call.query.dry_run:
        return await call.host.plan_creation(call.body)
    return call.host.create(call.body)


async def show_endpoint(call: Call) -> EndpointInfo:
    """GET …/endpoints/NAME."""
    return await call.host.endpoint(call.name)


async def update_endpoint(call: Call) -> Any:
    """PUT …/endpoints/NAME. :raises UsageError: the body names another."""
    spec: EndpointSpec = call.body
    if spec.name != call.name:
        raise UsageError(
            f"the path names endpoint '{call.name}', and the body '{spec.name}'",
            hint="an endpoint cannot be renamed: delete it, and create it anew",
        )
    return _change(call, lambda _old: spec)


async def delete_endpoint(call: Call) -> Any:
    """DELETE …/endpoints/NAME."""
    if call.query.dry_run:
        return call.host.plan_deletion(call.name, force=call.query.force)
    return call.host.delete(call.name, force=call.query.force)


async def endpoint_statistics(call: Call) -> TargetStatistics:
    """GET …/endpoints/NAME/statistics."""
    return await call.host.statistics(call.name)


# LUNs


async def add_lun(call: Call) -> Any:
    """POST …/luns."""
    return _change(call, lambda old: specs.with_lun(old, call.body))


async def remove_lun(call: Call) -> Any:
    """DELETE …/luns/ADDRESS."""
    return _change(call, lambda old: specs.replace_lun(old, call.address, None))


async def limit_lun(call: Call) -> Any:
    """PUT …/luns/ADDRESS/limits."""

    def limited(old: EndpointSpec) -> EndpointSpec:
        lun = replace(specs.lun_of(old, call.address), limits=call.body)
        return specs.replace_lun(old, call.address, lun)

    return _change(call, limited)


async def resize_lun(call: Call) -> Any:
    """POST …/luns/ADDRESS/resize."""
    size_bytes = call.body.size_bytes if call.body is not None else None
    if call.query.dry_run:
        return call.host.plan_update(call.name, lambda old: specs.with_size(old, call.address, size_bytes))
    return call.host.resize(call.name, call.address, size_bytes)


def _change(call: Call, change: Change) -> Any:
    if call.query.dry_run:
        return call.host.plan_update(call.name, change)
    return call.host.update(call.name, change, force=getattr(call.query, "force", False))


# Backstores


async def list_backstores(call: Call) -> tuple[BackstoreInfo, ...]:
    """GET …/backstores."""
    return await call.host.backstores()


async def probe_backstore(call: Call) -> BackstoreInfo:
    """POST …/backstores/probe."""
    return await call.host.probe(call.body)


# Guests


async def list_guests(call: Call) -> tuple[GuestInfo, ...]:
    """GET …/guests."""
    return tuple(map(call.host.view, await call.host.guests.list()))


async def show_guest(call: Call) -> GuestInfo:
    """GET …/guests/GUEST."""
    return call.host.view(await call.host.guests.show(call.guest))


async def create_guest(call: Call) -> Any:
    """POST …/guests."""
    if call.query.dry_run:
        return await call.host.creations.plan(call.body)
    return call.host.create_guest(call.body)


async def attach_endpoint(call: Call) -> Any:
    """POST …/guests/GUEST/endpoints."""
    if call.query.dry_run:
        return await call.host.attachments.plan(call.guest, call.body)
    return call.host.attach(call.guest, call.body)


async def detach_endpoint(call: Call) -> Any:
    """DELETE …/guests/GUEST/endpoints/ENDPOINT."""
    query = call.query
    if query.dry_run:
        return await call.host.attachments.plan_taking(
            call.guest, call.endpoint, live=query.live, persistent=query.persistent
        )
    return call.host.detach(
        call.guest, call.endpoint, live=query.live, persistent=query.persistent, timeout_s=query.timeout
    )


async def attach_disk(call: Call) -> Any:
    """POST …/guests/GUEST/disks."""
    if call.query.dry_run:
        return await call.host.plain.plan(call.guest, call.body)
    return call.host.attach_disk(call.guest, call.body)


async def detach_disk(call: Call) -> Any:
    """DELETE …/guests/GUEST/disks/DISK."""
    query = call.query
    if query.dry_run:
        return await call.host.plain.plan_taking(
            call.guest, call.disk, live=query.live, persistent=query.persistent
        )
    return call.host.detach_disk(
        call.guest, call.disk, live=query.live, persistent=query.persistent, timeout_s=query.timeout
    )


async def plug_port(call: Call) -> Any:
    """POST …/guests/GUEST/ports."""
    if call.query.dry_run:
        return await call.host.plugs.plan(call.guest, call.body)
    return call.host.plug(call.guest, call.body)


async def unplug_port(call: Call) -> Any:
    """DELETE …/guests/GUEST/ports/PORT."""
    query = call.query
    if query.dry_run:
        return await call.host.plugs.plan_taking(
            call.guest, call.port, live=query.live, persistent=query.persistent
        )
    return call.host.unplug(
        call.guest, call.port, live=query.live, persistent=query.persistent, timeout_s=query.timeout
    )


# Ports


async def list_ports(call: Call) -> tuple[PortInfo, ...]:
    """GET …/ports."""
    return await call.host.ports.list()


async def show_port(call: Call) -> PortInfo:
    """GET …/ports/NAME."""
    return await call.host.ports.show(call.name)


async def create_port(call: Call) -> Any:
    """POST …/ports."""
    if call.query.dry_run:
        return await call.host.ports.plan_creation(call.body)
    return call.host.create_port(call.body)


async def delete_port(call: Call) -> Any:
    """DELETE …/ports/NAME."""
    if call.query.dry_run:
        return call.host.ports.plan_deletion(call.name, force=call.query.force)
    return call.host.delete_port(call.name, force=call.query.force)


# Operations


async def list_operations(call: Call) -> tuple[OperationInfo, ...]:
    """GET …/operations."""
    return call.host.operations.list()


async def show_operation(call: Call) -> OperationInfo:
    """GET …/operations/ID."""
    return call.host.operations.get(call.identity).info()


async def cancel_operation(call: Call) -> OperationInfo:
    """DELETE …/operations/ID."""
    operation = call.host.operations.get(call.identity)
    operation.cancel()
    await operation.ended()
    return operation.info()


async def operation_result(call: Call) -> Any:
    """GET …/operations/ID/result."""
    operation = call.host.operations.get(call.identity)
    if operation.state is OperationState.RUNNING:
        raise BusyError(f"operation {operation.id} has not ended", hint="wait for it")
    result = operation.outcome()
    return {} if result is None else result


async def wait_operation(call: Call) -> OperationInfo:
    """GET …/operations/ID/wait."""
    operation = call.host.operations.get(call.identity)
    await operation.wait(call.query.timeout)
    return operation.info()


# Events


async def follow_events(call: Call) -> AsyncIterator[bytes]:
    """GET …/events."""
    return _lines(call, tuple(kind for kind in call.query.kinds.split(",") if kind))


async def _lines(call: Call, wanted: tuple[str, ...]) -> AsyncIterator[bytes]:
    async for event in call.host.events.listen(call.query.since):
        if not wanted or any(_is_of(event, kind) for kind in wanted):
            yield msgspec.json.encode(event) + b"\n"


def _is_of(event: Event, kind: str) -> bool:
    return event.kind == kind or event.kind.startswith(f"{kind}.")


# The whole host


async def plan_config(call: Call) -> Plan:
    """POST …/plan."""
    return call.host.plan(call.body, prune=call.query.prune)


async def apply_config(call: Call) -> Any:
    """POST …/apply."""
    if call.query.dry_run:
        return call.host.plan(call.body, prune=call.query.prune)
    return call.host.apply(call.body, prune=call.query.prune, force=call.query.force)


async def export_config(call: Call) -> bytes:
    """GET …/config/export."""
    return await call.host.write(call.query.format)


async def import_config(call: Call) -> Any:
    """POST …/config/import."""
    found = await call.host.read(call.body, adopt=call.query.adopt)
    if call.query.dry_run:
        return call.host.plan(found.config, prune=False, notes=found.notes)
    return call.host.apply(found.config, prune=False, notes=found.notes)


async def show_metrics(call: Call) -> bytes:
    """GET /metrics."""
    return await metrics.text(call.host)
