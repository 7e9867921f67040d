"""One endpoint's process, driven by a front end: devices, LUNs that come and go, ownership in a migration."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from ringway.errors import ConflictError, NotFoundError, ProtocolError, UsageError
from ringway.model import (
    MAX_QUEUES,
    BackstoreSpec,
    DeviceKind,
    Done,
    DrainRequest,
    InfoRequest,
    LunAddRequest,
    LunInfo,
    LunRemoveRequest,
    LunResizeRequest,
    LunSpec,
    OwnershipState,
    QuitRequest,
    SpecKind,
    StatisticsRequest,
    TargetConfig,
    TargetInfo,
    TargetStatistics,
)
from ringway.target.control import ControlClient
from ringway.target.listen import listen
from ringway.target.target import Target, wwpn_of
from ringway.testing.frontend import BlkFrontEnd, RefusedError, ScsiFrontEnd
from ringway.testing.waiting import PATIENCE_S
from ringway.vhost_user.messages import BackendRequest

MIB = 1 << 20
READ_10, WRITE_10, TEST_UNIT_READY, READ_CAPACITY_10 = 0x28, 0x2A, 0x00, 0x25
CAPACITY_CHANGED, LUNS_CHANGED = (6, 0x2A, 0x09), (6, 0x3F, 0x0E)

Serve = Callable[..., Target]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start targets with sockets ``0.sock``, ``1.sock`` …; they are closed at the end."""
    targets: list[Target] = []

    def start(device: str, *disks: BackstoreSpec, incoming: bool = False, queues: int = 1) -> Target:
        luns = tuple(LunSpec(0, number, disk) for number, disk in enumerate(disks))
        config = TargetConfig(DeviceKind(device), luns, incoming=incoming, queues=queues)
        path = str(tmp_path / f"{len(targets)}.sock")
        targets.append(Target(config, listen(path), listen(f"{path}.ctl", mode=0o600)))
        return targets[-1]

    yield start
    for target in targets:
        target.close()


def disk(path: Path, *, readonly: bool = False, block_size: int | None = None) -> BackstoreSpec:
    return BackstoreSpec(SpecKind.PATH, str(path), readonly=readonly, block_size=block_size)


NULL = BackstoreSpec(SpecKind.NULL, size_bytes=MIB)


def socket_of(target: Target) -> str:
    path = target.info().socket
    assert path is not None
    return path


