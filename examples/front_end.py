"""Ask a vhost-user-scsi target who its first disk is, as a guest's driver would.

    ringway serve disk.img &
    python examples/front_end.py disk.img.sock

``ringway.testing.frontend`` is the guest's side of the protocol: memory, rings and requests of a pretended
guest. A target serves one front end at a time, so stop the guest first.
"""

from __future__ import annotations

import sys

from ringway.testing.frontend import ScsiFrontEnd

TEST_UNIT_READY = bytes(6)
INQUIRY = bytes.fromhex("12 00 00 00 60 00")
SERIAL_NUMBER_PAGE = bytes.fromhex("12 01 80 00 60 00")
READ_CAPACITY_16 = bytes.fromhex("9e 10 0000000000000000 00000020 00 00")
CHECK_CONDITION = 2


def read(guest: ScsiFrontEnd, cdb: bytes, length: int) -> bytes:
    """Send a command that reads parameter data. It has to end well."""
    answer = guest.command(cdb, data_in=length)
    if (answer.response, answer.status) != (0, 0):
        raise SystemExit(f"CDB {cdb.hex(' ')} failed: key, code and qualifier are {answer.sense_key}")
    return answer.data


def main(socket: str) -> None:
    """Print the disk's vendor, product, serial number and capacity."""
    with ScsiFrontEnd(socket).open() as guest:
        while guest.command(TEST_UNIT_READY).status == CHECK_CONDITION:
            pass  # a new initiator is told of a power on first; each report clears one
        standard = read(guest, INQUIRY, 96)
        serial = read(guest, SERIAL_NUMBER_PAGE, 96)
        capacity = read(guest, READ_CAPACITY_16, 32)
    last_block, block_bytes = int.from_bytes(capacity[:8]), int.from_bytes(capacity[8:12])
    print(f"vendor    {standard[8:16].decode().strip()}")
    print(f"product   {standard[16:32].decode().strip()}")
    print(f"serial    {serial[4:].decode()}")
    print(f"capacity  {last_block + 1} blocks of {block_bytes} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: front_end.py SOCKET")
    main(sys.argv[1])
