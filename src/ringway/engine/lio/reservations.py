"""Persistent reservations that outlive a restart (APTPL): the kernel writes them to a file, and forgets to
read it.

They come back only for the same nexus, target port, portal group and LUN, and only if they are written to
the device before it is mapped. Spec: SPC-4 r37, 5.13.5 persistent reservations through power loss.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ringway.errors import BackstoreError

#: What the kernel's ``res_aptpl_metadata`` wants before it takes a registration.
_NEEDED: Final = ("initiator_node", "target_node", "sa_res_key")
_RECORD: Final = re.compile(r"^PR_REG_START: (\d+)\n(.*?)^PR_REG_END: \1$", re.MULTILINE | re.DOTALL)
_MOST_BYTES: Final = 1 << 20


def parse_aptpl(text: str) -> tuple[str, ...]:
    """Read the kernel's file of a device.

    :returns: one text for each registration, as ``res_aptpl_metadata`` takes it.
    :raises ValueError: a registration begins that does not end, or lacks its initiator, target or key.
    """
    found = tuple(",".join(match[2].split("\n")).strip(",") for match in _RECORD.finditer(text))
    if len(found) != text.count("PR_REG_START"):
        raise ValueError("a registration is cut off")
    for registration in found:
        keys = {part.partition("=")[0] for part in registration.split(",")}
        if missing := [key for key in _NEEDED if key not in keys]:
            raise ValueError(f"a registration without {missing[0]}")
    return found


def kept_registrations(dbroot: str, serial: str) -> tuple[str, ...]:
    """What the kernel kept for a device, by its serial number.

    :raises BackstoreError: the file is there and cannot be understood: to serve the disk without its
    reservations could let two nodes of a cluster write.
    """
    path = Path(dbroot) / "pr" / f"aptpl_{serial}"
    try:
        with path.open("rb") as file:
            return parse_aptpl(file.read(_MOST_BYTES).decode())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise BackstoreError(
            f"the reservations in '{path}' cannot be restored: {error}",
            hint="if no cluster uses the disk any more, remove the file",
        ) from error
