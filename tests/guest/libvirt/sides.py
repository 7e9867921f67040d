"""Two hosts that share an image: each its libvirtd and its ringwayd, under the paths that both have."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ringway.errors import GuestError
from ringway.testing.daemon import Daemon
from ringway.testing.libvirtd import Libvirtd
from ringway.testing.small_host import SmallHost, connect
from ringway.testing.waiting import wait_until

_CONFIGURATION: Final = """\
[lio]
enabled = false
[guests]
enabled = true
uri = "{uri}"
"""


class Side:
    """One of them.

    :param folder: what it has to itself. :param here: where it finds that.
    """

    def __init__(self, host: SmallHost, folder: Path, here: Path, cache: Path) -> None:
        self.host = host
        self.libvirtd = Libvirtd(folder / "libvirt", cache=cache, popen=host.popen, listen=host.name)
        self.daemon = Daemon(folder / "ringway", popen=host.popen, here=here / "ringway")
        self.daemon.configure(_CONFIGURATION.format(uri=self.libvirtd.uri))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Both of its daemons run."""
        with self.libvirtd, self.daemon:
            self.daemon.start()
            yield

    def serve(self, image: Path, **spec: Any) -> Any:
        """Have an endpoint 'db0'. :returns: what it is."""
        luns = [{"target": 0, "lun": 0, "backstore": {"kind": "path", "path": str(image)}}]
        return self.daemon.ask("POST", "/1.0/endpoints", {"name": "db0", "luns": luns, **spec})

    def endpoint(self) -> Any:
        """That endpoint."""
        return self.daemon.ask("GET", "/1.0/endpoints/db0")

    def ownership(self) -> str:
        """Of its disk."""
        return str(self.endpoint()["luns"][0]["ownership"])

    def crash(self) -> None:
        """Let its target die, and wait for the one that comes after it."""
        before = self.endpoint()["pid"]
        self.host.run("kill", "-9", str(before))
        wait_until(lambda: self._is_ready(but=before), "a target that is started again")

    def _is_ready(self, but: int) -> bool:
        found = self.endpoint()
        return bool(found["state"] == "ready" and found["pid"] != but)

    def guests(self) -> dict[str, list[str]]:
        """Its guests, and which endpoints each has."""
        found = self.daemon.ask("GET", "/1.0/guests")
        return {guest["name"]: [each["endpoint"] for each in guest["attachments"]] for guest in found}

    def copies(self) -> bool:
        """Whether memory of its guest is being copied to another host."""
        return re.search(r"Data processed: +[1-9]", self.libvirtd.virsh("domjobinfo", "web0")) is not None

    def has_qemu(self) -> bool:
        """Whether a QEMU of its guest 'web0' was started."""
        try:
            return self.libvirtd.guest_pid("web0") > 0
        except GuestError:
            return False

    def attach(self) -> Any:
        """Give its guest 'web0' the endpoint. :returns: the attachment."""
        return self.daemon.ask("POST", "/1.0/guests/web0/endpoints", {"endpoint": "db0"})

    def wait_writes(self, more: int = 50) -> None:
        """Wait until a load has written so much more. :raises TimedOutError: it does not."""
        goal = self._writes() + more
        wait_until(lambda: self._writes() >= goal, f"{more} writes")

    def _writes(self) -> int:
        luns = self.daemon.ask("GET", "/1.0/endpoints/db0/statistics")["luns"]
        return sum(lun["writes"] for lun in luns)


@contextlib.contextmanager
def two_sides(folder: Path, cache: Path) -> Iterator[tuple[Side, Side]]:
    """Both of them, 'left' and 'right'; they run, and reach each other."""
    here = folder / "here"
    here.mkdir()
    with contextlib.ExitStack() as stack:
        sides = []
        for name in ("left", "right"):
            own = folder / name
            own.mkdir()
            host = stack.enter_context(SmallHost(name, {own: here}))
            sides.append(Side(host, own, here, cache))
        left, right = sides
        connect(left.host, right.host)
        for side in sides:
            stack.enter_context(side.running())
        yield left, right
