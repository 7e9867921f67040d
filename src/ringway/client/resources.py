"""The verbs of each kind of object: what is asked of the daemon, and how its answer is read. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from ringway.client.verbs import (
    Change,
    Conversation,
    DriverT,
    Follow,
    Look,
    Patience,
    Progress,
    Resource,
    Step,
    decode,
    wait_ended,
)
from ringway.client.wire import Request, quote
from ringway.errors import NotFoundError, UsageError
from ringway.model import (
    AttachmentInfo,
    AttachSpec,
    BackstoreInfo,
    BackstoreSpec,
    DiskSpec,
    EndpointInfo,
    EndpointSpec,
    GuestDisk,
    GuestInfo,
    GuestSpec,
    HostConfig,
    HostInfo,
    Limits,
    LunSpec,
    OperationInfo,
    Plan,
    PlugInfo,
    PlugSpec,
    PortInfo,
    PortSpec,
    TargetStatistics,
)
from ringway.model.validation import reason

T = TypeVar("T")
_ROOT = "/1.0"


def _get(path: str, kind: type[T] | Any, **query: str) -> Conversation[T]:
    found: T = decode((yield Request("GET", f"{_ROOT}{path}", query)), kind)
    return found


def _change(method: str, path: str, body: object = None, **query: str) -> Request:
    """:raises UsageError: no daemon would take the body; says why."""
    encoded = None if body is None else msgspec.json.encode(body)
    if encoded is not None:
        _check(encoded, type(body))
    return Request(method, f"{_ROOT}{path}", query, encoded)


def _check(encoded: bytes, kind: type) -> None:
    """What a class was given when it was made was not looked at."""
    try:
        msgspec.json.decode(encoded, type=kind)
    except msgspec.ValidationError as error:
        words = reason(error, msgspec.json.decode(encoded))
        hint = "see the command's --help, or docs/reference"
        raise UsageError(f"that is not possible: {words}", hint=hint) from error


def _named(noun: str, name: str) -> str:
    """A name as it stands in a path. :raises NotFoundError: nothing can have it."""
    if "/" in name or name in ("", ".", ".."):
        raise NotFoundError(f"there is no {noun} '{name}'", hint=f"see: ringway {noun} list")
    return quote(name)


def _endpoint(name: str) -> str:
    return f"/endpoints/{_named('endpoint', name)}"


def _lun(name: str, target: int, lun: int) -> str:
    return f"{_endpoint(name)}/luns/{target}:{lun}"


def _flag(name: str, value: bool) -> dict[str, str]:
    return {name: "1"} if value else {}


# Endpoints


def list_endpoints() -> Conversation[tuple[EndpointInfo, ...]]:
    """All endpoints of the host, foreign ones as well."""
    return (yield from _get("/endpoints", tuple[EndpointInfo, ...]))


def show_endpoint(name: str) -> Conversation[EndpointInfo]:
    """One endpoint. :raises NotFoundError: there is none of this name."""
    return (yield from _get(_endpoint(name), EndpointInfo))


def endpoint_statistics(name: str) -> Conversation[TargetStatistics]:
    """Counters of an endpoint since its start."""
    return (yield from _get(f"{_endpoint(name)}/statistics", TargetStatistics))


def create_endpoint(spec: EndpointSpec) -> Step[EndpointInfo]:
    """Make an endpoint, and keep it. One that is there and equal is fine.

    :raises ConflictError: there is another of this name. :raises RingwayError: it cannot be served; nothing
        is left of it.
    """
    return Step(_change("POST", "/endpoints", spec), EndpointInfo)


def update_endpoint(spec: EndpointSpec) -> Step[EndpointInfo]:
    """Turn an endpoint into what ``spec`` says, in whole.

    :raises UsageError: what differs cannot be changed while it runs. :raises NotFoundError: there is none.
    """
    return Step(_change("PUT", _endpoint(spec.name), spec), EndpointInfo)


def delete_endpoint(name: str, *, force: bool = False) -> Step[None]:
    """Delete an endpoint; its disks stay.

    :param force: even while a guest uses it. :raises BusyError: a guest does.
    """
    return Step(_change("DELETE", _endpoint(name), **_flag("force", force)), None)


class Endpoints(Resource[DriverT]):
    """Endpoints, the user's and the kernel's."""

    list = Look(list_endpoints)
    show = Look(show_endpoint)
    statistics = Look(endpoint_statistics)
    create = Change(create_endpoint)
    update = Change(update_endpoint)
    delete = Change(delete_endpoint)


# LUNs


def add_lun(endpoint: str, spec: LunSpec) -> Step[EndpointInfo]:
    """Show an endpoint's guest another disk. :raises ConflictError: its address is taken."""
    request = _change("POST", f"{_endpoint(endpoint)}/luns", spec)
    return Step(request, EndpointInfo)


