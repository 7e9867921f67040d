"""A target in a process of its own has no privilege left while it serves, and does all that it has to."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringway.errors import BusyError, PermissionDeniedError
from ringway.model import BackstoreSpec, LunAddRequest, LunInfo, LunSpec, SpecKind
from ringway.target.sandbox import landlock
from ringway.testing.frontend import BlkFrontEnd, ScsiFrontEnd
from ringway.testing.processes import freeze
from ringway.testing.target import ServedTarget
from ringway.testing.waiting import PATIENCE_S, wait_until

from .. import cdb

MIB = 1 << 20
NOTHING = "0" * 16
LOOKING = 1 << 1 | 1 << 2 | 1 << 19  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE
WITHOUT_LIBRARY = "import sys; sys.modules['pyseccomp'] = None; from ringway.cli.main import main; main()"

#: Fails where a part is missing; an older kernel's Landlock misses parts, and all else is there.
WHOLE = "on" if landlock.missing(landlock.abi()) is None else "auto"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a target becomes another user as root only")

Target = Callable[..., ServedTarget]


@pytest.fixture
def image(run_dir: Path) -> Path:
    path = run_dir / "disk.img"
    path.touch()
    os.truncate(path, 16 * MIB)
    return path


@pytest.fixture
def target(run_dir: Path, image: Path) -> Iterator[ServedTarget]:
    """A scsi target whose confinement is as whole as this kernel has it."""
    with ServedTarget(run_dir, image.name, "--queues", "2", "--workers", "2", "--sandbox", WHOLE) as served:
        yield served


def fields(pid: int, name: str) -> set[str]:
    """What all threads of a process have in a line of their status."""
    status = []
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends with its client's question
            status.append(path.read_text())
    assert len(status) > 3, "a target has more threads than that"
    return {value for text in status for value in re.findall(rf"^{name}:\t(.*)$", text, re.MULTILINE)}


def check_confined(pid: int) -> None:
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert fields(pid, name) == {NOTHING}, name
    assert fields(pid, "NoNewPrivs") == {"1"}
    assert fields(pid, "Seccomp") == {"2"}
    if os.geteuid() == 0:
        assert fields(pid, "CapBnd") == {NOTHING}
        assert fields(pid, "Groups") == {" "}
        (uids,) = fields(pid, "Uid")
        assert set(uids.split()) == {str(0x7000_0000 + pid)}


def test_no_thread_has_a_privilege_before_during_and_after_a_front_end(target: ServedTarget) -> None:
    check_confined(target.pid)
    with ScsiFrontEnd(target.socket).open() as front:
        ready(front, 0)
        assert front.command(cdb.read(0, 1), data_in=512).status == cdb.GOOD
        target.info()
        check_confined(target.pid)
    target.wait_message("left")
    check_confined(target.pid)


def test_two_targets_are_two_users(target: ServedTarget, run_dir: Path) -> None:
    with ServedTarget(run_dir, "null:1G", name="other") as other:
        if os.geteuid() == 0:
            assert not fields(target.pid, "Uid") & fields(other.pid, "Uid")
        assert not fields(target.pid, "Pid") & fields(other.pid, "Pid")


@as_root
def test_a_user_can_be_named(run_dir: Path) -> None:
    with ServedTarget(run_dir, "null:1G", "--user", "54321") as target:
        assert fields(target.pid, "Uid") == {"\t".join(["54321"] * 4)}
        assert fields(target.pid, "Gid") == {"\t".join(["54321"] * 4)}


def test_disks_come_and_grow_while_it_runs(target: ServedTarget, run_dir: Path) -> None:
    second = run_dir / "second.img"
    second.touch()
    os.truncate(second, MIB)
    link = run_dir / "link.img"
    link.symlink_to(second)
    with ScsiFrontEnd(target.socket).open() as front:
        run("target", "add", target.socket, f"1={link}")
        ready(front, 1)
        assert front.command(cdb.read(0, 1), lun=1, data_in=512).status == cdb.GOOD
        os.truncate(second, 2 * MIB)
        assert "2 MiB" in run("target", "resize", target.socket, "1").stdout
    serial = target.info().luns[1].serial
    target.kill()
    target.start("--lun", f"1={second}")
    assert target.info().luns[1].serial == serial, "the link was followed when the disk was added"


def test_who_uses_a_disk_is_named(target: ServedTarget, run_dir: Path, image: Path) -> None:
    result = run("target", "add", target.socket, f"1={image}", status=6)
    assert "another disk of this target" in result.stderr
    other = run_dir / "other.img"
    other.touch()
    os.truncate(other, MIB)
    with ServedTarget(run_dir, other.name, name="other") as holder:
        result = run("target", "add", target.socket, f"1={other}", status=BusyError.exit_status)
        assert f"pid {holder.pid} (" in result.stderr


def test_an_image_that_may_not_be_had_is_explained_by_who_asks(target: ServedTarget, run_dir: Path) -> None:
    result = run("target", "add", target.socket, f"1={run_dir}/nothing.img", status=3)
    assert "nothing.img' does not exist" in result.stderr
    assert "is a directory" in run("target", "add", target.socket, f"1={run_dir}", status=1).stderr


def test_a_path_without_a_file_is_refused(target: ServedTarget, image: Path) -> None:
    disk = LunSpec(0, 1, BackstoreSpec(SpecKind.PATH, str(image)))
    with target.control() as client, pytest.raises(PermissionDeniedError, match="opens no files") as refusal:
        client.call(LunAddRequest(disk), LunInfo)
    assert "send the open file along" in str(refusal.value.hint)


@pytest.fixture
def device(image: Path) -> Iterator[str]:
    """A block device."""
    losetup = shutil.which("losetup", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if losetup is None or os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices need root, losetup and /dev/loop-control")
    attach = [losetup, "--find", "--show", str(image)]
    name = subprocess.run(
        attach, check=True, capture_output=True, text=True, timeout=PATIENCE_S
    ).stdout.strip()
    yield name
    subprocess.run([losetup, "--detach", name], check=True, timeout=PATIENCE_S)


def is_claimed(device: str) -> bool:
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def test_a_device_is_claimed_after_the_right_to_open_it_is_gone(run_dir: Path, device: str) -> None:
    """An incoming migration's destination claims it when a guest comes; a disk that is added, at once."""
    with ServedTarget(run_dir, device, "--incoming", "--sandbox", WHOLE) as target:
        assert not is_claimed(device)
        with ScsiFrontEnd(target.socket).open() as front:
            ready(front, 0)
            assert is_claimed(device)
    with ServedTarget(run_dir, "null:1G", "--sandbox", WHOLE) as target:
        run("target", "add", target.socket, f"1={device}")
        assert is_claimed(device)
        result = run("target", "add", target.socket, f"2={device}", status=6)
        assert "in use" in result.stderr
        run("target", "remove", target.socket, "1")
        assert not is_claimed(device)


