"""Endpoints, keys and the folder of the unix socket."""

import os
import pickle
import stat
import tempfile
from contextlib import ExitStack

import pytest
import zmq

from surrogate_flow.fields.errors import UserError
from surrogate_flow.stream.endpoint import Endpoint, generate_keys, socket_folder


def test_an_endpoint_travels_and_hides_its_secret():
    """It is plain and picklable, and printing it gives no secret away."""
    keys, secret = generate_keys()
    endpoint = Endpoint("tcp://127.0.0.1:1", "study", "digest", keys)
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint
    assert keys.secret.decode() not in repr(endpoint)
    assert zmq.curve_public(secret) == keys.server
    assert zmq.curve_public(keys.secret) == keys.public


def test_the_folder_is_private_and_goes_away():
    """Nobody else may enter it, and closing removes it."""
    with ExitStack() as resources:
        folder = socket_folder(resources)
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert not os.path.exists(folder)


def test_a_long_path_is_avoided(tmp_path, monkeypatch):
    """A folder too deep for a unix socket is left empty and another one taken."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with ExitStack() as resources:
        assert len(f"ipc://{socket_folder(resources)}/inlet") < 107
        assert not list(deep.iterdir())


def test_no_folder_at_all_is_said(monkeypatch):
    """The error tells what to set."""

    def fail(**_):
        raise OSError

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(UserError, match="Set TMPDIR"), ExitStack() as resources:
        socket_folder(resources)
