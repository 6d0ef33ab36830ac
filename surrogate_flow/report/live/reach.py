"""How a person reaches a page that listens on a machine elsewhere."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

__all__ = ["elsewhere", "tunnel"]

# Where a batch job was submitted, by the batch systems.
_SUBMITTED = ("SLURM_SUBMIT_HOST", "PBS_O_HOST")
_LOCAL = ("127.0.0.1", "localhost", "::1", "0.0.0.0")


def elsewhere(page: str) -> str:
    """Return a sentence for a person at another machine; "" if none is needed."""
    line = tunnel(page)
    if not line:
        return ""
    parts = urlsplit(page)
    there = f"http://127.0.0.1:{parts.port}{parts.path}"
    return f"From your own machine: {line} (there, open {there})"


def tunnel(link: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the ``ssh -L`` line to type elsewhere, such as on a laptop; "" if none.

    In a batch job it goes through the machine that has submitted it, and from there to
    this one, where pages listen on the loopback interface. In a session of ssh it goes
    to the address that the session has come to.

    Parameters
    ----------
    link : str
        Address of the page, as this machine reaches it.
    environ : mapping
        Variables of the process.

    Examples
    --------
    >>> there = {"SSH_CONNECTION": "10.0.0.9 50000 10.0.0.1 22", "USER": "ada"}
    >>> tunnel("http://127.0.0.1:8787/status", there)
    'ssh -N -L 8787:127.0.0.1:8787 ada@10.0.0.1'
    """
    parts = urlsplit(link)
    if not (parts.scheme and parts.hostname and parts.port):
        return ""  # Relative: a proxy, as JupyterHub's, serves it.
    host = "127.0.0.1" if parts.hostname in _LOCAL else parts.hostname
    host = f"[{host}]" if ":" in host else host
    forward = f"ssh -N -L {parts.port}:{host}:{parts.port}"
    here = socket.gethostname()
    submitted = next((environ[n] for n in _SUBMITTED if environ.get(n)), "")
    session = environ.get("SSH_CONNECTION", "").split()
    if submitted and submitted.partition(".")[0] != here.partition(".")[0]:
        user = _user(environ)
        return f"{forward} -J {user}@{submitted} {user}@{here}"
    # "client port server port", of the session that this process belongs to.
    return f"{forward} {_user(environ)}@{session[2]}" if len(session) == 4 else ""


def _user(environ: Mapping[str, str]) -> str:
    known = environ.get("USER") or environ.get("LOGNAME")
    try:
        return known or getpass.getuser()
    except (KeyError, OSError):
        # In a container nobody may have this number.
        return str(os.getuid())
