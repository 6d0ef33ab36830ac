"""Programs that a recipe describes: what they get, and what is refused before they run."""

import pickle
import stat
import sys
import textwrap

import numpy as np
import pytest
import xarray as xr
import yaml
from troubled import Wave

from surrogate_flow.fields.errors import ArgumentError, MissingFileError
from surrogate_flow.solvers import Program, Run

SPEC = Wave.spec
# Writes what it has got, and then the steps of the wave.
SCRIPT = """
    import os, sys
    phase = float(sys.argv[1])
    with open("got", "w") as file:
        print(*sys.argv[1:], os.environ["SEED"], open("in/case.txt").read(), file=file)
    for k in range(1, 6):
        with open("part", "w") as file:
            print(*(phase + k + i / 10 for i in range(4)), file=file)
        os.rename("part", f"step_{k}")
"""


class Steps:
    """Reads text files, a step each."""

    def read(self, run, spec):
        for t in spec.times:
            path = run.folder / f"step_{t:.0f}"
            run.wait(path.exists)
            yield xr.Dataset(
                {"u": (("time", "x"), np.loadtxt(path)[None])}, {"time": [t]}
            )


@pytest.fixture
def case(tmp_path, monkeypatch):
    """A folder with a program and a template, in which the recipe is."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "wave"
    script.write_text(f"#!{sys.executable}{textwrap.dedent(SCRIPT)}")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "case.j2").write_text("phase = {{ '%.2f' | format(phase) }}")
    (tmp_path / "scratch").mkdir()
    return tmp_path


WHOLE = {
    "input": {"in/case.txt": "case.j2"},
    "environment": {"SEED": "{simulation:03d}"},
    "reader": Steps(),
}


def test_a_program_gets_what_its_recipe_says(case):
    """Words, variables and files, with values in them; it has travelled to a worker."""
    solver = Program("./wave {phase:.4f} '{cores} cores' {{x}}", SPEC, **WHOLE)
    (case / "case.j2").unlink()
    solver = pickle.loads(pickle.dumps(solver))
    run = Run({"phase": 0.5}, 7, folder=case / "scratch", cores=3)
    got = xr.concat(solver.start(run), "time")
    xr.testing.assert_allclose(got, xr.concat(Wave().solve({"phase": 0.5}), "time"))
    said = (case / "scratch" / "got").read_text().strip()
    assert said == "0.5000 3 cores {x} 007 phase = 0.50"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"command": "wave {phas}"}, r"command: unknown name 'phas' .*Did you mean 'p"),
        ({"command": "wave {phase"}, r"command: expected text .*'\{phase'"),
        ({"command": "wave {phase:d}"}, r"command: expected text .*'\{phase:d\}'"),
        ({"command": "wave {phase.real}"}, "unknown name 'phase.real'"),
        ({"command": []}, "command: expected a program, got nothing"),
        ({"environment": {"A": "{core}"}}, r"environment A: .*Did you mean 'cores'"),
        ({"input": {"../a": "case.j2"}}, r"own folder, got '../a'"),
        ({"input": {"a": "bad.j2"}}, r"bad.j2, line 1: expected a Jinja2 template"),
        ({"input": {"a": "odd.j2"}}, r"input a: unknown name 'phasee'\. Did you mean"),
        ({"input": {"a": "sum.j2"}}, r"input a: TypeError"),
        ({"input": {"a": "none.j2"}}, r"No file 'none.j2' .*the template of the input"),
        ({"spec": "none.yaml"}, r"No file 'none.yaml' .*a spec in YAML"),
        ({"spec": {"dimms": ["x"]}}, r"spec: unknown 'dimms'\. Did you mean 'dims'"),
        ({"spec": {"variables": ["u"]}}, r"the fields of a Variable, got 'u'"),
        ({"spec": {"times": {"stop": 1.0}}}, r"spec: times: expected numbers, or \{fi"),
        (
            {"spec": {"times": {"step": 1, "count": 0.5}}},
            r"count: expected a whole num",
        ),
        ({"spec": {"dims": ["x"]}}, r"FieldSpec: .*missing required field"),
    ],
)
def test_a_recipe_that_cannot_be_right_is_refused_before_a_program_runs(
    case, wrong, said
):
    """In one line, with the nearest name."""
    (case / "bad.j2").write_text("{% if %}")
    (case / "odd.j2").write_text("{{ phasee }}")
    (case / "sum.j2").write_text("{{ phase + 'a' }}")
    with pytest.raises((ArgumentError, MissingFileError), match=said) as error:
        Program(**{"command": "./wave {phase}", "spec": SPEC, **wrong})
    assert "\n" not in str(error.value)


def test_a_parameter_has_a_name_of_its_own():
    spec = {**SPEC.to_plain(), "parameters": [{"name": "cores", "low": 0, "high": 1}]}
    with pytest.raises(ArgumentError, match="not called cores, simulation"):
        Program("wave", spec)


def test_a_spec_in_a_file_is_the_spec_in_python(tmp_path):
    """Even positions are written in short."""
    plain = SPEC.to_plain()
    plain["times"] = {"step": 1.0, "count": 5}
    plain["coordinates"][0]["values"] = {"first": 0, "step": 1, "count": 4}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(plain))
    assert Program("wave", plain).spec == SPEC
    assert Program("wave", tmp_path / "spec.yaml").spec == SPEC
