"""Where the files of a host are: the system's folders, or one of the user's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct


class Places(Struct, frozen=True, kw_only=True):
    """The folders of one daemon.

    ``private``: they belong to the user who runs it. Sockets are his alone, and the kernel engine is not his.
    """

    config: Path  #: the main file; need not exist
    parts: Path  #: the folder of what is read after it
    run: Path  #: gone with a reboot
    state: Path  #: kept
    private: bool

    @property
    def api(self) -> Path:
        return self.run / "api.sock"

    @property
    def read_only(self) -> Path:
        return self.run / "ro.sock"

    @property
    def endpoints(self) -> Path:
        return self.run / "endpoint"

    @property
    def database(self) -> Path:
        return self.state / "state.db"

    @property
    def restarts(self) -> Path:
        return self.run / "restarts.json"

    @property
    def lock(self) -> Path:
        return self.state / "lock"

    def make(self) -> None:
        """Make the folders that are missing. :raises OSError: as mkdir."""
        self.run.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.endpoints.mkdir(mode=0o755, exist_ok=True)


def of_system() -> Places:
    """The folders of the daemon that root runs."""
    return Places(
        config=Path("/etc/ringway/ringway.toml"),
        parts=Path("/etc/ringway/conf.d"),
        run=Path("/run/ringway"),
        state=Path("/var/lib/ringway"),
        private=False,
    )


def below(folder: Path) -> Places:
    """All in one folder, its configuration as well."""
    return Places(
        config=folder / "ringway.toml",
        parts=folder / "conf.d",
        run=folder / "run",
        state=folder / "state",
        private=True,
    )


def of_user(environment: Mapping[str, str] = os.environ) -> Places:
    """The folders that the desktop's rules give a user; without a session's runtime folder one below /tmp."""
    home = Path(environment.get("HOME") or "/")
    run = environment.get("XDG_RUNTIME_DIR") or f"/tmp/ringway-{os.getuid()}"
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "ringway"
    return Places(
        config=config / "ringway.toml",
        parts=config / "conf.d",
        run=Path(run) / "ringway",
        state=Path(environment.get("XDG_STATE_HOME") or home / ".local/state") / "ringway",
        private=True,
    )
