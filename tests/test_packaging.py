"""What is installed is what is in the repository."""

import configparser
import importlib
import pickle
import pkgutil
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

import surrogate_flow
from surrogate_flow.stream.errors import ProtocolError, StreamTimeout

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def requirements():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    runtime = setup["options"]["install_requires"].split()
    return runtime + setup["options.extras_require"]["networks"].split()


def test_conda_environment_names_the_same_packages():
    """environment.yml and setup.cfg ask for the same packages and versions."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    for requirement in requirements():
        name, bounds = re.match(r"([\w-]+)(?:\[.*\])?(.*)", requirement).groups()
        assert CONDA_NAMES.get(name, name) + bounds in listed


def test_the_citation_is_of_this_version():
    """The fields that the Citation File Format 1.2.0 requires, and both papers."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == setup["metadata"]["version"]
    assert citation["license"] == setup["metadata"]["license"]
    assert citation["type"] == "software"
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert work["type"] in ("software", "conference-paper")
        for author in work["authors"]:
            assert {*author} in ({"name"}, {"family-names", "given-names"})
    assert citation["message"]
    readme = (ROOT / "README.md").read_text("utf-8")
    urls = [paper["url"] for paper in citation["references"]]
    assert len(urls) == 2
    assert all(url in readme for url in urls)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A clone, in a folder of the name that git gives it."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    clone = tmp_path / "clones" / "surrogate_flow"
    clone.mkdir(parents=True)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for name in ("surrogate_flow", "workflows", "models"):
        shutil.copytree(ROOT / name, clone / name)
    return clone


def installed(home, *words):
    """Make an environment of a package alone, with the dependencies of this one."""
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    here = next(p for p in map(Path, sys.path) if p.name == "site-packages")
    # Without the editable install of this one, which comes in by a .pth.
    (site / "dependencies.pth").write_text(str(here))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python")]
        + ["install", "--quiet", "--no-deps", "--no-index", *map(str, words)],
        check=True,
    )
    return home / "bin"


@pytest.mark.timeout(180)
def test_beside_a_clone_its_folder_does_not_shadow_the_package(source, tmp_path):
    """Which Python would take for a namespace package, without anything in it."""
    bin = installed(tmp_path / "venv", "--no-build-isolation", "--editable", source)
    shown = subprocess.run(
        [
            bin / "python",
            "-c",
            "import surrogate_flow as s; print(s.__file__, s.Solver)",
        ],
        cwd=source.parent,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(str(source / "surrogate_flow"))


@pytest.mark.timeout(180)
def test_a_wheel_brings_the_recipes(source, tmp_path):
    """From an installed wheel, in an empty folder, the bare names of recipes work."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        + ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    home = tmp_path / "venv"
    installed(home, wheel)
    empty = tmp_path / "empty"
    empty.mkdir()
    shown = subprocess.run(
        [str(home / "bin" / "surrogate-flow"), "fit", "--data", "heat2d"]
        + ["--model", "fully_connected", "--print_config"],
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert shown.returncode == 0, shown.stderr
    assert "surrogate_flow.solvers.Heat2D" in shown.stdout
    where = subprocess.run(
        [str(home / "bin" / "python"), "-c"]
        + [
            "from surrogate_flow.cli.recipes import find_recipe;"
            "print(find_recipe('workflows', 'heat2d'))"
        ],
        cwd=empty,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(home))
    plan = subprocess.run(
        [str(home / "bin" / "surrogate-flow"), "plan", "--data", "heat2d"]
        + ["--data.cluster", "slurm", "--data.cluster.interface", "lo"],
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "#SBATCH -t 04:00:00" in plan.stdout, plan.stderr
    shipped = home / "share" / "surrogate_flow" / "workflows" / "clusters"
    assert {path.suffix for path in shipped.iterdir()} == {".yaml", ".sbatch", ".pbs"}


def test_every_error_of_the_package_crosses_processes():
    """It is pickled and comes back with its text, as Dask and torch send it."""
    for module in pkgutil.walk_packages(surrogate_flow.__path__, "surrogate_flow."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    errors = [Exception]
    for error in errors:
        errors += error.__subclasses__()
    ours = [e for e in errors if e.__module__.startswith("surrogate_flow.")]
    assert StreamTimeout in ours
    for kind in set(ours):
        error = kind(*("what", "why")[: 1 + (kind is ProtocolError)])
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back)) == (kind, str(error))
