"""A target put together from its parts, so that a test reaches the core and is the slow path itself."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Final, Self

from ringway import _core
from ringway.model import DeviceKind, TargetConfig
from ringway.target.blk_device import BlkDevice
from ringway.target.device import Face, TargetDevice
from ringway.target.listen import listen
from ringway.target.luns import LunTable
from ringway.target.scsi_device import ScsiDevice
from ringway.target.target import make_core
from ringway.testing.waiting import PATIENCE_S
from ringway.vhost_user import Server

from .requests import Front, front_end

_WWPN: Final = "naa.3000000000000001"


class BareTarget:
    """A core behind a session server, without a slow-path thread. Closed at the end of a ``with``.

    :param path: the socket's. :ivar failures: what was said of rings that could not be started.
    """

    def __init__(self, path: str, config: TargetConfig) -> None:
        self.path: Final = path
        self._device = config.device.value
        self.failures: list[tuple[int, str]] = []
        with contextlib.ExitStack() as undo:
            self.core: Final = make_core(config)
            scsi = config.device is DeviceKind.SCSI
            self.face: Face = (
                ScsiDevice(self.core, _WWPN)
                if scsi
                else BlkDevice(self.core, config.queues, broken=lambda _queue, _why: None)
            )
            self.luns: Final = LunTable(self.core, config.device, self.face)
            undo.callback(self.luns.close)
            undo.callback(self.core.close)
            for spec in config.luns:
                self.luns.add(spec)
            device = TargetDevice(
                self.core,
                config.device,
                self.face,
                self.luns,
                request_queues=config.queues,
                ring_failed=lambda index, message: self.failures.append((index, message)),
            )
            self.server: Final = Server(listen(path).socket, device)
            undo.callback(self.server.stop)
            self.server.start()
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._undo.close()

    def front_end(self, queues: int = 1, **more: Any) -> Front:
        """A front end that is served. Its commands run hot: unit attentions are nobody's business here."""
        front = front_end(self._device, self.path, queues, **more).open()
        for lun in self.luns:
            self.core.set_gate(lun.target, lun.lun, 0)
        return front

    def next_command(self) -> _core.Command:
        """Wait for what a worker could not finish."""
        command = self.core.next_command(PATIENCE_S)
        assert command is not None, "no command came to the slow path"
        return command
