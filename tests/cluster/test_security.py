"""Who may connect: strangers against real clusters, keys and their traces."""

import asyncio
import logging
import os
import pickle
import socket
import stat
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import dask
import psutil
import pytest
from dask_jobqueue import SLURMCluster
from distributed import Client, LocalCluster, SpecCluster
from distributed.comm import connect
from distributed.security import Security
from jsonargparse import ArgumentParser
from peers import RawOutlet
from troubled import Wave

from surrogate_flow.cluster import security
from surrogate_flow.cluster.existing import Existing
from surrogate_flow.cluster.open import open_cluster
from surrogate_flow.data.online import OnlineData
from surrogate_flow.ensemble.events import Exhausted
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.study import Study, StudySettings
from surrogate_flow.fields.errors import UserError
from surrogate_flow.sampling import Design, Uniform
from surrogate_flow.stream import Discard, Inlet

LOCAL = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}


@pytest.fixture
def warnings(monkeypatch):
    """What is said when clusters open; Dask silences the handlers that pytest gives it."""
    said = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", said.append)
    logger = logging.getLogger("surrogate_flow.cluster.open")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def from_recipe(class_path, **arguments):
    """What `--data.cluster` makes of a recipe."""
    parser = ArgumentParser()
    parser.add_class_arguments(OnlineData, "data")
    recipe = {"class_path": class_path, "init_args": arguments}
    data = {"solver": {"class_path": "troubled.Wave"}, "cluster": recipe}
    return parser.instantiate(parser.parse_object({"data": data})).data.cluster


def slurm(**arguments):
    return partial(
        SLURMCluster,
        cores=1,
        memory="1GB",
        interface="lo",
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        **arguments,
    )


async def say(address, keys, message):
    """Connect as a peer of Dask's would, and return what comes back."""
    role = keys.get_connection_args("client")
    comm = await connect(address, timeout=5, deserialize=False, **role)
    try:
        await comm.write(message)
        return await asyncio.wait_for(comm.read(), 10)
    finally:
        await comm.close()


def is_let_in(address, keys):
    """Whether a peer with these keys gets an answer of the scheduler's."""
    with suppress(OSError, TimeoutError):
        answer = asyncio.run(say(address, keys, {"op": "identity", "reply": True}))
        return answer["type"] == "Scheduler"
    return False


def keys_in(folder):
    return list(folder.glob(".keys-*/*"))


def plain(address):
    return address.replace("tls://", "tcp://")


@pytest.mark.parametrize("ours", [True, False], ids=["default", "recipe"])
def test_a_stranger_gets_no_answer_from_the_scheduler(ours, tmp_path):
    """Without the study's keys: no handshake, whether without TLS or with keys of one's own."""
    factory = None if ours else from_recipe("distributed.LocalCluster", **LOCAL)
    with open_cluster(factory, tmp_path) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://127.0.0.1:")
        assert is_let_in(address, cluster.security)
        assert not is_let_in(address, Security.temporary())
        assert not is_let_in(plain(address), Security())
        with Client(cluster, set_as_default=False) as client:
            assert client.submit(int, "7").result(timeout=30) == 7
            for worker in client.scheduler_info()["workers"]:
                assert worker.startswith("tls://127.0.0.1:")
                assert not is_let_in(worker, Security.temporary())
    assert not list(tmp_path.iterdir())


def options(keys):
    files = keys.get_tls_config_for_role("worker")
    return [
        f"--tls-{k.replace('_', '-')}={files[k]}" for k in ("ca_file", "cert", "key")
    ]


def test_a_worker_without_the_keys_is_refused(tmp_path):
    """It does not join, neither over plain TCP nor with keys of its own; with the study's it does."""
    factory = from_recipe("distributed.LocalCluster", **LOCAL)
    with (
        open_cluster(factory, tmp_path) as cluster,
        Client(cluster, set_as_default=False) as client,
        security.in_files(tmp_path) as others,
        ExitStack() as started,
    ):
        address = cluster.scheduler_address
        with_keys, with_none, with_others = (
            subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_worker"]
                + ["--no-nanny", "--no-dashboard", "--death-timeout=3", *words],
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
            )
            for words in (
                [address, *options(cluster.security), "--death-timeout=60"],
                [plain(address)],
                [address, *options(others)],
            )
        )
        for worker in (with_keys, with_none, with_others):
            started.callback(worker.communicate)
            started.callback(worker.kill)
        client.wait_for_workers(2, timeout=60)
        for worker in (with_none, with_others):
            _, said = worker.communicate(timeout=60)
            assert "Registered to" not in said
            assert worker.returncode != 0, said
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2


