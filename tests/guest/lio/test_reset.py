"""What a host's reset leaves: data and reservations on a disk, and endpoints that are made anew from it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import pytest

from ringway.model import EndpointSpec
from ringway.testing.kernel_target import KEPT
from ringway.testing.real_kernel import REGISTER, RESERVE, registered_keys, reservation, reserve_out

from . import cdb
from .engine import driver, endpoint, front_end, image, lun

FOLDER: Final = Path(KEPT) / "reset"
KEY: Final = 0xD15C
DATA: Final = bytes(range(256)) * 16


def test_an_endpoint_is_made_before_the_reset(tmp_path: Path) -> None:
    FOLDER.mkdir(exist_ok=True)
    spec = endpoint(driver(tmp_path), "db0", lun(image(FOLDER), serial="outlives"))
    with front_end(spec) as guest:
        assert guest.command(cdb.write(8, 8), data_out=DATA).status == 0
        assert guest.command(cdb.SYNCHRONIZE_CACHE).status == 0
        assert reserve_out(guest, REGISTER, target=0, new_key=KEY, aptpl=True).status == 0
        assert reserve_out(guest, RESERVE, target=0, key=KEY, kind=1).status == 0
    (FOLDER / "spec.json").write_bytes(msgspec.json.encode(spec))


@pytest.mark.after_reset
def test_it_is_as_it_was_after_the_reset(tmp_path: Path) -> None:
    spec = msgspec.json.decode((FOLDER / "spec.json").read_bytes(), type=EndpointSpec)
    engine = driver(tmp_path)
    engine.create(spec)
    with front_end(spec) as guest:
        assert guest.command(cdb.read(8, 8), data_in=4096).data == DATA
        assert registered_keys(guest, target=0) == [KEY]
        assert reservation(guest, target=0) == (KEY, 1)
    engine.delete("db0")
