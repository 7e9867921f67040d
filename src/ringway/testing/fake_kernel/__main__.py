"""``python -m ringway.testing.fake_kernel MOUNTPOINT``: runs until somebody unmounts it, or SIGTERM."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from ringway.testing.fake_kernel.tree import TreeServer
from ringway.testing.fake_kernel.whole import whole_tree


def main() -> None:
    """Mount, say ``ready``, serve."""
    parser = argparse.ArgumentParser(description="a kernel target that is none, for tests")
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument(
        "--dbroot", type=Path, default=Path("/var/target"), help="where reservations are kept"
    )
    parser.add_argument("--modules", default="target_core_mod,vhost_scsi", help="what is loaded")
    parser.add_argument("--stop-with-stdin", action="store_true", help="end when standard input does")
    options = parser.parse_args()
    tree = whole_tree(set(options.modules.split(",")), options.dbroot)
    server = TreeServer(options.mountpoint, tree)
    signal.signal(signal.SIGTERM, lambda *_: server.mount.unmount())
    if options.stop_with_stdin:
        threading.Thread(target=_stop_with_stdin, args=(server,), daemon=True).start()
    print("ready", flush=True)
    try:
        server.mount.serve()
    finally:
        server.mount.unmount()


def _stop_with_stdin(server: TreeServer) -> None:
    sys.stdin.read()
    server.mount.unmount()


main()
