"""The configuration: files in their order, the origin of each value, and errors that name file and value."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from ringway.errors import UsageError
from ringway.host import places
from ringway.host.config import BUILT_IN, Config, files_of, load
from ringway.host.switches import account


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    return tmp_path


def test_without_files_all_is_built_in(folder: Path) -> None:
    loaded = load(files_of(places.below(folder)))
    assert loaded.config == Config()
    assert {value.origin for value in loaded.values} == {BUILT_IN}
    assert {value.name for value in loaded.values} >= {"daemon.reconcile_s", "lio.configfs", "user.group"}


def test_the_last_file_wins_and_each_value_knows_its_own(folder: Path) -> None:
    (folder / "ringway.toml").write_text('[daemon]\nreconcile_s = 5\nparallel = 2\n[user]\ngroup = "a"\n')
    (folder / "conf.d" / "20.toml").write_text("[daemon]\nreconcile_s = 20\n")
    (folder / "conf.d" / "10.toml").write_text('[daemon]\nreconcile_s = 10\nlog_level = "debug"\n')
    (folder / "conf.d" / "30.conf").write_text("this is not read")
    loaded = load(files_of(places.below(folder)))
    assert (loaded.config.daemon.reconcile_s, loaded.config.daemon.parallel) == (20, 2)
    origins = {value.name: Path(value.origin).name for value in loaded.values if value.origin != BUILT_IN}
    assert origins == {
        "daemon.reconcile_s": "20.toml",
        "daemon.parallel": "ringway.toml",
        "daemon.log_level": "10.toml",
        "user.group": "ringway.toml",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[daemon]\nreconcile = 1", "reconcile"),
        ("[deamon]", "deamon"),
        ("[daemon]\nreconcile_s = 0", "daemon.reconcile_s is 0, and has to be 1.0 at least"),
        ("[daemon]\nparallel = 'many'", "daemon.parallel is .many., and has to be a whole number"),
        ("[daemon]\nlog_level = 'loud'", "daemon.log_level cannot be .loud."),
        ("daemon = 1", "daemon is 1, and has to be a table"),
        ("[daemon", "no TOML"),
        ("\x00", "no TOML"),
    ],
)
def test_what_makes_no_sense_is_named_with_its_file(folder: Path, text: str, message: str) -> None:
    (folder / "ringway.toml").write_text("[daemon]\nparallel = 1\n")
    (folder / "conf.d" / "bad.toml").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load(files_of(places.below(folder)))
    assert "bad.toml" in caught.value.message


def test_what_cannot_be_read_is_said(folder: Path) -> None:
    (folder / "conf.d" / "bad.toml").mkdir()
    with pytest.raises(UsageError, match="directory"):
        load(files_of(places.below(folder)))
    (folder / "conf.d" / "bad.toml").rmdir()
    (folder / "conf.d" / "bad.toml").write_bytes(b"# \xff")
    with pytest.raises(UsageError, match="no TOML"):
        load(files_of(places.below(folder)))


def test_differences_are_named(folder: Path) -> None:
    before = load([])
    (folder / "ringway.toml").write_text("[daemon]\nparallel = 3\n")
    assert before.differences(load(files_of(places.below(folder)))) == ("daemon.parallel",)


def test_a_users_folders_are_the_desktops() -> None:
    found = places.of_user({"HOME": "/home/x", "XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/s"})
    assert (found.api, found.database) == (Path("/run/user/7/ringway/api.sock"), Path("/s/ringway/state.db"))
    assert found.config == Path("/home/x/.config/ringway/ringway.toml")
    assert found.private
    assert not places.of_system().private


def test_whose_rights_decide_where_the_sockets_of_ports_lie(caplog: pytest.LogCaptureFixture) -> None:
    """What libvirt's user is called differs between distributions."""
    for users in (("nobody", "root"), ("no-such-user", "nobody")):
        found = account(None, users, private=False)
        assert found is not None
        assert (found.name, found.uid) == ("nobody", pwd.getpwnam("nobody").pw_uid)
    assert account(None, ("no-such-user",), private=False) is None
    assert account(None, ("nobody",), private=True) is None
    chosen = account("root", ("nobody",), private=True)
    assert chosen is not None
    assert chosen.name == "root"
    assert not caplog.messages
    assert account("no-such-user", ("nobody",), private=False) is None
    assert "no user 'no-such-user'" in caplog.text
