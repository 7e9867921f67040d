"""Names: where they come from, and that they stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.errors import UsageError
from ringway.scsi.identity import MAX_SERIAL, PRODUCT, REVISION, VENDOR, Identity

from .fake import WWPN


def test_names_are_those_of_yesterday() -> None:
    """A guest's /dev/disk/by-id and a cluster's reservations hang on these bytes."""
    assert Identity.derive(WWPN, "SN1") == Identity(
        port=bytes.fromhex("5001405c0ffee001"),
        unit=bytes.fromhex("6001405c0ffee001 12889435129df091"),
        serial="SN1",
    )


def test_a_locally_assigned_port_has_locally_assigned_units() -> None:
    unit = Identity.derive("naa.3001405c0ffee001", "SN1").unit
    assert (len(unit), unit[0] >> 4) == (8, 3)


def test_units_differ_by_endpoint_and_by_serial() -> None:
    wwpns = (WWPN, "naa.5001405c0ffee002", "naa.3001405c0ffee001", "naa.3001405c0ffee002")
    names = {Identity.derive(wwpn, serial).unit for wwpn in wwpns for serial in ("a", "b")}
    assert len(names) == 8


@pytest.mark.parametrize(
    "wwpn", ["", "5001405c0ffee001", "naa.5001405c0ffee00", "naa.5001405c0ffee00g", WWPN + "0"]
)
def test_what_is_no_wwpn(wwpn: str) -> None:
    with pytest.raises(UsageError, match="is not a WWPN") as caught:
        Identity.derive(wwpn, "SN1")
    assert caught.value.hint == "a WWPN is naa. and 16 hexadecimal digits"


@pytest.mark.parametrize("serial", ["", " a", "a ", "é", "a\n", "a" * (MAX_SERIAL + 1)])
def test_what_is_no_serial(serial: str) -> None:
    with pytest.raises(UsageError, match="serial number"):
        Identity.derive(WWPN, serial)


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=MAX_SERIAL))
def test_any_printable_serial_can_be_shown(serial: str) -> None:
    assert Identity.derive(WWPN, serial).serial == serial


def test_product_strings_have_their_lengths() -> None:
    assert (len(VENDOR), len(PRODUCT), len(REVISION)) == (8, 16, 4)
