"""What a file of endpoints would change, and in which order. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ringway.errors import UsageError
from ringway.host import specs
from ringway.model import Action, Change, EndpointSpec, HostConfig, Plan

#: What goes makes room for what comes: a disk can move from one endpoint to another.
ORDER: Final = (Action.DELETE, Action.UPDATE, Action.CREATE, Action.KEEP)


def plan(present: Mapping[str, EndpointSpec], config: HostConfig, *, prune: bool) -> Plan:
    """Compare the endpoints that are wanted with those of a file.

    :param prune: those that the file does not name shall go.
    :raises UsageError: the file names an endpoint twice, or changes what cannot be changed.
    """
    wanted = _by_name(config)
    changes = [_change(present.get(name), spec) for name, spec in wanted.items()]
    if prune:
        changes += [
            Change(action=Action.DELETE, object=f"endpoint/{name}") for name in present if name not in wanted
        ]
    return Plan(changes=tuple(sorted(changes, key=lambda change: ORDER.index(change.action))))


def _by_name(config: HostConfig) -> dict[str, EndpointSpec]:
    found: dict[str, EndpointSpec] = {}
    for spec in config.endpoint:
        if spec.name in found:
            raise UsageError(f"the file names endpoint '{spec.name}' twice", hint="take one of them out")
        found[spec.name] = spec
    return found


def _change(old: EndpointSpec | None, new: EndpointSpec) -> Change:
    if old is None:
        return Change(action=Action.CREATE, object=f"endpoint/{new.name}", details=specs.description(new))
    details = tuple(specs.differences(old, specs.inherit(old, new)))
    return Change(
        action=Action.UPDATE if details else Action.KEEP, object=f"endpoint/{new.name}", details=details
    )


def steps(plan: Plan) -> Iterator[tuple[Change, ...]]:
    """The changes that may be made at once, in their order; what is kept is left out."""
    for action in ORDER[:-1]:
        if found := tuple(change for change in plan.changes if change.action is action):
            yield found
