"""The command over another build of the core: ``python -m ringway.testing.with_core CORE.so serve …``.

Nothing here imports the core that is installed: whoever comes first decides which one a process has.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys

import ringway

_NAME = "ringway._core"


def use_core(path: str) -> None:
    """Make a shared object ``ringway._core`` of this process. :raises ImportError: it is none."""
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{path}' is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_NAME] = module
    setattr(ringway, "_core", module)  # noqa: B010 - `from ringway import _core` looks there


if __name__ == "__main__":
    use_core(sys.argv.pop(1))
    runpy.run_module("ringway", run_name="__main__", alter_sys=True)