def test_its_sockets_go_with_it_and_nothing_else(target: ServedTarget, run_dir: Path) -> None:
    assert target.stop() == 0
    assert os.listdir(run_dir) == ["disk.img"]


def test_its_steward_keeps_little_and_ends_with_it_however_it_ends(target: ServedTarget) -> None:
    (steward,) = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
    assert Path(f"/proc/{steward}/comm").read_text() == "ringway-steward\n"
    assert [os.readlink(link) for link in Path(f"/proc/{steward}/fd").iterdir()].count("/dev/null") == 3
    status = dict(re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{steward}/status").read_text(), re.MULTILINE))
    assert int(status["CapEff"], 16) & ~LOOKING == int(status["CapPrm"], 16) & ~LOOKING == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    pipe = os.pidfd_open(int(steward))
    target.kill()
    os.set_blocking(pipe, False)
    assert wait_for_end(pipe)


def test_neither_keeps_the_library_that_made_their_filters(target: ServedTarget) -> None:
    """Nor OpenSSL's: 1 and 4 MiB for each of hundreds of targets."""
    (steward,) = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
    for pid in (target.pid, steward):
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "_core.abi3.so" in mapped
        assert not re.search("libseccomp|libcrypto", mapped)


def test_a_target_outlives_its_steward(target: ServedTarget, run_dir: Path) -> None:
    """Names are missing in the log, and its sockets stay; the next start replaces them."""
    (steward,) = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
    os.kill(int(steward), signal.SIGKILL)
    target.wait_message("steward has ended")  # though nobody has asked for it
    with ScsiFrontEnd(target.socket).open() as front:
        ready(front, 0)
        target.wait_message(r"pid \d+ \(\?\) came")
        run("target", "add", target.socket, "1=ram:1M")
        ready(front, 1)
    assert target.stop() == 0
    target.wait_message("could not be removed.*steward has ended")
    assert sum("guests are served on" in line["message"] for line in target.log) == 1
    target.start()
    assert len(target.info().luns) == 1


def test_what_needs_a_steward_that_is_gone_says_so(run_dir: Path, device: str) -> None:
    with ServedTarget(run_dir, "null:1G", "--sandbox", "on") as target:
        (steward,) = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
        os.kill(int(steward), signal.SIGKILL)
        result = run("target", "add", target.socket, f"1={device}", status=1)
        assert "cannot be claimed: the target's steward has ended" in result.stderr
        assert len(target.info().luns) == 1


def test_a_steward_that_hangs_is_waited_for_once(target: ServedTarget, image: Path) -> None:
    """It may hang with a file of some process that it looks at. Every connection waited for it in turn."""
    (steward,) = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
    with ScsiFrontEnd(target.socket).open() as front, contextlib.ExitStack() as closing:
        freeze(int(steward))
        others = [closing.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(10)]
        for other in others:
            other.settimeout(PATIENCE_S)
            other.connect(target.socket)
        assert others[-1].recv(1) == b"", "the last one is turned away in time"
        ready(front, 0)
    os.kill(int(steward), signal.SIGCONT)
    again = ("target", "add", target.socket, f"1={image}")
    wait_until(lambda: "another disk of" in run(*again, status=6).stderr, "the steward to answer again")
    assert target.stop() == 0
    assert not os.path.exists(target.socket)


def ready(front: ScsiFrontEnd, lun: int) -> None:
    """Take the unit attentions that a disk begins with."""
    while front.command(cdb.TEST_UNIT_READY, lun=lun).status:
        pass


def wait_for_end(process: int) -> bool:
    poller = select.poll()
    poller.register(process, select.POLLIN)
    return bool(poller.poll(PATIENCE_S * 1000))


def test_an_image_that_was_made_in_vain_is_removed_by_a_confined_target(run_dir: Path) -> None:
    """A name space without room for a thread fails a target after it gave up its rights."""
    script = (
        "import resource, sys; from ringway import _core; from ringway.cli.main import main\n"
        "from ringway.target import target\n"
        "def fail(config): raise OSError(11, 'no thread can be had')\n"
        "target.make_core = fail\n"
        "sys.argv[1:] = ['serve', '--create', '1G', 'new.img']; main()"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(
        command, cwd=run_dir, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert result.returncode == 1
    assert "no thread can be had" in result.stderr
    assert os.listdir(run_dir) == []


def test_info_says_what_a_target_may_still_do(target: ServedTarget) -> None:
    """As the kernel does."""
    sandbox = target.info().sandbox
    assert {str(sandbox.uid)} == {uid for uids in fields(target.pid, "Uid") for uid in uids.split()}
    assert (sandbox.mode, sandbox.capabilities, sandbox.seccomp) == (WHOLE, 0, True)
    assert sandbox.landlock_abi == min(landlock.abi(), 6)
    assert bool(sandbox.missing) is (landlock.abi() < 6)
    table = run("target", "info", target.socket).stdout
    assert f"sandbox {WHOLE}: user {sandbox.uid}, no capabilities, " in table
    if WHOLE == "on":
        assert table.splitlines()[1].endswith(", no capabilities, Landlock ABI 6, seccomp")


def test_info_says_what_could_not_be_given_up(run_dir: Path) -> None:
    with lacking_library("auto", run_dir) as target:
        assert target.stderr is not None
        assert any('"ready"' in line for line in target.stderr)
        lines = run("target", "info", f"{run_dir}/x.sock").stdout.splitlines()
        assert lines[1].endswith("no seccomp")
        assert "  not offered here: seccomp (libseccomp is not installed)" in lines
        target.terminate()


def lacking_library(mode: str, run_dir: Path) -> subprocess.Popen[str]:
    """A target where libseccomp is not installed."""
    serve = ["serve", "null:1G", "--socket", "x.sock", "--sandbox", mode]
    command = [sys.executable, "-c", WITHOUT_LIBRARY, *serve]
    return subprocess.Popen(command, cwd=run_dir, stdout=-3, stderr=-1, text=True)


def test_off_is_loud(run_dir: Path) -> None:
    with ServedTarget(run_dir, "null:1G", "--sandbox", "off") as target:
        entry = target.wait_message("THE SANDBOX IS OFF")
        assert entry["level"] == "warning"
        assert fields(target.pid, "Seccomp") == {"0"}
        sandbox = target.info().sandbox
        assert (sandbox.landlock_abi, sandbox.seccomp) == (0, False)
        assert {f"{sandbox.capabilities:016x}"} == fields(target.pid, "CapEff")
        assert fields(target.pid, "Uid") == {"\t".join([str(os.geteuid())] * 4)}


@as_root
def test_serving_as_root_is_said(run_dir: Path) -> None:
    with ServedTarget(run_dir, "null:1G", "--user", "root") as target:
        entry = target.wait_message("serving as root, as --user says")
        assert entry["level"] == "warning"
        assert fields(target.pid, "CapEff") == {NOTHING}


def test_on_fails_without_a_part_and_auto_says_so(run_dir: Path) -> None:
    with lacking_library("on", run_dir) as strict:
        assert "seccomp (libseccomp is not installed)" in strict.communicate(timeout=PATIENCE_S)[1]
    assert strict.returncode == 6
    assert os.listdir(run_dir) == []
    with lacking_library("auto", run_dir) as lax:
        assert lax.stderr is not None
        assert any("does not offer seccomp" in line for line in lax.stderr)
        assert fields(lax.pid, "NoNewPrivs") == {"1"}
        lax.terminate()


@pytest.mark.parametrize("name", ["scsi", "blk"])
def test_back_end_programs_are_confined_too(name: str, run_dir: Path, image: Path) -> None:
    disk = ["--lun", f"0={image}"] if name == "scsi" else ["--blk-file", str(image)]
    script = f"from ringway.cli.program import {name}; {name}()"
    command = [sys.executable, "-c", script, "--socket-path", "p.sock", *disk]
    with subprocess.Popen(command, cwd=run_dir, stderr=-1, text=True) as program:
        assert program.stderr is not None
        assert any('"ready"' in line for line in program.stderr)
        front_end = ScsiFrontEnd if name == "scsi" else BlkFrontEnd
        with front_end(str(run_dir / "p.sock")).open():
            check_confined(program.pid)
        program.terminate()
    assert program.returncode == 0
    assert os.listdir(run_dir) == ["disk.img"]


def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A command of the shell, beside the target."""
    command = [sys.executable, "-m", "ringway", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert result.returncode == status, result.stderr
    return result
