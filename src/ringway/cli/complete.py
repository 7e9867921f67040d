"""What the shell offers on TAB: names that the daemon knows. It has 200 ms; then nothing is offered.

Nothing is ever printed, whatever goes wrong: a prompt is no place for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

    from ringway.client import Client

_LIMIT_S: Final = 0.2
_Ask: TypeAlias = "Callable[[Client, click.Context], Iterable[CompletionItem[str]]]"
Completer: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]"


def completer(ask: _Ask) -> Completer:
    """Make a ``shell_complete`` of what asks the daemon. :returns: items with the prefix that was typed."""

    def complete(ctx: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem[str]]:
        with contextlib.suppress(Exception):
            return [item for item in ask(_client(ctx), ctx) if item.value.startswith(typed)]
        return []

    return complete


def _client(ctx: click.Context) -> Client:
    from ringway.client import Client
    from ringway.client.sockets import SocketTransport

    socket: Any = ctx.params.get("remote")
    return Client(transport=SocketTransport(socket, timeout_s=_LIMIT_S))


def _item(value: str, text: str) -> CompletionItem[str]:
    from click.shell_completion import CompletionItem

    return CompletionItem(value, help=text)


@completer
def endpoints(client: Client, _ctx: click.Context) -> Iterator[CompletionItem[str]]:
    """Names of endpoints, with how they are doing."""
    for found in client.endpoints.list():
        yield _item(found.name, f"{found.engine} {found.state}")


@completer
def attached(client: Client, ctx: click.Context) -> Iterator[CompletionItem[str]]:
    """What the guest that was named has of ours: endpoints, and plain disks by their targets."""
    found = client.guests.show(ctx.params["name"])
    for each in found.attachments:
        yield _item(each.endpoint, f"endpoint {each.state}")
    for disk in found.disks:
        if disk.volume is not None:
            yield _item(disk.target, disk.source or disk.volume)


@completer
def guests(client: Client, _ctx: click.Context) -> Iterator[CompletionItem[str]]:
    """Names of guests, with what they do."""
    for found in client.guests.list():
        yield _item(found.name, found.state)


@completer
def ports(client: Client, _ctx: click.Context) -> Iterator[CompletionItem[str]]:
    """Names of ports, with whose they are."""
    for found in client.ports.list():
        yield _item(found.name, f"{found.switch} {found.state}")


@completer
def luns(client: Client, ctx: click.Context) -> Iterator[CompletionItem[str]]:
    """Addresses of the LUNs of the endpoint that was named."""
    for lun in client.endpoints.show(ctx.params["name"]).luns:
        yield _item(f"{lun.target}:{lun.lun}", lun.path or lun.kind)


@completer
def operations(client: Client, _ctx: click.Context) -> Iterator[CompletionItem[str]]:
    """Identifiers of operations that run."""
    for operation in client.operations.list():
        if operation.state == "running":
            yield _item(operation.id, operation.description)
