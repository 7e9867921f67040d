"""Tests in this folder run inside of a guest with a kernel target, all of them in one, and are reported here.

Outside, the first test that is due boots the guest and lets pytest run all that were chosen; each test is
then what it was in the guest. Those that are marked ``after_reset`` run after the guest's reset button was
pressed, when only :data:`~ringway.testing.kernel_target.KEPT` is as it was.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ringway.bench.host import peers
from ringway.errors import GuestError, NotFoundError
from ringway.testing import configfs
from ringway.testing.kernel_target import INSIDE, KEPT, KernelTarget

HERE: Final = Path(__file__).parent
#: Where rtslib is, for the tests that show what it does otherwise.
RTSLIB: Final = "RINGWAY_RTSLIB"
REPORTS: Final = "/run/reports"
#: All tests and two boots: ten minutes on a machine that is busy otherwise.
RUN_TIMEOUT_S: Final = 3600 if os.environ.get("RINGWAY_LONG") == "1" else 1800
#: Where the output of pytest itself is among its reports.
WORDS: Final = ""
#: rtslib wants the first folder; the kernel keeps reservations in it, and takes it for its own when it is
#: there as the module is loaded.
_PREPARE: Final = f"mkdir -p {KEPT}/target/pr && ln -sfn {KEPT}/target /etc/target && modprobe vhost_scsi"
_CONSOLE: Final = Path("/dev/ttyS0")

Reports = dict[str, list[dict[str, Any]]]
_stash: Final = pytest.StashKey[Reports]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "after_reset: runs after the guest's reset, in the same run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Outside, the first test waits for all of them, and in another process so do the others."""
    for item in items:
        if item.path.is_relative_to(HERE) and INSIDE not in os.environ:
            item.add_marker(pytest.mark.timeout(RUN_TIMEOUT_S + 60), append=False)


# Inside


def pytest_runtest_logstart(nodeid: str) -> None:
    """Say on the console where we are, for the case that nothing is heard of us any more."""
    if INSIDE in os.environ:
        _CONSOLE.write_text(f"\n{nodeid}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if INSIDE in os.environ:
        data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
        with open(REPORTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(data, default=str) + "\n")
    return report


@pytest.fixture(autouse=True)
def empty_configfs() -> Iterator[None]:
    """Begin with nothing in the kernel, and leave nothing."""
    configfs.clear()
    yield
    configfs.clear()


@pytest.fixture(scope="session")
def capabilities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where libvirtds remember what QEMU can do."""
    return tmp_path_factory.mktemp("capabilities")


@pytest.fixture(scope="session", autouse=True)
def lab() -> None:
    """Outside this looks for what makes a guest; here we are in one."""


# Outside


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Report what became of a test in the guest, instead of running it here."""
    if INSIDE in os.environ or not item.path.is_relative_to(HERE):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = _reports(item)
    for data in reports.get(item.nodeid) or [_missing(item, reports)]:
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item) -> Reports:
    """What the guest reported; the first process that asks boots it, and the others wait."""
    config = item.config
    if _stash not in config.stash:
        folder: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        shared = folder.parent if hasattr(config, "workerinput") else folder
        with (shared / "kernel-target.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = shared / "kernel-target.json"
            if not kept.exists():
                kept.write_text(json.dumps(_run_all(item.session, shared / "kept.img")))
            config.stash[_stash] = json.loads(kept.read_text())
    return config.stash[_stash]


def _run_all(session: pytest.Session, image: Path) -> Reports:
    """Run all chosen tests of this folder in one guest; :data:`WORDS` has what it said beside that."""
    chosen = [item for item in session.items if item.path.is_relative_to(HERE)]
    later = [item for item in chosen if item.get_closest_marker("after_reset")]
    reports: Reports = {WORDS: []}
    try:
        with KernelTarget(kept=image, environment=_environment()) as guest:
            _run_in(guest, [item for item in chosen if item not in later], reports)
            if later:
                guest.run("sync")
                guest.reset()
                _run_in(guest, later, reports)
    except GuestError as error:
        reports[WORDS].append({"text": f"{error}\n{error.hint or ''}"})
    return reports


def _environment() -> dict[str, str]:
    long = {name: os.environ[name] for name in ("RINGWAY_LONG",) if name in os.environ}
    try:
        return {**long, RTSLIB: str(peers.rtslib())}
    except NotFoundError:
        return long


def _run_in(guest: KernelTarget, items: list[pytest.Item], reports: Reports) -> None:
    """Let pytest run these in the guest. :raises GuestError: the guest is gone, or it took too long."""
    if not items:
        return
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    guest.run(f"{_PREPARE} && : >{REPORTS}")
    line = guest.line((*pytest_, *(item.nodeid for item in items)), folder=items[0].config.rootpath)
    reports[WORDS].append({"text": guest.try_run(line, timeout_s=RUN_TIMEOUT_S).text[-4000:]})
    for data in map(json.loads, guest.run(f"cat {REPORTS}").splitlines()):
        reports.setdefault(data["nodeid"], []).append(data)


def _missing(item: pytest.Item, reports: Reports) -> dict[str, Any]:
    """The report on a test that the guest did not report on."""
    text = "\n".join(["the guest did not report on this test", *(words["text"] for words in reports[WORDS])])
    report = pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
    data: dict[str, Any] = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
    return data
