"""The drivers by their names: ours, and those of installed distributions.

A distribution offers one by an entry point of the group :data:`GROUP`, whose name is the switch's and whose
object, called with :class:`~ringway.net.base.Settings`, returns a :class:`~ringway.net.base.Switch`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from ringway.errors import ConflictError, NotFoundError, RingwayError
from ringway.net.base import Settings, Switch

GROUP: Final = "ringway.switches"
Opener = Callable[[Settings], Switch]


def _external(settings: Settings) -> Switch:
    from ringway.net.external import ExternalSwitch

    return ExternalSwitch(settings)


def _ovs(settings: Settings) -> Switch:
    try:
        from ringway.net.ovs.driver import OvsSwitch
    except ModuleNotFoundError as error:
        hint = "run: pip install 'ringway[ovs]'"
        raise NotFoundError(f"switch 'ovs' needs the Python package '{error.name}'", hint=hint) from error
    return OvsSwitch(settings)


_OURS: Final[dict[str, Opener]] = {"external": _external, "ovs": _ovs}


def names() -> tuple[str, ...]:
    """All that can be opened, ours first."""
    others = {point.name for point in entry_points(group=GROUP)} - _OURS.keys()
    return (*_OURS, *sorted(others))


def refuse_unknown(name: str) -> None:
    """:raises NotFoundError: there is no driver of that name."""
    if name not in names():
        hint = f"there are {', '.join(names())}; others are installed as Python packages"
        raise NotFoundError(f"there is no switch '{name}'", hint=hint)


def open_switch(name: str, settings: Settings) -> Switch:
    """Make the driver of a switch. What this host lacks for it, its ``probe`` says.

    :raises NotFoundError: there is none of that name.
    :raises ConflictError: two distributions offer it, or one offers what is ours.
    :raises RingwayError: it cannot be loaded or made; the message names the distribution.
    """
    points = tuple(entry_points(group=GROUP, name=name))
    sources = [*(["ringway"] if name in _OURS else []), *map(_source, points)]
    if len(sources) > 1:
        hint = "uninstall all but one"
        raise ConflictError(f"switch '{name}' comes from {' and from '.join(sources)}", hint=hint)
    if name in _OURS:
        return _OURS[name](settings)
    refuse_unknown(name)
    return _load(points[0], settings)


def _load(point: EntryPoint, settings: Settings) -> Switch:
    """Whatever a foreign driver raises, the daemon goes on, and it is known whose it was."""
    try:
        switch: Switch = point.load()(settings)
        missing = [verb for verb in _VERBS if not hasattr(switch, verb)]
    except RingwayError:
        raise
    except Exception as error:
        raise _broken(point, f"{type(error).__name__}: {error}") from error
    if missing:
        raise _broken(point, f"it has no {', '.join(missing)}")
    if switch.name != point.name:
        raise _broken(point, f"it calls itself '{switch.name}'")
    return switch


_VERBS: Final = tuple(verb for verb in vars(Switch) if not verb.startswith("_"))


def _source(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _broken(point: EntryPoint, reason: str) -> RingwayError:
    return RingwayError(
        f"switch '{point.name}' of {_source(point)} cannot be used: {reason}",
        hint="its maintainers may have a newer version",
    )
