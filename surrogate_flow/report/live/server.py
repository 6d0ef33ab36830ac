"""The live page of a run's folder, on a server of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.server.tornado import BokehTornado
from bokeh.server.util import bind_sockets
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop

from surrogate_flow.report.console import print_lines, the_console
from surrogate_flow.report.live.follow import Follower
from surrogate_flow.report.live.page import document
from surrogate_flow.report.live.reach import elsewhere

__all__ = ["serve"]

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_HUB = ("PUBLIC_URL", "PUBLIC_HUB_URL", "HOST")  # as JupyterHub tells its servers
_EVERY = 1.0  # seconds between two looks at a run that goes on
_ENDED = 10.0  # and at one that has ended
_SHARE = 20.0  # times as long as a look takes


def serve(folder: Path, port: int) -> None:
    """Serve the page of a run on this machine, until Ctrl-C.

    Parameters
    ----------
    folder : Path
        Of the run.
    port : int
        Another one is taken, and printed, if this is not free.

    Raises
    ------
    UserError
        If it is no folder of a run.
    """
    follower = Follower(folder)
    asyncio.run(_serve(follower, folder, port))


async def _serve(follower: Follower, folder: Path, port: int) -> None:
    state, console = follower.state, the_console()
    runs = {state.name: state}
    origins = [f"{_HOST}:*", "localhost:*", *_hub(os.environ)]
    application: Any = BokehTornado(
        {"/": Application(FunctionHandler(lambda doc: document(doc, runs)))},
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
            follower.update()
        except Exception as error:
            # Such as a folder that was moved: what is known is shown.
            if str(error) != said:
                said = str(error)
                state.update({"problems": [said]})
        took = time.monotonic() - begin
        pause = _EVERY if state.state == "running" else _ENDED
        await asyncio.sleep(max(pause, _SHARE * took))


def _hub(environ: Mapping[str, str]) -> list[str]:
    """Return the host and port of JupyterHub, from where a browser comes then."""
    links = (environ.get(f"JUPYTERHUB_{name}", "") for name in _HUB)
    ports = {"http": 80, "https": 443}
    return [
        parts.netloc if parts.port else f"{parts.netloc}:{ports[parts.scheme]}"
        for parts in map(urlsplit, links)
        if parts.netloc and parts.scheme in ports
    ]
