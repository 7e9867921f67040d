"""What of its privileges a target gives up, and what is left of them."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class SandboxMode(StrEnum):
    """What of its privileges a target gives up before it serves."""

    AUTO = "auto"  #: all that this host lets it give up
    ON = "on"  #: all, or it does not serve
    OFF = "off"  #: nothing


class SandboxInfo(Struct, frozen=True):
    """What a target may still do.

    :ivar uid: who it is. :ivar capabilities: mask of those that it has, by ``capabilities(7)``'s numbers.
    :ivar landlock_abi: whose rules are in force; 0: none. :ivar missing: what this host does not offer.
    """

    mode: SandboxMode
    uid: int
    capabilities: int
    landlock_abi: int
    seccomp: bool
    missing: tuple[str, ...]
