"""Checkpoints from strangers: whatever they hold, nothing of it runs."""

import contextlib
import copy
import io
import os
import pickle
import random
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from surrogate_flow.cli import runs
from surrogate_flow.cli.app import main
from surrogate_flow.cli.recipes import CommandLine
from surrogate_flow.data.checkpoint import StudyCheckpoint, read_steps
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.ensemble.ledger import Ledger
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.window import Autoregressive
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.callbacks import AtomicCheckpoints, SafeCheckpoint
from surrogate_flow.reservoir import FIRO, Store
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate import checkpoint
from surrogate_flow.surrogate.surrogate import Surrogate

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


def test_what_is_none_names_those_that_may_be_meant(tmp_path, monkeypatch, caplog):
    """A run's folder has two; a bare name means the newest run, of whichever workflow."""
    monkeypatch.chdir(tmp_path)
    kept = [Path(f"runs/heat/1/checkpoints/{name}.ckpt") for name in ("best", "last")]
    kept[0].parent.mkdir(parents=True)
    for path in kept:
        path.touch()
    meant = f"Did you mean {kept[0]} or {kept[1]}"
    for folder in ("runs/heat/1", "runs/heat/1/checkpoints/"):
        with pytest.raises(ValueError, match=meant):
            CommandLine.of(["export", "--ckpt_path", folder, "--format=pt2"])
    with pytest.raises(FileNotFoundError, match=meant):
        Surrogate.load("runs/heat/1")
    with pytest.raises(FileNotFoundError, match=f"Did you mean {kept[0]}?"):
        Surrogate.load("best")
    with pytest.raises(FileNotFoundError, match="A run keeps its own in runs/"):
        Surrogate.load("first")
    caplog.set_level("INFO")
    assert runs.given_checkpoint("last") == str(kept[1])
    assert "the newest run of any workflow is of heat" in caplog.text


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


