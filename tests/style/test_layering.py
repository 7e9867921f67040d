"""Who may import whom: the arrows of the design, and no circles.

``errors``, ``digest``, ``units`` and ``model`` lie at the bottom; ``vhost_user`` and ``scsi`` over the core;
``target`` over both; ``testing`` and ``bench`` beside it; the command on top, where only single modules reach
down.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src" / "ringway"

#: What all above may use: data, words, and looks at the host. ``ringway`` itself has the version only.
GROUND = {
    "errors",
    "digest",
    "units",
    "holders",
    "formats",
    "media",
    "faults",
    "logs",
    "unix_sockets",
    "model",
    "notation",
    "control",
    "ringway",
}

#: A layer, and the layers that it may import besides itself.
ARROWS = {
    "errors": set[str](),
    "digest": set[str](),
    "units": {"errors"},
    "holders": set[str](),
    "formats": set[str](),
    "media": set[str](),
    "logs": set[str](),
    "faults": set[str](),
    "unix_sockets": set[str](),
    "model": {"errors"},
    "control": {"errors", "model"},
    "vhost_user": {"errors", "_core"},
    "scsi": {"errors", "digest", "ringway"},
    "target": GROUND | {"vhost_user", "scsi", "_core"},
    "notation": {"errors", "units", "model", "scsi"},
    "net": {"errors", "units", "unix_sockets", "model"},
    "engine": GROUND,
    "guest": {"errors", "units", "formats", "faults", "media", "unix_sockets", "model", "notation"},
    "host": {"errors", "units", "media", "model", "logs", "faults", "engine", "guest", "net", "ringway"},
    "api": {"errors", "units", "model", "logs", "host", "ringway"},
    "testing": {"errors", "unix_sockets", "vhost_user", "_core"},
    "bench": {"errors", "units", "unix_sockets", "model", "testing", "_core"},
    "trace": {"errors", "units", "model"},
    "client": {"errors", "model"},
    "cli": {"errors", "units", "model", "notation", "control", "client", "logs", "ringway"},
    "__main__": {"cli"},
}

#: Modules that may reach further than their layer: who runs a target, or asks one, holds a piece of it.
EXCEPTIONS = {
    "engine.user.birth": {"target"},
    "engine.user.spawner": {"logs", "target"},
    "cli.daemon": {"api", "host"},
    "cli.serve": {"target"},
    "cli.program": {"target"},
    "cli.control": {"target"},
    "cli.guest_spec": {"guest"},
    "cli.guest_xml": {"guest", "net"},
    "cli.trace": {"trace", "target"},
    "cli.top": {"target"},
    "cli.demo": {"target", "testing"},
    "bench.host.kernel_side": {"engine", "host"},
    "cli.bench": {"bench"},
    "cli.doctor": {"_core", "target", "testing"},
    "testing.daemon": {"faults"},
    "testing.engine": {"model", "engine"},
    "testing.hypervisor": {"model", "guest", "net"},
    "testing.forked": {"engine", "model", "target"},
    "testing.target": {"model", "target"},
    "testing.with_core": {"ringway"},
}


def modules() -> dict[str, Path]:
    """Dotted name below ``ringway`` -> file; a package goes by its folder's name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    del found["__init__"]
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names below ``ringway`` that are imported anywhere under a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "ringway":
                    yield alias.name.partition(".")[2] or "ringway"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            if node.module == "ringway":
                yield from ("ringway" if alias.name == "__version__" else alias.name for alias in node.names)
            elif node.module and node.module.startswith("ringway."):
                yield from (f"{node.module}.{alias.name}"[len("ringway.") :] for alias in node.names)


def layer(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def resolved(name: str, known: dict[str, Path]) -> str:
    """The module that a dotted name is, or is in."""
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    tree = ast.parse(modules()[module].read_text())
    allowed = {layer(module)} | ARROWS[layer(module)] | EXCEPTIONS.get(module, set())
    wrong = {name for name in imports(tree) if layer(name) not in allowed}
    assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}"


def test_every_layer_has_its_arrows_and_no_other() -> None:
    assert {layer(module) for module in modules()} == ARROWS.keys()
    assert modules().keys() >= EXCEPTIONS.keys()


def test_exceptions_are_needed() -> None:
    """A module that does not use its right loses it."""
    for module, rights in EXCEPTIONS.items():
        used = {layer(name) for name in imports(ast.parse(modules()[module].read_text()))}
        assert rights <= used, module


def test_modules_do_not_import_each_other_in_circles() -> None:
    """At import time; an import in a function runs later and is no circle."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        tree = ast.parse(path.read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        targets = {resolved(name, known) for name in imports(top)}
        graph[module] = {name for name in targets if name in known and name != module}
        if path.name == "__init__.py":
            graph[module] = {name for name in graph[module] if not name.startswith(f"{module}.")}
    graphlib.TopologicalSorter(graph).prepare()


def test_scsi_and_vhost_user_do_not_know_each_other() -> None:
    assert "vhost_user" not in ARROWS["scsi"]
    assert "scsi" not in ARROWS["vhost_user"]


@pytest.mark.parametrize("module", [name for name in modules() if modules()[name].name == "__init__.py"])
def test_a_facade_names_what_it_shows(module: str) -> None:
    """``__all__`` is what a folder's ``__init__`` imports, in order, and all of it exists."""
    tree = ast.parse(modules()[module].read_text())
    shown = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    ]
    named = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert [sorted(shown)] == [sorted(names) for names in named] or (not shown and not named)
    assert all(names == sorted(names, key=_facade_order) for names in named)


def _facade_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
