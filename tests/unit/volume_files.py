"""The example of a resolver, installed as far as its entry point goes, with a store of one volume."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "volume-resolver"


class Files(NamedTuple):
    """Where the example has its volume, and its links."""

    image: Path
    run: Path

    def links(self) -> list[str]:
        """Those that there are, as GUEST/NAME."""
        return sorted(str(link.relative_to(self.run)) for link in self.run.rglob("*.img"))


def install_resolver(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, distribution: str = "volumes"
) -> Path:
    """Install a distribution. :returns: where its modules are looked for."""
    site = folder / "site"
    info = site / f"{distribution}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[ringway.volumes]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(str(site))
    return site


def install_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Install the example."""
    store, run = folder / "store", folder / "run"
    store.mkdir(parents=True)
    (store / "root.img").write_bytes(bytes(1 << 20))
    monkeypatch.setenv("FILES_VOLUMES", str(store))
    monkeypatch.setenv("FILES_LINKS", str(run))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    install_resolver(folder, monkeypatch, "files", "ringway_volume_files:FilesResolver")
    return Files(store / "root.img", run)
