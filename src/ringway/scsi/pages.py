"""Mode pages: their values, which bits of them may be changed, and the settings that they stand for.

Spec: SPC-4 r37 and SBC-4 r22, Mode parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

READ_WRITE_ERROR_RECOVERY: Final = 0x01
CACHING: Final = 0x08
CONTROL: Final = 0x0A
INFORMATIONAL_EXCEPTIONS: Final = 0x1C

_D_SENSE: Final = 2, 0x04
_SWP: Final = 4, 0x08


def _page(code: int, size: int, values: Mapping[int, int]) -> bytes:
    """A page of ``size`` bytes: its header, and the bytes that are not zero. PS is zero: nothing is saved."""
    page = bytearray(size)
    page[0], page[1] = code, size - 2
    for byte, value in values.items():
        page[byte] = value
    return bytes(page)


#: What the pages say at power on.
DEFAULTS: Final[Mapping[int, bytes]] = MappingProxyType(
    {
        READ_WRITE_ERROR_RECOVERY: _page(READ_WRITE_ERROR_RECOVERY, 12, {}),
        # WCE: a write is acknowledged before it is stable; SYNCHRONIZE CACHE and FUA make it so.
        CACHING: _page(CACHING, 20, {2: 0x04}),
        # GLTSD: no log is saved. Unrestricted reordering. A busy time without a limit.
        CONTROL: _page(CONTROL, 12, {2: 0x02, 3: 0x10, 8: 0xFF, 9: 0xFF}),
        # DEXCPT: no informational exceptions are reported.
        INFORMATIONAL_EXCEPTIONS: _page(INFORMATIONAL_EXCEPTIONS, 12, {2: 0x08}),
    }
)

#: The same, with a one for each bit that MODE SELECT may change.
CHANGEABLE: Final[Mapping[int, bytes]] = MappingProxyType(
    {code: _page(code, len(page), {}) for code, page in DEFAULTS.items()}
    | {CONTROL: _page(CONTROL, 12, dict((_D_SENSE, _SWP)))}
)


@dataclass(frozen=True, slots=True)
class ModePages:
    """The current values of all pages."""

    values: Mapping[int, bytes] = field(default_factory=lambda: DEFAULTS)

    @property
    def descriptor_sense(self) -> bool:
        """D_SENSE: sense data come in descriptor format."""
        return self._is_set(_D_SENSE)

    @property
    def software_write_protect(self) -> bool:
        """SWP: the initiator asked us to refuse writes."""
        return self._is_set(_SWP)

    def _is_set(self, bit: tuple[int, int]) -> bool:
        byte, mask = bit
        return bool(self.values[CONTROL][byte] & mask)

    def change(self, page: bytes) -> ModePages:
        """:returns: the pages with ``page`` in place of the one with its code."""
        return replace(self, values=MappingProxyType({**self.values, page[0]: page}))

    def unchangeable_bit(self, page: bytes) -> tuple[int, int] | None:
        """:returns: (byte, bit) where ``page`` differs from the current one and may not."""
        current, mask = self.values[page[0]], CHANGEABLE[page[0]]
        for byte, (new, old, changeable) in enumerate(zip(page, current, mask, strict=True)):
            if wrong := (new ^ old) & ~changeable:
                return byte, wrong.bit_length() - 1
        return None
