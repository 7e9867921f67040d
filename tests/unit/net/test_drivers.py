"""Switches by their names, ours and those of other distributions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ringway.errors import ConflictError, NotFoundError, RingwayError
from ringway.net.base import Settings
from ringway.net.drivers import names, open_switch

EXAMPLE = Path(__file__).parents[3] / "examples" / "switch-driver"
Install = Callable[[str, str, str], None]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(folder=tmp_path / "port")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution, as far as its entry point goes: its name, the switch's, the object."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(EXAMPLE))

    def install(distribution: str, switch: str, value: str) -> None:
        info = site / f"{distribution}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[ringway.switches]\n{switch} = {value}\n")

    return install


def broken(site: Path, text: str) -> None:
    (site / "broken_switch.py").write_text(text)
    sys.modules.pop("broken_switch", None)


def test_ours_are_there(settings: Settings) -> None:
    assert open_switch("external", settings).name == "external"


def test_one_that_is_not_there(settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="no switch 'vpp'") as caught:
        open_switch("vpp", settings)
    assert "external" in (caught.value.hint or "")


def test_the_example_is_found_when_it_is_installed(install: Install, settings: Settings) -> None:
    assert "files" not in names()
    install("ringway_switch_files", "files", "ringway_switch_files:FilesSwitch")
    assert "files" in names()
    assert open_switch("files", settings).name == "files"


def test_nobody_takes_the_name_of_another(install: Install, settings: Settings) -> None:
    install("impostor", "external", "ringway_switch_files:FilesSwitch")
    with pytest.raises(ConflictError, match=r"from ringway and from impostor 1\.2"):
        open_switch("external", settings)
    install("one", "files", "ringway_switch_files:FilesSwitch")
    install("two", "files", "ringway_switch_files:FilesSwitch")
    with pytest.raises(ConflictError, match=r"(one|two) 1\.2 and from (one|two) 1\.2"):
        open_switch("files", settings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "AttributeError"),
        ("def Driver(settings): raise ValueError('no port left')", "ValueError: no port left"),
        ("def Driver(settings): return object()", "it has no name, probe, resolve, check"),
        ("from ringway_switch_files import FilesSwitch as Driver", "it calls itself 'files'"),
    ],
)
def test_a_broken_one_is_named_with_its_distribution(
    install: Install, settings: Settings, tmp_path: Path, text: str, reason: str
) -> None:
    broken(tmp_path / "site", text)
    install("shoddy", "shoddy", "broken_switch:Driver")
    with pytest.raises(RingwayError, match=r"'shoddy' of shoddy 1\.2 cannot be used: ") as caught:
        open_switch("shoddy", settings)
    assert reason in caught.value.message
