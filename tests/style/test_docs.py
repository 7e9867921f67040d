"""The documentation keeps its word: links lead somewhere, commands parse, tables say what the code says."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
import xml.dom.minidom
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from ringway.cli import declare, disks, program, serve
from ringway.cli.daemon import daemon
from ringway.cli.main import cli
from ringway.errors import ControlError
from ringway.model import BackstoreSpec, ControlRequest, SpecKind
from ringway.target.control import decode_request
from ringway.vhost_user.messages import REQUESTS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "crates").glob("*/*.md")], key=lambda path: path.parts
)
SOURCES = sorted(
    path for folder in ("src", "crates", "tests") for path in (ROOT / folder).rglob("*") if path.is_file()
)
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])


def fences(text: str, *languages: str) -> Iterator[str]:
    """The contents of fenced blocks."""
    for match in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        if match[2] in languages:
            yield match[3]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


# Links


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """File and anchor of each link that stays in the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            yield (page.parent / file).resolve() if file else page, anchor


def anchors(page: Path) -> set[str]:
    """The names that headings get: lower case, words joined by dashes."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), f"{page.name} links to {file}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to #{anchor} of {file.name}"


def test_every_page_is_found_from_the_index() -> None:
    found, ahead = set[Path](), [DOCS / "index.md"]
    while ahead:
        page = ahead.pop()
        found.add(page)
        ahead += [file for file, _ in links(page) if file.suffix == ".md" and file not in found]
    assert set(DOCS.rglob("*.md")) <= found


# Commands

PROGRAMS: dict[str, click.Command] = {
    "ringway": cli,
    "ringwayd": daemon,
    "ringway-vhost-user-scsi": program._scsi,
    "ringway-vhost-user-blk": program._blk,
}
#: What may come before a command on its line.
_PREFIXES = {"sudo", "until", "do", "then", "!"}


def shell_lines(text: str) -> Iterator[str]:
    """Lines that a user types: behind a dollar, in a shell script, or indented; continued ones as one."""
    joined = re.sub(r"\\\n *", " ", text)
    for block in fences(joined, "console"):
        yield from re.findall(r"^ *\$ (.+)$", block, re.MULTILINE)
    for block in fences(joined, "sh"):
        yield from block.splitlines()
    plain = re.findall(r"^ {4}(ringway.*)$", prose(joined), re.MULTILINE)
    yield from (line for line in plain if "[OPTIONS]" not in line and "..." not in line)


def invocations(line: str) -> Iterator[tuple[str, list[str]]]:
    """Program and arguments of each command of ours on a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list[str]()
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|<>()"):
            while words and words[0] in _PREFIXES:
                words.pop(0)
            if words and Path(words[0]).name in PROGRAMS:
                yield Path(words[0]).name, words[1:]
            words = []
        else:
            words.append(word)


def parse(command: click.Command, name: str, words: list[str]) -> None:
    """:raises click.ClickException: the command does not take these. :raises RingwayError: no such disk."""
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"there is no command {name}"
        command = found
    try:
        context = command.make_context(command.name, words)
    except click.exceptions.Exit:  # --help and its like
        return
    if "luns" not in context.params or name == "bench":
        return
    if name == "create":
        assert all(disks.read_lun(text) for text in context.params["luns"])
    else:
        serve.disks(context.params.get("disk"), context.params["luns"], BackstoreSpec(SpecKind.PATH))


@each_page
def test_commands_parse(page: Path) -> None:
    for line in shell_lines(page.read_text()):
        for name, words in invocations(line):
            parse(PROGRAMS[name], name, words)


def test_commands_are_found_at_all() -> None:
    """The tests above would pass on pages in which they find nothing."""
    text = (DOCS / "how-to" / "several-disks.md").read_text()
    found = [words for line in shell_lines(text) for _, words in invocations(line)]
    assert ["serve", "a.img", "--socket", "a.sock"] in found
    assert any("1:0=null:1T" in words for words in found)
    with pytest.raises(click.NoSuchOption):
        parse(cli, "ringway", ["serve", "--no-such-option", "disk.img"])


# What repeats the code


