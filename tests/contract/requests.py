"""Reads and writes of either device, in bytes."""

from __future__ import annotations

from typing import Any

from ringway.testing.frontend import BlkFrontEnd, BlkRequest, ScsiFrontEnd, ScsiRequest

from . import cdb

Front = BlkFrontEnd | ScsiFrontEnd
Request = BlkRequest | ScsiRequest


def front_end(device: str, path: str, queues: int = 1, **more: Any) -> Front:
    """A front end with so many request queues, not connected yet."""
    if device == "blk":
        return BlkFrontEnd(path, queues=queues, **more)
    return ScsiFrontEnd(path, request_queues=queues, **more)


def make_ready(front: Front) -> None:
    """Take the unit attentions of a scsi disk."""
    while isinstance(front, ScsiFrontEnd) and front.command(cdb.TEST_UNIT_READY).status:
        pass


def send_read(front: Front, offset: int, size: int = 4096, **more: Any) -> Request:
    if isinstance(front, BlkFrontEnd):
        return front.send_request(0, offset // 512, data_in=size, **more)
    return front.send_command(cdb.read(offset // 512, size // 512), data_in=size, **more)


def send_write(front: Front, offset: int, data: bytes, **more: Any) -> Request:
    if isinstance(front, BlkFrontEnd):
        return front.send_request(1, offset // 512, data_out=data, **more)
    return front.send_command(cdb.write(offset // 512, len(data) // 512), data_out=data, **more)


def wait(front: Front, request: Request) -> tuple[int, bytes]:
    """:returns: 0 for good, else the response or status; and data."""
    if isinstance(front, BlkFrontEnd):
        assert isinstance(request, BlkRequest)
        answer = front.wait_request(request)
        return answer.status, answer.data
    assert isinstance(request, ScsiRequest)
    response = front.wait_command(request)
    return response.response or response.status, response.data


def read(front: Front, offset: int, size: int = 4096, **more: Any) -> bytes:
    """Read, which must go well."""
    status, data = wait(front, send_read(front, offset, size, **more))
    assert status == 0
    return data


def write(front: Front, offset: int, data: bytes, **more: Any) -> None:
    """Write, which must go well."""
    assert wait(front, send_write(front, offset, data, **more))[0] == 0


def settle(front: Front) -> None:
    """Wait until the worker has signalled what it completed: it answers this between two batches."""
    front.set_vring_enable(0, True)
