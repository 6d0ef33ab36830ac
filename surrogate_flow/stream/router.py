"""The socket that an inlet listens on."""

from __future__ import annotations

from contextlib import ExitStack

import zmq

from surrogate_flow.stream.keys import ClientKeys, SocketFolder, require_keys
from surrogate_flow.stream.line import HEARTBEAT, HEARTBEAT_TIMEOUT, LINGER

__all__ = ["HANDSHAKE", "open_router"]

HANDSHAKE = 30_000  # ms that a connection may take to show its keys
# Bytes that CURVE adds to a frame: its name, a nonce, a tag and flags (CurveZMQ, ZeroMQ
# RFC 26, "MESSAGE command"). ZeroMQ measures frames as they come, encrypted.
ENVELOPE = 8 + 8 + 16 + 1


def open_router(
    resources: ExitStack, host: str | None, largest: int
) -> tuple[zmq.Socket[bytes], str, ClientKeys | None]:
    """Listen; return the socket, its address and the keys that outlets need.

    Parameters
    ----------
    resources : ExitStack
        Closes what is opened.
    host : str, optional
        Address of an interface: a free TCP port of it, encrypted. By default a unix
        socket in a folder that only this user may enter.
    largest : int
        Bytes of a frame, before it is encrypted; a connection that sends more is cut.
    """
    # An own context: it holds the keys' authenticator, one of which fits into each.
    context = resources.enter_context(zmq.Context())
    keys: ClientKeys | None = None
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    resources.callback(router.close)
    router.linger = LINGER
    router.router_mandatory = True
    router.router_handover = True
    router.heartbeat_ivl = HEARTBEAT
    router.heartbeat_timeout = HEARTBEAT_TIMEOUT
    router.handshake_ivl = HANDSHAKE
    router.maxmsgsize = largest if host is None else largest + ENVELOPE
    if host is None:
        folder = SocketFolder()
        resources.callback(folder.close)
        address = folder.address
    else:
        keys, authenticator = require_keys(context, router)
        resources.callback(authenticator.stop)
        router.ipv6 = ":" in host
        address = f"tcp://{f'[{host}]' if router.ipv6 else host}:*"
    router.bind(address)
    return router, router.getsockopt_string(zmq.LAST_ENDPOINT), keys