def test_keys_in_files_are_private_and_gone_at_the_end(tmp_path):
    """Folder 0700, files 0600, whatever the umask is; nothing is left, after an error neither."""
    umask = os.umask(0)
    try:
        with (
            pytest.raises(ZeroDivisionError),
            security.in_files(tmp_path / "run") as keys,
        ):
            paths = keys_in(tmp_path / "run")
            config = keys.get_tls_config_for_role("worker")
            assert {config["cert"], config["key"]} == set(map(str, paths))
            assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
            (folder,) = {path.parent for path in paths}
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            raise ZeroDivisionError
    finally:
        os.umask(umask)
    assert not list((tmp_path / "run").iterdir())


def test_jobs_of_a_queue_get_the_keys(tmp_path, monkeypatch):
    """The script of a Slurm job speaks TLS, with private files of absolute paths that go away."""
    monkeypatch.chdir(tmp_path)
    with open_cluster(slurm(), Path("run")) as cluster:
        script = cluster.job_script()
        assert "dask_worker tls://127.0.0.1:" in script
        files = keys_in(tmp_path / "run")
        assert len(files) == 2
        for path in files:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for option, path in zip(("ca-file", "key"), sorted(files), strict=True):
            assert f"--tls-{option} {path}" in script
        assert "PRIVATE" not in script
        assert is_let_in(cluster.scheduler_address, cluster.security)
        assert not is_let_in(cluster.scheduler_address, Security.temporary())
    assert not keys_in(tmp_path / "run")
    # Nor does dask-jobqueue write any by itself.
    assert not list(tmp_path.glob(".dask-jobqueue*"))


def test_other_ranks_are_told_files_not_keys(tmp_path):
    """What is sent holds no key, and yet opens the scheduler; keys in files stay where they are."""
    with open_cluster(None, tmp_path) as cluster:
        opened = Existing.of(cluster, local=True)
        assert b"PRIVATE KEY" in pickle.dumps(opened)
        with opened.in_files(tmp_path) as known:
            sent = pickle.dumps(known)
            assert b"PRIVATE KEY" not in sent
            assert b"CERTIFICATE" not in sent
            files = keys_in(tmp_path)
            assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
            assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
            with pickle.loads(sent).client() as client:
                assert client.submit(int, "7").result(timeout=30) == 7
            with known.in_files(tmp_path) as again:
                assert again.security.tls_client_key == known.security.tls_client_key
        assert not list(tmp_path.iterdir())
        with pytest.raises(UserError, match="a folder that all ranks share"):
            known.client()
    nothing = Existing("tcp://127.0.0.1:1")
    with nothing.in_files(tmp_path) as same:
        assert same is nothing


def test_the_inlet_takes_the_scheduler_s_interface():
    """Not the one towards the internet: the one through which workers come."""
    addresses = [
        place.address
        for places in psutil.net_if_addrs().values()
        for place in places
        if place.family == socket.AF_INET
    ]
    assert "127.0.0.1" in addresses
    for address in addresses:
        assert Existing(f"tls://{address}:8786").interface == address
    here = Existing("tls://127.0.0.1:8786")
    assert Existing.of(here, local=True).interface is None


def listening(link):
    port = int(link.rpartition(":")[2].partition("/")[0])
    places = psutil.Process().net_connections("inet")
    return {p.laddr.ip for p in places if p.laddr.port == port and p.status == "LISTEN"}


@pytest.mark.parametrize("chosen", [None, ":8787", "0.0.0.0:0"])
def test_the_dashboard_is_for_this_machine(chosen, tmp_path, warnings):
    """Dask's default is every interface; ours is not, and the user's choice is kept and said."""
    words = {k: v for k, v in LOCAL.items() if k != "dashboard_address"}
    if chosen is not None:
        words["dashboard_address"] = chosen
    factory = from_recipe("distributed.LocalCluster", **words)
    with open_cluster(factory, tmp_path) as cluster:
        open_ = chosen == "0.0.0.0:0"
        assert listening(cluster.dashboard_link) == {
            "0.0.0.0" if open_ else "127.0.0.1"
        }
    assert [open_] * len(warnings) == [
        "no password" in w.getMessage() for w in warnings
    ]
    assert len(warnings) == open_


