"""The program ringwayd by its command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ringway.testing.waiting import PATIENCE_S


def ringwayd(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run it. :param before: Python that runs first."""
    code = f"{before}\nfrom ringway.cli.daemon import main\nmain()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_help_says_what_signals_do_and_imports_no_server() -> None:
    import_guard = "import sys\nsys.modules['starlette'] = sys.modules['msgspec'] = None"
    done = ringwayd("--help", before=import_guard)
    assert done.returncode == 0
    assert all(
        word in done.stdout for word in ("SIGTERM", "SIGHUP", "--directory", "--check", "Exit statuses")
    )


def test_check_shows_each_value_and_its_origin(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10.toml").write_text('[user]\ngroup = "disk"\n[daemon]\nreconcile_s = 7\n')
    done = ringwayd("--directory", str(tmp_path), "--check")
    assert done.returncode == 0
    assert f'user.group = "disk"  # {tmp_path}/conf.d/10.toml' in done.stdout
    assert f"daemon.reconcile_s = 7.0  # {tmp_path}/conf.d/10.toml" in done.stdout
    assert "daemon.parallel = 8  # built in" in done.stdout
    assert not (tmp_path / "run").exists()


def test_check_refuses_what_the_daemon_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "ringway.toml").write_text("[api]\nconnections = 1\n")
    done = ringwayd("--directory", str(tmp_path), "--check")
    assert done.returncode == 2
    assert "api.connections" in done.stderr


def test_without_its_packages_it_says_how_to_get_them(tmp_path: Path) -> None:
    done = ringwayd("--directory", str(tmp_path), before="import sys\nsys.modules['starlette'] = None")
    assert done.returncode == 1
    assert "starlette" in done.stderr
    assert "pip install 'ringway[daemon]'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_closed_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").touch()  # closed to root, too
    done = ringwayd("--directory", str(tmp_path))
    assert done.returncode in (1, 4)
    assert f"{os.fspath(tmp_path)}/run" in done.stderr
    assert "Traceback" not in done.stderr
