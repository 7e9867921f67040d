"""The terminal's side of the shell: a prompt, a history, and TAB."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterable, Iterator

from click.shell_completion import ShellComplete

from ringway.cli.main import cli
from ringway.cli.shell.session import Session, commands_at
from ringway.cli.shell.words import is_path, resolve, spell

_PATH_COMMANDS = ("ls", "cd")


def read_lines(session: Session) -> Iterator[str]:
    """Lines as they are typed, until the end of input. Ctrl-C throws a line away."""
    import readline

    readline.set_completer(_completer(session))
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("tab: complete")
    while True:
        try:
            yield input(f"ringway:{spell(session.here)}> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def _completer(session: Session) -> Callable[[str, int], str | None]:
    """What readline calls, once for each offer: those of one TAB are looked up at its first call."""
    import readline

    found: list[str] = []

    def complete(text: str, state: int) -> str | None:
        if state == 0:
            found[:] = offers(session, readline.get_line_buffer()[: readline.get_begidx()], text)
        return found[state] if state < len(found) else None

    return complete


def offers(session: Session, before: str, typed: str) -> list[str]:
    """What may stand for the word ``typed``, behind the words ``before``. Nothing if the daemon is silent."""
    with contextlib.suppress(Exception):
        return sorted(set(_offers(session, before.split(), typed)))
    return []


def _offers(session: Session, before: list[str], typed: str) -> Iterable[str]:
    where = session.here
    if before and is_path(before[0]):
        where = resolve(before.pop(0), where)
    if not before:
        names = [f"{name} " for name in commands_at(session.tree.find(where)[-1]) if name.startswith(typed)]
        return [*names, *(_paths(session, where, typed) if where == session.here else [])]
    if before[0] in _PATH_COMMANDS:
        return _paths(session, where, typed)
    if "=" in typed or typed.startswith(("/", "./", "../", "~")):
        return _files(typed)
    return _values(session.spelled_out(where, before[0], before[1:]), typed)


def _paths(session: Session, where: tuple[str, ...], typed: str) -> Iterator[str]:
    """Paths of the tree that begin so."""
    folder, slash, start = typed.rpartition("/")
    for name, more in session.tree.names(resolve(f"{folder}{slash}" or ".", where)):
        if name.startswith(start):
            yield f"{folder}{slash}{name}{'/' if more else ' '}"


def _files(typed: str) -> Iterator[str]:
    """Files of the host that begin so; what comes before a = stays: ``--lun 0=/dev/sd``."""
    kept, equals, path = typed.rpartition("=")
    for found in glob.iglob(f"{glob.escape(os.path.expanduser(path))}*"):
        yield f"{kept}{equals}{found}{'/' if os.path.isdir(found) else ' '}"


def _values(words: list[str], typed: str) -> Iterator[str]:
    """What click offers: options, choices, names that the daemon knows."""
    for item in ShellComplete(cli, {}, "ringway", "").get_completions(words, typed):
        if item.type == "plain":
            yield f"{item.value} "
        else:
            yield from _files(typed)
