"""A guest moves between two QEMUs on one image under a verifying load, and anything may die on the way.

Each case is a turn of a :class:`~.journey.Journey`, which says what has to hold. At rest the guest stands
still and its disks are nobody's: the source has drained and let go, and the destination has not started.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringway.model import OwnershipState
from ringway.testing.waiting import PATIENCE_S, wait_until

from .conftest import Count
from .journey import BootSectorJourney, Journey, LinuxJourney, has_request, worked
from .serving import Target, both_devices

Turn = Callable[[Journey[Any]], None]


def kill(targets: Iterable[Target]) -> None:
    for target in targets:
        target.kill()


def start(targets: Iterable[Target]) -> None:
    for target in targets:
        target.start()


def crash(targets: Iterable[Target]) -> None:
    for target in targets:
        target.crash()


# -- turns that move the guest


def moves(journey: Journey[Any]) -> None:
    journey.move()


def loses_its_new_target(journey: Journey[Any]) -> None:
    """The in-flight region is new while the rings are not (trap T8)."""
    journey.move()
    crash(journey.here)
    journey.go_on()
    journey.check_owners()


def loses_the_destination_while_copying(journey: Journey[Any]) -> None:
    journey.move(active=lambda: crash(journey.there))


def loses_the_destination_at_rest(journey: Journey[Any]) -> None:
    """The guest has moved when its new target is not there: it stands still until then."""
    journey.move(at_rest=lambda: kill(journey.there), arrived=lambda: start(journey.here))


def loses_the_source_while_copying(journey: Journey[Any]) -> None:
    """It comes back in time, and logs what it writes."""

    def step() -> None:
        crash(journey.here)
        journey.go_on()

    journey.move(active=step)


def loses_the_source_at_rest(journey: Journey[Any]) -> None:
    """It has nothing any more that the guest needs."""
    journey.move(at_rest=lambda: kill(journey.here), arrived=lambda: start(journey.there))


def waits_for_a_stranger(journey: Journey[Any]) -> None:
    """Somebody else took the image when nobody had it: the guest stands still until it is given up."""
    with contextlib.ExitStack() as strangers:

        def step() -> None:
            for image in journey.images:
                strangers.enter_context(stranger(image))

        journey.move(at_rest=step, arrived=lambda: outwait(journey, strangers))


def stays_one_guest(journey: Journey[Any]) -> None:
    """The source's QEMU is started again by mistake: its targets want the disks, and do not get them."""
    journey.move(arrived=lambda: start_twice(journey))


# -- turns in which it stays


def is_called_off_while_copying(journey: Journey[Any]) -> None:
    """QEMU shuts its own connection, and now and then takes that for an error before it says why."""
    journey.fail(
        "cancelled|Broken pipe|Input/output error",
        active=lambda: journey.guest.qemu.qmp.execute("migrate_cancel"),
    )


def is_called_off_at_rest(journey: Journey[Any]) -> None:
    journey.fail("cancelled", at_rest=journey.cancel)


def is_refused_by_the_destination(journey: Journey[Any]) -> None:
    """Its state does not fit: the destination says so once it has all of it."""
    journey.fail("migration failed", cpus=1)


def loses_the_other_qemu_at_rest(journey: Journey[Any]) -> None:
    def step() -> None:
        journey.destination.qemu.close()

    journey.fail("migration failed", at_rest=step)


def loses_the_source_at_rest_and_is_called_off(journey: Journey[Any]) -> None:
    def step() -> None:
        crash(journey.here)
        journey.cancel()

    journey.fail("cancelled", at_rest=step)


def has_no_back_end_until_the_switchover(journey: Journey[Any]) -> None:
    """QEMU starts the rings of a back end that comes back although the guest stands still, and would move
    with indexes from before. The destination sees that they do not fit; the source's guest goes on.
    """

    def step() -> None:
        start(journey.here)
        wait_until(
            lambda: all(requests for _, requests in worked(journey.here).values()),
            "what the guest waited for",
        )

    journey.fail("migration failed", active=lambda: leave_waiting(journey), at_rest=step)


def has_no_back_end_and_is_called_off(journey: Journey[Any]) -> None:
    """The back end died while requests were in flight, and is back only later: they are done then."""

    def step() -> None:
        journey.cancel()
        start(journey.here)

    journey.fail("cancelled", active=lambda: leave_waiting(journey), at_rest=step)


def leave_waiting(journey: Journey[Any]) -> None:
    """Kill what the guest has, and wait until it asks each for something."""
    kill(journey.here)
    qmp = journey.guest.qemu.qmp
    wait_until(lambda: all(has_request(qmp, target) for target in journey.here), "requests of dead targets")


TURNS: tuple[Turn, ...] = (
    moves,
    is_called_off_at_rest,
    loses_its_new_target,
    is_refused_by_the_destination,
    loses_the_destination_while_copying,
    loses_the_other_qemu_at_rest,
    loses_the_destination_at_rest,
    is_called_off_while_copying,
    loses_the_source_while_copying,
    has_no_back_end_and_is_called_off,
    has_no_back_end_until_the_switchover,
    loses_the_source_at_rest,
    loses_the_source_at_rest_and_is_called_off,
    waits_for_a_stranger,
    stays_one_guest,
)


@contextlib.contextmanager
def stranger(image: Path) -> Iterator[None]:
    """QEMU's own tool has the image open for writing."""
    command = ["qemu-io", "-f", "raw", str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(len("qemu-io> ")) == b"qemu-io> "
        yield
        process.communicate(b"quit\n", timeout=PATIENCE_S)


def outwait(journey: Journey[Any], strangers: contextlib.ExitStack) -> None:
    before = worked(journey.here)
    for target in journey.here:
        target.wait_message("waiting for .*qemu-io")
        assert target.ownership() is OwnershipState.WANTED
    assert worked(journey.here) == before
    strangers.close()


def start_twice(journey: Journey[Any]) -> None:
    qmp = journey.left.qemu.qmp
    # QEMU says that it has completed a migration a little before it takes commands to go on
    wait_until(lambda: bool(qmp.execute("query-status")["status"] == "postmigrate"), "the migration's end")
    qmp.execute("cont")
    for target in journey.there:
        target.wait_ownership(OwnershipState.WANTED)


@both_devices
@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: turn.__name__)
def test_a_move_of_a_boot_sector(run_dir: Path, count: Count, device: str, turn: Turn) -> None:
    with BootSectorJourney(run_dir, device) as journey:
        for _ in range(count(1, 10)):
            turn(journey)
        journey.finish()


@pytest.mark.timeout(3600)
def test_linux_moves_under_load(run_dir: Path, count: Count) -> None:
    """Many requests are in flight on several queues of both devices when a turn begins."""
    with LinuxJourney(run_dir, "scsi", "blk") as journey:
        turns = itertools.cycle(TURNS)
        while journey.moves < count(10, 100):
            next(turns)(journey)
        journey.finish()