def test_the_dashboard_of_a_queue_s_cluster(tmp_path, warnings):
    """This machine only, where Dask shows it to all; who wants that says so, and is told what it means."""
    factory = partial(SLURMCluster, cores=1, memory="1GB", interface="lo")
    # Of a node, where jobs come to.
    options = {"host": "127.0.0.2"}
    with (
        dask.config.set({"jobqueue.slurm.scheduler-options": options}),
        open_cluster(factory, tmp_path) as cluster,
    ):
        assert listening(cluster.dashboard_link) == {"127.0.0.1"}
        assert cluster.dashboard_link.startswith("http://127.0.0.1:")
    assert not warnings
    options = {"dashboard_address": "0.0.0.0:0", "interface": "lo"}
    with (
        dask.config.set({"jobqueue.slurm.scheduler-options": options}),
        open_cluster(factory, tmp_path) as cluster,
    ):
        assert listening(cluster.dashboard_link) == {"0.0.0.0"}
    (warning,) = warnings
    assert "in scheduler_options" in warning.getMessage()


def open_clusters():
    class Unguarded(SpecCluster):
        """A cluster that knows no `security`."""

        def __init__(self, name=None):
            super().__init__(
                name=name,
                scheduler={
                    "cls": "distributed.Scheduler",
                    "options": {
                        "host": "127.0.0.1",
                        "dashboard_address": "127.0.0.1:0",
                    },
                },
            )

    yield from_recipe("distributed.LocalCluster", security=False, **LOCAL), False
    yield slurm(security=False), True
    yield Unguarded, True


@pytest.mark.parametrize("which", range(3), ids=["false", "slurm", "unknown"])
def test_a_cluster_without_keys_is_a_choice_that_is_said(which, tmp_path, warnings):
    """It opens, and a warning tells what is open: code, and beyond this machine the keys too."""
    factory, leaves = list(open_clusters())[which]
    with open_cluster(factory, tmp_path) as cluster:
        assert cluster.scheduler_address.startswith("tcp://")
    (warning,) = warnings
    assert warning.levelno == logging.WARNING
    assert cluster.scheduler_address in warning.getMessage()
    assert "can run code as you" in warning.getMessage()
    assert ("keys of the stream" in warning.getMessage()) == leaves
    assert not keys_in(tmp_path)


def test_keys_of_the_recipe_are_kept(tmp_path):
    """A `security` of the user's own is not replaced."""
    mine = Security.temporary()
    with open_cluster(
        partial(LocalCluster, security=mine, **LOCAL), tmp_path
    ) as cluster:
        assert cluster.security is mine
    assert not list(tmp_path.iterdir())


def test_a_whole_study_is_closed_to_strangers(tmp_path, monkeypatch, warnings):
    """Simulations run over TLS and CURVE; all listens on loopback; afterwards nothing is left."""
    monkeypatch.setattr("surrogate_flow.ensemble.study.is_local", lambda cluster: False)
    seen, ended = [], threading.Event()

    class Sink(Discard):
        def offer(self, simulation, first, steps, parameters, inputs=None):
            seen.extend((simulation, first + k) for k in range(len(steps)))
            return len(steps)

    before = set(psutil.Process().children(recursive=True))
    design = Design(
        Wave.spec.parameters, Uniform(), held_out=1, simulations=7, part="test"
    )
    study = Study(
        Wave(),
        design,
        Sink(),
        cluster=from_recipe("distributed.LocalCluster", **LOCAL),
        faults=Faults(),
        settings=StudySettings("wave", tmp_path / "run"),
        listeners=[lambda event: isinstance(event, Exhausted) and ended.set()],
    )
    try:
        study.start()
        assert len(keys_in(tmp_path / "run")) == 2
        assert study.inlet.endpoint.address.startswith("tcp://127.0.0.1:")
        assert study.inlet.endpoint.keys is not None
        assert ended.wait(60), study.silent()
        ours = psutil.Process()
        for process in (ours, *set(ours.children(recursive=True)) - before):
            for place in process.net_connections("inet"):
                if place.status == psutil.CONN_LISTEN:
                    assert place.laddr.ip in ("127.0.0.1", "::1")
        with RawOutlet(study.inlet.endpoint) as raw:
            # Nobody makes the inlet remember numbers that were not handed out.
            assert "simulation 99 is planned" in raw.open(Wave.spec, 99).reason
        assert study.inlet.stats().refused == {"simulation": 1}
    finally:
        study.close()
    assert sorted(seen) == [(n, k) for n in range(8) for k in range(5)]
    assert not list((tmp_path / "run").iterdir())
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not warnings


def test_the_inlet_listens_on_its_interface_only():
    """The port of an inlet on 127.0.0.1 is closed on 127.0.0.2."""
    with Inlet(Wave.spec, Discard(), host="127.0.0.1") as inlet:
        port = int(inlet.endpoint.address.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=10)
