"""The live page of a run's folder, on a server of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.tornado import BokehTornado
from bokeh.server.util import bind_sockets
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop

from surrogate_flow.report.console import print_lines, the_console
from surrogate_flow.report.live.page import document
from surrogate_flow.report.live.reach import elsewhere
from surrogate_flow.report.live.state import LiveState

__all__ = ["serve"]

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_HUB = ("PUBLIC_URL", "PUBLIC_HUB_URL", "HOST")  # as JupyterHub tells its servers
_EVERY = 1.0  # seconds between two looks at a run that goes on
_ENDED = 10.0  # and at one that has ended
_ASKED = 0.5  # and at whether a page wants more
_SHARE = 20.0  # times as long as a look takes


class Followed(Protocol):
    """What a page shows, as `Follower` reads it of a run's folder."""

    runs: dict[str, LiveState]
    sweeps: dict[str, dict[str, Any]]

    @property
    def running(self) -> bool:
        """Whether more is to come."""

    @property
    def asked(self) -> bool:
        """Whether a page shows what was not read yet."""

    def update(self) -> None:
        """Read what was written since the last time."""

    def fail(self, why: str) -> None:
        """Show why nothing can be read."""


def serve(followed: Followed, folder: Path, port: int) -> None:
    """Serve a page on this machine, until Ctrl-C.

    Parameters
    ----------
    followed : Followed
    folder : Path
        That it is of.
    port : int
        Another one is taken, and printed, if this is not free.
    """
    asyncio.run(_serve(followed, folder, port))


async def _serve(followed: Followed, folder: Path, port: int) -> None:
    console = the_console()

    def show(doc: Document) -> None:
        document(doc, followed.runs, (), followed.sweeps)

    origins = [f"{_HOST}:*", "localhost:*", *_hub(os.environ)]
    application: Any = BokehTornado(
        {"/": Application(FunctionHandler(show))},
        extra_websocket_origins=origins,
        absolute_url="",
    )
    try:
        sockets, port = bind_sockets(_HOST, port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken" if taken else f"cannot be used ({error.strerror})"
        print_lines(console, f"Port {port} {why}; another one is used.")
        sockets, port = bind_sockets(_HOST, 0)
    server = HTTPServer(application)
    application.initialize(IOLoop.current())
    application.start()
    server.add_sockets(sockets)
    link = f"http://{_HOST}:{port}"
    lines = [f"Live page of {folder}: {link} (Ctrl-C ends it)"]
    if "JUPYTERHUB_SERVICE_PREFIX" in os.environ and not _hub(os.environ):
        origin = "BOKEH_ALLOW_WS_ORIGIN=<host of the hub>"
        lines.append(f"Behind JupyterHub, set {origin} before.")
    print_lines(console, *lines, *filter(None, [elsewhere(link)]))
    said = ""
    while True:
        begin = time.monotonic()
        try:
            followed.update()
        except Exception as error:
            # Such as a folder that was moved: what is known is shown.
            if str(error) != said:
                said = str(error)
                followed.fail(said)
        took = time.monotonic() - begin
        pause = _EVERY if followed.running else _ENDED
        until = time.monotonic() + max(pause, _SHARE * took)
        while time.monotonic() < until and not followed.asked:
            await asyncio.sleep(_ASKED)


def _hub(environ: Mapping[str, str]) -> list[str]:
    """Return the host and port of JupyterHub, from where a browser comes then."""
    links = (environ.get(f"JUPYTERHUB_{name}", "") for name in _HUB)
    ports = {"http": 80, "https": 443}
    return [
        parts.netloc if parts.port else f"{parts.netloc}:{ports[parts.scheme]}"
        for parts in map(urlsplit, links)
        if parts.netloc and parts.scheme in ports
    ]
