"""What a line does. Verbs that change something are the commands of ``ringway`` itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import click

from ringway.cli.format import terminal_width
from ringway.cli.main import cli
from ringway.cli.remote import connect
from ringway.cli.shell.tree import Kind, Node, Path, Tree, draw
from ringway.cli.shell.words import is_path, resolve, spell, to_options
from ringway.errors import UsageError

#: For each kind of node its verbs, as the command they are: words in capitals are names on the way to it.
VERBS: Final[dict[Kind, dict[str, str]]] = {
    Kind.ROOT: {"info": "host info", "doctor": "host doctor", "apply": "apply", "plan": "plan"},
    Kind.ENDPOINTS: {"create": "endpoint create", "delete": "endpoint delete", "info": "endpoint list"},
    Kind.ENDPOINT: {
        "info": "endpoint show ENDPOINT",
        "set": "endpoint set ENDPOINT",
        "delete": "endpoint delete ENDPOINT",
        "wait": "endpoint wait ENDPOINT",
    },
    Kind.LUNS: {
        "create": "lun add ENDPOINT",
        "delete": "lun remove ENDPOINT",
        "info": "lun list ENDPOINT",
    },
    Kind.LUN: {
        "info": "lun show ENDPOINT LUN",
        "set": "lun limit ENDPOINT LUN",
        "resize": "lun resize ENDPOINT LUN",
        "delete": "lun remove ENDPOINT LUN",
    },
    Kind.BACKSTORES: {"info": "backstore list", "probe": "backstore probe"},
    Kind.BACKSTORE: {"info": "backstore show BACKSTORE"},
    Kind.GUESTS: {"create": "guest create", "info": "guest list"},
    Kind.GUEST: {
        "info": "guest show GUEST",
        "attach": "guest attach GUEST",
        "plug": "guest plug GUEST",
        "console": "guest console GUEST",
    },
    Kind.ATTACHMENTS: {"create": "guest attach GUEST", "delete": "guest detach GUEST"},
    Kind.ATTACHMENT: {"delete": "guest detach GUEST ATTACHMENT"},
    Kind.DISKS: {"create": "guest attach GUEST", "delete": "guest detach GUEST"},
    Kind.DISK: {"delete": "guest detach GUEST DISK"},
    Kind.PLUGS: {"create": "guest plug GUEST", "delete": "guest unplug GUEST"},
    Kind.PLUG: {"delete": "guest unplug GUEST PLUG"},
    Kind.PORTS: {"create": "port create", "delete": "port delete", "info": "port list"},
    Kind.PORT: {"info": "port show PORT", "delete": "port delete PORT"},
    Kind.OPERATIONS: {"info": "operation list", "delete": "operation cancel"},
    Kind.OPERATION: {
        "info": "operation show OPERATION",
        "wait": "operation wait OPERATION",
        "delete": "operation cancel OPERATION",
    },
    Kind.ENGINES: {"info": "host info"},
    Kind.ENGINE: {"info": "host info"},
}
_MAX_DEPTH_OF_ROOT: Final = 2
_OWN: Final = {
    "ls": "ls [PATH] [DEPTH]: show the tree from here or from PATH on.",
    "cd": "cd [PATH]: go to PATH, or to the root.",
    "pwd": "pwd: say where you are.",
    "help": "help [COMMAND]: say what can be done here.",
    "exit": "exit: leave. Nothing has to be saved.",
}


class Session:
    """Where somebody is, and what he does there."""

    def __init__(self, socket: str | None) -> None:
        self.socket = socket
        self.here: Path = ()
        self.over = False
        self.tree = Tree(connect(socket))

    def execute(self, words: Sequence[str]) -> None:
        """Carry out one line: ``[PATH] COMMAND WORD…``, or a path alone to go there.

        :raises RingwayError: what went wrong. :raises click.ClickException: the words make no sense.
        """
        if not words:
            return
        if not is_path(words[0]):
            self._run(self.here, words[0], words[1:])
        elif len(words) == 1:
            self._cd(words)
        else:
            self._run(resolve(words[0], self.here), words[1], words[2:])

    def _run(self, where: Path, command: str, words: Sequence[str]) -> None:
        own: dict[str, Callable[[Path, Sequence[str]], None]] = {"ls": self._ls, "help": self._help}
        if command in own:
            own[command](where, words)
        elif command == "cd":
            self._cd(words or ["/"], where)
        elif command == "pwd":
            _no_more("pwd", words)
            click.echo(spell(where))
        elif command in ("exit", "quit"):
            _no_more(command, words)
            self.over = True
        else:
            self._delegate(where, command, words)

    def _cd(self, words: Sequence[str], where: Path | None = None) -> None:
        _no_more("cd", words[1:])
        path = resolve(words[0], self.here if where is None else where)
        self.here = tuple(node.name for node in self.tree.find(path)[1:])

    def _ls(self, where: Path, words: Sequence[str]) -> None:
        rest = list(words)
        depth = int(rest.pop()) if rest and rest[-1].isdecimal() else None
        path = resolve(rest.pop(0), where) if rest else where
        _no_more("ls", rest)
        if depth is None and not path:
            depth = _MAX_DEPTH_OF_ROOT
        click.echo("\n".join(draw(self.tree.find(path)[-1], depth, terminal_width())))

    def _help(self, where: Path, words: Sequence[str]) -> None:
        _no_more("help", words[1:])
        verbs = VERBS[self.tree.find(where)[-1].kind]
        if not words:
            lines = [
                f"{name:<8} {_command(spelled)[0].get_short_help_str(90)}" for name, spelled in verbs.items()
            ]
            own = [f"{name:<8} {text.partition(': ')[2]}" for name, text in _OWN.items()]
            click.echo("\n".join([*own, *lines]))
        elif words[0] in _OWN:
            click.echo(_OWN[words[0]])
        elif words[0] in verbs:
            cli.main([*_command(verbs[words[0]])[1], "--help"], prog_name="ringway", standalone_mode=False)
        else:
            raise _no_command(words[0], verbs)

    def _delegate(self, where: Path, command: str, words: Sequence[str]) -> None:
        cli.main(self.spelled_out(where, command, words), prog_name="ringway", standalone_mode=False)

    def spelled_out(self, where: Path, command: str, words: Sequence[str]) -> list[str]:
        """The words behind ``ringway`` that a line stands for. :raises UsageError: no such command here."""
        nodes = self.tree.find(where)
        verbs = VERBS[nodes[-1].kind]
        if command not in verbs:
            raise _no_command(command, verbs)
        found, start = _command(verbs[command])
        names = {node.kind.name: node.name for node in nodes}
        given = [names[word] for word in verbs[command].split() if word.isupper()]
        options = {name for option in found.params for name in option.opts}
        socket = [f"--socket={self.socket}"] if self.socket and "--socket" in options else []
        return [*start, *socket, *given, *to_options(words, options)]


def commands_at(node: Node) -> Iterator[str]:
    """What may be typed at a node."""
    yield from VERBS[node.kind]
    yield from _OWN


def _command(spelled: str) -> tuple[click.Command, list[str]]:
    """The click command of an entry of the table, and the words that name it."""
    command: click.Command = cli
    names = [word for word in spelled.split() if not word.isupper()]
    for name in names:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None, name
        command = found
    return command, names


def _no_more(command: str, words: Sequence[str]) -> None:
    """:raises UsageError: there are words that a command does not take."""
    if words:
        raise UsageError(f"'{words[0]}' is too much for {command}", hint=_OWN.get(command, "see help"))


def _no_command(command: str, verbs: dict[str, str]) -> UsageError:
    return UsageError(
        f"there is no command '{command}' here",
        hint=f"there are {', '.join([*verbs, *_OWN])}; go elsewhere with cd",
    )