def remove_lun(endpoint: str, target: int, lun: int, *, force: bool = False) -> Step[EndpointInfo]:
    """Take a disk away. :param force: even while a guest uses it."""
    request = _change("DELETE", _lun(endpoint, target, lun), **_flag("force", force))
    return Step(request, EndpointInfo)


def limit_lun(endpoint: str, target: int, lun: int, limits: Limits) -> Step[EndpointInfo]:
    """Limit what a LUN may do from now on, and keep it so."""
    request = _change("PUT", f"{_lun(endpoint, target, lun)}/limits", limits)
    return Step(request, EndpointInfo)


def resize_lun(endpoint: str, target: int, lun: int, size_bytes: int | None = None) -> Step[EndpointInfo]:
    """Look at a disk's size again and tell the guest.

    :param size_bytes: the new size of a null or ram disk, which has no other place to look at.
    """
    body = {} if size_bytes is None else {"size_bytes": size_bytes}
    request = _change("POST", f"{_lun(endpoint, target, lun)}/resize", body)
    return Step(request, EndpointInfo)


class Luns(Resource[DriverT]):
    """The disks of endpoints."""

    add = Change(add_lun)
    remove = Change(remove_lun)
    limit = Change(limit_lun)
    resize = Change(resize_lun)


# Backstores


def list_backstores() -> Conversation[tuple[BackstoreInfo, ...]]:
    """All backstores that are mapped, foreign ones as well."""
    return (yield from _get("/backstores", tuple[BackstoreInfo, ...]))


def probe_backstore(spec: BackstoreSpec) -> Conversation[BackstoreInfo]:
    """Look whether a disk could be served, and what it is. :raises RingwayError: it could not."""
    return decode((yield _change("POST", "/backstores/probe", spec)), BackstoreInfo)


class Backstores(Resource[DriverT]):
    """Where the bytes are."""

    list = Look(list_backstores)
    probe = Look(probe_backstore)


# Guests


def _guest(name: str) -> str:
    return f"/guests/{_named('guest', name)}"


def list_guests() -> Conversation[tuple[GuestInfo, ...]]:
    """All of libvirt's guests, with what of ours they have.

    :raises UnreachableError: libvirt is not there.
    """
    return (yield from _get("/guests", tuple[GuestInfo, ...]))


def show_guest(name: str) -> Conversation[GuestInfo]:
    """One guest, by its name or UUID. :raises NotFoundError: there is none."""
    return (yield from _get(_guest(name), GuestInfo))


def create_guest(spec: GuestSpec) -> Step[GuestInfo]:
    """Make a guest, with its disks and ports, and start it. When it fails, there is nothing of it.

    :raises ConflictError: there is one of this name.
    """
    return Step(_change("POST", "/guests", spec), GuestInfo)


def attach_endpoint(guest: str, spec: AttachSpec) -> Step[AttachmentInfo]:
    """Give a guest an endpoint, the one that runs and its next start.

    :raises BusyError: another guest has it. :raises RingwayError: it cannot be; the guest is as before.
    """
    request = _change("POST", f"{_guest(guest)}/endpoints", spec)
    return Step(request, AttachmentInfo)