def reference() -> ModuleType:
    """``tools/reference.py``, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_up_to_date() -> None:
    tool = reference()
    stale = [page.name for page in tool.pages() if tool.rendered(page.read_text()) != page.read_text()]
    assert stale == [], "run .venv/bin/python tools/reference.py"
    used = {place for page in tool.pages() for place in re.findall(r"generated: ([a-z-]+)", page.read_text())}
    assert used == tool.GENERATORS.keys()


def test_every_request_of_the_protocol_is_described() -> None:
    text = (DOCS / "reference" / "vhost-user.md").read_text()
    table = text.partition("<!-- requests -->")[2].partition("<!-- end requests -->")[0]
    rows = [line.split("|")[1] for line in table.strip().splitlines()[2:]]
    described = [name for row in rows for name in row.replace(",", " ").split()]
    assert sorted(described) == sorted(request.name for request in REQUESTS)


def control_requests(text: str) -> Iterator[str]:
    """What stands behind ``>`` on the page of the control socket."""
    for match in re.finditer(r"^    > (\{.*?\})$(?=\n    [<>]|\n\n|\Z)", text, re.MULTILINE | re.DOTALL):
        yield match[1]


def test_examples_of_control_requests_are_understood() -> None:
    text = (DOCS / "reference" / "control-socket.md").read_text()
    shown = {decode_request(line.encode()).__struct_config__.tag for line in control_requests(text)}
    verbs = {kind.__struct_config__.tag for kind in ControlRequest.__args__}
    assert shown == verbs
    assert verbs <= set(re.findall(r"^### (\S+)$", text, re.MULTILINE))
    with pytest.raises(ControlError):
        decode_request(b'{"version": 1, "verb": "fly"}')


@each_page
def test_declared_hosts_are_understood(page: Path) -> None:
    for block in fences(page.read_text(), "toml"):
        if "[[endpoint]]" in block:
            assert declare.parse_config(block.encode(), "host.toml", "/").endpoint


@each_page
def test_python_on_a_page_compiles(page: Path) -> None:
    for block in fences(page.read_text(), "python"):
        compile(block, page.name, "exec")


@each_page
def test_xml_is_well_formed(page: Path) -> None:
    for block in fences(page.read_text(), "xml"):
        xml.dom.minidom.parseString(block)


def test_every_dependency_is_explained() -> None:
    text = (DOCS / "design" / "dependencies.md").read_text()
    for name in (*python_dependencies(), *rust_dependencies()):
        assert f"`{name}`" in text, name


def python_dependencies() -> Iterator[str]:
    """What ``pyproject.toml`` names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    every = (
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(line for extra in project["project"]["optional-dependencies"].values() for line in extra),
        *(line for group in project["dependency-groups"].values() for line in group),
    )
    yield from (re.split(r"[<>=~!]", line)[0] for line in every)


def rust_dependencies() -> Iterator[str]:
    """What the crates name besides each other."""
    for manifest in (ROOT / "crates").glob("*/Cargo.toml"):
        crate = tomllib.loads(manifest.read_text())
        for group in ("dependencies", "dev-dependencies", "build-dependencies"):
            yield from (name for name in crate.get(group, {}) if not name.startswith("ringway-"))


# Specifications

_REVISION = re.compile(r"\b(?:S[A-Z]C|SAM)-\d r\d+\b|\bvirtio \d\.\d\b|\bUEFI \d\.\d+\b")
#: A citation that leaves the document to the file's others.
_CLAUSE_ALONE = re.compile(r"\d+(\.\d+)*\b|[A-Z]+ field")


def pinned() -> list[str]:
    """The names under which specifications are cited."""
    text = (DOCS / "reference" / "specs.md").read_text()
    return [name for name in re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE) if name != "cited as"]


def cited() -> Iterator[tuple[Path, str]]:
    """Each citation, up to its line's end."""
    for path in SOURCES:
        if path.suffix in (".py", ".rs", ".pyi") and path != Path(__file__):
            yield from ((path, clause) for clause in re.findall(r"\bSpec: (.+)", path.read_text()))


def test_citations_name_pinned_revisions() -> None:
    names = tuple(pinned())
    assert "virtio 1.3" in names
    for path, clause in cited():
        assert clause.startswith(names) or _CLAUSE_ALONE.match(clause), f"{path}: {clause}"
        assert set(_REVISION.findall(clause)) <= set(names), f"{path}: {clause}"


def test_pinned_specifications_are_cited() -> None:
    clauses = [clause for _, clause in cited()]
    text = "".join(path.read_text() for path in SOURCES if path.suffix in (".py", ".rs"))
    unused = [name for name in pinned() if not any(name in clause for clause in clauses) and name not in text]
    assert unused == []
