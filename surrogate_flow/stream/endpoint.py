"""Where an inlet listens, and the keys that admit its outlets."""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import socket
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zmq

from surrogate_flow.stream.errors import StreamError

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

__all__ = [
    "ClientKeys",
    "Endpoint",
    "ServerKeys",
    "SocketFolder",
    "Timing",
    "generate_keys",
    "listen",
    "require_one_interface",
]

# The address of a unix socket has at most 107 characters, the file's name included.
FOLDER_CHARACTERS = 90
DOMAIN = "inlet"
# Bytes that CURVE adds to a frame: its name, a nonce, a tag and flags (CurveZMQ, ZeroMQ
# RFC 26, "MESSAGE command"). ZeroMQ limits frames as they arrive, encrypted.
ENVELOPE = 8 + 8 + 16 + 1


@dataclass(frozen=True)
class Timing:
    """Periods and deadlines of a connection, in seconds.

    Attributes
    ----------
    tick : float
        Between two signs of life that the inlet sends to outlets that wait.
    heartbeat, heartbeat_timeout : float
        Between two of ZeroMQ's heartbeats, and without one until a peer is gone.
    handshake : float
        That a connection may take to prove its keys.
    linger : float
        After closing, for the last messages to be sent.
    """

    tick: float = 1.0
    heartbeat: float = 5.0
    heartbeat_timeout: float = 30.0
    handshake: float = 30.0
    linger: float = 2.0

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Set ZeroMQ's options, which are in milliseconds."""
        socket.linger = int(1000 * self.linger)
        socket.heartbeat_ivl = int(1000 * self.heartbeat)
        socket.heartbeat_timeout = int(1000 * self.heartbeat_timeout)
        socket.handshake_ivl = int(1000 * self.handshake)


@dataclass(frozen=True)
class ClientKeys:
    """CURVE keys of the outlets: the inlet's public key, and their own key pair."""

    server: bytes
    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class ServerKeys:
    """CURVE keys of the inlet: the outlets' public key, and its own key pair."""

    client: bytes
    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Endpoint:
    """All that an outlet must know to reach the study's inlet; plain and picklable.

    Attributes
    ----------
    address : str
        ``ipc://...`` or ``tcp://host:port``.
    study : str
        Sent at the opening, so that an outlet of another study is refused.
    spec : str
        `FieldSpec.digest` of what the inlet expects.
    keys : ClientKeys, optional
        None on ``ipc``, where the folder's mode excludes other users.
    """

    address: str
    study: str
    spec: str
    keys: ClientKeys | None = None


def generate_keys() -> tuple[ServerKeys, ClientKeys]:
    """Return new keys for one study: the inlet's, and those that its outlets share."""
    server, server_secret = zmq.curve_keypair()
    client, client_secret = zmq.curve_keypair()
    return (
        ServerKeys(client, server, server_secret),
        ClientKeys(server, client, client_secret),
    )


def require_one_interface(host: str | None) -> None:
    """Raise ValueError for an address of all interfaces, however it is spelled."""
    if host is None:
        return
    places = ["0.0.0.0"] if host in ("", "*") else [host]
    # The name of an interface is not that of a host.
    with suppress(socket.gaierror):
        places += [str(info[4][0]) for info in socket.getaddrinfo(host, None)]
    for place in places:
        try:
            address = ipaddress.ip_address(place)
        except ValueError:
            continue
        if (getattr(address, "ipv4_mapped", None) or address).is_unspecified:
            raise ValueError(
                f"host: expected the address of one interface, got {host!r}: outlets "
                "on other machines could not connect to it."
            )


def listen(
    resources: ExitStack, host: str | None, largest: int, timing: Timing
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
        Bytes of a frame before encryption; a connection that sends more is cut.
    timing : Timing
    """
    # A context of its own, for each may have only one authenticator.
    context = resources.enter_context(zmq.Context())
    keys: ClientKeys | None = None
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    resources.callback(router.close)
    timing.apply(router)
    router.router_mandatory = True
    router.router_handover = True
    router.maxmsgsize = largest if host is None else largest + ENVELOPE
    if host is None:
        folder = SocketFolder()
        resources.callback(folder.close)
        address = folder.address
    else:
        keys, authenticator = _require_keys(context, router)
        resources.callback(authenticator.stop)
        router.ipv6 = ":" in host
        address = f"tcp://{f'[{host}]' if router.ipv6 else host}:*"
    router.bind(address)
    return router, router.getsockopt_string(zmq.LAST_ENDPOINT), keys


class _OneKey:
    """Accepts the key that the study's outlets share."""

    def __init__(self, client: bytes) -> None:
        self._client = client

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a peer may connect; called by ZeroMQ in the handshake."""
        return secrets.compare_digest(key, self._client)


def _require_keys(
    context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]
) -> tuple[ClientKeys, ThreadAuthenticator]:
    """Make `router` encrypt, and accept only outlets with new keys.

    Returns
    -------
    ClientKeys, ThreadAuthenticator
        What outlets need, and what must be stopped before the context is.
    """
    from zmq.auth.thread import ThreadAuthenticator

    server, client = generate_keys()
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(DOMAIN, _OneKey(server.client))
    # Without it, ZeroMQ accepts everybody whenever the authenticator is not there.
    router.zap_domain = DOMAIN.encode()
    router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    router.curve_server = True
    router.curve_publickey = server.public
    router.curve_secretkey = server.secret
    return client, authenticator


class SocketFolder:
    """A new folder that only this user may enter, for one unix socket.

    Raises
    ------
    StreamError
        If no folder for temporary files is writable and has a path short enough.
    """

    def __init__(self) -> None:
        self.path = ""
        for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/dev/shm")):
            try:
                path = tempfile.mkdtemp(prefix="flow-", dir=parent)
            except OSError:
                continue
            if len(os.fsencode(path)) <= FOLDER_CHARACTERS:
                self.path = path
                return
            os.rmdir(path)
        raise StreamError(
            "Folder for a unix socket",
            f"a writable one with a path of at most {FOLDER_CHARACTERS} bytes",
            f"none of {tempfile.gettempdir()!r}, /tmp and /dev/shm",
            "Set TMPDIR to a short path.",
        )

    @property
    def address(self) -> str:
        """For ZeroMQ."""
        return f"ipc://{self.path}/inlet"

    def close(self) -> None:
        """Remove the folder; may be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
