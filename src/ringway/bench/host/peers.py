"""What ours is compared with: rtslib-fb from PyPI and Debian's targetcli-fb, unpacked and never installed.

Both go below ``$RINGWAY_PEERS`` (by default ``~/.cache/ringway/peers``), outside of the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ringway.errors import NotFoundError

RTSLIB_VERSION: Final = "2.2.4"
#: Debian's targetcli and what it imports; its interpreter is the system's.
PACKAGES: Final = (
    "targetcli-fb",
    "python3-rtslib-fb",
    "python3-configshell-fb",
    "python3-pyudev",
    "python3-urwid",
    "python3-six",
    "python3-pyparsing",
    "python3-gi",
    "gir1.2-glib-2.0",
    "libgirepository-1.0-1",
)
SYSTEM_PYTHON: Final = "/usr/bin/python3"
_HINT: Final = "the host's benchmark needs pip and apt-get to reach a package mirror, once"


def rtslib() -> Path:
    """Return the folder to import rtslib from, fetched at the first call.

    :raises NotFoundError: it cannot be had.
    """
    return _kept(f"rtslib-{RTSLIB_VERSION}", _fetch_rtslib)


def targetcli() -> Path:
    """Return the folder that Debian's packages are unpacked in, fetched at the first call.

    :raises NotFoundError: they cannot be had.
    """
    if not Path(SYSTEM_PYTHON).exists() or not shutil.which("dbus-daemon"):
        raise NotFoundError(f"targetcli needs {SYSTEM_PYTHON} and dbus-daemon", hint=_HINT)
    return _kept("targetcli", _fetch_targetcli)


def targetcli_version(folder: Path) -> str:
    """What Debian calls it."""
    return (folder / "version").read_text().strip()


def targetcli_environment(folder: Path) -> dict[str, str]:
    """What has to be in the environment for it to find its parts."""
    libraries = folder / "usr" / "lib" / "x86_64-linux-gnu"
    return {
        "PYTHONPATH": str(folder / "usr" / "lib" / "python3" / "dist-packages"),
        "GI_TYPELIB_PATH": str(libraries / "girepository-1.0"),
        "LD_LIBRARY_PATH": str(libraries),
        "PATH": os.environ["PATH"],
        "HOME": "/root",
    }


def root() -> Path:
    """Return the folder below which both lie."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("RINGWAY_PEERS") or cache / "ringway" / "peers")


def _kept(name: str, fetch: Callable[[Path], None]) -> Path:
    folder = root() / name
    if not folder.exists():
        root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root()) as work:
            fetch(Path(work))
            (Path(work) / "tree").rename(folder)
    return folder


def _fetch_rtslib(work: Path) -> None:
    wanted = (f"rtslib-fb=={RTSLIB_VERSION}", "pyudev")
    _run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(work / "tree"), *wanted],
        work,
    )


def _fetch_targetcli(work: Path) -> None:
    (work / "tree").mkdir()
    _run(["apt-get", "-q", "download", *PACKAGES], work)
    for package in work.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(work / "tree")], work)
    versions = [path.name.split("_")[1].replace("%3a", ":") for path in work.glob("targetcli-fb_*.deb")]
    (work / "tree" / "version").write_text(versions[0])


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=300)
    except FileNotFoundError as error:
        raise NotFoundError(f"{command[0]} is not there", hint=_HINT) from error
    except subprocess.SubprocessError as error:
        last = (getattr(error, "stderr", "") or "").strip().splitlines()[-1:]
        raise NotFoundError(
            f"{' '.join(command[:3])} failed: {''.join(last) or error}", hint=_HINT
        ) from error
