"""Which attributes of other tools' backstores are worth keeping: those that guests can tell from the
default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: What may be set, with the kernel's default. Others follow from the medium, or cannot be set.
DEFAULTS: Final = {
    "emulate_3pc": "1",
    "emulate_caw": "1",
    "emulate_fua_write": "1",
    "emulate_model_alias": "0",
    "emulate_pr": "1",
    "emulate_rest_reord": "0",
    "emulate_rsoc": "1",
    "emulate_tas": "1",
    "emulate_tpu": "0",
    "emulate_tpws": "0",
    "emulate_ua_intlck_ctrl": "0",
    "enforce_pr_isids": "1",
    "force_pr_aptpl": "0",
    "pi_prot_type": "0",
    "pi_prot_verify": "0",
    "unmap_zeroes_data": "0",
}


#: The same by plug-in, as both tools name those; a device's own says whether it rotates.
_NO_DISC: Final = {"fileio": "0", "rd_mcp": "1", "ramdisk": "1"}


def kept(values: Mapping[str, object], plugin: str) -> dict[str, str]:
    """:returns: what differs from the default."""
    defaults = DEFAULTS | ({"is_nonrot": _NO_DISC[plugin]} if plugin in _NO_DISC else {})
    return {
        name: str(values[name])
        for name, default in defaults.items()
        if name in values and str(values[name]) not in (default, "")
    }
