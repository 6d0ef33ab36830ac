"""Checkpoints from strangers: whatever they hold, nothing of it runs."""

import os
import pickle
import random
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import pytorch_lightning as L
import torch

from surrogate_flow import checkpoint
from surrogate_flow.cli import main
from surrogate_flow.nn import FullyConnected
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate import Surrogate

SPEC = Heat2D(cells=(6, 4), steps=5).spec


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def saved(tmp_path):
    """A whole checkpoint of a surrogate, as Lightning writes it."""
    trainer = L.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path)
    trainer.strategy.connect(Surrogate(SPEC, partial(FullyConnected, widths=(8,))))
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    return torch.load(tmp_path / "good.ckpt", weights_only=True)


@pytest.fixture
def evil(tmp_path, saved):
    """That checkpoint, and something that would run; and where one would see it."""
    torch.save({**saved, "more": Evil(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    return tmp_path / "evil.ckpt", tmp_path / "ran"


def test_the_bait_works(evil):
    """Whoever opens it as Python objects has run it: the tests below can fail."""
    path, ran = evil
    torch.load(path, weights_only=False)
    assert ran.exists()


def test_code_in_a_checkpoint_is_refused(evil):
    """A whole checkpoint with something more in it: an error, and nothing ran."""
    path, ran = evil
    with pytest.raises(ValueError, match="more than data, which is never executed"):
        Surrogate.load(path)
    path.write_bytes(pickle.dumps(Evil(ran)))
    with pytest.raises(ValueError, match="never executed"):
        Surrogate.load(path)
    assert not ran.exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_no_command_runs_it(command, evil, monkeypatch, capsys):
    """Lightning's own commands refuse it too, before anything starts."""
    path, ran = evil
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    monkeypatch.chdir(path.parent)
    recipes = ["--data=heat2d", "--model=fully_connected"]
    with pytest.raises(SystemExit):
        main([command, *recipes, f"--ckpt_path={path}"])
    assert "never executed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([command, *recipes, "--weights_only=false", f"--ckpt_path={path}"])
    assert "--weights_only: expected true" in capsys.readouterr().err
    assert not ran.exists()


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *words):
        pass


def test_one_from_afar_runs_neither(evil):
    """Lightning fetches from an address, and would run what it gets if not told better."""
    path, ran = evil
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(path.parent))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/evil.ckpt"
        done = subprocess.run(
            [sys.executable, "-m", "surrogate_flow", "validate", "--data=heat2d"]
            + ["--model=fully_connected", "--data.solver.cells=[6,4]"]
            + ["--data.held_out=2", f"--ckpt_path={address}"],
            cwd=path.parent,
            env={**os.environ, "TORCH_HOME": str(path.parent)},
            capture_output=True,
            text=True,
            timeout=100,
        )
        server.shutdown()
    assert not ran.exists()
    assert done.returncode != 0, done.stdout
    assert "evil.ckpt" in done.stderr or "Weights only load failed" in done.stderr


@pytest.mark.parametrize("part", ["network", "window"])
@pytest.mark.parametrize("name", ["os.mkdir", "subprocess.Popen", "os.path"])
def test_a_recipe_names_networks_and_windows_only(part, name, saved, tmp_path):
    """A checkpoint cannot have anything else called, with arguments of its own."""
    saved[checkpoint.KEY][part] = {
        "class_path": name,
        "init_args": {"args": ["touch", str(tmp_path / "ran")]},
    }
    torch.save(saved, tmp_path / "named.ckpt")
    with pytest.raises(ValueError, match=r"expected an nn\.Module and a Window"):
        Surrogate.load(tmp_path / "named.ckpt")
    assert not (tmp_path / "ran").exists()


def test_arguments_in_a_checkpoint_change_no_recipe(saved, tmp_path, monkeypatch):
    """Lightning would take hyperparameters, class paths among them, for the command's own."""
    saved["hyper_parameters"] = {"normalisation": "none"}
    torch.save(saved, tmp_path / "hyper.ckpt")
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    built = []
    monkeypatch.setattr(
        "surrogate_flow.commands.SurrogateCLI.before_instantiate_classes",
        lambda cli: built.append(cli.config.validate.model.normalisation) or sys.exit(),
    )
    with pytest.raises(SystemExit):
        main(
            ["validate", "--data=heat2d", "--model=fully_connected"]
            + [f"--ckpt_path={tmp_path / 'hyper.ckpt'}"]
        )
    assert built == ["standard"]


def test_damaged_checkpoints_are_refused_with_a_word(saved, tmp_path):
    """Three hundred files with bytes changed, lost or added: a ValueError each, or no harm."""
    chance = random.Random(0)
    whole = (tmp_path / "good.ckpt").read_bytes()
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(content))
            content[at : at + chance.choice([0, 1, 9])] = chance.randbytes(
                chance.choice([0, 1, 9])
            )
        (tmp_path / "bad.ckpt").write_bytes(bytes(content))
        try:
            checkpoint.read(tmp_path / "bad.ckpt")
        except ValueError as error:
            refused += "never executed" in str(error) or "surrogate of format" in str(
                error
            )
    assert refused > 100
