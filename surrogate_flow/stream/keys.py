"""Where an inlet listens, and the keys that open it."""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

__all__ = [
    "ClientKeys",
    "Endpoint",
    "ServerKeys",
    "SocketFolder",
    "generate_keys",
    "require_keys",
    "require_one_interface",
]

# A unix socket's address holds 107 characters; the file's name takes some of them.
FOLDER_CHARACTERS = 90
DOMAIN = "inlet"


@dataclass(frozen=True)
class ClientKeys:
    """What an outlet needs for CURVE: whom it trusts, and its own key pair."""

    server: bytes
    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class ServerKeys:
    """What an inlet needs for CURVE: its own key pair, and whom it trusts."""

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
        Told at the opening, so that a stray outlet of another study is refused.
    spec : str
        `FieldSpec.digest` of what the inlet expects.
    keys : ClientKeys, optional
        None on ``ipc``, where the folder's mode keeps others out.
    """

    address: str
    study: str
    spec: str
    keys: ClientKeys | None = None


def generate_keys() -> tuple[ServerKeys, ClientKeys]:
    """Return new keys for one study: the inlet's, and those its outlets share."""
    server, server_secret = zmq.curve_keypair()
    client, client_secret = zmq.curve_keypair()
    return (
        ServerKeys(client, server, server_secret),
        ClientKeys(server, client, client_secret),
    )


def require_one_interface(host: str | None) -> None:
    """Refuse what means every interface, however it is spelled; None is a unix socket.

    Raises
    ------
    ValueError
        If it does.
    """
    if host is None:
        return
    places = ["0.0.0.0"] if host in ("", "*") else [host]
    # The name of an interface is none of a host.
    with suppress(socket.gaierror):
        places += [str(info[4][0]) for info in socket.getaddrinfo(host, None)]
    for place in places:
        with suppress(ValueError):
            address = ipaddress.ip_address(place)
            address = getattr(address, "ipv4_mapped", None) or address
            if address.is_unspecified:
                break
    else:
        return
    raise ValueError(
        f"Expected the address of one interface, got {host!r}: outlets on other "
        "machines must be told where to connect."
    )


class _OnlyOurs:
    """Lets in who has the key of the study's outlets."""

    def __init__(self, client: bytes) -> None:
        self._client = client

    def callback(self, domain: str, key: bytes) -> bool:
        """Answer ZeroMQ, in the handshake."""
        return secrets.compare_digest(key, self._client)


def require_keys(
    context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]
) -> tuple[ClientKeys, ThreadAuthenticator]:
    """Make new keys, and make `router` encrypt and let nobody else in.

    Returns
    -------
    ClientKeys, ThreadAuthenticator
        What outlets need, and what must be stopped before the context is.
    """
    from zmq.auth.thread import ThreadAuthenticator

    server, client = generate_keys()
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(DOMAIN, _OnlyOurs(server.client))
    # Without it, ZeroMQ lets everybody in whenever the authenticator is not there.
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
    OSError
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
        raise OSError(
            f"Found no folder for a unix socket: expected a writable one with a path "
            f"of at most {FOLDER_CHARACTERS} bytes, tried {tempfile.gettempdir()!r}, "
            "/tmp and /dev/shm. Set TMPDIR to a short path."
        )

    @property
    def address(self) -> str:
        """For ZeroMQ."""
        return f"ipc://{self.path}/inlet"

    def close(self) -> None:
        """Remove the folder; may be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
