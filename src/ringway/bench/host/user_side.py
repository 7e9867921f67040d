"""Our user engine, on this host: a process for each endpoint, made by eight clients at once.

python -m ringway.bench.host.user_side ENDPOINTS
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any, Final

from ringway.bench.host.figures import OURS, Figure, say
from ringway.bench.host.names import name
from ringway.bench.host.ours import Api, each, proportional_set
from ringway.model import BackstoreSpec, EndpointSpec, EndpointState, LunSpec, SpecKind
from ringway.testing.daemon import Daemon

_CONFIG: Final = "[lio]\nenabled = false\n"
_DISK: Final = BackstoreSpec(SpecKind.NULL, size_bytes=1 << 30)
#: Creations before the ones that count: the spawner starts with the first.
_WARM_UP: Final = 4


def main(endpoints: int) -> None:
    """Make so many, look at their memory, and delete them."""
    with tempfile.TemporaryDirectory(prefix="rw-") as folder:
        daemon = Daemon(Path(folder))
        daemon.configure(_CONFIG)
        daemon.start()
        with daemon:
            _with_daemon(Api(daemon), endpoints)


def _with_daemon(api: Api, endpoints: int) -> None:
    for number in range(_WARM_UP):
        _create(api, number)
    rest = range(_WARM_UP, endpoints)
    begin = time.perf_counter()
    made = each(lambda number: _create(api, number), rest)
    took = time.perf_counter() - begin
    assert all(info["state"] == EndpointState.READY for info in made)
    say(Figure(OURS, "user: create", endpoints, len(rest) / took, unit="/s"))
    pids = [info["pid"] for info in api.list()]
    assert len(set(pids)) == endpoints
    memory = mean(proportional_set(pid) for pid in pids) / (1 << 20)
    say(Figure(OURS, "user: memory of a target", endpoints, memory, unit="MiB"))
    begin = time.perf_counter()
    each(lambda number: api.delete(name(number)), range(endpoints))
    say(Figure(OURS, "user: delete", endpoints, endpoints / (time.perf_counter() - begin), unit="/s"))


def _create(api: Api, number: int) -> Any:
    return api.create(EndpointSpec(name=name(number), luns=(LunSpec(0, 0, _DISK),)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
