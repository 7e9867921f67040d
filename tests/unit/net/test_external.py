"""Ports of a switch that we do not know: what can be told from a socket."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from ringway.errors import ConflictError, NotFoundError, PermissionDeniedError, UsageError
from ringway.model import PortMode, PortSpec, PortState, socket_of
from ringway.net import sockets
from ringway.net.account import Account
from ringway.net.base import Settings
from ringway.net.external import ExternalSwitch
from ringway.net.places import open_socket

STRANGER = Account(name="stranger", uid=54321, gid=54321, gids=(54321,))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Open to everybody, with a path that leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="rw-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def switch(folder: Path) -> ExternalSwitch:
    return ExternalSwitch(Settings(folder=folder / "port"))


def port(switch: ExternalSwitch, mode: PortMode, **more: object) -> PortSpec:
    return switch.resolve(replace(PortSpec(name="web0", mode=mode), **more))


@contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    """Somebody who listens, and whose file stays when he goes."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(path)
        own.listen()
        yield own


def test_a_port_of_qemus_is_ready_and_up_when_both_have_come(switch: ExternalSwitch) -> None:
    spec = port(switch, PortMode.SERVER)
    switch.check(spec, ())
    switch.create(spec)
    assert switch.show(spec).state is PortState.READY
    with listening(socket_of(spec)) as qemu:
        assert switch.show(spec).state is PortState.READY
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(socket_of(spec))
            accepted, _ = qemu.accept()
            with accepted:
                assert switch.show(spec).state is PortState.UP
    assert switch.show(spec).state is PortState.READY


def test_a_switch_that_does_not_listen_is_told_of(switch: ExternalSwitch) -> None:
    spec = port(switch, PortMode.CLIENT)
    switch.create(spec)
    assert "does not listen" in (switch.show(spec).message or "")
    with listening(socket_of(spec)):
        assert switch.show(spec).state is PortState.READY
        assert switch.show(spec).message is None
    shown = switch.show(spec)
    assert shown.state is PortState.DEGRADED
    assert "nobody listens" in (shown.message or "")


@pytest.mark.parametrize("mode", PortMode)
def test_what_is_no_socket_is_in_the_way(switch: ExternalSwitch, folder: Path, mode: PortMode) -> None:
    spec = port(switch, mode, socket=str(folder / "disk.img"))
    (folder / "disk.img").write_text("precious")
    with pytest.raises(ConflictError, match="is not a socket"):
        switch.check(spec, ())
    assert switch.show(spec).state is PortState.DEGRADED
    switch.delete(spec)
    assert (folder / "disk.img").read_text() == "precious"


def test_the_wrong_side_listens(switch: ExternalSwitch, folder: Path) -> None:
    """A mode that is the other way around is the mistake that everybody makes once."""
    path = str(folder / "a.sock")
    with listening(path):
        switch.check(port(switch, PortMode.CLIENT, socket=path), ())
        with pytest.raises(ConflictError, match=rf"pid {os.getpid()} .* with mode=server QEMU should"):
            switch.check(port(switch, PortMode.SERVER, socket=path), ())


def test_deleting_takes_what_a_qemu_left_in_our_folder(switch: ExternalSwitch, folder: Path) -> None:
    spec = port(switch, PortMode.SERVER)
    elsewhere = port(switch, PortMode.SERVER, socket=str(folder / "b.sock"))
    switch.create(spec)
    with listening(socket_of(spec)):
        switch.delete(spec)
        assert Path(socket_of(spec)).exists(), "somebody listens there"
    with listening(socket_of(elsewhere)):
        pass
    for _ in range(2):
        switch.delete(spec)
        switch.delete(elsewhere)
    assert not Path(socket_of(spec)).exists()
    assert Path(socket_of(elsewhere)).exists(), "not ours"


