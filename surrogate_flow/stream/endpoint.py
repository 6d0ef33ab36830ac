"""Where an inlet listens, the keys of its outlets, and the files that it may open."""

from __future__ import annotations

import ipaddress
import os
import resource
import secrets
import socket
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace

import zmq

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.files import own_folder
from surrogate_flow.stream.errors import StreamError

__all__ = [
    "ClientKeys",
    "Endpoint",
    "Timing",
    "allow_many_files",
    "generate_keys",
    "listen",
    "require_files",
    "require_one_interface",
    "socket_folder",
]

RESERVED_FILES = 64  # for checkpoints, logs and the connections of the next second
OPEN_FILES = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
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


def generate_keys() -> tuple[ClientKeys, bytes]:
    """Return the keys that the outlets of one study share, and the inlet's secret."""
    server, secret = zmq.curve_keypair()
    return ClientKeys(server, *zmq.curve_keypair()), secret


def require_one_interface(host: str | None) -> None:
    """Refuse an address of all interfaces, however it is spelled."""
    if host is None:
        return
    places = ["0.0.0.0"] if host in ("", "*") else []
    # The name of an interface, which ZeroMQ takes, is not that of a host.
    with suppress(socket.gaierror):
        places += [str(info[4][0]) for info in socket.getaddrinfo(host, None)]
    for address in map(ipaddress.ip_address, places):
        if (getattr(address, "ipv4_mapped", None) or address).is_unspecified:
            raise ArgumentError(
                "host",
                "the address of one interface",
                repr(host),
                "Outlets on other machines could not connect to it.",
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
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    resources.callback(router.close)
    timing.apply(router)
    router.router_mandatory = True
    router.router_handover = True
    router.maxmsgsize = largest if host is None else largest + ENVELOPE
    keys: ClientKeys | None = None
    if host is None:
        address = f"ipc://{socket_folder(resources)}/inlet"
    else:
        keys = _require_keys(resources, context, router)
        router.ipv6 = ":" in host
        address = f"tcp://{f'[{host}]' if router.ipv6 else host}:*"
    router.bind(address)
    return router, router.getsockopt_string(zmq.LAST_ENDPOINT), keys


def _require_keys(
    resources: ExitStack,
    context: zmq.Context[zmq.Socket[bytes]],
    router: zmq.Socket[bytes],
) -> ClientKeys:
    """Make `router` encrypt, and accept only outlets with the new keys returned."""
    from zmq.auth.thread import ThreadAuthenticator

    keys, secret = generate_keys()

    def has_key(domain: str, key: bytes) -> bool:
        return secrets.compare_digest(key, keys.public)

    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    resources.callback(authenticator.stop)
    authenticator.configure_curve_callback(DOMAIN, SimpleNamespace(callback=has_key))
    # Without it, ZeroMQ accepts everybody whenever the authenticator is not there.
    router.zap_domain = DOMAIN.encode()
    router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    router.curve_server = True
    router.curve_publickey = keys.server
    router.curve_secretkey = secret
    return keys


def socket_folder(resources: ExitStack) -> str:
    """Return a new folder that only this user may enter; `resources` remove it.

    Raises
    ------
    StreamError
        If no folder for temporary files is writable and has a path short enough.
    """
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/dev/shm")):
        with suppress(OSError), ExitStack() as folder:
            path = str(folder.enter_context(own_folder("", parent)))
            if len(os.fsencode(path)) <= FOLDER_CHARACTERS:
                resources.push(folder.pop_all())
                return path
    raise StreamError(
        "Folder for a unix socket",
        f"a writable one with a path of at most {FOLDER_CHARACTERS} bytes",
        f"none of {tempfile.gettempdir()!r}, /tmp and /dev/shm",
        "Set TMPDIR to a short path.",
    )


def allow_many_files() -> None:
    """Raise the soft limit of open files to the hard limit.

    The usual soft limit of 1024 is for programs that call ``select``, and too low for a
    thousand outlets.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems refuse "unlimited": keep the present limit there.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_files() -> None:
    """Check that this process may open some more files.

    At the limit, ZeroMQ aborts the process on a unix socket, and accepts no connection
    on TCP.

    Raises
    ------
    StreamError
        If fewer than 64, or a quarter of the limit, are left.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        limit = sys.maxsize
    try:
        free = limit - len(os.listdir(OPEN_FILES))
    except OSError:
        # Even this listing needs a file.
        free = 0
    if free < (reserve := min(RESERVED_FILES, limit // 4)):
        raise StreamError(
            "Files that this process may still open",
            f"at least {reserve}",
            f"{free} of {limit}",
            "Each running simulation needs one. Raise the limit before the trainer "
            "starts (ulimit -n, as root ulimit -Hn; nofile in "
            "/etc/security/limits.conf), or run fewer simulations at once.",
        )
