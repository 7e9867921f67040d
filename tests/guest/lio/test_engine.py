"""The kernel engine on a real kernel, with a guest that does I/O meanwhile."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from ringway.errors import BusyError
from ringway.model import (
    BackstoreSpec,
    EndpointSpec,
    EndpointState,
    EngineKind,
    LunSpec,
    Protection,
    SpecKind,
)
from ringway.testing.bootsector import BootSectorGuest, Copy, Verdict, install
from ringway.testing.configfs import ROOT, VhostEndpoint, file_backstore
from ringway.testing.frontend import ScsiResponse
from ringway.testing.qemu import vhost_scsi
from ringway.testing.vhost_scsi import VhostScsiFrontEnd

from . import cdb
from .engine import MIB, driver, endpoint, front_end, image, lun

WWPN: Final = "naa.600140500000000a0000000000000001"
NEXUS: Final = "naa.5001405000000001"
RESCAN, REMOVED = 1, 2
UNIT_ATTENTION: Final = 6
READ_CAPACITY_16: Final = bytes([0x9E, 0x10]) + bytes(11) + bytes([32]) + bytes(2)


class Load:
    """A guest that writes and reads again and again. ``rounds`` counts; an error ends it and is kept."""

    def __init__(self, guest: VhostScsiFrontEnd) -> None:
        self.rounds = 0
        self.failure: BaseException | None = None
        self._guest = guest
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._round(os.urandom(4096))
                self.rounds += 1
        except BaseException as error:  # it is told to the test
            self.failure = error

    def _round(self, data: bytes) -> None:
        place = 8 * (self.rounds % 64)
        self._command(cdb.write(place, 8), data_out=data)
        assert self._command(cdb.read(place, 8), data_in=4096).data == data

    def _command(self, cdb: bytes, **data: Any) -> ScsiResponse:
        """Send it again after a unit attention, as a driver does: LUNs of this target came or went."""
        answer = self._guest.command(cdb, **data)
        if answer.sense_key[0] == UNIT_ATTENTION:
            answer = self._guest.command(cdb, **data)
        assert (answer.response, answer.status) == (0, 0), answer
        return answer

    def wait_rounds(self, more: int) -> None:
        """Wait until it has done so many more."""
        goal = self.rounds + more
        while self.rounds < goal and self.failure is None:
            self._thread.join(0.01)
        assert self.failure is None

    @contextmanager
    def running(self) -> Iterator[Load]:
        """For as long as the block lasts."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            self._thread.join()
        assert self.failure is None


def test_an_endpoint_serves_what_its_file_holds(tmp_path: Path) -> None:
    engine, disk = driver(tmp_path), image(tmp_path)
    spec = endpoint(engine, "db0", lun(disk, serial="one-of-a-kind"), wwpn=WWPN)
    assert engine.show("db0").connected is False
    with front_end(spec) as guest:
        assert guest.command(cdb.read(1, 8), data_in=4096).data == disk.read_bytes()[512 : 9 * 512]
        page = guest.command(cdb.vpd(0x80), data_in=255).data
        assert page[4 : 4 + page[3]].rstrip(b"\0") == b"one-of-a-kind"
        assert engine.show("db0").connected is True
        assert engine.statistics("db0").luns[0].other == 2
    engine.delete("db0")
    assert engine.list() == ()
    assert not list((ROOT / "vhost").glob("naa.*"))
    assert not list((ROOT / "core").glob("fileio_*"))


def test_a_guest_keeps_its_endpoint(tmp_path: Path) -> None:
    engine = driver(tmp_path)
    spec = endpoint(engine, "db0", lun(image(tmp_path)), lun(image(tmp_path, "two.img"), 1))
    with front_end(spec) as guest, Load(guest).running() as load:
        with pytest.raises(BusyError, match="attached"):
            engine.delete("db0")
        with pytest.raises(BusyError):
            engine.update(spec, replace(spec, luns=spec.luns[:1]))
        load.wait_rounds(5)
        assert [found.lun for found in engine.show("db0").luns] == [0, 1]
    engine.delete("db0")


def test_luns_come_and_go_under_load(tmp_path: Path) -> None:
    engine = driver(tmp_path)
    spec = endpoint(engine, "db0", lun(image(tmp_path)))
    with front_end(spec) as guest:
        guest.offer_event_buffers(2)
        with Load(guest).running() as load:
            added = lun(image(tmp_path, "two.img"), 7)
            more = engine.resolve(replace(spec, luns=(*spec.luns, added)))
            engine.update(spec, more)
            event = guest.wait_event()
            assert (event.event, event.reason, event.lun[:4]) == (1, RESCAN, bytes([1, 0, 0, 7]))
            load.wait_rounds(5)
            engine.update(more, spec, force=True)
            event = guest.wait_event()
            assert (event.event, event.reason, event.lun[:4]) == (1, REMOVED, bytes([1, 0, 0, 7]))
            load.wait_rounds(5)


