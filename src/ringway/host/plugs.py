"""Which guest has which port."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from ringway.errors import ConflictError, RingwayError
from ringway.host.events import Events, Kind
from ringway.host.giving import Giving
from ringway.host.holdings import Holding, Words
from ringway.host.hypervisors import Guests
from ringway.host.locks import Locks
from ringway.host.rows import Row, Rows, Stage
from ringway.host.switches import Switches
from ringway.model import GuestInfo, PlugInfo, PlugSpec, PortMode, PortSpec, PortState

_UNKNOWN: Final = "external"  #: the switch that others see to
_OR_CLIENT: Final = {PortMode.SERVER: ", or take a port with --mode client", PortMode.CLIENT: ""}
_log: Final = logging.getLogger(__name__)


class WantedPort(Row, frozen=True, kw_only=True):
    """A row: a port as its switch shall have it, with nothing left open."""

    spec: PortSpec
    made_for: str | None = None  #: the UUID of the guest whose creation made it


class Plugs(Giving[PlugSpec, PortSpec, PlugInfo]):
    """The ports that guests have. Their switches are told whose they are.

    :param ports: all that there are.
    """

    words = Words(
        thing="port",
        given="plugged into",
        giving="plugging it in",
        take="unplug",
        told_given=Kind.PLUGGED,
        told_taken=Kind.UNPLUGGED,
    )

    def __init__(
        self,
        rows: Rows[Holding],
        guests: Guests,
        locks: Locks,
        events: Events,
        ports: Rows[WantedPort],
        switches: Switches,
    ) -> None:
        super().__init__(rows, guests, locks, events)
        self._ports = ports
        self._switches = switches

    def view(self, guest: GuestInfo) -> GuestInfo:
        """A guest, with what is known of its ports."""
        return replace(guest, ports=tuple(self._seen(guest, self._of(guest))))

    async def refuse_start(self, spec: PortSpec) -> None:
        """:raises ConflictError: no guest can start with a port, which need not be there yet."""
        may_be_asked = spec.name in self._ports or spec.switch == _UNKNOWN
        if may_be_asked and (why := await self._obstacle(spec)) is not None:
            raise ConflictError(
                f"no guest can start with port '{spec.name}' now: {why}",
                hint=f"make it with --no-start, and start it later{_OR_CLIENT[spec.mode]}",
            )

    async def _obstacle(self, spec: PortSpec) -> str | None:
        """Why a guest cannot have a port at once; ``None``: it can.

        QEMU that listens waits for its switch, its guest with it, and nobody knows when an unknown one comes.
        """
        try:
            found = await self._switches.ask(self._switches.of(spec).show, spec)
            why = found.message if found.state is PortState.DEGRADED else None
        except RingwayError as error:
            why = error.message
        if spec.mode is PortMode.CLIENT:
            return why
        if spec.switch == _UNKNOWN:
            why = "nobody knows whether one does"
        return why and f"it would stand still until a switch connects, and {why}"

    async def tell_again(self, port: str) -> None:
        """Tell a switch that has lost a port, and has it again, which guest has it."""
        if (row := self.find(port)) is not None:
            await self._tell(port, row.guest)

    # As holdings

    def _thing_of(self, ask: PlugSpec) -> str:
        return ask.port

    async def _gift(self, ask: PlugSpec, *, live: bool) -> PortSpec:
        row = self._ports.get(ask.port)
        if row.stage is not Stage.CONFIRMED:
            raise ConflictError(f"port '{row.name}' is being made or deleted", hint="wait, then look again")
        if live and (why := await self._obstacle(row.spec)) is not None:
            raise ConflictError(
                f"a guest that runs cannot have port '{row.name}' now: {why}",
                hint=f"plug it in for the next start (--no-live){_OR_CLIENT[row.spec.mode]}",
            )
        return row.spec

    async def _push(
        self, guest: str, gift: PortSpec, *, live: bool, persistent: bool, fix_memory: bool
    ) -> PlugInfo:
        await self._switches.ask(self._switches.of(gift).plug, gift, guest)
        plug = self._guests.hypervisor.plug
        return await self._guests.ask(
            plug, guest, gift, live=live, persistent=persistent, fix_memory=fix_memory
        )

    def _of(self, guest: GuestInfo) -> Mapping[str, PlugInfo]:
        return {each.port: each for each in guest.ports}

    async def _pull(self, guest: str, thing: str, *, live: bool, persistent: bool, timeout_s: float) -> None:
        unplug = self._guests.hypervisor.unplug
        await self._guests.ask(unplug, guest, thing, live=live, persistent=persistent, timeout_s=timeout_s)

    def _lock_of(self, thing: str) -> str:
        return self._ports.lock(thing)

    async def _is_there(self, thing: str) -> bool:
        return thing in self._ports

    async def _tell(self, thing: str, guest: str | None) -> None:
        if (port := self._ports.find(thing)) is None:
            return
        try:
            switch = self._switches.of(port.spec)
            if guest is None:
                await self._switches.ask(switch.unplug, port.spec)
            else:
                await self._switches.ask(switch.plug, port.spec, guest)
        except RingwayError as error:
            _log.warning("the switch of port '%s' does not know whose it is: %s", thing, error)
