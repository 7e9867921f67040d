"""INQUIRY and its VPD pages: bytes that guests rely on, and the pages as sg3_utils reads them."""

from __future__ import annotations

import pytest

import ringway
from ringway.scsi import Geometry
from ringway.scsi import lun as luns

from .conftest import Decoder
from .fake import Bench, MemoryStore, pointer_of

PAGES = (0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2)


def vpd(bench: Bench, page: int, size: int = 0xFFFF) -> bytes:
    return bench.data(bytes((0x12, 1, page)) + size.to_bytes(2) + b"\0")


def test_standard_data(bench: Bench) -> None:
    data = bench.data("12 00 00 00ff 00")
    assert data[:8] == bytes.fromhex("00 00 06 12 5b 00 00 02")
    assert data[8:32] == b"RINGWAY DISK            "
    assert data[32:36].rstrip() == ringway.__version__.rpartition(".")[0].encode()
    assert len(data) == 96 == data[4] + 5


@pytest.mark.parametrize("size", [0, 1, 5, 36, 95, 96])
def test_allocation_length_cuts(bench: Bench, size: int) -> None:
    whole = bench.data("12 00 00 00ff 00")
    assert bench.data(b"\x12\0\0" + size.to_bytes(2) + b"\0") == whole[:size]
    assert vpd(bench, 0x83, size) == vpd(bench, 0x83)[:size]


def test_the_list_of_pages_is_true(bench: Bench) -> None:
    assert tuple(vpd(bench, 0)[4:]) == PAGES
    for page in range(256):
        if page in PAGES:
            data = vpd(bench, page)
            assert data[:2] == bytes((0, page))
            assert int.from_bytes(data[2:4]) == len(data) - 4
        else:
            assert bench.sense(bytes((0x12, 1, page, 0, 255, 0))) == (5, 0x24, 0)


def test_a_page_without_evpd_is_refused(bench: Bench) -> None:
    assert pointer_of(bench.reply("12 00 80 00ff 00")) == (2, None, True)


def test_serial_number(bench: Bench) -> None:
    assert vpd(bench, 0x80)[4:] == b"SN000000"


def test_designators(bench: Bench) -> None:
    data, found = vpd(bench, 0x83)[4:], []
    while data:
        found.append((data[0], data[1], data[4 : 4 + data[3]]))
        data = data[4 + data[3] :]
    who = bench.unit.identity
    assert found == [
        (0x01, 0x03, who.unit),
        (0x02, 0x01, b"RINGWAY DISK            SN000000"),
        (0x01, 0x13, who.port),
        (0x01, 0x14, bytes((0, 0, 0, 1))),
    ]


@pytest.mark.parametrize("block", [512, 4096])
def test_block_limits(block: int) -> None:
    bench = Bench(geometry=Geometry(block, 8192, 65536))
    data = vpd(bench, 0xB0)
    assert len(data) == 64
    assert (data[4], data[5]) == (1, 255)
    fields = [int.from_bytes(data[at : at + 4]) for at in range(8, 36, 4)]
    assert fields == [(4 << 20) // block, 0, 0, 0xFFFFFFFF, 256, 65536 // block, 0x80000000]
    assert int.from_bytes(data[6:8]) == 8192 // block
    assert int.from_bytes(data[36:44]) == (32 << 20) // block


def test_a_medium_without_discard_says_so() -> None:
    bench = Bench(MemoryStore(discard=False))
    assert vpd(bench, 0xB2)[4:] == bytes(4)
    assert vpd(bench, 0xB0)[20:36] == bytes(16)
    assert bench.data("9e 10 0000000000000000 00000020 00 00")[14:16] == bytes(2)


def test_sg3_utils_reads_the_standard_data(bench: Bench, sg: Decoder) -> None:
    text = sg("sg_inq", "--inhex=-", data=bench.data("12 00 00 00ff 00"))
    for expected in (
        "PQual=0 PDT=0 RMB=0 LU_CONG=0 hot_pluggable=0 version=0x06 [SPC-4]",
        "NormACA=0 HiSUP=1 Resp_data_format=2",
        "TPGS=0 3PC=0 Protect=0",
        "CmdQue=1",
        "Vendor identification: RINGWAY",
        "Product identification: DISK",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (0x00, "Supported VPD pages"),
        (0x80, "Unit serial number: SN000000"),
        (0x83, "designator type: NAA, code set: Binary 0x6001405c0ffee001"),
        (0x83, "vendor id: RINGWAY vendor specific: DISK SN000000"),
        (0x83, "Relative target port: 0x1"),
        (0x83, "Target port: designator type: NAA, code set: Binary 0x5001405c0ffee001"),
        (0x86, "SIMPSUP=1"),
        (0x86, "V_SUP=1"),
        (0x86, "LUICLR=1"),
        (0xB0, "Write same non-zero (WSNZ): 1"),
        (0xB0, "Maximum compare and write length: 255 blocks"),
        (0xB0, "Maximum transfer length: 8192 blocks"),
        (0xB0, "Maximum unmap block descriptor count: 256"),
        (0xB0, "Unmap granularity alignment: 0"),
        (0xB0, "Maximum write same length: 0x10000 blocks"),
        (0xB1, "Non-rotating medium"),
        (0xB2, "Unmap command supported (LBPU): 1"),
        (0xB2, "Write same (16) with unmap bit supported (LBPWS): 1"),
        (0xB2, "Write same (10) with unmap bit supported (LBPWS10): 1"),
        (0xB2, "Logical block provisioning read zeros (LBPRZ): 1"),
        (0xB2, "Provisioning type: 2 (thin provisioned)"),
    ],
)
def test_sg3_utils_reads_the_pages(bench: Bench, sg: Decoder, page: int, expected: str) -> None:
    text = sg("sg_vpd", "--inhex=-", f"--page={page:#x}", "--all", data=vpd(bench, page))
    assert expected in text, text


@pytest.mark.parametrize("number", [1, 16383, None])
def test_a_lun_without_a_unit_has_qualifier_3(bench: Bench, number: int | None) -> None:
    assert bench.data("12 00 00 00ff 00", lun=number)[0] == 0x7F
    assert bench.data("12 01 00 00ff 00", lun=number) == bytes((0x7F, 0, 0, 1, 0))
    assert bench.sense("12 01 83 00ff 00", lun=number) == (5, 0x24, 0)


def test_the_well_known_unit_is_of_type_1e(bench: Bench) -> None:
    assert bench.data("12 00 00 00ff 00", lun=luns.REPORT_LUNS)[0] == 0x1E
