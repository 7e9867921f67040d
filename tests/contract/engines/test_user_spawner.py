"""The spawner's ends: when it is not needed any more, and in the middle of an order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from ringway.engine.user import client, records
from ringway.engine.user.processes import Identity, Process
from ringway.errors import RingwayError, UnreachableError
from ringway.model import EndpointSpec, EndpointState, LunSpec
from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.processes import freeze
from ringway.testing.waiting import PATIENCE_S, wait_until
from ringway.unix_sockets import use_of

from .test_user_bad_input import lock_of_nobody
from .user_host import UserHost, null_disk


@pytest.fixture
def host() -> Iterator[UserHost]:
    with UserHost() as host:
        yield host


class Creation(threading.Thread):
    """A creation under way, and what it came to."""

    def __init__(self, host: UserHost, spec: EndpointSpec) -> None:
        super().__init__()
        self.error: RingwayError | None = None
        self._host, self._spec = host, spec
        self.start()

    def run(self) -> None:
        try:
            self._host.first.create(self._spec)
        except RingwayError as error:
            self.error = error

    def ended(self) -> RingwayError | None:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.error


def test_a_spawner_that_is_not_needed_ends(host: UserHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LINGER_S", "1")
    host.first.create(host.spec("vm0", null_disk()))
    pid = host.spawner
    assert pid is not None
    identity = Identity.of(pid)
    host.first.delete("vm0")
    wait_until(lambda: not host.places.spawner.exists(), "its end")
    wait_until(lambda: Process.find(identity) is None, "its process to be gone")
    host.first.create(host.spec("vm1", null_disk()))  # and another is started
    assert host.spawner is not None


def test_a_spawner_that_has_a_target_stays(host: UserHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes leave of a target whenever that ends, and writes down who was killed."""
    monkeypatch.setattr(client, "_LINGER_S", "1")
    host.first.create(host.spec("vm0", null_disk()))
    host.first.create(host.spec("vm1", null_disk()))
    spawner, pid = host.spawner, host.first.show("vm0").pid or 0
    for _ in range(3):
        threading.Event().wait(1.0)  # longer than it lingers
        assert os.path.exists(f"/proc/{spawner}")
    host.first.delete("vm1")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "SIGKILL" in (host.first.show("vm0").message or ""), "the obituary")
    wait_until(lambda: not host.places.spawner.exists(), "its end")
    host.first.delete("vm0")


def test_who_comes_as_it_ends_is_served(host: UserHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders for as long as several spawners live, each of which ends as soon as it may."""
    monkeypatch.setattr(client, "_LINGER_S", "1")
    disks = (LunSpec(0, 0, null_disk(512)),)
    host.places.run.mkdir()
    for _ in range(3):
        assert host.first._spawner.probe(disks)[0].size_bytes == 512
        freeze(pid := host.spawner or 0)
        threading.Event().wait(1.2)  # it is time to go
        late = threading.Thread(target=host.first._spawner.probe, args=(disks,))
        late.start()
        wait_until(late.is_alive, "an order in its queue")
        os.kill(pid, signal.SIGCONT)
        late.join(PATIENCE_S)
        assert not late.is_alive()
        wait_until(lambda: not host.places.spawner.exists(), "its end")


@pytest.mark.parametrize("taken", [False, True])
def test_a_spawner_that_is_killed_in_the_middle_of_an_order(host: UserHost, *, taken: bool) -> None:
    """An order that it had not taken came to nothing; of one that it had, the target does not need it."""
    host.first.create(host.spec("other", null_disk()))
    pid = host.spawner
    assert pid is not None
    spec = host.spec()
    with lock_of_nobody(host.image("db0")):
        if not taken:
            freeze(pid)
        creation = Creation(host, spec)
        if taken:
            wait_until(lambda: records.read(host.places.of("db0").record) is not None, "the record")
        else:
            wait_until(lambda: use_of(str(host.places.spawner)).waiting, "the order in its queue")
        os.kill(pid, signal.SIGKILL)
        if not taken:
            assert isinstance(creation.ended(), UnreachableError)
            assert not any(name.startswith("db0") for name in host.files())
    assert creation.ended() is None or not taken
    host.first.create(spec)
    with ScsiFrontEnd(host.places.of("db0").socket).open() as guest:
        assert guest.command(bytes(6)).response == 0
    assert {info.name: info.state for info in host.driver().list()} == {
        "db0": EndpointState.READY,
        "other": EndpointState.READY,
    }
