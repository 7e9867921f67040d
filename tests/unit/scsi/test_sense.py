"""Sense data: the codes against two other lists, the formats byte by byte and as sg3_utils reads them."""

from __future__ import annotations

import re

import pytest

from ringway.scsi.sense import Condition, FieldPointer, Key, Sense

from .conftest import Decoder

# T10's list of additional sense codes, https://www.t10.org/lists/asc-num.txt; the sense keys are SPC-4's.
T10 = {
    (0x0, 0x00, 0x00): "NO ADDITIONAL SENSE INFORMATION",
    (0x2, 0x04, 0x02): "LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED",
    (0x3, 0x0C, 0x00): "WRITE ERROR",
    (0x3, 0x11, 0x00): "UNRECOVERED READ ERROR",
    (0x5, 0x1A, 0x00): "PARAMETER LIST LENGTH ERROR",
    (0xE, 0x1D, 0x00): "MISCOMPARE DURING VERIFY OPERATION",
    (0x5, 0x20, 0x00): "INVALID COMMAND OPERATION CODE",
    (0x5, 0x21, 0x00): "LOGICAL BLOCK ADDRESS OUT OF RANGE",
    (0x5, 0x24, 0x00): "INVALID FIELD IN CDB",
    (0x5, 0x25, 0x00): "LOGICAL UNIT NOT SUPPORTED",
    (0x5, 0x26, 0x00): "INVALID FIELD IN PARAMETER LIST",
    (0x7, 0x27, 0x00): "WRITE PROTECTED",
    (0x7, 0x27, 0x07): "SPACE ALLOCATION FAILED WRITE PROTECT",
    (0x6, 0x29, 0x00): "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED",
    (0x6, 0x29, 0x03): "BUS DEVICE RESET FUNCTION OCCURRED",
    (0x6, 0x29, 0x07): "I_T NEXUS LOSS OCCURRED",
    (0x6, 0x2A, 0x01): "MODE PARAMETERS CHANGED",
    (0x6, 0x2A, 0x09): "CAPACITY DATA HAS CHANGED",
    (0x5, 0x39, 0x00): "SAVING PARAMETERS NOT SUPPORTED",
    (0x6, 0x3F, 0x0E): "REPORTED LUNS DATA HAS CHANGED",
    (0x4, 0x44, 0x00): "INTERNAL TARGET FAILURE",
}


def words(text: str) -> str:
    return re.sub(r"[^A-Z0-9]+", "_", text.upper()).strip("_")


def test_conditions_are_those_of_t10() -> None:
    assert {condition.value: condition.name for condition in Condition} == {
        value: words(text) for value, text in T10.items()
    }


@pytest.mark.parametrize("descriptor", [False, True])
def test_sg3_utils_reads_each_condition_by_its_name(sg: Decoder, descriptor: bool) -> None:
    for condition in Condition:
        text = sg("sg_decode_sense", "--file=-", data=Sense(condition).encode(descriptor=descriptor))
        found = re.search(r"Sense key: (.*) Additional sense: (.*)", text)
        assert found is not None, text
        assert (words(found[1]), words(found[2])) == (condition.key.name, condition.name)


def test_fixed_format() -> None:
    sense = Sense(Condition.INVALID_FIELD_IN_CDB, pointer=FieldPointer(2, 5)).encode(descriptor=False)
    assert sense == bytes.fromhex("70 00 05 00000000 0a 00000000 24 00 00 cd 0002")


def test_descriptor_format() -> None:
    sense = Sense(Condition.MISCOMPARE_DURING_VERIFY_OPERATION, 7, FieldPointer(300, None, in_cdb=False))
    assert sense.encode(descriptor=True) == bytes.fromhex(
        "72 0e 1d 00 000000 14  00 0a 80 00 0000000000000007  02 06 0000 80012c 00"
    )


def test_sg3_utils_reads_information_and_pointer(sg: Decoder) -> None:
    sense = Sense(Condition.INVALID_FIELD_IN_PARAMETER_LIST, 0x1234, FieldPointer(12, 3, in_cdb=False))
    for descriptor in (False, True):
        text = sg("sg_decode_sense", "--file=-", data=sense.encode(descriptor=descriptor)).lower()
        assert "0x1234" in text or "0000001234" in text.replace(" ", "")
        assert "data parameters: byte 12 bit 3" in text


@pytest.mark.parametrize(
    ("information", "valid", "field"), [(None, 0, 0), (0, 1, 0), (2**32 - 1, 1, 2**32 - 1)]
)
def test_information_is_valid_when_there_is_one(information: int | None, valid: int, field: int) -> None:
    sense = Sense(Condition.WRITE_ERROR, information).encode(descriptor=False)
    assert (sense[0] >> 7, int.from_bytes(sense[3:7])) == (valid, field)


def test_information_that_does_not_fit_is_not_cut_off() -> None:
    sense = Sense(Condition.WRITE_ERROR, 2**32 + 5)
    assert sense.encode(descriptor=False)[0] == 0x70
    assert sense.encode(descriptor=False)[3:7] == bytes(4)
    assert sense.encode(descriptor=True)[12:20] == (2**32 + 5).to_bytes(8)


def test_sense_fits_into_the_sense_buffer_of_virtio() -> None:
    longest = Sense(Condition.WRITE_ERROR, 1, FieldPointer(1)).encode(descriptor=True)
    assert len(longest) <= 96


def test_keys_have_four_bits() -> None:
    assert all(0 <= key < 16 for key in Key)