def detach_endpoint(
    guest: str, endpoint: str, *, live: bool = True, persistent: bool = True, timeout_s: float = 30.0
) -> Step[None]:
    """Take an endpoint from a guest.

    :param live: from the one that runs. :param persistent: from its next start.
    :param timeout_s: how long the guest may take to let it go.
    :raises TimedOutError: it does not let it go, and has it still.
    """
    query = _from(live=live, persistent=persistent, timeout_s=timeout_s)
    return Step(_change("DELETE", f"{_guest(guest)}{_endpoint(endpoint)}", **query), None)


def attach_disk(guest: str, spec: DiskSpec) -> Step[GuestDisk]:
    """Give a guest a plain disk, which QEMU serves: the one that runs and its next start.

    :raises BusyError: an endpoint serves it, or another guest has it.
    :raises RingwayError: it cannot be; the guest is as before.
    """
    return Step(_change("POST", f"{_guest(guest)}/disks", spec), GuestDisk)


def detach_disk(
    guest: str, disk: str, *, live: bool = True, persistent: bool = True, timeout_s: float = 30.0
) -> Step[None]:
    """Take a plain disk of ours from a guest; the rest as :func:`detach_endpoint`.

    :param disk: its volume, alias, target or serial number. A volume's id with a slash is said by an alias.
    """
    query = _from(live=live, persistent=persistent, timeout_s=timeout_s)
    return Step(_change("DELETE", f"{_guest(guest)}/disks/{_named('disk', disk)}", **query), None)


def plug_port(guest: str, spec: PlugSpec) -> Step[PlugInfo]:
    """Give a guest a port, the one that runs and its next start. :raises BusyError: another guest has it."""
    return Step(_change("POST", f"{_guest(guest)}/ports", spec), PlugInfo)


def unplug_port(
    guest: str, port: str, *, live: bool = True, persistent: bool = True, timeout_s: float = 30.0
) -> Step[None]:
    """Take a port from a guest. :raises TimedOutError: it does not let it go, and has it still."""
    query = _from(live=live, persistent=persistent, timeout_s=timeout_s)
    return Step(_change("DELETE", f"{_guest(guest)}{_port(port)}", **query), None)


def _from(*, live: bool, persistent: bool, timeout_s: float) -> dict[str, str]:
    return {"live": str(int(live)), "persistent": str(int(persistent)), "timeout": f"{timeout_s:.3f}"}


class Guests(Resource[DriverT]):
    """libvirt's guests."""

    list = Look(list_guests)
    show = Look(show_guest)
    create = Change(create_guest)
    attach = Change(attach_endpoint)
    detach = Change(detach_endpoint)
    attach_disk = Change(attach_disk)
    detach_disk = Change(detach_disk)
    plug = Change(plug_port)
    unplug = Change(unplug_port)


# Ports


def _port(name: str) -> str:
    return f"/ports/{_named('port', name)}"


def list_ports() -> Conversation[tuple[PortInfo, ...]]:
    """All ports of the host."""
    return (yield from _get("/ports", tuple[PortInfo, ...]))


def show_port(name: str) -> Conversation[PortInfo]:
    """One port. :raises NotFoundError: there is none of this name."""
    return (yield from _get(_port(name), PortInfo))


def create_port(spec: PortSpec) -> Step[PortInfo]:
    """Make a port, and have its switch know it. One that is there and equal is fine.

    :raises ConflictError: there is another of this name. :raises RingwayError: the switch refuses it.
    """
    return Step(_change("POST", "/ports", spec), PortInfo)


def delete_port(name: str, *, force: bool = False) -> Step[None]:
    """Delete a port. :param force: unplug it as well. :raises BusyError: a guest has it."""
    return Step(_change("DELETE", _port(name), **_flag("force", force)), None)


class Ports(Resource[DriverT]):
    """vhost-user network ports."""

    list = Look(list_ports)
    show = Look(show_port)
    create = Change(create_port)
    delete = Change(delete_port)


