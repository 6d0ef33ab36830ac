"""Programs that a recipe describes: what they get, and what is refused before they run."""

import os
import pickle
import re
import shlex
import shutil
import stat
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import numpy as np
import programs
import pytest
import xarray as xr
import yaml
from compiled import INCLUDE, MPI, PAGE, SANITIZED, STRICT, compiled, of_page
from test_process import all_gone
from troubled import Wave

from surrogate_flow.fields.encoder import Encoder, SpecMismatch
from surrogate_flow.fields.errors import ArgumentError, MissingFileError
from surrogate_flow.solvers import ProcessError, Program, Run
from surrogate_flow.solvers.programs import process
from surrogate_flow.solvers.programs.channel import VARIABLE

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
        ({"command": "./wav"}, r"command: no file './wav' in .*Compile it"),
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
        ({"input": {"a": "evil.j2"}}, r"input a: SecurityError"),
        ({"command": "./wave '{phase}"}, r"command: expected words as a shell"),
        ({"spec": {"coordinates": 5}}, r"coordinates: expected a list.*got 5"),
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
    (case / "evil.j2").write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises((ArgumentError, MissingFileError), match=said) as error:
        Program(**{"command": "./wave {phase}", "spec": SPEC, **wrong})
    assert "\n" not in str(error.value)


def test_input_fields_lie_in_the_folder_of_the_program(tmp_path):
    """As raw numbers, which every language reads."""
    plain = {**SPEC.to_plain(), "inputs": [{"name": "bed"}]}
    code = "import os, shutil; shutil.copy('bed.bin', os.environ['TO'])"
    solver = Program(
        [sys.executable, "-c", code], plain, environment={"TO": str(tmp_path / "bed")}
    )
    bed = np.arange(8, dtype=np.float32)[::2]
    with pytest.raises(ProcessError, match="never called sf_open"):
        list(solver.solve({"phase": 0.5, "bed": bed}))
    assert np.fromfile(tmp_path / "bed").tolist() == [0, 2, 4, 6]


def test_a_parameter_has_a_name_of_its_own():
    spec = {**SPEC.to_plain(), "parameters": [{"name": "cores", "low": 0, "high": 1}]}
    with pytest.raises(ArgumentError, match="not called cores, simulation"):
        Program("wave", spec)


def test_a_path_may_have_braces(case, monkeypatch):
    (case / "{br}").mkdir()
    (case / "wave").rename(case / "{br}" / "wave")
    monkeypatch.chdir(case / "{br}")
    solver = Program("./wave {phase}", SPEC, reader=Steps())
    words = solver.command(Run({"phase": 0.5}, folder=case))
    assert words == [str(case / "{br}" / "wave"), "0.5"]


def test_a_spec_in_a_file_is_the_spec_in_python(tmp_path):
    """Even positions are written in short."""
    plain = SPEC.to_plain()
    plain["times"] = {"step": 1.0, "count": 5}
    plain["coordinates"][0]["values"] = {"first": 0, "step": 1, "count": 4}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(plain))
    assert Program("wave", plain).spec == SPEC
    assert Program("wave", tmp_path / "spec.yaml").spec == SPEC


HEAT = {
    "parameters": [{"name": "diffusivity", "low": 0.1, "high": 1.0}],
    "variables": [{"name": "u"}],
    "dims": ["x"],
    "shape": [63],
    "times": {"step": 0.002, "count": 50},
}


def heat(diffusivity):
    """What the scheme of the page's programs computes, exactly but for rounding."""
    mode = np.sin(np.pi * np.arange(1, 64) / 64)
    factor = 1 - 4 * diffusivity * 0.002 / 100 * 64**2 * np.sin(np.pi / 128) ** 2
    return factor ** (100 * np.arange(1, 51))[:, None] * mode


def solved(command, diffusivity, **options):
    """Run a program of the page and return all steps."""
    steps = Program(command, HEAT, **options).solve({"diffusivity": diffusivity})
    return np.concatenate([step.u.values for step in steps])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder for what is compiled."""
    return tmp_path_factory.mktemp("programs")


def test_a_program_in_c_solves_the_heat_equation(built):
    """Of the page, with C99 and every warning; the values are the scheme's."""
    program = compiled(built, "heat", of_page("c", "cells|substeps"), *STRICT)
    np.testing.assert_allclose(solved(f"{program} {{diffusivity}}", 0.7), heat(0.7))
    exact = np.exp(-0.7 * np.pi**2 * 0.1) * np.sin(np.pi * np.arange(1, 64) / 64)
    assert abs(heat(0.7)[-1] - exact).max() < 1e-3


