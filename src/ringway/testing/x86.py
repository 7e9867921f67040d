"""Just enough of a real-mode assembler for a boot sector: bytes, labels, short jumps."""

from __future__ import annotations


class Code:
    """A program under construction; each method appends and returns the program, so that calls can be
    chained.

    :param origin: the address that it will be loaded at.
    """

    def __init__(self, origin: int) -> None:
        self.origin = origin
        self._bytes = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self._addresses: list[tuple[int, str]] = []

    def emit(self, encoded: str, *operands: bytes) -> Code:
        """Append an instruction given as hexadecimal digits, and its immediate operands."""
        self._bytes += bytes.fromhex(encoded)
        for operand in operands:
            self._bytes += operand
        return self

    def label(self, name: str) -> Code:
        """Give the current place a name."""
        self._labels[name] = len(self._bytes)
        return self

    def jump(self, opcode: str, target: str) -> Code:
        """Append a jump, call or loop; the displacement has one byte, or two after ``e8`` and ``e9``."""
        self._bytes += bytes.fromhex(opcode)
        self._jumps.append((len(self._bytes), target))
        self._bytes += bytes(_width(bytes.fromhex(opcode)[-1]))
        return self

    def at(self, encoded: str, target: str, *operands: bytes) -> Code:
        """Append an instruction, the 16-bit address of a label, and further operands."""
        self._bytes += bytes.fromhex(encoded)
        self._addresses.append((len(self._bytes), target))
        self._bytes += bytes(2)
        return self.emit("", *operands)

    def assembled(self) -> bytes:
        """Return the bytes with each label resolved.

        :raises OverflowError: a label is out of a short jump's reach.
        """
        out = bytearray(self._bytes)
        for place, target in self._jumps:
            width = _width(out[place - 1])
            distance = self._labels[target] - (place + width)
            out[place : place + width] = distance.to_bytes(width, "little", signed=True)
        for place, target in self._addresses:
            out[place : place + 2] = (self.origin + self._labels[target]).to_bytes(2, "little")
        return bytes(out)


def u16(value: int) -> bytes:
    """Return a 16-bit operand."""
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    """Return a 32-bit operand."""
    return value.to_bytes(4, "little")


def _width(opcode: int) -> int:
    """Return how many bytes the displacement after a jump's opcode has in real mode."""
    return 2 if opcode in (0xE8, 0xE9) else 1