def rw10(opcode: int, lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", opcode, 0, lba, 0, blocks, 0)


def settle(guest: ScsiFrontEnd, lun: int = 0) -> None:
    """Take the unit attentions that wait."""
    while guest.command(bytes(6), lun=lun).status:
        pass


def ownership(target: Target) -> list[tuple[OwnershipState, int]]:
    return [(lun.ownership, lun.epoch) for lun in target.info().luns]


# blk


def field(config: bytes, layout: str, offset: int) -> int:
    value: int = struct.unpack_from(f"<{layout}", config, offset)[0]
    return value


def test_a_blk_disk_shows_what_it_is(serve: Serve, image: Path) -> None:
    """Offsets as in struct virtio_blk_config of linux/virtio_blk.h."""
    with BlkFrontEnd(
        socket_of(serve("blk", disk(image, block_size=4096), queues=2)), queues=2
    ).open() as guest:
        config = guest.get_config(0, 60)
        assert field(config, "Q", 0) == 16 * MIB // 512
        assert (field(config, "I", 8), field(config, "I", 12)) == (0, 126)
        assert field(config, "I", 20) == 4096
        assert (config[32], field(config, "H", 34)) == (1, 2)
        assert field(config, "I", 36) > 0, "max_discard_sectors"
        assert field(config, "I", 48) > 0, "max_write_zeroes_sectors"


def test_a_blk_disk_offers_what_it_can(serve: Serve, image: Path) -> None:
    size_max, seg_max, read_only, flush, discard, zeroes = 1, 2, 5, 9, 13, 14

    def bits(target: Target) -> set[int]:
        with BlkFrontEnd(socket_of(target)).open() as guest:
            features = guest.get_features()
        return {bit for bit in range(24) if features >> bit & 1}

    writable = bits(serve("blk", disk(image)))
    assert {seg_max, flush, discard, zeroes} <= writable
    assert not {size_max, read_only} & writable


def test_a_read_only_blk_disk_says_so_and_refuses_writes(serve: Serve, image: Path) -> None:
    with BlkFrontEnd(socket_of(serve("blk", disk(image, readonly=True)))).open() as guest:
        features = guest.get_features()
        assert features >> 5 & 1
        assert not features >> 13 & 3
        assert guest.read(0, 512).status == 0
        assert guest.write(0, b"x" * 512).status == 1
    assert not any(image.read_bytes()[:512])


def test_blk_data_arrives(serve: Serve, image: Path) -> None:
    target = serve("blk", disk(image))
    with BlkFrontEnd(socket_of(target)).open() as guest:
        assert guest.write(8, b"y" * 4096).status == 0
        assert guest.flush().status == 0
        assert guest.read(8, 4096).data == b"y" * 4096
        assert guest.serial().decode() == target.info().luns[0].serial
    assert image.read_bytes()[4096:8192] == b"y" * 4096


def test_the_write_cache_can_be_switched_and_nothing_else(serve: Serve) -> None:
    with BlkFrontEnd(socket_of(serve("blk", NULL))).open() as guest:
        guest.set_config(32, b"\0")
        assert guest.get_config(32, 1) == b"\0"
        for offset, data in ((0, bytes(8)), (32, b"\2"), (32, b"\0\0"), (33, b"\0"), (60, b"\0")):
            with pytest.raises(RefusedError):
                guest.set_config(offset, data, need_reply=True)
        assert guest.get_config(32, 1) == b"\0"
        guest.reset()
        guest.start()
        assert guest.get_config(32, 1) == b"\1"


def test_a_guest_learns_that_its_blk_disk_grew(serve: Serve, image: Path) -> None:
    target = serve("blk", disk(image))
    with BlkFrontEnd(socket_of(target)).open() as guest:
        os.truncate(image, 32 * MIB)
        assert target.resize_lun(0, 0).size_bytes == 32 * MIB
        assert guest.wait_notice() == BackendRequest.CONFIG_CHANGE_MSG
        assert guest.capacity == 32 * MIB // 512
        assert guest.write(32 * MIB // 512 - 1, b"z" * 512).status == 0


def test_a_blk_device_has_one_disk_for_life(serve: Serve) -> None:
    target = serve("blk", NULL)
    with pytest.raises(UsageError):
        target.add_lun(LunSpec(0, 1, NULL))
    with pytest.raises(UsageError):
        target.remove_lun(0, 0)
    assert len(target.info().luns) == 1


# scsi


def test_scsi_data_arrives(serve: Serve, image: Path) -> None:
    with ScsiFrontEnd(socket_of(serve("scsi", disk(image)))).open() as guest:
        settle(guest)
        assert guest.command(rw10(WRITE_10, 8, 1), data_out=b"s" * 512).status == 0
        assert guest.command(rw10(READ_10, 8, 1), data_in=512).data == b"s" * 512
    assert image.read_bytes()[4096:4608] == b"s" * 512


def test_a_guest_learns_of_a_new_lun_and_of_its_end(serve: Serve) -> None:
    target = serve("scsi", NULL)
    with ScsiFrontEnd(socket_of(target)).open() as guest:
        guest.offer_event_buffers()
        settle(guest)
        target.add_lun(LunSpec(0, 3, NULL))
        event = guest.wait_event()
        assert (event.event, event.lun[1], event.lun[3], event.reason) == (1, 0, 3, 1), (
            "TRANSPORT_RESET, RESCAN"
        )
        assert guest.command(bytes(6)).sense_key == LUNS_CHANGED
        settle(guest, lun=3)
        assert guest.command(rw10(READ_10, 0, 1), lun=3, data_in=512).status == 0
        target.remove_lun(0, 3)
        assert guest.wait_event().reason == 2, "REMOVED"
        assert guest.command(rw10(READ_10, 0, 1), lun=3, data_in=512).status != 0
    assert len(target.info().luns) == 1


def test_a_guest_learns_that_its_scsi_disk_grew(serve: Serve, image: Path) -> None:
    target = serve("scsi", disk(image))
    with ScsiFrontEnd(socket_of(target)).open() as guest:
        guest.offer_event_buffers()
        settle(guest)
        os.truncate(image, 32 * MIB)
        target.resize_lun(0, 0)
        event = guest.wait_event()
        assert (event.event, event.reason) == (3, 0x092A), "PARAM_CHANGE, capacity data has changed"
        assert guest.command(bytes(6)).sense_key == CAPACITY_CHANGED
        capacity = guest.command(bytes([READ_CAPACITY_10]) + bytes(9), data_in=8).data
        assert struct.unpack(">II", capacity) == (32 * MIB // 512 - 1, 512)


def test_a_lun_that_is_removed_is_free_for_others(serve: Serve, image: Path) -> None:
    first, second = serve("scsi", NULL, disk(image)), serve("scsi", NULL)
    first.remove_lun(0, 1)
    second.add_lun(LunSpec(0, 1, disk(image)))


def test_addresses_are_checked(serve: Serve) -> None:
    target = serve("scsi", NULL)
    with pytest.raises(ConflictError):
        target.add_lun(LunSpec(0, 0, NULL))
    with pytest.raises(NotFoundError):
        target.remove_lun(0, 9)
    with pytest.raises(NotFoundError):
        target.resize_lun(1, 0)


def test_a_bad_disk_leaves_nothing_behind(tmp_path: Path, image: Path) -> None:
    path = str(tmp_path / "x.sock")
    luns = (LunSpec(0, 0, disk(image)), LunSpec(0, 1, disk(tmp_path / "missing")))
    with pytest.raises(NotFoundError):
        Target(TargetConfig(DeviceKind.SCSI, luns), listen(path), listen(f"{path}.ctl"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["disk.img"]
    Target(TargetConfig(DeviceKind.SCSI, luns[:1]), listen(path)).close()


def test_a_name_follows_the_first_disk_and_can_be_given(image: Path) -> None:
    config = TargetConfig(DeviceKind.SCSI, (LunSpec(0, 0, disk(image)),))
    assert wwpn_of(config) == wwpn_of(msgspec.structs.replace(config, queues=4, incoming=True))
    assert wwpn_of(config) != wwpn_of(TargetConfig(DeviceKind.SCSI, (LunSpec(0, 0, NULL),)))
    otherwise = disk(image.parent / "." / ".." / image.parent.name / image.name)
    assert wwpn_of(config) == wwpn_of(TargetConfig(DeviceKind.SCSI, (LunSpec(0, 0, otherwise),)))
    assert wwpn_of(msgspec.structs.replace(config, wwpn="naa.5001405000000001")) == "naa.5001405000000001"
    with pytest.raises(UsageError):
        Target(msgspec.structs.replace(config, wwpn="eui.1"), listen(str(image) + ".sock"))


# Numbers


@pytest.mark.parametrize(
    ("queues", "workers"), [(0, 1), (-1, 1), (MAX_QUEUES + 1, 1), (1, 0), (1, 2), (4, 5)]
)
def test_numbers_out_of_range(queues: int, workers: int) -> None:
    with pytest.raises(UsageError, match="out of range") as caught:
        TargetConfig(DeviceKind.SCSI, (LunSpec(0, 0, NULL),), queues=queues, workers=workers)
    assert caught.value.hint


@pytest.mark.parametrize("device", ["scsi", "blk"])
def test_the_largest_number_of_queues_can_be_had(serve: Serve, device: str) -> None:
    assert serve(device, NULL, queues=MAX_QUEUES).info().queues == MAX_QUEUES


def test_many_queues_work(serve: Serve) -> None:
    target = serve("scsi", NULL, queues=64)
    with ScsiFrontEnd(socket_of(target), request_queues=64, queue_size=16).open() as guest:
        settle(guest)
        assert guest.command(bytes(6), queue=63).status == 0


# Ownership


def test_the_source_lets_go_and_the_destination_takes_it(serve: Serve, image: Path) -> None:
    source, destination = serve("blk", disk(image)), serve("blk", disk(image), incoming=True)
    assert ownership(source) == [(OwnershipState.HELD, 1)]
    assert ownership(destination) == [(OwnershipState.RELEASED, 0)]
    with BlkFrontEnd(socket_of(source)).open() as old, BlkFrontEnd(socket_of(destination)) as new:
        old.write(0, b"before".ljust(512))
        new.connect()
        new.run(new.order.connect)
        old.start_log()
        old.write(1, b"during".ljust(512))
        new.bases = old.stop()
        new.bases = [0]
        new.start()
        assert new.read(0, 1024).data == b"before".ljust(512) + b"during".ljust(512)
        assert ownership(destination) == [(OwnershipState.HELD, 1)]
        assert ownership(source) == [(OwnershipState.RELEASED, 1)]


def test_a_destination_waits_until_the_source_has_drained(serve: Serve, image: Path) -> None:
    source, destination = serve("blk", disk(image)), serve("blk", disk(image), incoming=True)
    with BlkFrontEnd(socket_of(source)).open() as old, BlkFrontEnd(socket_of(destination)).open() as new:
        assert ownership(destination) == [(OwnershipState.WANTED, 0)]
        request = new.send_request(0, 0, data_in=512)
        assert old.write(0, b"x" * 512).status == 0
        assert not new.rings[0].collect()
        old.start_log()
        old.stop()
        assert new.wait_request(request).data == b"x" * 512


def test_a_source_takes_its_disk_back(serve: Serve, image: Path) -> None:
    source = serve("blk", disk(image))
    serve("blk", disk(image), incoming=True)
    with BlkFrontEnd(socket_of(source)).open() as guest:
        guest.start_log()
        guest.stop()
        guest.stop_log()
        guest.start()
        assert guest.write(0, b"x" * 512).status == 0
        assert ownership(source)[0][0] is OwnershipState.HELD


def test_a_stop_that_is_no_migration_keeps_the_disk(serve: Serve, image: Path) -> None:
    target = serve("blk", disk(image))
    with BlkFrontEnd(socket_of(target)).open() as guest:
        guest.stop()
        assert ownership(target) == [(OwnershipState.HELD, 1)]
        guest.start()
        assert guest.read(0, 512).status == 0


def test_a_destination_whose_front_end_leaves_wants_nothing_any_more(serve: Serve, image: Path) -> None:
    source, destination = serve("blk", disk(image)), serve("blk", disk(image), incoming=True)
    with BlkFrontEnd(socket_of(destination)).open() as new:
        assert ownership(destination) == [(OwnershipState.WANTED, 0)]
        new.stop()
        assert ownership(destination) == [(OwnershipState.RELEASED, 0)]
    source.close()


def test_all_disks_change_hands_together(serve: Serve, image: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.img"
    second.write_bytes(bytes(MIB))
    disks = (disk(image), disk(second))
    source, destination = serve("scsi", *disks), serve("scsi", *disks, incoming=True)
    with ScsiFrontEnd(socket_of(source)).open() as old, ScsiFrontEnd(socket_of(destination)) as new:
        settle(old)
        old.start_log()
        old.stop()
        new.open()
        assert new.command(bytes(6)).sense_key == (0, 0, 0), "a guest that moved is told of no power on"
        assert ownership(destination) == [(OwnershipState.HELD, 1)] * 2


# The control socket


def test_a_target_answers_on_its_control_socket(serve: Serve, image: Path, tmp_path: Path) -> None:
    target = serve("scsi", disk(image))
    with ScsiFrontEnd(socket_of(target)).open() as guest:
        settle(guest)
        guest.command(rw10(WRITE_10, 0, 8), data_out=bytes(4096))
        with ControlClient(f"{socket_of(target)}.ctl") as client:
            info = client.call(InfoRequest(), TargetInfo)
            assert info == target.info()
            assert info.connected
            statistics = client.call(StatisticsRequest(), TargetStatistics)
            assert [(lun.writes, lun.write_bytes) for lun in statistics.luns] == [(1, 4096)]
            assert statistics.luns[0].write_latency.max_ns >= statistics.luns[0].write_latency.p50_ns > 0
            added = client.call(LunAddRequest(LunSpec(1, 2, NULL)), LunInfo)
            assert (added.target, added.lun, added.size_bytes) == (1, 2, MIB)
            assert client.call(LunResizeRequest(1, 2, 2 * MIB), LunInfo).size_bytes == 2 * MIB
            assert client.call(DrainRequest(), Done).complete
            client.call(LunRemoveRequest(1, 2), Done)
            assert client.call(InfoRequest(), TargetInfo) == info


def test_a_lun_is_added_and_resized_by_fd(serve: Serve, image: Path) -> None:
    """The target need not be able to open the file itself."""
    target = serve("scsi", NULL)
    spec = LunSpec(0, 1, BackstoreSpec(SpecKind.PATH, "/no/such/path"))
    with open(image, "r+b") as file, ControlClient(f"{socket_of(target)}.ctl") as client:
        assert client.call(LunAddRequest(spec), LunInfo, fd=file.fileno()).size_bytes == 16 * MIB
        os.truncate(image, 32 * MIB)
        assert client.call(LunResizeRequest(0, 1), LunInfo, fd=file.fileno()).size_bytes == 32 * MIB
        with pytest.raises(NotFoundError):
            client.call(LunAddRequest(LunSpec(0, 2, spec.backstore)), LunInfo)


def test_quit_ends_a_target(serve: Serve) -> None:
    target = serve("scsi", NULL)
    assert not target.wait(0)
    with ControlClient(f"{socket_of(target)}.ctl") as client:
        client.call(QuitRequest(), Done)
    assert target.wait(PATIENCE_S)


def test_statistics_do_not_wait_for_each_other(serve: Serve) -> None:
    target = serve("scsi", NULL, queues=2)
    seen: list[TargetStatistics] = []
    threads = [threading.Thread(target=lambda: seen.append(target.statistics())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8


def test_a_scsi_configuration_space_is_not_ours(serve: Serve) -> None:
    with ScsiFrontEnd(socket_of(serve("scsi", NULL))).open() as guest, pytest.raises(ProtocolError):
        guest.get_config(0, 4)