def test_a_program_in_fortran_solves_the_heat_equation(built):
    """Compiled as the page says."""
    if shutil.which("gfortran") is None:
        pytest.skip("no gfortran; .ci/run installs it")
    made = re.findall(r"^    ((?:cc -c|gfortran) .*)$", PAGE.read_text(), re.MULTILINE)
    assert len(made) == 2
    (built / "heat.f90").write_text(of_page("fortran", "use surrogate_flow"))
    for line in made:
        words = line.replace("$(surrogate-flow include)", str(INCLUDE))
        strict = ["-std=f2003", "-Wall"] if "gfortran" in words else []
        subprocess.run([*shlex.split(words), *strict], cwd=built, check=True)
    got = solved(f"{built / 'heat'} {{diffusivity}}", 0.7)
    np.testing.assert_allclose(got, heat(0.7))


def test_ranks_of_mpi_send_what_one_would(built):
    """Three ranks, each a third of the grid: bit by bit the same."""
    compiler, mpirun = MPI
    program = compiled(built, "mpi", of_page("c", "MPI"), "-std=c99", compiler=compiler)
    ranks = f"{mpirun} -launcher fork -n {{cores}} {program} {{diffusivity}}"
    solver, parts = Program(ranks, HEAT), []
    for cores in (1, 3):
        (folder := built / f"scratch{cores}").mkdir()
        run = Run({"diffusivity": 0.7}, folder=folder, cores=cores)
        parts.append(np.concatenate([step.u.values for step in solver.start(run)]))
        assert not list(folder.iterdir())
    assert (parts[0] == parts[1]).all()
    np.testing.assert_allclose(parts[1], heat(0.7))


# Sends the wave of the other tests, and fails in all ways.
FATES = r"""
#include <signal.h>
#include <sys/wait.h>
#include "surrogate_flow.h"
#define IS(word) (strcmp(fate, word) == 0)

int main(int argc, char **argv)
{
    const char *fate = argv[2];
    size_t size[] = {4, 1, 1};
    double phase = atof(argv[1]), u[8] = {0};
    float single[8];
    FILE *file = fopen("pids", "w");
    sf_stream *stream;
    pid_t child = getpid();
    (void)argc;

    if (IS("stubborn") || IS("stopped")) signal(SIGTERM, SIG_IGN);
    if ((IS("children") || IS("daemons")) && (child = fork()) == 0) {
        if (IS("daemons")) setsid();
        sleep(3600);
    }
    fprintf(file, "%d %d", (int)getpid(), (int)child);
    fclose(file);
    rename("pids", "pids.txt");
    if (IS("silent")) return 0;
    if (IS("unknown")) { fprintf(stderr, "unknown option --phase\n"); return 64; }
    if (IS("full")) {
        file = fopen("/dev/full", "w");
        fputs("checkpoint", file);
        if (fclose(file)) { perror("checkpoint"); return 1; }
    }
    if (IS("wide")) size[0] = 5;
    if (IS("narrow")) size[0] = 3;
    stream = sf_open(IS("deep") ? 3 : 1, size, NULL, IS("second"), IS("second") || IS("half") ? 2 : 1);
    if (IS("forked") && fork() == 0) { sf_step(stream, "u", 1.0, u); _exit(0); }
    if (IS("forked")) wait(NULL);
    for (int k = 1; k <= (IS("long") ? 6 : 5); k++) {
        if (k == 4) {
            if (IS("early")) break;
            if (IS("fails")) { fprintf(stderr, "negative density\n"); return 3; }
            if (IS("crashes")) raise(SIGKILL);
            if (IS("torn") && write(stream->socket, "SFSTEPS1 and", 12) == 12) return 0;
            if (IS("foreign")) for (int i = 0; i < 9; i++) if (write(stream->socket, "0.5 0.6\n", 8) < 8) return 0;
            if (IS("stubborn") || IS("hangs")) sleep(3600);
        }
        for (int i = 0; i < 4; i++) single[i] = (float)(u[i] = phase + k + i / 10.0);
        if (IS("single")) sf_step_float(stream, "u", k, single);
        else sf_step(stream, IS("name") && k == 4 ? "U" : "u", IS("time") && k == 4 ? 3.5 : k, u);
    }
    if (IS("stopped")) sleep(3600);
    sf_close(stream);
    return IS("late") ? 3 : 0;
}
"""


