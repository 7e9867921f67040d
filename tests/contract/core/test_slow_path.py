"""What goes to Python, and how it comes back: broken rings, dead tags, gates, long headers."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from ringway import _core
from ringway.testing.frontend import Framing, ScsiFrontEnd
from ringway.testing.waiting import PATIENCE_S, wait_until
from ringway.vhost_user.messages import Request as Message

from .. import cdb
from ..conftest import Serve
from ..disks import SIZE, MakeDisk
from ..requests import read, send_write, wait, write
from .seams import BUSY, DEVICES, FAILURE, HELD, PAGE, check_others_pass, in_flight, locked

T10_PI = 1 << 3


@pytest.mark.parametrize("device", DEVICES)
def test_a_head_that_is_made_available_twice_breaks_its_ring(
    serve: Serve, disk_of: MakeDisk, device: str
) -> None:
    bare = serve.bare(device, disk_of("cached"), queues=2)
    with bare.front_end(2) as front:
        ring = front.rings[-1]
        with locked(bare):
            held = send_write(front, HELD.start, b"w" * PAGE, queue=1)
            ring.push(held.chain.head)
            ring.kick(force=True)
            command = bare.next_command()
            assert (command.kind, command.queue) == ("broken", len(front.rings) - 1)
            assert command.failure == f"head {held.chain.head} was made available twice"
            check_others_pass(front, queue=0)
        assert wait(front, held)[0] == 0, "what was in flight before still finishes"


def test_a_tag_is_dead_once_its_ring_was_stopped(serve: Serve, disk_of: MakeDisk) -> None:
    bare = serve.bare("scsi", disk_of("ram"))
    with bare.front_end() as front:
        assert isinstance(front, ScsiFrontEnd)
        asked = front.send_command(cdb.inquiry(36), data_in=36)
        command = bare.next_command()
        assert bare.core.stop_queue(2, timeout_s=0.01) == 1
        assert front.wait_command(asked).response == BUSY
        bare.core.complete(command.tag, response=0, data=b"late")
        bare.core.resume(command.tag)
        front.bases = [ring.used_index for ring in front.rings]
        front.ask(Message.RESET_DEVICE)
        front.start()
        again = front.send_command(cdb.inquiry(36), data_in=36)
        command = bare.next_command()
        bare.core.complete(command.tag, response=0, data=b"in time")
        assert front.wait_command(again).data == b"in time"
        assert front.rings[2].collect() == []


# The gate

Asked = tuple[bytes, dict[str, Any]]  #: a CDB, and its data


def test_the_gate_sends_what_it_names_to_the_slow_path_and_nothing_else(
    serve: Serve, disk_of: MakeDisk
) -> None:
    bare = serve.bare("scsi", disk_of("cached"))
    listed = cdb.unmap_list((0, 1))
    reads: list[Asked] = [(cdb.read(0, 1, size=size), {"data_in": 512}) for size in (6, 10, 12, 16)]
    writes: list[Asked] = [(cdb.write(0, 1, size=size), {"data_out": b"w" * 512}) for size in (6, 10, 12, 16)]
    writes += [
        (cdb.write_same(0, 1, size=10), {"data_out": b"w" * 512}),
        (cdb.write_same(0, 1, size=16), {"data_out": bytes(512)}),
        (cdb.unmap(listed), {"data_out": listed}),
    ]
    others: list[Asked] = [(cdb.TEST_UNIT_READY, {}), (cdb.synchronize_cache(), {})]
    words: dict[int, list[Asked]] = {
        0: [],
        _core.GATE_NO_READ: reads,
        _core.GATE_NO_WRITE: writes,
        _core.GATE_NO_READ | _core.GATE_NO_WRITE: [*reads, *writes],
        _core.GATE_ATTENTION: [*reads, *writes, *others],
    }
    with bare.front_end() as front:
        assert isinstance(front, ScsiFrontEnd)
        for word, gated in words.items():
            bare.core.set_gate(0, 0, word)
            for command, data in (*reads, *writes, *others):
                sent = front.send_command(command, **data)
                if (command, data) in gated:
                    asked = bare.next_command()
                    assert (asked.kind, asked.failure) == ("cdb", "")
                    assert asked.cdb == command.ljust(32, b"\0")
                    assert asked.data_out == data.get("data_out", b"")
                    assert asked.data_in_size == data.get("data_in", 0)
                    assert not sent.chain.done
                    bare.core.resume(asked.tag)
                answer = front.wait_command(sent)
                assert (answer.response, answer.status, answer.residual) == (0, 0, 0), command.hex(" ")
            assert bare.core.next_command(0) is None


def test_a_command_that_failed_hot_is_not_run_again(serve: Serve, disk_of: MakeDisk) -> None:
    """It would fail the same way for ever."""
    bare = serve.bare("scsi", disk_of("ram"))
    with bare.front_end() as front:
        assert isinstance(front, ScsiFrontEnd)
        cases: list[tuple[bytes, dict[str, Any], str]] = [
            (cdb.read(SIZE // 512, 1), {"data_in": 512}, "range"),
            (cdb.read(0, 2), {"data_in": 512}, "overrun"),
            (cdb.write_same(0, 0), {"data_out": bytes(512)}, "field"),
            (cdb.unmap(b"\0" * 4), {"data_out": bytes(4)}, "parameter"),
        ]
        for command, data, failure in cases:
            sent = front.send_command(command, **data)
            asked = bare.next_command()
            assert asked.failure == failure
            bare.core.resume(asked.tag)
            assert front.wait_command(sent).response == FAILURE


def test_more_commands_for_python_than_it_can_queue_wait_their_turn(serve: Serve, disk_of: MakeDisk) -> None:
    """The ring to Python is bounded; what does not fit is parked, and every command is answered once."""
    count = 1500
    bare = serve.bare("scsi", disk_of("ram"), queues=2)
    with bare.front_end(2, queue_size=1024, indirect=True) as front:
        assert isinstance(front, ScsiFrontEnd)
        bare.core.set_gate(0, 0, _core.GATE_ATTENTION)
        sent = [
            front.send_command(cdb.TEST_UNIT_READY, queue=number % 2, framing=Framing(indirect=True))
            for number in range(count)
        ]
        wait_until(lambda: in_flight(bare) == count, "all commands to be taken")
        ids = set()
        for _ in range(count):
            command = bare.next_command()
            ids.add(command.id)
            bare.core.complete(command.tag, response=0)
        assert ids == {request.id for request in sent}
        assert [front.wait_command(request).response for request in sent] == [0] * count
        assert bare.core.next_command(0) is None


def test_next_command_waits_until_it_is_woken(serve: Serve, disk_of: MakeDisk) -> None:
    core = serve.bare("scsi", disk_of("ram")).core
    answers: list[_core.Command | None] = []
    waiter = threading.Thread(target=lambda: answers.append(core.next_command()), daemon=True)
    waiter.start()
    core.wake()
    waiter.join(PATIENCE_S)
    assert answers == [None]
    assert core.next_command(0) is None


# The request header


@pytest.mark.parametrize("framing", [Framing(), Framing(joined=True), Framing(first=20)], ids=str)
def test_protection_information_makes_the_header_longer(
    serve: Serve, disk_of: MakeDisk, framing: Framing
) -> None:
    """T10_PI: 59 bytes, the two protection lengths before the CDB, as Linux and QEMU lay them out."""
    bare = serve.bare("scsi", disk_of("cached"))
    data = os.urandom(PAGE)
    with bare.front_end() as front:
        assert isinstance(front, ScsiFrontEnd)
        write(front, 0, b"o" * PAGE)
        bare.core.set_features(front.features | T10_PI)  # the target does not offer it yet
        front.features |= T10_PI
        write(front, 0, data, framing=framing)
        assert read(front, 0, framing=framing) == data
        sent = front.send_command(cdb.inquiry(36), data_in=36, framing=framing, id=0x1122)
        asked = bare.next_command()
        assert (asked.cdb, asked.id) == (cdb.inquiry(36).ljust(32, b"\0"), 0x1122)
        assert (asked.data_out_size, asked.data_in_size) == (0, 36)
        bare.core.complete(asked.tag, response=0, data=b"i" * 36)
        assert front.wait_command(sent).data == b"i" * 36
        bare.core.set_features(front.features & ~T10_PI)
        front.features &= ~T10_PI
        assert read(front, 0, framing=framing) == data