class Tiny(L.LightningModule):
    """A weight that is trained on nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, index):
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def train_tiny(folder, steps, **resume):
    kept = ModelCheckpoint(
        folder / "checkpoints", filename="{step}", every_n_train_steps=1
    )
    trainer = L.Trainer(
        max_steps=steps,
        callbacks=[kept],
        plugins=[AtomicCheckpoints()],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Tiny(), torch.utils.data.DataLoader([0] * 9), **resume)
    return kept


@pytest.mark.parametrize(
    "spelled", ["local://{}", "file://{}/", "{}", "{ours}/../precious", "{ours}/steps"]
)
def test_a_checkpoint_has_nothing_else_deleted(spelled, tmp_path):
    """Lightning removes the best one so far, whatever path a checkpoint gives for it, folders too."""
    precious = tmp_path / "precious"
    precious.mkdir()
    ours = tmp_path / "checkpoints"
    kept = train_tiny(tmp_path, 2)
    assert [path.name for path in ours.glob("*.ckpt")] == ["step=2.ckpt"]
    (ours / "steps").mkdir()
    saved = torch.load(kept.best_model_path, weights_only=True)
    ((_, state),) = [(k, v) for k, v in saved["callbacks"].items() if "Model" in k]
    state["best_model_path"] = spelled.format(precious, ours=ours)
    torch.save(saved, tmp_path / "evil.ckpt")
    train_tiny(tmp_path, 4, ckpt_path=tmp_path / "evil.ckpt")
    assert precious.exists()
    assert {path.name for path in ours.iterdir()} - {".lock"} == {
        *("step=2.ckpt", "step=4.ckpt", "steps"),
    }


def of_steps(folder, number):
    """A checkpoint of two ranks with a file of steps each."""
    names = [f"reservoir-{number:08x}.npy", f"reservoir-{number + 100:08x}.npy"]
    for name in names:
        (folder / name).touch()
    return {"state_dict": {}, "Data": {"ranks": [{"rows": name} for name in names]}}


def numbers(folder):
    """The numbers of the files of steps in a folder, of the first rank."""
    found = sorted(int(p.stem[-8:], 16) for p in folder.glob("reservoir-*.npy"))
    assert [n + 100 for n in found if n < 100] == [n for n in found if n >= 100]
    return [n for n in found if n < 100]


def test_files_of_steps_go_with_the_last_checkpoint_that_names_them(tmp_path):
    """Those of the best one stay, and those of the last until the next is whole."""
    files, best, last = AtomicCheckpoints(), tmp_path / "best.ckpt", tmp_path / "l.ckpt"
    one = of_steps(tmp_path, 1)
    files.save_checkpoint(one, best)
    files.save_checkpoint(one, last)
    files.save_checkpoint(of_steps(tmp_path, 2), last)
    assert numbers(tmp_path) == [1, 2]
    (tmp_path / "l.ckpt.part").mkdir()
    with contextlib.suppress(OSError):
        files.save_checkpoint(of_steps(tmp_path, 3), last)
    assert files.error is not None
    assert numbers(tmp_path) == [1, 2, 3]
    with contextlib.suppress(OSError):
        files.save_checkpoint(of_steps(tmp_path, 4), last)
    assert numbers(tmp_path) == [1, 2, 4]
    (tmp_path / "l.ckpt.part").rmdir()
    files.save_checkpoint(of_steps(tmp_path, 4), last)
    assert numbers(tmp_path) == [1, 4]
    files.remove_checkpoint(best)
    assert numbers(tmp_path) == [4]


def test_what_a_killed_run_left_is_removed_if_no_checkpoint_names_it(tmp_path):
    """Of checkpoints that can be read; else nobody knows. And not while it is alive."""
    alive = AtomicCheckpoints()
    alive.save_checkpoint(of_steps(tmp_path, 1), tmp_path / "last.ckpt")
    of_steps(tmp_path, 2)
    part = tmp_path / "reservoir-00000003.npy.part"
    part.touch()
    runs.tidy(tmp_path / "last.ckpt")
    assert part.exists()
    assert numbers(tmp_path) == [1, 2]
    del alive
    (tmp_path / "best.ckpt").write_bytes(b"cut off")
    runs.tidy(tmp_path / "last.ckpt")
    assert not list(tmp_path.glob("*.part"))
    assert numbers(tmp_path) == [1, 2]
    (tmp_path / "best.ckpt").rename(tmp_path / "best.txt")
    runs.tidy(tmp_path / "last.ckpt")
    assert numbers(tmp_path) == [1, 2]
    (tmp_path / "best.txt").unlink()
    runs.tidy(tmp_path / "last.ckpt")
    assert numbers(tmp_path) == [1]
    (tmp_path / "last.ckpt").rename(tmp_path / "good.pt")
    runs.tidy(tmp_path / "good.pt")
    assert numbers(tmp_path) == [1]


@pytest.mark.parametrize("part", ["network", "window"])
@pytest.mark.parametrize("name", ["os.mkdir", "subprocess.Popen", "os.path"])
def test_a_recipe_names_networks_and_windows_only(part, name, saved, tmp_path):
    """A checkpoint cannot have anything else called, with arguments of its own."""
    saved[checkpoint.KEY][part] = {
        "class_path": name,
        "init_args": {"args": ["touch", str(tmp_path / "ran")]},
    }
    torch.save(saved, tmp_path / "named.ckpt")
    with pytest.raises(ValueError, match="expected a subclass of"):
        Surrogate.load(tmp_path / "named.ckpt")
    assert not (tmp_path / "ran").exists()


def test_arguments_in_a_checkpoint_change_no_recipe(saved, tmp_path, monkeypatch):
    """Lightning would take hyperparameters, class paths among them, for the command's own."""
    saved["hyper_parameters"] = {"normalisation": "none"}
    torch.save(saved, tmp_path / "hyper.ckpt")
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    built = []
    monkeypatch.setattr(
        "surrogate_flow.cli.lightning.SurrogateCLI.before_instantiate_classes",
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


# What a checkpoint says of the reservoir, and the file of fields beside it.

ROWS = 30


def header(text):
    text += " " * (64 - (len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def npy(descr="<f4", shape="(30, 1, 6, 4)", order=False):
    return header(f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}}}")


def archive():
    file = io.BytesIO()
    np.savez(file, rows=np.zeros(ROWS))
    return file.getvalue()


HOSTILE = {
    "pickle": lambda ran: pickle.dumps(Evil(ran)),
    "objects": lambda ran: npy("|O") + pickle.dumps(Evil(ran)),
    "archive": lambda ran: archive(),
    "empty": lambda ran: b"",
    "cut off": lambda ran: npy() + bytes(4 * ROWS * 24 - 1),
    "said to be huge": lambda ran: npy(shape=f"(30, {2**60})"),
    "larger than any": lambda ran: npy(shape=f"(30, {2**80})"),
    "negative": lambda ran: npy(shape="(30, -1, 6, 4)") + bytes(3000),
    "a number": lambda ran: npy(shape="()") + bytes(3000),
    "other steps": lambda ran: npy(shape="(30, 24)") + bytes(3000),
    "one too many": lambda ran: npy(shape="(31, 1, 6, 4)") + bytes(3000),
    "float64": lambda ran: npy("<f8") + bytes(6000),
    "nothing each": lambda ran: npy("V0"),
    "deep": lambda ran: header("-" * 9000 + "1"),
    "open": lambda ran: header("(" * 9000),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_of_steps_is_float32_of_its_size_or_nothing(what, tmp_path):
    """Nothing is unpickled, no header is believed, and the error says which file."""
    path = tmp_path / "reservoir-00000000.npy"
    path.write_bytes(HOSTILE[what](tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"00000000\.npy: (cannot|expected)"):
        read_steps(path, (ROWS, 1, 6, 4))
    assert not (tmp_path / "ran").exists()
    path.write_bytes(npy() + bytes(4 * ROWS * 24))
    assert read_steps(path, (ROWS, 1, 6, 4)).shape == (ROWS, 1, 6, 4)


def persistence(first=None):
    """A reservoir of windows that share steps, half full, and a held-out simulation."""
    window = Autoregressive(2)
    store = Store(SPEC, window, 2, FIRO(capacity=40, threshold=4))
    held_out = ValidationSet(SPEC, window, 2, 0, 1)
    first = first or {"a": 1.0}
    memory = StudyCheckpoint(store, held_out, Ledger(), first, fields=True)
    return store, held_out, memory


@pytest.fixture
def books(tmp_path):
    """The state of such a one, with its file in `tmp_path`."""
    store, held_out, memory = persistence()
    steps = np.ones((SPEC.steps, *SPEC.step_shape), dtype=np.float32)
    vector = np.ones(len(SPEC.parameters))
    held_out.offer(0, 0, steps, vector)
    for number in (1, 2, 3):
        store.offer(number, 0, steps[: SPEC.steps - number + 1], vector)
    store.draw(0, memory.pending)
    return memory.save(0, 0, tmp_path)


def change(books, name, value):
    place = books["store"] if name in books["store"] else books
    place[name] = value(place[name]) if callable(value) else value


def set_to(value, at=0):
    def change(old):
        new = old.clone()
        new.view(-1)[at] = value
        return new

    return change


HUGE = 2**62


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", "../precious.npy"),
        ("rows", "/etc/passwd"),
        ("rows", 7),
        ("place", set_to(HUGE)),
        ("place", set_to(1, at=2)),
        ("place", lambda old: old[:-1]),
        ("members", set_to(-1)),
        ("members", set_to(HUGE)),
        ("following", set_to(HUGE)),
        ("following", lambda old: old[:-1]),
        ("step", set_to(SPEC.steps)),
        ("step", set_to(-1)),
        ("simulation", lambda old: torch.zeros(1, dtype=torch.int64).expand(2**50)),
        ("simulation", lambda old: old[:-1]),
        ("simulation", lambda old: old.float()),
        ("parameters", lambda old: old[:, :-1]),
        ("times", set_to(-1)),
        ("unseen", HUGE),
        ("unseen", -1),
        ("tails", set_to(HUGE)),
        ("tails", set_to(HUGE, at=1)),
        ("live", set_to(HUGE, at=1)),
        ("live", lambda old: old[:, :2]),
        ("finished", lambda old: torch.tensor([[5, 5]])),
        ("finished", lambda old: torch.tensor([[HUGE, 3]])),
        ("again_size", set_to(HUGE)),
        ("again_step", set_to(HUGE)),
        ("again_simulation", lambda old: old[:-1]),
        ("counts", lambda old: old[:-1]),
        ("left", lambda old: old[:-1]),
        ("random", "{"),
        ("random", "[1]"),
        ("random", '{"bit_generator": "MT19937"}'),
        ("whole", torch.tensor([HUGE])),
        ("whole", torch.tensor([0, 0])),
        ("parameters", lambda old: torch.zeros(0, 0)),
        ("store", {}),
        ("held_out", 2**40),
        ("failed", [(3, 1)]),
    ],
)
def test_books_that_contradict_themselves_are_refused(name, value, books, tmp_path):
    """Every index and size is looked at before anything is taken over, or any file opened."""
    precious = tmp_path / "precious.npy"
    mine = (tmp_path / books["rows"]).read_bytes()
    precious.write_bytes(mine)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (tmp_path / books["rows"]).rename(folder / books["rows"])
    whole = copy.deepcopy(books)
    change(books, name, value)
    _, _, memory = persistence()
    with pytest.raises((ValueError, UserError), match=r"\w+ "):
        memory.load(books, folder)
    assert precious.read_bytes() == mine
    store, _, memory = persistence()
    memory.load(whole, folder)
    assert store.stats().population == 3 + 2 + 1 - 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_monitor_that_is_not_finite_is_never_the_best(value, tmp_path, caplog):
    """Not even the first, and it is said."""
    kept = SafeCheckpoint(tmp_path, filename="best", monitor="val_relative_l2")
    trainer = L.Trainer(logger=False, enable_progress_bar=False)
    assert not kept.check_monitor_top_k(trainer, torch.tensor(value))
    assert f"val_relative_l2 is {value} after 0 batches" in caplog.text
    assert kept.check_monitor_top_k(trainer, torch.tensor(0.5))
