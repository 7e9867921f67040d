"""Size, documentation and manners of the sources."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "ringway").rglob("*.py"))
_NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]
#: A method so short says all in its name; a longer one says what it guarantees.
_SELF_EVIDENT_LINES = 5
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(node: ast.AST) -> Iterator[Function]:
    yield from (child for child in ast.walk(node) if isinstance(child, Function))


def _lines(function: Function) -> int:
    """Lines of the body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def _undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions and classes of a module, and public methods of some length, without a docstring."""
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield node.name
        methods = node.body if isinstance(node, ast.ClassDef) else []
        functions = [child for child in methods if isinstance(child, Function)]
        yield from (f"{node.name}.{method.name}" for method in functions if _lacks_docstring(method))


def _lacks_docstring(method: Function) -> bool:
    public = not method.name.startswith("_")
    return public and ast.get_docstring(method) is None and _lines(method) > _SELF_EVIDENT_LINES


@pytest.mark.parametrize("path", SOURCES, ids=_NAMES)
def test_a_module_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it is"
    assert list(_undocumented(tree)) == []


@pytest.mark.parametrize("path", SOURCES, ids=_NAMES)
def test_a_module_has_less_than_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 500


def test_functions_are_short() -> None:
    sizes = [_lines(function) for path in SOURCES for function in _functions(ast.parse(path.read_text()))]
    assert statistics.median(sizes) <= 8
    assert statistics.quantiles(sizes, n=10)[-1] <= 30
    assert max(sizes) <= 60


@pytest.mark.parametrize("crate", sorted((ROOT / "crates").iterdir()), ids=lambda path: path.name)
def test_a_crate_explains_itself_on_one_page(crate: Path) -> None:
    assert len((crate / "ARCHITECTURE.md").read_text().splitlines()) <= 60


def test_the_glue_crate_stays_glue() -> None:
    files = (ROOT / "crates" / "ringway-py" / "src").rglob("*.rs")
    core = sum(
        path.read_text().count("use pyo3")
        for path in (ROOT / "crates" / "ringway-core" / "src").rglob("*.rs")
    )
    assert core == 0, "the core knows no Python"
    assert list(files)
