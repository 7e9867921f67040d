"""What two guests send each other."""

from __future__ import annotations

from ringway.testing.guest import Shell

HERE, THERE = "10.9.0.1", "10.9.0.2"


def ping(guest: Shell, *, to: str = THERE, size: int = 56, cpu: int = 0) -> None:
    """:raises GuestError: no answer."""
    guest.run(f"taskset -c {cpu} ping -c 3 -w 30 -s {size} {to}")


def carrier(guest: Shell) -> str:
    """1: the guest sees that a cable is in."""
    return guest.run("cat /sys/class/net/eth0/carrier").strip()


def mtu(guest: Shell) -> str:
    """What the guest has, which nobody set in it."""
    return guest.run("cat /sys/class/net/eth0/mtu").strip()
