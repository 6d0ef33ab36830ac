"""Endpoints, keys and the folder of the unix socket."""

import os
import pickle
import stat
import tempfile

import pytest

from surrogate_flow.fields.errors import UserError
from surrogate_flow.stream.endpoint import Endpoint, SocketFolder, generate_keys


def test_an_endpoint_travels_and_hides_its_secret():
    """It is plain and picklable, and printing it gives no secret away."""
    server, client = generate_keys()
    endpoint = Endpoint("tcp://127.0.0.1:1", "study", "digest", client)
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint
    assert client.secret.decode() not in repr(endpoint)
    assert server.secret.decode() not in repr(server)
    assert (server.client, client.server) == (client.public, server.public)


def test_the_folder_is_private_and_goes_away():
    """Nobody else may enter it, and closing removes it, even twice."""
    folder = SocketFolder()
    assert stat.S_IMODE(os.stat(folder.path).st_mode) == 0o700
    assert folder.address.startswith(f"ipc://{folder.path}/")
    folder.close()
    folder.close()
    assert not os.path.exists(folder.path)


def test_a_long_path_is_avoided(tmp_path, monkeypatch):
    """A folder too deep for a unix socket is left empty and another one taken."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = SocketFolder()
    assert len(folder.address) < 107
    assert not list(deep.iterdir())
    folder.close()


def test_no_folder_at_all_is_said(monkeypatch):
    """The error tells what to set."""

    def fail(**_):
        raise OSError

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(UserError, match="Set TMPDIR"):
        SocketFolder()
