"""What to type next: QEMU's arguments and libvirt's XML for an endpoint."""

from __future__ import annotations

import shlex
from typing import Final

from ringway.errors import ConflictError
from ringway.model import DeviceKind, EndpointInfo, EngineKind, TargetConfig

#: What stands for itself in no attribute. The libraries for this keep megabytes in memory.
_XML: Final = str.maketrans({character: f"&#{ord(character)};" for character in "&<>\"'"})


def qemu_arguments(config: TargetConfig, socket_path: str) -> list[str]:
    """The arguments, one string a line of a shell command.

    Guest memory has to be shared with the back end.
    """
    return _arguments(config.device, config.queues, socket_path)


def _arguments(device: DeviceKind, queues: int, socket_path: str) -> list[str]:
    return [
        "-object memory-backend-memfd,id=mem,size=1G,share=on",
        "-machine q35,memory-backend=mem -m 1G",
        "-chardev " + shlex.quote(f"socket,id=ringway,path={_escaped(socket_path)},reconnect-ms=1000"),
        f"-device {_device(device, queues)}",
    ]


def endpoint_command(found: EndpointInfo) -> str:
    """The same for an endpoint of this host. :raises ConflictError: it has nothing to connect to yet."""
    if found.engine is EngineKind.LIO:
        return f"  -device vhost-scsi-pci,wwpn={found.wwpn}"
    if found.socket is None or found.spec is None:
        raise ConflictError(
            f"'{found.name}' is {found.state}: it has no socket yet", hint="see ringway endpoint show"
        )
    arguments = _arguments(found.device, found.spec.queues, found.socket)
    return " \\\n".join(f"  {line}" for line in arguments)


def qemu_command(config: TargetConfig, socket_path: str) -> str:
    """The arguments as they are pasted behind ``qemu-system-x86_64``."""
    return " \\\n".join(f"  {line}" for line in qemu_arguments(config, socket_path))


def libvirt_hint(config: TargetConfig, socket_path: str) -> str:
    """The elements of a domain that this endpoint needs. libvirt has none for vhost-user-scsi."""
    memory = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
    if config.device is DeviceKind.SCSI:
        return f"{memory}\n  and a disk that is overridden to vhost-user-scsi-pci: docs/how-to/libvirt.md"
    return (
        f"{memory}\n"
        f"  <disk type='vhostuser' device='disk'><driver name='qemu' type='raw' queues='{config.queues}'/>\n"
        f"    <source type='unix' path='{socket_path.translate(_XML)}'>"
        "<reconnect enabled='yes' timeout='1'/></source>\n"
        "    <target dev='vda' bus='virtio'/></disk>"
    )


def _device(device: DeviceKind, queues: int) -> str:
    if device is DeviceKind.BLK:
        return f"vhost-user-blk-pci,chardev=ringway,num-queues={queues}"
    return f"vhost-user-scsi-pci,chardev=ringway,num_queues={queues}"


def _escaped(path: str) -> str:
    """QEMU's option syntax doubles commas; a relative path stays what it is to the shell that pastes it."""
    return path.replace(",", ",,")