def test_options_that_nobody_reads_are_refused(switch: ExternalSwitch, folder: Path) -> None:
    with pytest.raises(UsageError, match="no option 'bridge'"):
        port(switch, PortMode.SERVER, options={"bridge": "br0"})
    with pytest.raises(UsageError, match="no option 'path'"):
        ExternalSwitch(Settings(folder=folder, options={"path": "/"}))


# Whose rights


@pytest.mark.parametrize(
    ("mode", "bits", "closed"), [("server", 0o755, "make sockets in"), ("client", 0o700, "go")]
)
def test_a_folder_that_is_closed_to_qemu(folder: Path, mode: str, bits: int, closed: str) -> None:
    switch = ExternalSwitch(Settings(folder=folder / "port", account=STRANGER))
    place = folder / "sockets"
    place.mkdir()
    place.chmod(bits)
    spec = port(switch, PortMode(mode), socket=str(place / "a.sock"))
    with pytest.raises(PermissionDeniedError, match=f"'stranger', who runs QEMU, may not {closed}") as caught:
        switch.check(spec, ())
    assert str(place) in caught.value.message
    place.chmod(0o777)
    switch.check(spec, ())


def test_a_folder_above_may_be_what_is_closed(folder: Path) -> None:
    switch = ExternalSwitch(Settings(folder=folder / "port", account=STRANGER))
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a").chmod(0o700)
    with pytest.raises(PermissionDeniedError, match=f"go through '{folder}/a'"):
        switch.check(port(switch, PortMode.CLIENT, socket=str(folder / "a" / "b" / "s.sock")), ())


def test_a_folder_that_is_missing(switch: ExternalSwitch, folder: Path) -> None:
    with pytest.raises(NotFoundError, match="is not a folder"):
        switch.check(port(switch, PortMode.CLIENT, socket=str(folder / "a" / "s.sock")), ())


def test_a_socket_that_qemu_may_not_connect_to(folder: Path) -> None:
    switch = ExternalSwitch(Settings(folder=folder / "port", account=STRANGER))
    spec = port(switch, PortMode.CLIENT, socket=str(folder / "a.sock"))
    with listening(socket_of(spec)):
        os.chmod(socket_of(spec), 0o755)
        shown = switch.show(spec)
        assert shown.state is PortState.DEGRADED
        assert "may not connect" in (shown.message or "")
        os.chmod(socket_of(spec), 0o777)
        assert switch.show(spec).state is PortState.READY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_our_folder_is_opened_to_qemus_user_alone(folder: Path) -> None:
    switch = ExternalSwitch(Settings(folder=folder / "port", account=STRANGER))
    spec = port(switch, PortMode.SERVER)
    switch.check(spec, ())
    switch.create(spec)
    status = (folder / "port").stat()
    assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (STRANGER.gid, 0o2771)
    switch.check(spec, ())
    other = Account(name="other", uid=54322, gid=54322, gids=(54322,))
    with pytest.raises(PermissionDeniedError, match="make sockets in"):
        sockets.check_folder(socket_of(spec), other, writes=True)


def test_an_account_is_found_by_its_name() -> None:
    assert Account.named("root").uid == 0
    with pytest.raises(NotFoundError, match="no user 'nobody-at-all'"):
        Account.named("nobody-at-all")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives sockets away")
def test_what_lies_in_a_sockets_place_is_not_given_away(folder: Path) -> None:
    secret, link, plain = folder / "secret", folder / "p0.sock", folder / "p1.sock"
    for file in (secret, plain):
        file.write_text("")
        file.chmod(0o600)
    link.symlink_to(secret)
    settings = Settings(folder=folder, account=STRANGER)
    for path in (link, plain, folder / "none.sock"):
        open_socket(str(path), settings)
    for file in (secret, plain):
        assert (file.stat().st_gid, stat.S_IMODE(file.stat().st_mode)) == (os.getegid(), 0o600)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "p2.sock"))
        os.chmod(folder / "p2.sock", 0o600)
        open_socket(str(folder / "p2.sock"), settings)
    status = (folder / "p2.sock").stat()
    assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (STRANGER.gid, 0o660)
