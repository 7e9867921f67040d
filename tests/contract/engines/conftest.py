"""Engines to test. Each fixture gives one that has a host of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.engine.lio import LioDriver, Settings
from ringway.errors import GuestError
from ringway.model import EndpointSpec, EngineKind
from ringway.testing.fake_kernel import FakeKernel
from ringway.testing.frontend import ScsiFrontEnd
from ringway.testing.kernel_target import INSIDE
from ringway.testing.real_kernel import RealKernel

from .bench import Bench
from .user_host import UserHost


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel | RealKernel]:
    """A kernel target that is none; in a guest of the tests, the real one.

    The test is skipped where no fake can be had.
    """
    if INSIDE in os.environ:
        with RealKernel() as real:
            yield real
        return
    kernel = FakeKernel(tmp_path)
    try:
        kernel.__enter__()
    except GuestError as error:
        pytest.skip(f"{error}: {error.hint}")
    try:
        yield kernel
    finally:
        kernel.__exit__()


@pytest.fixture
def settings(kernel: FakeKernel | RealKernel, tmp_path: Path) -> Settings:
    """Where it is."""
    return Settings(kernel.configfs, kernel.sysfs, tmp_path / "run", kernel.kmsg, ("false",))


@pytest.fixture
def lio(kernel: FakeKernel | RealKernel, settings: Settings, tmp_path: Path) -> Iterator[Bench]:
    """The kernel engine."""

    def reboot() -> None:
        kernel.reboot()
        for record in (tmp_path / "run" / "lio").glob("*.json"):
            record.unlink()

    bench = Bench(
        EngineKind.LIO,
        tmp_path,
        lambda: LioDriver(settings),
        attach=lambda spec: kernel.attach(_wwpn(spec)),
        detach=lambda spec: kernel.detach(_wwpn(spec)),
        reboot=reboot,
    )
    yield bench
    bench.driver.close()


def _wwpn(spec: EndpointSpec) -> str:
    assert spec.wwpn is not None
    return spec.wwpn


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Bench]:
    """The user engine. Its sockets lie in a folder of their own: pytest's has too long a name."""
    with UserHost() as host, contextlib.ExitStack() as guests:
        bench = Bench(
            EngineKind.USER,
            tmp_path,
            host.driver,
            attach=lambda spec: _attach(guests, host, spec),
            detach=lambda _spec: guests.close(),
            reboot=host.reboot,
        )
        yield bench


def _attach(guests: contextlib.ExitStack, host: UserHost, spec: EndpointSpec) -> None:
    guests.enter_context(ScsiFrontEnd(host.places.of(spec.name).socket)).open()


ENGINES = ["lio", "user"]


@pytest.fixture(params=ENGINES)
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each engine in turn."""
    found: Bench = request.getfixturevalue(request.param)
    return found
