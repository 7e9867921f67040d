"""What two guests send each other."""

from __future__ import annotations

from ringway.testing.guest import Shell

HERE, THERE = "10.9.0.1", "10.9.0.2"


def ping(guest: Shell, *, to: str = THERE, size: int = 56, cpu: int = 0) -> None:
    """Wait for a first answer, then for three of three: a switch that takes a link in drops what comes
    meanwhile, even after it said that the link is up.

    :raises GuestError: no answer, or a loss after the first.
    """
    command = f"taskset -c {cpu} ping -s {size} {to}"
    guest.run(f"until {command} -c 1 -w 1 >/dev/null; do usleep 100000; done; {command} -c 3 -w 30")


def wait_card(guest: Shell) -> None:
    """Wait until a guest has found its network card, which may have come while it runs."""
    guest.run("until [ -e /sys/class/net/eth0 ]; do usleep 20000; done")


def wait_links(*guests: Shell) -> None:
    """Wait until guests see that their cables are in, and send: what comes before is dropped in the guest."""
    for guest in guests:
        guest.run("until [ $(cat /sys/class/net/eth0/operstate) = up ]; do usleep 20000; done")


def carrier(guest: Shell) -> str:
    """1: the guest sees that a cable is in."""
    return guest.run("cat /sys/class/net/eth0/carrier").strip()


def mtu(guest: Shell) -> str:
    """What the guest has, which nobody set in it."""
    return guest.run("cat /sys/class/net/eth0/mtu").strip()
