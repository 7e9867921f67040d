"""A person who types ``ringway``, and the guests that come of it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from lxml import etree

from ringway.testing.daemon import Daemon
from ringway.testing.domain import DomainGuest
from ringway.testing.waiting import PATIENCE_S


class Operator:
    """Whoever has a daemon to ask."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def try_(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``ringway WORD…`` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "ringway", *words],
            env={**os.environ, "RINGWAY_SOCKET": str(self.daemon.api)},
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * PATIENCE_S,
        )

    def do(self, *words: str) -> str:
        """The same for what has to go well. :returns: what it prints."""
        done = self.try_(*words)
        assert done.returncode == 0, f"ringway {' '.join(words)}: {done.stderr}\n{self.daemon.log}"
        return done.stdout

    def refusal(self, *words: str) -> str:
        """The same for what is refused. :returns: what is said of it."""
        done = self.try_(*words)
        assert done.returncode != 0, f"ringway {' '.join(words)}: {done.stdout}"
        return done.stderr


class CreatedGuest(DomainGuest):
    """A guest that ``ringway guest create`` made. Its owner gives it a quick CPU, and us a way in; it boots
    from what it has."""

    def define(self) -> None:
        """Edit what is there, as ``virsh edit`` does."""
        theirs = etree.fromstring(self.libvirtd.virsh("dumpxml", "--inactive", self.name))
        self._edit(theirs, etree.fromstring(self.xml))
        self.xml = etree.tostring(theirs, encoding="unicode")
        super().define()

    def _edit(self, theirs: Any, ours: Any) -> None:
        theirs.replace(_part(theirs, "cpu"), _part(ours, "cpu"))
        for terminal in theirs.xpath("devices/serial | devices/console"):
            terminal.getparent().remove(terminal)
        _part(theirs, "devices").extend(_part(ours, "devices").iterchildren("serial", "channel"))


class KernelGuest(CreatedGuest):
    """One without a disk: its owner gives it a kernel as well."""

    def _edit(self, theirs: Any, ours: Any) -> None:
        super()._edit(theirs, ours)
        _part(theirs, "os").extend(_part(ours, "os").iterchildren("kernel", "initrd", "cmdline"))


def _part(root: Any, tag: str) -> Any:
    """A domain's only child of that tag."""
    (found,) = root.iterchildren(tag)
    return found
