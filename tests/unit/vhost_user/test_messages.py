"""The wire format: every payload goes out and comes back, and no other size is taken."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.errors import ProtocolError
from ringway.vhost_user import features, messages
from ringway.vhost_user.messages import (
    REPLIES,
    REQUESTS,
    Codec,
    ConfigSpace,
    Inflight,
    LogArea,
    MemoryRegion,
    Request,
    VringAddress,
    VringFd,
    VringState,
    request_name,
)

u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
regions = st.builds(MemoryRegion, u64, u64, u64, u64)
inflights = st.builds(Inflight, u64, u64, u16, u16, st.sampled_from([b"", bytes(4)]))


@st.composite
def configs(draw: st.DrawFn) -> ConfigSpace:
    data = draw(st.binary(max_size=256))
    return ConfigSpace(draw(u32), len(data), draw(u32), data)


VALUES: dict[Codec[Any], st.SearchStrategy[Any]] = {
    messages.EMPTY: st.none(),
    messages.U64: u64,
    messages.STATE: st.builds(VringState, u32, u32),
    messages.ADDRESS: st.builds(VringAddress, u32, u32, u64, u64, u64, u64),
    messages.VRING_FD: st.builds(VringFd, st.integers(0, 255), st.booleans()),
    messages.MEMORY_TABLE: st.lists(regions, max_size=32).map(tuple),
    messages.MEMORY_REGION: regions,
    messages.LOG: st.builds(LogArea, u64, u64),
    messages.CONFIG: configs(),
    messages.INFLIGHT: inflights,
}


@given(st.data())
def test_every_payload_comes_back_as_it_was(data: st.DataObject) -> None:
    codec = data.draw(st.sampled_from(list(VALUES)))
    value = data.draw(VALUES[codec])
    assert codec.unpack(codec.pack(value)) == value


@given(st.sampled_from(list(REQUESTS)), st.binary(max_size=messages.MAX_PAYLOAD))
def test_any_bytes_are_a_payload_or_a_protocol_error(request_: Request, payload: bytes) -> None:
    codec = REQUESTS[request_]
    try:
        value = codec.unpack(payload)
    except ProtocolError:
        return
    assert len(codec.pack(value)) == len(payload)


@pytest.mark.parametrize("codec", VALUES)
@given(st.data())
def test_a_payload_with_a_byte_more_is_refused(codec: Codec[Any], data: st.DataObject) -> None:
    payload = codec.pack(data.draw(VALUES[codec])) + b"\0"
    with pytest.raises(ProtocolError):
        codec.unpack(payload)


def test_trap_t2_inflight_is_20_bytes_in_the_specification_and_24_in_qemu() -> None:
    plain = struct.pack("=QQHH", 4096, 0, 3, 128)
    assert messages.INFLIGHT.unpack(plain) == Inflight(4096, 0, 3, 128)
    padded = messages.INFLIGHT.unpack(plain + bytes(4))
    assert padded == Inflight(4096, 0, 3, 128, bytes(4))
    assert messages.INFLIGHT.pack(padded) == plain + bytes(4)


def test_layouts_are_those_of_the_specification() -> None:
    assert messages.ADDRESS.unpack(struct.pack("=IIQQQQ", 1, 1, 2, 3, 4, 5)) == VringAddress(
        index=1, flags=1, descriptors=2, used=3, available=4, log=5
    )
    region = struct.pack("=QQQQ", 1, 2, 3, 4)
    expected = MemoryRegion(guest_address=1, size=2, user_address=3, mmap_offset=4)
    assert messages.MEMORY_REGION.unpack(bytes(8) + region) == expected
    assert messages.MEMORY_TABLE.unpack(struct.pack("=II", 1, 0) + region) == (expected,)
    assert messages.VRING_FD.unpack(struct.pack("=Q", 0x103)) == VringFd(3, has_fd=False)
    assert messages.CONFIG.unpack(struct.pack("=III", 4, 2, 1) + b"ab") == ConfigSpace(4, 2, 1, b"ab")
    assert messages.HEADER.size == 12


def test_a_configuration_may_be_asked_for_without_its_room() -> None:
    assert messages.CONFIG.unpack(struct.pack("=III", 0, 256, 0)) == ConfigSpace(0, 256, 0, b"")


def test_a_table_of_too_many_regions_is_refused() -> None:
    with pytest.raises(ProtocolError, match="33 regions"):
        messages.MEMORY_TABLE.unpack(struct.pack("=II", 33, 0) + bytes(33 * 32))


def test_what_has_a_reply_is_a_request_too() -> None:
    assert set(REPLIES) <= set(REQUESTS)


def test_names_for_logs() -> None:
    assert request_name(31) == "GET_INFLIGHT_FD"
    assert request_name(4711) == "request 4711"
    assert features.feature_names("scsi", 1 << 3 | 1 << 34 | 1 << 60) == ["T10_PI", "RING_PACKED", "bit 60"]
    assert features.feature_names("blk", 1 << 9) == ["FLUSH"]


def _constants(header: str, prefix: str) -> dict[str, int]:
    path = Path("/usr/include/linux") / header
    if not path.exists():
        pytest.skip(f"{path} is not installed (linux-libc-dev)")
    found = re.findall(rf"#define\s+{prefix}(\w+)\s+(\d+)\b", path.read_text())
    return {name: int(number) for name, number in found}


@pytest.mark.parametrize(
    ("header", "prefix", "names"),
    [
        ("virtio_scsi.h", "VIRTIO_SCSI_F_", features.SCSI),
        ("virtio_blk.h", "VIRTIO_BLK_F_", features.BLK),
        ("virtio_config.h", "VIRTIO_F_", features.TRANSPORT),
        ("virtio_ring.h", "VIRTIO_RING_F_", features.TRANSPORT),
    ],
)
def test_feature_bits_are_the_kernels(header: str, prefix: str, names: dict[int, str]) -> None:
    kernel = _constants(header, prefix)
    ours = {name: bit for bit, name in names.items()}
    common = kernel.keys() & ours.keys()
    assert len(common) >= 2
    assert {name: kernel[name] for name in common} == {name: ours[name] for name in common}


def test_vhost_constants_are_the_kernels() -> None:
    assert 1 << _constants("vhost_types.h", "VHOST_")["F_LOG_ALL"] == messages.LOG_ALL
    assert _constants("vhost_types.h", "VHOST_")["VRING_F_LOG"] == 0  # the bit's number
    assert messages.VRING_F_LOG == 1 << 0
