"""The steps of giving up privileges, in their order, and what of them this host cannot have."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import time
from collections.abc import Callable
from typing import Final

from ringway.errors import ConflictError, PermissionDeniedError, UsageError
from ringway.model import SandboxInfo, SandboxMode
from ringway.target import host
from ringway.target.sandbox import filters, landlock, privileges
from ringway.target.sandbox.filters import Filters
from ringway.target.sandbox.privileges import User
from ringway.target.sandbox.steward import Steward

#: What Python and its libraries import when they first need it.
_LATE_MODULES: Final = ("encodings.latin_1", "linecache", "tokenize", "traceback")


class Sandbox:
    """What a process may no longer do. Of one process there is one.

    A context manager: its end lets the steward go, and gives nothing back.

    :param mode: ``ON`` fails where ``AUTO`` goes on without what the host does not offer.
    :param user: name or number of the user to be; ``None``: one of its own when started as root.
    :param prepared: filters of who forked this process, and settled its memory; ``None``: nobody did.
    :raises NotFoundError: no such user. :raises PermissionDeniedError: this process may not be that user.
    :raises UsageError: a user, and no sandbox.
    """

    def __init__(self, mode: SandboxMode, user: str | None = None, prepared: Filters | None = None) -> None:
        if mode is SandboxMode.OFF and user is not None:
            raise UsageError("--user is a part of the sandbox, which is off", hint="leave out one of them")
        self.mode = mode
        self._user = None if user is None else _named_user(user)
        self._wants_own_user = user is None and os.geteuid() == 0
        self._missing: list[str] = []
        self._capabilities: int | None = None  # who is confined cannot ask
        self._landlock_abi = 0
        self._sealed = False
        self._steward: Steward | None = None
        self._filters = prepared

    def info(self) -> SandboxInfo:
        """What this process may still do."""
        return SandboxInfo(
            mode=self.mode,
            uid=os.geteuid(),
            capabilities=privileges.capabilities() if self._capabilities is None else self._capabilities,
            landlock_abi=self._landlock_abi,
            seccomp=self._sealed,
            missing=self.missing,
        )

    @property
    def missing(self) -> tuple[str, ...]:
        """What is not given up because the host does not offer it, in words."""
        return tuple(self._missing)

    def start(self) -> None:
        """Set the steward aside, if there is none; :meth:`confine` does it otherwise.

        A process that shares its memory with many does it first: what it writes to before that, and again
        after it, is in memory twice. One that shares it with its steward alone does it last.

        The process has one thread. :raises OSError: it may have no child.
        """
        if self.mode is SandboxMode.OFF or self._steward is not None:
            return
        _refuse_threads()
        if self._filters is None:
            warm_up()
            self._try("seccomp", self._make_filters)
            settle_memory()
        self._steward = Steward.start(None if self._filters is None else self._filters.steward)

    def confine(self) -> None:
        """Give up the user, capabilities and files. What is open stays open; nothing else can be opened.

        The process has one thread. On failure some is given up already: end the process.

        :raises ConflictError: a part cannot be had (mode ``ON``).
        :raises PermissionDeniedError: the user that was named cannot be had.
        """
        if self.mode is SandboxMode.OFF:
            return
        self.start()
        _refuse_threads()
        assert self._steward is not None
        self._steward.begin(host.all_made())
        host.delegate_to(self._steward)
        if os.geteuid() == 0:
            self._try("an empty bounding set of capabilities", privileges.empty_bounding_set)
        if self._wants_own_user:
            self._try("a user of its own", _become_own_user)
        elif self._user is not None:
            _become(self._user)
        self._try("no capabilities", privileges.drop_capabilities)
        self._try("no_new_privs", privileges.forbid_new_privileges)
        self._try("Landlock", self._restrict_files)
        self._capabilities = privileges.capabilities()
        self._check()

    def seal(self) -> None:
        """Give up system calls, for all threads. Nothing is set up after this.

        From now on the log says when the steward ends before its target.

        :raises ConflictError: the kernel has no seccomp (mode ``ON``).
        """
        if self._steward is not None:
            self._steward.watch()
        if self._filters is not None and self._steward is not None:
            self._try("seccomp", self._load_filter)
            self._check()

    def close(self) -> None:
        """Let the steward go. Idempotent."""
        steward, self._steward = self._steward, None
        if steward is not None:
            host.delegate_to(None)
            steward.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load_filter(self) -> None:
        assert self._filters is not None
        self._filters.target.of_process(os.getpid()).load()
        self._sealed = True

    def _make_filters(self) -> None:
        self._filters = filters.prepare()

    def _restrict_files(self) -> None:
        version = landlock.abi()
        lacking = landlock.missing(version)
        if version > 0:
            self._landlock_abi = landlock.restrict_self(version)
        if lacking is not None:
            self._missing.append(lacking)

    def _try(self, what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            self._missing.append(f"{what} ({error.strerror or error})")

    def _check(self) -> None:
        if self.mode is SandboxMode.ON and self._missing:
            raise ConflictError(
                f"the sandbox cannot be had whole: {', '.join(self._missing)}",
                hint="ringway doctor says what this host offers; --sandbox auto goes on without the rest",
            )


def _refuse_threads() -> None:
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("a process is confined before it has threads")


def _named_user(name: str) -> User | None:
    """Who to become; ``None``: nobody else."""
    user = privileges.find_user(name)
    if user.uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise PermissionDeniedError(f"only root can serve as user '{name}'", hint="leave out --user")
    return user


def _become(user: User) -> None:
    try:
        privileges.become(user)
    except OSError as error:
        raise PermissionDeniedError(
            f"this process cannot become user {user.uid}: {error.strerror}",
            hint="name a user of this namespace, or leave out --user",
        ) from error


def _become_own_user() -> None:
    with privileges.own_user() as user:
        privileges.become(user)


def settle_memory() -> None:
    """Give back what is free, and let the collector leave alone what is there.

    It writes to each object that it looks at, and a page that is written parts from its twin in the steward.
    """
    gc.collect()
    gc.freeze()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc's
        trim(0)


def warm_up() -> None:
    """Read now what would be read later: modules, the time zone."""
    for name in _LATE_MODULES:
        importlib.import_module(name)
    if os.path.exists("/etc/localtime"):
        os.environ.setdefault("TZ", ":/etc/localtime")  # unset, its file would be looked at again and again
    time.tzset()
    time.localtime()
