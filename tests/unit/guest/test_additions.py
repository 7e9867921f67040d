"""What has to hold before a device comes into a domain."""

from __future__ import annotations

import pytest

from ringway.errors import ConflictError
from ringway.guest.base import Wish
from ringway.guest.document import Document
from ringway.guest.libvirt.additions import memory_is_shared
from ringway.model import Face

from .domains import domain

_SCSI = Wish(endpoint="db0", face=Face.VHOST_USER_SCSI, socket="/run/db0.sock")
_KERNEL = Wish(endpoint="db0", face=Face.VHOST_SCSI, wwpn="naa.5001405aa3a2c1f0")
_PRIVATE = domain(memory="")


@pytest.mark.parametrize(
    ("fix", "persistent", "hint"),
    [
        (False, True, "--fix-memory shares it from the guest's next start on"),
        (True, False, "--fix-memory shares it from the guest's next start on: leave out --no-persistent"),
    ],
)
def test_memory_that_is_private_is_refused_with_what_to_do(fix: bool, persistent: bool, hint: str) -> None:
    """What was said already is no hint."""
    with pytest.raises(ConflictError, match="does not share its memory") as refused:
        memory_is_shared(Document(_PRIVATE), _SCSI, fix=fix, persistent=persistent)
    assert refused.value.hint == hint


def test_memory_that_is_to_be_shared_from_the_next_start_on_is_not_yet() -> None:
    assert not memory_is_shared(Document(_PRIVATE), _SCSI, fix=True, persistent=True)
    assert memory_is_shared(Document(_PRIVATE), _KERNEL, fix=False, persistent=True)
    assert memory_is_shared(Document(domain()), _SCSI, fix=False, persistent=False)