# Operations


def _operation(identifier: str) -> str:
    return f"/operations/{_named('operation', identifier)}"


def list_operations() -> Conversation[tuple[OperationInfo, ...]]:
    """What runs, and what ran lately."""
    return (yield from _get("/operations", tuple[OperationInfo, ...]))


def show_operation(identifier: str) -> Conversation[OperationInfo]:
    """One operation. :raises NotFoundError: there is none, or it is long gone."""
    return (yield from _get(_operation(identifier), OperationInfo))


def cancel_operation(identifier: str) -> Conversation[OperationInfo]:
    """Ask an operation to end. :raises ConflictError: it cannot be cancelled."""
    return decode((yield _change("DELETE", _operation(identifier))), OperationInfo)


def wait_for_operation(
    identifier: str, timeout_s: float | None = None, progress: Progress | None = None
) -> Conversation[OperationInfo]:
    """Wait until an operation has ended.

    :param progress: called with it while it runs.
    :raises RingwayError: what it failed with. :raises TimedOutError: it still runs.
    """
    return (yield from wait_ended(quote(identifier), Patience(timeout_s, progress)))


class Operations(Resource[DriverT]):
    """Work that may take longer than a second."""

    list = Look(list_operations)
    show = Look(show_operation)
    cancel = Look(cancel_operation)
    wait = Look(wait_for_operation)


# Host


def host_info() -> Conversation[HostInfo]:
    """The daemon, its host, and what its engines can do."""
    return (yield from _get("", HostInfo))


def host_metrics() -> Conversation[bytes]:
    """The text that Prometheus reads."""
    return decode((yield Request("GET", "/metrics")), bytes)


class Host(Resource[DriverT]):
    """The host."""

    info = Look(host_info)
    metrics = Look(host_metrics)


# Configuration


def plan_config(config: HostConfig, *, prune: bool = False) -> Conversation[Plan]:
    """Say what :meth:`apply` would change. :param prune: endpoints that it does not name go."""
    return decode((yield _change("POST", "/plan", config, **_flag("prune", prune))), Plan)


def apply_config(config: HostConfig, *, prune: bool = False, force: bool = False) -> Step[Plan]:
    """Make the host have these endpoints; each of them wholly or not at all.

    :param force: LUNs and endpoints go even while a guest uses them. :returns: what changed.
    """
    request = _change("POST", "/apply", config, **_flag("prune", prune), **_flag("force", force))
    return Step(request, Plan)


def export_config(format: str = "ringway") -> Conversation[bytes]:
    """The host's configuration as JSON. :param format: ``ringway``, or ``targetcli`` for its saveconfig."""
    return (yield from _get("/config/export", bytes, format=format))


def import_config(saveconfig: bytes = b"", *, adopt: bool = False) -> Step[Plan]:
    """Take over what targetcli's ``saveconfig.json`` describes.

    :param saveconfig: the file; none with ``adopt``: all that is live and foreign.
    :param adopt: take live objects over in place. :returns: what changed.
    """
    request = Request("POST", f"{_ROOT}/config/import", _flag("adopt", adopt), saveconfig or None)
    return Step(request, Plan)


class Config(Resource[DriverT]):
    """The configuration of the whole host."""

    plan = Look(plan_config)
    apply = Change(apply_config)
    export = Look(export_config)
    import_ = Change(import_config)


# Events


def follow_events(kinds: Sequence[str] = (), since: int | None = None) -> Request:
    """Follow what happens, as a stream of :class:`~ringway.model.Event`.

    :param kinds: only these (``endpoint`` for all of ``endpoint.…``).
    :param since: first those that the daemon still keeps behind this number; 0 for all of them.
    """
    query = {"kinds": ",".join(kinds)} if kinds else {}
    return Request("GET", f"{_ROOT}/events", query if since is None else {**query, "since": str(since)})


class Events(Resource[DriverT]):
    """What happens on the host."""

    follow = Follow(follow_events)
