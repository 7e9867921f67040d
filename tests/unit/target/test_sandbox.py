"""What a confined process cannot do any more, tried in a real one; what is said of hosts that offer less."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.errors import NotFoundError, PermissionDeniedError, UsageError
from ringway.model import SandboxMode
from ringway.target import host
from ringway.target.sandbox import Sandbox, filters, landlock, privileges, steward, syscalls
from ringway.testing.waiting import PATIENCE_S

CONFINED = Path(__file__).with_name("confined.py")
REFUSED = {"EPERM", "EACCES"}
DEADLY = {"run a program", "trace", "read another's memory", "mount", "a namespace", "another ring"}
ALLOWED = {
    *("share memory", "map data", "a thread", "an event", "a fence for all threads"),
    *("ask who a process is", "remove what it made"),
}

#: ABI of Landlock -> what it forbids without the filter; 0: what needs no Landlock.
WITHOUT_FILTER = {
    0: {"become root", "another root"},
    1: {"read a file", "make a file", "remove a file"},
    4: {"connect to a port", "bind a port"},
    6: {"an abstract socket", "kill another process"},
}
with_each_abi = pytest.mark.parametrize(
    "abi",
    [
        pytest.param(
            abi, marks=pytest.mark.skipif(landlock.abi() < abi, reason=f"needs Landlock's ABI {abi}")
        )
        for abi in WITHOUT_FILTER
    ],
)
starters = pytest.mark.parametrize(
    "who",
    [
        pytest.param("root", marks=pytest.mark.skipif(os.geteuid() != 0, reason="not run as root")),
        pytest.param("user", marks=pytest.mark.skipif(os.geteuid() != 0, reason="not run as root")),
    ],
)


def attempts(thread: str, who: str, folder: Path) -> dict[str, str]:
    """What became of each attempt of ``confined.py``."""
    command = [sys.executable, str(CONFINED), thread, who, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stderr
    found: dict[str, str] = json.loads(result.stdout)
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder that every user reaches."""
    with tempfile.TemporaryDirectory(prefix="rw-") as name:
        os.chmod(name, 0o777)
        yield Path(name)


@starters
@pytest.mark.parametrize("thread", ["main", "early", "late"])
def test_a_sealed_process_does_what_a_target_does_and_nothing_else(
    thread: str, who: str, folder: Path
) -> None:
    found = attempts(thread, who, folder)
    assert {name: found.pop(name) for name in DEADLY} == dict.fromkeys(DEADLY, "SIGSYS")
    assert {name: found.pop(name) for name in ALLOWED} == dict.fromkeys(ALLOWED, "done")
    assert len(found) > 20
    assert {name: what for name, what in found.items() if what not in REFUSED} == {}
    assert os.listdir(folder) == ["file"], "its steward removed what it had made, and nothing else"


@with_each_abi
@starters
def test_files_sockets_and_rights_are_gone_without_the_filter(who: str, abi: int, folder: Path) -> None:
    found = attempts("files", who, folder)
    assert found.keys() == set().union(*WITHOUT_FILTER.values())
    assert {name: found[name] for name in WITHOUT_FILTER[abi] if found[name] not in REFUSED} == {}


def test_an_older_kernel_is_asked_for_what_it_knows() -> None:
    assert "opening files" in str(landlock.missing(0))
    assert "TCP ports" in str(landlock.missing(3))
    assert "abstract" in str(landlock.missing(5))
    assert landlock.missing(6) is None
    assert landlock.missing(99) is None


