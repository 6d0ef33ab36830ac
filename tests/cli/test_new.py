"""What new writes runs as it is: check, its test, ruff, and a short fit."""

import inspect
import os
import runpy
import shlex
import shutil
import subprocess
import sys

import programs
import pytest
from programs import environment

from surrogate_flow.cli.app import main
from surrogate_flow.solvers.programs.channel import INCLUDE

FOLDER = "$(surrogate-flow include)"


def ran(folder, *words):
    """Run a program that ends well."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def passes(path):
    """Run the functions of a file that pytest would run."""
    tests = runpy.run_path(str(path))
    names = [name for name in tests if name.startswith("test_")]
    for name in names:
        wanted = "tmp_path" in inspect.signature(tests[name]).parameters
        tests[name](*[path.parent] * wanted)
    assert names


@pytest.mark.parametrize("kind", ["solver", "network", "program"])
def test_what_is_written_runs(kind, tmp_path, monkeypatch, capsys):
    """The commands that it prints, and ruff."""
    if kind == "program" and not shutil.which("cc"):
        pytest.skip("needs a C compiler: apt install gcc")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_wave", raising=False)
    main(["new", kind, "my_wave"])
    written = {path.name for path in tmp_path.iterdir()}
    code = "my_wave.c" if kind == "program" else "my_wave.py"
    assert written == {code, "my_wave.yaml", "test_my_wave.py"}
    _, *commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 3
    for command in commands:
        *_, words = command.rpartition("PYTHONPATH=. ")
        name, *options = shlex.split(words.replace(FOLDER, str(INCLUDE)))
        if name == "pytest":
            assert options == ["test_my_wave.py"]
        elif name == "cc":
            ran(tmp_path, name, *options)
        elif options[0] == "check":
            main(options)
        else:
            short = ["--trainer.max_steps=3", "--data.batch_size=4"]
            short += ["--data.simulations=12", "--data.held_out=1"]
            short += ["--data.reservoir.threshold=20"]
            path = os.pathsep.join([environment()["PYTHONPATH"], str(tmp_path)])
            env = {**environment(), "PYTHONPATH": path}
            programs.run(*options, *short, cwd=tmp_path, env=env)
    passes(tmp_path / "test_my_wave.py")
    assert list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt"))
    ran(tmp_path, sys.executable, "-m", "ruff", "check", "--isolated", ".")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Kinds: solver, network, program"),
        (["sover", "wave"], "Did you mean 'solver'"),
        (["solver"], "expected a kind and a name"),
        (["solver", "my-wave"], "a name for a file in small letters"),
        (["solver", "wave"], "'wave'. Take my_wave"),
        (["network", "torch"], "nothing else has in Python, got 'torch'"),
        (["solver", "coordinate"], "got 'coordinate'"),
        (["solver", "there"], "there.yaml is in this folder, and is not overwritten"),
    ],
)
def test_mistakes_write_nothing(words, said, tmp_path, monkeypatch, capsys):
    """One line, and no file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["new", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    assert (tmp_path / "there.yaml").read_text() == "mine"


def test_the_solver_of_a_recipe_is_checked(capsys):
    """With options over it; and how fast and how large it is."""
    main(["check", "heat2d", "--cells", "[4, 4]", "--steps", "5"])
    shown = capsys.readouterr().out
    assert shown.count("✓") == 9
    assert "steps/s" in shown
    assert "64 B a step, 320 B a simulation of 5 steps" in shown
    assert "375.00 kiB for a reservoir of 6,000 steps" in shown
    assert "plan --data heat2d --data.solver.cells '[4, 4]'" in shown
    main(["check", "lorenz", "--steps", "5"])
    assert "1.14 MiB for a reservoir of 100,000 steps\n" in capsys.readouterr().out
