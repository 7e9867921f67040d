"""Which guest has which endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from msgspec.structs import replace

from ringway.errors import ConflictError, RingwayError, UsageError
from ringway.guest.base import GuestEvent, GuestEventKind, Wish, face_of
from ringway.host.desired import Desired
from ringway.host.events import Events, Kind
from ringway.host.giving import Giving
from ringway.host.health import runs
from ringway.host.holdings import Holding, Words, guest_lock, logged
from ringway.host.hypervisors import Guests
from ringway.host.locks import Locks
from ringway.host.rows import Rows
from ringway.model import (
    AttachmentInfo,
    AttachSpec,
    EndpointInfo,
    EngineKind,
    GuestInfo,
    GuestState,
)

ShowEndpoint = Callable[[str], Awaitable[EndpointInfo]]


class Attachments(Giving[AttachSpec, Wish, AttachmentInfo]):
    """The endpoints that guests have.

    :param endpoints: that are wanted; others can be there as well.
    :param show: tells how an endpoint is now.
    """

    words = Words(
        thing="endpoint",
        given="attached to",
        giving="attaching",
        take="detach",
        told_given=Kind.ATTACHED,
        told_taken=Kind.DETACHED,
    )

    def __init__(
        self,
        rows: Rows[Holding],
        guests: Guests,
        locks: Locks,
        events: Events,
        endpoints: Desired,
        show: ShowEndpoint,
    ) -> None:
        super().__init__(rows, guests, locks, events)
        self._endpoints = endpoints
        self._show = show
        self._untidy: set[str] = set()  #: guests in which something may have been left behind

    def view(self, guest: GuestInfo) -> GuestInfo:
        """A guest, with what is known of its endpoints."""
        return replace(guest, attachments=tuple(self._seen(guest, self._of(guest))))

    # What others do

    async def settle(self, *, unconfirmed: bool = False) -> None:
        """As of all holdings; devices that guests let go while nobody was there have left something."""
        await super().settle(unconfirmed=unconfirmed)
        if self._guests.there and not unconfirmed:
            with logged("guests"):
                guests = await self._guests.list()
                self._untidy |= {each.uuid for each in guests if each.state is not GuestState.SHUT_OFF}
        await asyncio.gather(*map(self._tidy, tuple(self._untidy)))

    async def heed(self, event: GuestEvent) -> None:
        """As of all holdings; a device that a guest let go late has left something."""
        if event.kind is GuestEventKind.DEVICE_REMOVED:
            await self._tidy(event.uuid)
        await super().heed(event)

    async def _tidy(self, guest: str) -> None:
        """Leave nothing in a guest of devices that it has let go. Never raises :class:`RingwayError`."""
        self._untidy.add(guest)
        with logged(f"guest '{guest}'"):
            async with self._locks.hold(guest_lock(guest)):
                await self._guests.tidy(guest)
            self._untidy.discard(guest)

    # As holdings

    def _thing_of(self, ask: AttachSpec) -> str:
        return ask.endpoint

    async def _gift(self, ask: AttachSpec, *, live: bool) -> Wish:
        if ask.endpoint in self._endpoints.names():
            self._endpoints.settled(ask.endpoint)
        endpoint = await self._show(ask.endpoint)
        if not runs(endpoint):
            raise ConflictError(
                f"endpoint '{ask.endpoint}' is {endpoint.state}"
                + (f": {endpoint.message}" if endpoint.message else ""),
                hint=f"see: ringway endpoint show {ask.endpoint}",
            )
        return _wish(endpoint, ask)

    async def _push(
        self, guest: str, gift: Wish, *, live: bool, persistent: bool, fix_memory: bool
    ) -> AttachmentInfo:
        attach = self._guests.hypervisor.attach
        return await self._guests.ask(
            attach, guest, gift, live=live, persistent=persistent, fix_memory=fix_memory
        )

    def _of(self, guest: GuestInfo) -> Mapping[str, AttachmentInfo]:
        return {each.endpoint: each for each in guest.attachments}

    async def _pull(self, guest: str, thing: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        detach = self._guests.hypervisor.detach
        await self._guests.ask(detach, guest, thing, live=live, persistent=persistent, timeout_s=timeout_s)

    def _lock_of(self, thing: str) -> str:
        return thing

    async def _is_there(self, thing: str) -> bool:
        try:
            await self._show(thing)
        except RingwayError:
            return False
        return True

    async def _tell(self, thing: str, guest: str | None) -> None:
        """Nobody else asks."""


def _wish(endpoint: EndpointInfo, spec: AttachSpec) -> Wish:
    """:raises UsageError: the endpoint has not so many queues, or no protection information."""
    has = endpoint.spec.queues if endpoint.spec is not None and endpoint.engine is EngineKind.USER else None
    if has is not None and spec.queues is not None and spec.queues > has:
        raise UsageError(
            f"endpoint '{endpoint.name}' has fewer than {spec.queues} queues: {has}",
            hint=f"take --queues {has}, or make the endpoint with more",
        )
    if spec.protection and endpoint.engine is EngineKind.USER:
        raise UsageError("the user engine has no protection information", hint="leave out --protection")
    usual = None if endpoint.engine is EngineKind.LIO else has or 1
    return Wish(
        endpoint=endpoint.name,
        face=face_of(endpoint),
        socket=endpoint.socket,
        wwpn=endpoint.wwpn,
        queues=spec.queues or usual,
        queues_asked=spec.queues is not None,
        boot_order=spec.boot_order,
        protection=spec.protection,
    )