@pytest.fixture(scope="module")
def fates(tmp_path_factory):
    """The program, with the checks of memory and of undefined behaviour."""
    folder = tmp_path_factory.mktemp("fates")
    return compiled(folder, "fates", FATES, *STRICT, "-D_DEFAULT_SOURCE", *SANITIZED)


@pytest.mark.parametrize("fate", ["", "single", "children", "daemons"])
def test_what_a_program_sends_arrives(fates, tmp_path, fate):
    """In double and in single precision, also where children of it live on."""
    got = xr.concat(
        (
            step.copy(deep=True)
            for step in Program(f"{fates} {{phase}} '{fate}'", SPEC).start(
                Run({"phase": 0.5}, folder=tmp_path)
            )
        ),
        "time",
    )
    xr.testing.assert_allclose(got, xr.concat(Wave().solve({"phase": 0.5}), "time"))
    assert all_gone(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pids.txt"]


@pytest.mark.parametrize(
    ("fate", "whole", "said"),
    [
        (
            "silent",
            0,
            r"has sent 0 of 5 steps \(it never called sf_open\), simulation 0",
        ),
        ("unknown", 0, r"ended with exit code 64, .*\nunknown option --phase"),
        ("full", 0, r"exit code 1, .*\ncheckpoint: No space left on device"),
        ("wide", 0, r"expected the program to send blocks .*\(4,\).*one of \(5,\)"),
        ("narrow", 0, r"expected the program to send the shape \(4,\) .*got \(3,\)"),
        ("deep", 0, r"a grid of 1 dims \(\(4,\)\), got 3 \(\(4, 1, 1\)\)"),
        ("second", 0, r"has sent 0 of 5 steps, by 1 of 2 ranks"),
        ("forked", 1, r"frame 1 where 2 comes next: two processes write to one stream"),
        ("early", 3, r"has sent 3 of 5 steps, simulation 0"),
        ("fails", 3, r"ended with exit code 3, .*\nnegative density"),
        ("crashes", 3, "was ended by SIGKILL"),
        ("late", 4, r"ended with exit code 3"),
        ("torn", 3, "has ended within step 3"),
        ("foreign", 3, r"has sent what the calls of surrogate_flow\.h do not"),
        ("name", 3, r"step 3: .*variables of the spec, got 'U'\. Did you mean 'u'\?"),
        ("stubborn", 3, r"took longer than 1 s \(timeout\)"),
    ],
)
def test_a_program_that_goes_wrong_ends_as_one_line(fates, tmp_path, fate, whole, said):
    """What was whole has arrived, and nothing is left: no process, no socket."""
    slow = 1.0 if fate == "stubborn" else 60.0
    # One that ends without sf_close leaks its stream.
    options = {"environment": {"ASAN_OPTIONS": "detect_leaks=0"}, "timeout": slow}
    solver = Program(f"{fates} {{phase}} {fate}", SPEC, **options)
    steps = []
    with pytest.raises((ProcessError, SpecMismatch), match=f"(?s){said}") as error:
        for step in solver.start(Run({"phase": 0.5}, folder=tmp_path)):
            steps += step.time.values.tolist()
    assert len(steps) == whole
    assert "Sanitizer" not in str(error.value)
    assert all_gone(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pids.txt"]


def test_a_program_that_does_not_end_after_its_last_step_is_ended(
    fates, tmp_path, monkeypatch
):
    """After a while, with a warning; its steps count."""
    monkeypatch.setattr(process, "_LINGERS", 0.1)
    steps = Program(f"{fates} {{phase}} stopped", SPEC).start(
        Run({"phase": 0.5}, folder=tmp_path)
    )
    assert sum(step.sizes["time"] for step in steps) == 5
    assert all_gone(tmp_path)


def test_times_that_differ_from_the_spec_are_refused_as_of_any_solver(fates, tmp_path):
    """By what encodes the steps on the worker, which also counts them."""
    for fate, said in {"time": "got 3.5", "long": "expected 5 steps in all"}.items():
        solver = Program(f"{fates} {{phase}} {fate}", SPEC)
        run = Run({"phase": 0.5}, folder=tmp_path)
        with pytest.raises(SpecMismatch, match=said):
            encoded(solver, run)


def encoded(solver, run):
    """Return the steps as they would be streamed."""
    with closing(solver.start(run)) as datasets:
        encoder, parts = Encoder(solver.spec, 0, datasets), []
        for dataset in datasets:
            parts.append(encoder.convert(dataset, sum(map(len, parts))))
    return np.concatenate(parts)


def test_two_programs_on_one_stream_are_refused(fates, tmp_path):
    """Which a shell has started, or an MPI program that knows no ranks."""
    twice = f"{fates} {{phase}} ''; {fates} {{phase}} ''"
    solver = Program(["sh", "-c", twice], SPEC)
    with pytest.raises(SpecMismatch, match=r"got two of rank 0 of 1.*two programs"):
        list(solver.start(Run({"phase": 0.5}, folder=tmp_path)))


def test_a_program_that_is_not_there_is_named_before_any_simulation(
    tmp_path, monkeypatch
):
    """Missing, not executable, or gone since: by `setup`, on the worker; or else when it starts."""
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "gone"):
        (tmp_path / name).touch()
    solvers = {
        command: Program(command, SPEC)
        for command in ("no-such", "./plain", "sh ./gone", "sh {cores}")
    }
    (tmp_path / "gone").unlink()
    for command, said in {
        "no-such": "command: 'no-such' is not there on .*, where workers run. Install",
        "./plain": r"plain' cannot be executed on .*Type chmod \+x /.*plain",
        "sh ./gone": "/gone' is not there on ",
    }.items():
        with pytest.raises(MissingFileError, match=said):
            solvers[command].setup(1)
    solvers["sh {cores}"].setup(1)
    for command, said in {
        "no-such": r"'no-such' cannot be started \(.*No such file.*on their PATH",
        "./plain": r"plain' cannot be started \(.*Permission denied",
    }.items():
        with pytest.raises(MissingFileError, match=said):
            next(solvers[command].solve({"phase": 0.5}))


def test_a_folder_without_sockets_is_named():
    """As file systems are that have none, and folders that are gone."""
    run = Run({"phase": 0.5}, folder=Path("/proc/self"))
    with pytest.raises(ProcessError, match=r"No socket can be made in /proc/self \("):
        next(Program("true", SPEC).start(run))


def test_the_calls_do_nothing_without_a_worker(fates, tmp_path):
    """The program still runs by hand."""
    env = {k: v for k, v in os.environ.items() if k != VARIABLE}
    done = subprocess.run(
        [fates, "0.5", ""], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "no worker has started this program" in done.stderr


def test_a_recipe_alone_trains_on_a_program(built, tmp_path):
    """That of the page; a simulation that fails is a row, with the end of stderr."""
    recipe = re.search(r"```yaml\n(name: heat\n.*?)```", PAGE.read_text(), re.DOTALL)[1]
    (tmp_path / "heat.yaml").write_text(recipe)
    program = compiled(built, "heat", of_page("c", "cells|substeps"), *STRICT)
    (tmp_path / "fickle").write_text(
        f"#!/bin/sh\n[ $1 = 7 ] && echo no restart file >&2 && exit 3\nexec {program} $2"
    )
    (tmp_path / "fickle").chmod(0o700)
    programs.run(
        *("fit", "--data", "heat.yaml", "--model", "fully_connected"),
        *("--data.solver.command", "./fickle {simulation} {diffusivity}"),
        *("--data.simulations=12", "--data.held_out=2", "--trainer.max_steps=40"),
        *("--data.faults.max_failures=1", "--data.reservoir.threshold=100"),
        cwd=tmp_path,
    )
    (run,) = (tmp_path / "runs" / "heat").iterdir()
    said = (run / "failures.csv").read_text()
    assert re.search(r"fickle' ended with exit code 3, simulation 7", said)
    assert "no restart file" in said
    assert '"batches": 40' in (run / "outcome.json").read_text()


def test_a_program_gets_words_and_vectors(case):
    """By component in the command, and as a list in templates."""
    (case / "case.j2").write_text("{{ force | join(' ') }} {{ metal }} {{ n }}")
    plain = SPEC.to_plain()
    plain["parameters"] = [
        {"name": "phase", "low": 1e-3, "high": 1.0, "log": True},
        {"name": "metal", "choices": ["steel", "copper"]},
        {"name": "n", "low": 1, "high": 4, "whole": True},
        {"name": "force", "low": 0, "high": 9, "size": 2},
    ]
    options = {"input": WHOLE["input"], "reader": Steps()}
    solver = Program("./wave {phase} {metal} {force[1]}", plain, **options)
    given = {"phase": 0.5, "metal": "copper", "n": 2.0, "force": np.array([3.0, 4.5])}
    run = Run(given, folder=case / "scratch")
    assert solver.command(run)[1:] == ["0.5", "copper", "4.5"]
    assert (case / "scratch" / "in" / "case.txt").read_text() == "3.0 4.5 copper 2"
