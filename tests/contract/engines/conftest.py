"""Engines to test. Each fixture gives one that has a host of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ringway.engine.lio import LioDriver, Settings
from ringway.errors import GuestError
from ringway.model import EndpointSpec, EngineKind
from ringway.testing.fake_kernel import FakeKernel

from .bench import Bench


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    """A kernel target that is none. The test is skipped where that cannot be had."""
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
def settings(kernel: FakeKernel, tmp_path: Path) -> Settings:
    """Where the fake is."""
    return Settings(kernel.configfs, kernel.sysfs, tmp_path / "run", kernel.kmsg, ("false",))


@pytest.fixture
def lio(kernel: FakeKernel, settings: Settings, tmp_path: Path) -> Iterator[Bench]:
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


ENGINES = ["lio"]


@pytest.fixture(params=ENGINES)
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each engine in turn."""
    found: Bench = request.getfixturevalue(request.param)
    return found