@pytest.mark.parametrize("abi", [version for version in range(1, 7) if version <= landlock.abi()])
def test_each_older_abi_forbids_to_open_files(abi: int) -> None:
    """This kernel takes the rules of every older one."""
    script = (
        "from ringway.target.sandbox import landlock, privileges\n"
        "privileges.forbid_new_privileges()\n"
        f"landlock.restrict_self({abi})\n"
        "open('/etc/passwd')"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "PermissionError: [Errno 13]" in result.stderr


def test_users_are_found_by_name_and_number() -> None:
    assert privileges.find_user("root") == privileges.User(0, 0)
    assert privileges.find_user("123456789") == privileges.User(123456789, 123456789)
    for nobody in ("no-such-user", "", "99999999999"):
        with pytest.raises(NotFoundError, match="no user"):
            privileges.find_user(nobody)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to stop being it")
def test_only_root_serves_as_another() -> None:
    script = (
        "import os; from ringway.target.sandbox import Sandbox; from ringway.model import SandboxMode\n"
        "os.setuid(54321)\n"
        "Sandbox(SandboxMode.AUTO, '54321')\n"
        "Sandbox(SandboxMode.AUTO, 'root')"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"{PermissionDeniedError.__name__}: only root can serve as user 'root'" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to stop being it")
@pytest.mark.parametrize("taken", [False, True])
def test_an_own_user_is_nobody_elses(taken: bool) -> None:
    """Targets of two PID namespaces can have one number, and were one user then."""
    script = (
        "import os; from ringway.target.sandbox import privileges\n"
        "first = next(privileges.own_users())\n"
        "ready, other = os.pipe(), os.pipe()\n"
        f"if {taken} and os.fork() == 0:\n"
        "    os.close(other[1])\n"
        "    privileges.become(first); os.write(ready[1], b'x'); os.read(other[0], 1); os._exit(0)\n"
        f"if {taken}: os.read(ready[0], 1)\n"
        "with privileges.own_user() as user: privileges.become(user)\n"
        "print(user == first, (user.uid - first.uid) % (1 << 22), os.getresuid() == (user.uid,) * 3)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout == f"{not taken} 0 True\n", result.stderr


@pytest.mark.parametrize("flags", [os.O_PATH, os.O_WRONLY])
def test_a_steward_opens_no_device_for_who_could_not_read_it(flags: int) -> None:
    """Anybody gets a place in /dev (O_PATH) and may send it to a target: root's rights opened it."""
    devices = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    if not devices or (flags == os.O_WRONLY and not os.access(devices[0], os.W_OK)):
        pytest.skip("there is no block device here that could be opened like this")
    fd = os.open(devices[0], flags | os.O_CLOEXEC)
    try:
        with pytest.raises(PermissionError, match="was opened for reading"):
            steward._answer(host.Question.OPEN_EXCLUSIVE, "", fd)
    finally:
        os.close(fd)


def test_a_user_without_a_sandbox_is_a_contradiction() -> None:
    with pytest.raises(UsageError, match="--user is a part of the sandbox"):
        Sandbox(SandboxMode.OFF, "root")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to lose the right")
@pytest.mark.parametrize(("user", "outcome"), [("None", "['a user of its own ("), ("'54321'", "54321: Oper")])
def test_a_user_that_cannot_be_had_is_said_and_one_that_was_named_is_needed(user: str, outcome: str) -> None:
    """As in a container that has no CAP_SETUID."""
    script = (
        "from ringway.target.sandbox import Sandbox, privileges; from ringway.model import SandboxMode\n"
        f"sandbox = Sandbox(SandboxMode.AUTO, {user})\n"
        "privileges.drop_capabilities()\n"
        "sandbox.confine()\n"
        "print([each for each in sandbox.missing if 'user' in each])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert outcome in result.stdout + result.stderr


def test_a_sandbox_that_is_off_changes_nothing() -> None:
    with Sandbox(SandboxMode.OFF) as sandbox:
        sandbox.confine()
        sandbox.seal()
        assert sandbox.missing == ()
    assert Path("/proc/self/status").read_text().count("NoNewPrivs:\t0") == 1


def test_a_process_with_threads_is_not_confined() -> None:
    script = (
        "import threading\n"
        "from ringway.target.sandbox import Sandbox\n"
        "from ringway.model import SandboxMode\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "Sandbox(SandboxMode.AUTO).confine()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "RuntimeError: a process is confined before it has threads" in result.stderr


def test_the_tables_name_system_calls() -> None:
    """A misspelt name would be left out silently, as one of another machine is."""
    lib = filters.library()
    names = [*syscalls.ALLOWED, *syscalls.DEADLY]
    unknown = [name for name in names if lib.resolve_syscall(lib.Arch.X86_64, name) == -1]
    assert unknown == []
    assert len(set(names)) == len(names)


_LONG_QUESTIONS = """
import os
from ringway.target.host import Question
from ringway.target.sandbox.steward import MAX_MESSAGE, Steward
steward = Steward.start(None)
steward.begin({})
steward.ask(Question.REMOVE, "/" + "\\udcff" * 4094)
try:
    steward.ask(Question.REMOVE, "x" * MAX_MESSAGE)
except OSError as error:
    print(error.strerror)
print(steward.ask(Question.COMMAND_NAME, str(os.getpid()))[0] != "?")
steward.close()
"""


def test_a_steward_takes_any_path_and_is_sent_nothing_longer() -> None:
    """A path that is no text is six times as long on its way; what was cut off ended the steward."""
    result = subprocess.run(
        [sys.executable, "-c", _LONG_QUESTIONS],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    refusal, answered = result.stdout.splitlines()
    assert "the steward takes 32768" in refusal
    assert answered == "True", "and it is still there"
