"""What OpenStack's own clients make of a block-device mapping: oracles.

Both are run up to the request that they would send. Servers are played: they record it.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from novaclient import api_versions, exceptions
    from novaclient.v2 import shell
    from openstackclient.compute.v2 import server
    from osc_lib import exceptions as osc_exceptions

Request = dict[str, Any]


class Refused(Exception):
    """The client does not send it."""


def novaclient(text: str) -> Request:
    """The mapping that ``nova boot --block-device TEXT`` sends. :raises Refused: none."""
    versions = SimpleNamespace(api_version=api_versions.APIVersion("2.90"))
    arguments = SimpleNamespace(boot_volume=None, snapshot=None, block_device=[text], ephemeral=[], swap=None)
    try:
        (found,) = shell._parse_block_device_mapping_v2(versions, arguments, None)
    except (argparse.ArgumentTypeError, exceptions.CommandError, KeyError, ValueError) as error:
        raise Refused(str(error)) from error
    return dict(found)


class _Sent(Exception):
    """A request was sent."""


class _Compute:
    default_microversion = "2.90"

    def get_endpoint_data(self) -> SimpleNamespace:
        return SimpleNamespace(min_microversion="2.1", max_microversion="2.96")

    def find_flavor(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(id="1")

    def create_server(self, **request: Any) -> None:
        raise _Sent(request["block_device_mapping"])


_MANAGER = SimpleNamespace(compute=_Compute(), image=None, is_network_endpoint_enabled=lambda: False)
_APP: Any = SimpleNamespace(client_manager=_MANAGER)
_COMMAND = server.CreateServer(_APP, None)
_PARSER = _COMMAND.get_parser("openstack server create")
#: openstackclient wants a disk to boot from; this is it.
_ROOT = "--block-device=uuid=root,source_type=volume,boot_index=0"


def openstackclient(text: str | Path) -> Request:
    """The mapping that ``openstack server create --block-device TEXT`` sends. :raises Refused: none."""
    try:
        fresh = argparse.Namespace(block_devices=[])  # its own default keeps what earlier calls put in
        arguments = _PARSER.parse_args(["--flavor=f", f"--block-device={text}", _ROOT, "name"], fresh)
        _COMMAND.take_action(arguments)
    except _Sent as sent:
        found: Request = sent.args[0][0]
        return found
    except (SystemExit, osc_exceptions.CommandError) as error:
        raise Refused(str(error)) from error
    raise AssertionError("nothing was sent")
