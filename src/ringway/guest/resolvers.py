"""Resolvers: packages that know where volumes are, and bring them to this host.

A distribution offers one by an entry point of the group :data:`GROUP`, whose object, called without
arguments, returns a :class:`Resolver`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ringway.errors import BackstoreError, ConflictError, RingwayError
from ringway.guest.volumes import Volume, check_size
from ringway.model import BlockDevice

GROUP: Final = "ringway.volumes"
_T = TypeVar("_T")


class Resolver(Protocol):
    """Who knows volumes of a kind. It is made anew for each use, on any thread: what it keeps is on disk."""

    def find(self, device: BlockDevice, /) -> Volume | None:
        """Look a mapping's volume up. Nothing is changed: a plan asks, and so does who prints XML.

        :returns: with the path that it has here, or will have as far as that can be told; ``None`` if it is
            none of its own.
        :raises RingwayError: it is its own, and cannot be had.
        """

    def connect(self, device: BlockDevice, guest: str, /) -> Volume:
        """Bring a volume to this host, for a guest. Doing it again changes nothing, and answers alike.

        :param guest: the UUID of one that is being made.
        :returns: as it is here now. It stays as long as the guest, which Ringway does not end.
        :raises RingwayError: it cannot be had now.
        """

    def release(self, device: BlockDevice, guest: str, /) -> None:
        """Take back a :meth:`connect` for this guest; what was not connected, or only half, is fine.

        What was here before, or is connected for another guest, stays.

        :raises RingwayError: it cannot be taken back now; it is tried again.
        """


_VERBS: Final = tuple(verb for verb in vars(Resolver) if not verb.startswith("_"))


class Connection(Struct, frozen=True, kw_only=True):
    """A volume that a resolver brings to this host for a guest. ``path``: where it is, once it is here."""

    resolver: str
    device: BlockDevice
    path: str | None = None


class Resolvers:
    """All of them. :param resolvers: by name; ``None``: those that are installed, loaded at each use."""

    def __init__(self, resolvers: Mapping[str, Resolver] | None = None) -> None:
        self._resolvers = resolvers

    def find(self, device: BlockDevice) -> Volume | None:
        """Ask each in turn. :raises RingwayError: as :meth:`Resolver.find`; a broken one is named."""
        for name, resolver in self._all().items():
            volume = _called(name, resolver.find, device)
            if volume is not None:
                return replace(volume, resolver=name)
        return None

    def connect(self, connection: Connection, guest: str) -> Volume:
        """:raises RingwayError: as :meth:`Resolver.connect`; or it is smaller than its mapping says."""
        resolver = self._get(connection.resolver)
        volume = _called(connection.resolver, resolver.connect, connection.device, guest)
        check_size(connection.device, volume)
        return replace(volume, resolver=connection.resolver)

    def release(self, connection: Connection, guest: str) -> None:
        """:raises RingwayError: as :meth:`Resolver.release`."""
        _called(connection.resolver, self._get(connection.resolver).release, connection.device, guest)

    def _all(self) -> Mapping[str, Resolver]:
        return installed() if self._resolvers is None else self._resolvers

    def _get(self, name: str) -> Resolver:
        """:raises BackstoreError: it is not installed any more."""
        if (found := self._all().get(name)) is None:
            raise BackstoreError(f"the volume resolver '{name}' is gone", hint="install its package again")
        return found


def installed() -> dict[str, Resolver]:
    """The resolvers that packages brought, by name.

    :raises ConflictError: two have one name. :raises BackstoreError: one cannot be used; it is named.
    """
    found = dict[str, Resolver]()
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name in found:
            raise ConflictError(
                f"two packages bring a volume resolver '{entry.name}'", hint="uninstall all but one"
            )
        found[entry.name] = _load(entry)
    return found


def _load(entry: EntryPoint) -> Resolver:
    try:
        resolver: Resolver = entry.load()()
    except (Exception, SystemExit) as error:
        raise _broken(entry, repr(error)) from error
    if missing := [verb for verb in _VERBS if not hasattr(resolver, verb)]:
        raise _broken(entry, f"it has no {', '.join(missing)}")
    return resolver


def _broken(entry: EntryPoint, reason: str) -> BackstoreError:
    return BackstoreError(
        f"the volume resolver '{entry.name}' cannot be loaded: {reason}",
        hint="install its package again, or remove it",
    )


def _called(name: str, call: Callable[..., _T], *arguments: object) -> _T:
    """:raises BackstoreError: the resolver broke."""
    try:
        return call(*arguments)
    except RingwayError:
        raise
    except (Exception, SystemExit) as error:  # plug-ins that are commands at heart exit
        raise BackstoreError(f"the volume resolver '{name}' failed: {error!r}") from error
