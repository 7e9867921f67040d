"""A command on its way through a logical unit."""

from __future__ import annotations

from dataclasses import dataclass

from ringway.scsi.reply import Delivery, Undelivered, invalid_cdb


@dataclass(frozen=True, slots=True)
class Nexus:
    """One initiator port's relation to one target port: unit attentions and reservations belong to it.

    :param name: stable over reconnects and migrations.
    """

    name: str


@dataclass(slots=True)
class Task:
    """One command as the transport delivered it.

    :param cdb: 32 bytes, zero-padded.
    :param data_out: what came with it; maybe less than ``data_out_size``, the size of the initiator's buffer.
    :param failure: why the data path could not run it (``_core.Command.failure``); empty: it did not try.
    :ivar taken: bytes of data-out that were used, for the residual.
    """

    cdb: bytes
    nexus: Nexus
    data_out: bytes = b""
    data_out_size: int = 0
    failure: str = ""
    taken: int = 0

    def number(self, start: int, end: int) -> int:
        """The big-endian number in the CDB's bytes ``start`` to ``end`` (exclusive)."""
        return int.from_bytes(self.cdb[start:end])

    def bits(self, byte: int, shift: int, width: int = 1) -> int:
        """A field of ``width`` bits in one byte of the CDB."""
        return self.cdb[byte] >> shift & (1 << width) - 1

    def take_data_out(self, size: int, *, length_field: int) -> bytes:
        """:returns: exactly the first ``size`` bytes of data-out.

        :param length_field: the byte of the CDB that asks for so many.
        :raises Undelivered: the initiator's buffer is smaller.
        :raises CheckCondition: it is larger than what the slow path carries.
        """
        if size > self.data_out_size:
            raise Undelivered(Delivery.OVERRUN)
        if size > len(self.data_out):
            raise invalid_cdb(length_field)
        self.taken = size
        return self.data_out[:size]
