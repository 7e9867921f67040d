"""What known front ends say in which order: data that a :class:`~ringway.testing.session.FrontEnd` replays.

A step is a request; a tuple of requests is said for each ring in turn. Steps whose protocol feature was not
negotiated are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ringway.vhost_user.messages import ProtocolFeature, Request

INDIRECT_DESC: Final = 1 << 28
EVENT_IDX: Final = 1 << 29
VERSION_1: Final = 1 << 32

Step = Request | tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """One front end's habits.

    :ivar features: the virtio transport bits that it takes if they are offered.
    :ivar protocol: the protocol features that it takes if they are offered.
    :ivar need_reply: the requests that it wants acknowledged. :ivar padding: after an in-flight description.
    :ivar config_size: bytes of the configuration space that it asks for.
    :ivar connect: said once a connection. :ivar start: for the rings to run.
    :ivar stop: for them to stop; SET_VRING_ENABLE disables here.
    """

    name: str
    features: int
    protocol: ProtocolFeature
    need_reply: frozenset[Request]
    padding: bytes
    config_size: int
    connect: tuple[Step, ...]
    start: tuple[Step, ...]
    stop: tuple[Step, ...]


#: As QEMU 10 does (hw/virtio/vhost.c, vhost-user.c, vhost-user-scsi.c, vhost-user-blk.c).
QEMU: Final = Order(
    name="qemu",
    features=VERSION_1 | EVENT_IDX | INDIRECT_DESC,
    protocol=(
        ProtocolFeature.MQ
        | ProtocolFeature.LOG_SHMFD
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.BACKEND_REQ
        | ProtocolFeature.CONFIG
        | ProtocolFeature.INFLIGHT_SHMFD
        | ProtocolFeature.RESET_DEVICE
        | ProtocolFeature.CONFIGURE_MEM_SLOTS
        | ProtocolFeature.STATUS
    ),
    need_reply=frozenset(
        {
            Request.SET_BACKEND_REQ_FD,
            Request.SET_MEM_TABLE,
            Request.ADD_MEM_REG,
            Request.REM_MEM_REG,
            Request.SET_VRING_ENABLE,
        }
    ),
    padding=bytes(4),
    config_size=60,
    connect=(
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.SET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.GET_MAX_MEM_SLOTS,
        Request.SET_BACKEND_REQ_FD,
        Request.SET_OWNER,
        Request.GET_FEATURES,
        (Request.SET_VRING_CALL, Request.SET_VRING_ERR),
        Request.GET_CONFIG,
        Request.RESET_DEVICE,
    ),
    start=(
        Request.SET_FEATURES,
        Request.GET_INFLIGHT_FD,
        Request.SET_INFLIGHT_FD,
        Request.SET_FEATURES,
        Request.GET_STATUS,
        Request.SET_STATUS,
        Request.ADD_MEM_REG,
        (
            Request.SET_VRING_NUM,
            Request.SET_VRING_BASE,
            Request.SET_VRING_ADDR,
            Request.SET_VRING_KICK,
            Request.SET_VRING_CALL,
        ),
        Request.SET_LOG_BASE,
        (Request.SET_VRING_ENABLE,),
    ),
    stop=((Request.SET_VRING_ENABLE,), (Request.GET_VRING_BASE,)),
)

#: As SPDK's virtio initiator does.
SPDK: Final = Order(
    name="spdk",
    features=VERSION_1 | EVENT_IDX,
    protocol=ProtocolFeature.MQ | ProtocolFeature.CONFIG,
    need_reply=frozenset(),
    padding=b"",
    config_size=256,
    connect=(
        Request.SET_OWNER,
        Request.GET_FEATURES,
        Request.SET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.SET_PROTOCOL_FEATURES,
        *(Request.GET_CONFIG,) * 5,
    ),
    start=(
        (Request.SET_VRING_ENABLE,),
        Request.GET_QUEUE_NUM,
        (Request.SET_VRING_CALL,),
        Request.SET_MEM_TABLE,
        Request.GET_FEATURES,
        (
            Request.SET_VRING_NUM,
            Request.SET_VRING_BASE,
            Request.SET_VRING_ADDR,
            Request.SET_VRING_KICK,
        ),
    ),
    stop=((Request.GET_VRING_BASE,), Request.SET_MEM_TABLE, Request.GET_FEATURES),
)

#: As libblkio does, by way of the crate virtio-driver. It leaves without a word.
LIBBLKIO: Final = Order(
    name="libblkio",
    features=VERSION_1 | EVENT_IDX | INDIRECT_DESC,
    protocol=(
        ProtocolFeature.MQ
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.CONFIG
        | ProtocolFeature.CONFIGURE_MEM_SLOTS
    ),
    need_reply=frozenset(Request),
    padding=b"",
    config_size=60,
    connect=(
        Request.SET_OWNER,
        Request.GET_FEATURES,
        Request.SET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.SET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.GET_MAX_MEM_SLOTS,
        Request.GET_CONFIG,
    ),
    start=(
        Request.ADD_MEM_REG,
        (
            Request.SET_VRING_NUM,
            Request.SET_VRING_BASE,
            Request.SET_VRING_ADDR,
            Request.SET_VRING_KICK,
            Request.SET_VRING_CALL,
            Request.SET_VRING_ENABLE,
        ),
    ),
    stop=(),
)

ORDERS: Final = {order.name: order for order in (QEMU, SPDK, LIBBLKIO)}

#: The protocol feature without which a request is not sent.
NEEDS: Final = {
    Request.GET_CONFIG: ProtocolFeature.CONFIG,
    Request.SET_BACKEND_REQ_FD: ProtocolFeature.BACKEND_REQ,
    Request.RESET_DEVICE: ProtocolFeature.RESET_DEVICE,
    Request.GET_MAX_MEM_SLOTS: ProtocolFeature.CONFIGURE_MEM_SLOTS,
    Request.GET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
    Request.SET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
    Request.GET_STATUS: ProtocolFeature.STATUS,
    Request.SET_STATUS: ProtocolFeature.STATUS,
    Request.SET_LOG_BASE: ProtocolFeature.LOG_SHMFD,
}
