"""Engines to test. Each fixture gives one that has a host of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.engine.lio import LioDriver, Settings
from ringway.model import EndpointSpec, EngineKind
from ringway.testing.frontend import ScsiFrontEnd

from ..kernels import Kernel, kernel_at
from .bench import Bench
from .user_host import UserHost


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel target that is none; in a guest of the tests, the real one.

    The test is skipped where no fake can be had.
    """
    with kernel_at(tmp_path) as kernel:
        yield kernel


@pytest.fixture
def settings(kernel: Kernel, tmp_path: Path) -> Settings:
    """Where it is."""
    return Settings(kernel.configfs, kernel.sysfs, tmp_path / "run", kernel.kmsg, ("false",))


@pytest.fixture
def lio(kernel: Kernel, settings: Settings, tmp_path: Path) -> Iterator[Bench]:
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
