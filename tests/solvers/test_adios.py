"""Programs that write by ADIOS2, where its wheel is installed."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from surrogate_flow.fields import FieldSpec, Parameter, Variable
from surrogate_flow.fields.errors import ArgumentError, MissingPackageError
from surrogate_flow.solvers import Adios2, ProcessError, Program, Run

PAGE = Path(__file__).parents[2] / "docs" / "solvers.md"
SPEC = FieldSpec(
    parameters=(Parameter("nu", 0.1, 1.0),),
    variables=(Variable("u"),),
    dims=("x",),
    shape=(64,),
    times=tuple(0.02 * k for k in range(1, 21)),
)


def streamed(folder, engine, change=lambda text: text):
    """What arrives of the program of the page, as it is or changed."""
    section = PAGE.read_text("utf-8").partition("### ADIOS2")[2]
    source = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert len(source.splitlines()) <= 25
    (folder / "heat.py").write_text(change(source))
    reader = Adios2(
        "out.bp",
        engine=engine,
        parameters={"DataTransport": "WAN"} if engine == "SST" else None,
    )
    command = [sys.executable, "heat.py", "{nu}", engine]
    program = Program(command, SPEC, reader=reader, timeout=60)
    yield from program.start(Run({"nu": 0.5}, folder=folder))


@pytest.mark.parametrize("engine", ["BP5", "SST"])
def test_the_program_of_the_page_arrives(engine, tmp_path):
    pytest.importorskip("adios2")
    got = xr.concat(streamed(tmp_path, engine), "time")
    x = np.arange(1, 65) / 65
    decay = np.exp(-0.5 * np.pi**2 * got["time"].values)[:, None]
    np.testing.assert_allclose(got["u"], decay * np.sin(np.pi * x), atol=1e-3)
    assert got["time"].values == pytest.approx(SPEC.times)


WRONG = {
    "ended after": (
        r"(?m)^( +)file.begin_step\(\)",
        r"\1if k == 9: break\n\1file.begin_step()",
    ),
    "got more": (r"range\(1, 21\)", "range(1, 23)"),
    "was ended by SIGKILL": (
        r"(?m)^( +)file.end_step\(\)",
        r"\1k == 9 and os.kill(os.getpid(), 9)\n\1file.end_step()",
    ),
    "no variable 'u'": (r'"u"', '"v"'),
    r"expected the shape \(64,\)": (r"array\(u\[1:-1\]", "array(u[2:-1]"),
}


@pytest.mark.parametrize("engine", ["BP5", "SST"])
@pytest.mark.parametrize("said", WRONG)
def test_a_stream_that_is_wrong_fails_its_attempt(said, engine, tmp_path):
    """And whole steps before it have arrived."""
    pytest.importorskip("adios2")

    def change(text):
        changed = re.sub(*WRONG[said], text)
        assert changed != text
        return f"import os\n{changed}"

    got = []
    with pytest.raises(ProcessError, match=said):
        got += streamed(tmp_path, engine, change)


def test_what_cannot_be_read_is_refused_before_anything_runs(monkeypatch):
    with pytest.raises(ArgumentError, match="engine: expected BP5 or SST, got 'HDF5'"):
        Adios2("out.bp", engine="HDF5")
    for path in ("/tmp/out.bp", "../out.bp"):
        with pytest.raises(ArgumentError, match="path: expected a path in the folder"):
            Adios2(path)
    monkeypatch.setitem(sys.modules, "adios2", None)
    with pytest.raises(MissingPackageError, match="pip install adios2"):
        Adios2("out.bp")