def test_what_others_made_is_taken_over_under_load(tmp_path: Path) -> None:
    """As rtslib makes it: portal group 1, one adapter for each disk, a link of any name."""
    disk = image(tmp_path)
    VhostEndpoint(WWPN).make(NEXUS).link(0, file_backstore(disk, MIB, serial="theirs"))
    engine = driver(tmp_path)
    with VhostScsiFrontEnd(WWPN).open() as guest, Load(guest).running() as load:
        assert engine.show(WWPN).state is EndpointState.FOREIGN
        backstore = BackstoreSpec(SpecKind.PATH, path=str(disk), name="d0", serial="theirs")
        wanted = EndpointSpec(
            name="db0", engine=EngineKind.LIO, luns=(LunSpec(1, 0, backstore),), wwpn=WWPN, nexus=NEXUS
        )
        engine.create(engine.resolve(wanted))
        load.wait_rounds(5)
        info = engine.show("db0")
        assert (info.state, info.nexus, info.connected) == (EndpointState.READY, NEXUS, True)
        with pytest.raises(BusyError):
            engine.delete("db0")
        load.wait_rounds(5)
    assert (VhostEndpoint(WWPN).group / "nexus").read_text().strip() == NEXUS
    engine.delete("db0")
    assert not list((ROOT / "core").glob("fileio_*"))


@pytest.mark.parametrize("protection", [Protection.TYPE1, Protection.TYPE3])
def test_protection_information(tmp_path: Path, protection: Protection) -> None:
    """READ CAPACITY (16) says that the disk is formatted with it: PROT_EN, and P_TYPE one less."""
    kind = {Protection.TYPE1: 1, Protection.TYPE3: 3}[protection]
    backstore = BackstoreSpec(SpecKind.RAM, size_bytes=MIB, attributes={"pi_prot_type": str(kind)})
    spec = endpoint(driver(tmp_path), "db0", LunSpec(0, 0, backstore), protection=protection)
    with front_end(spec) as guest:
        data = guest.command(READ_CAPACITY_16, data_in=32).data
        assert (data[12] & 1, data[12] >> 1 & 7) == (1, kind - 1)


def test_a_block_device(tmp_path: Path) -> None:
    subprocess.run(["modprobe", "null_blk", "nr_devices=1", "gb=1", "memory_backed=1"], check=True)
    spec = endpoint(driver(tmp_path), "db0", lun(Path("/dev/nullb0")))
    with front_end(spec) as guest:
        data = os.urandom(4096)
        assert guest.command(cdb.write(8, 8), data_out=data).status == 0
        assert guest.command(cdb.read(8, 8), data_in=4096).data == data
        last = int.from_bytes(guest.command(cdb.READ_CAPACITY, data_in=8).data[:4])
    assert last + 1 == (1 << 30) // 512


def test_a_scsi_device_is_passed_through(tmp_path: Path) -> None:
    """The guest sees the device's own name, and not the kernel target's."""
    subprocess.run(["modprobe", "-a", "sd_mod", "sg"], check=True)
    subprocess.run(["modprobe", "scsi_debug", "dev_size_mb=8"], check=True)
    disk = next(Path("/sys/bus/pseudo/drivers/scsi_debug").glob("adapter0/host*/target*/*:0/block/sd*"))
    backstore = BackstoreSpec(SpecKind.PSCSI, path=f"/dev/{disk.name}")
    spec = endpoint(driver(tmp_path), "db0", LunSpec(0, 0, backstore))
    with front_end(spec) as guest:
        guest.settle()
        assert guest.command(cdb.INQUIRY, data_in=36).data[16:26] == b"scsi_debug"
        data = os.urandom(4096)
        assert guest.command(cdb.write(8, 8), data_out=data).status == 0
        assert guest.command(cdb.read(8, 8), data_in=4096).data == data


def test_a_boot_sector_runs(tmp_path: Path) -> None:
    disk, program = image(tmp_path), Copy(source=1, target=9)
    install(disk, program)
    before = disk.read_bytes()
    spec = endpoint(driver(tmp_path), "db0", lun(disk))
    assert spec.wwpn is not None
    with BootSectorGuest(vhost_scsi(spec.wwpn, options="bootindex=0")) as guest:
        assert guest.wait() is Verdict.OK
    assert disk.read_bytes()[9 * 512 : 10 * 512] == program.expected(before[512:1024])
