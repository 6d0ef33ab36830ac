"""Programs in other languages, compiled for tests."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from surrogate_flow.solvers.programs.channel import INCLUDE

PAGE = Path(__file__).parents[2] / "docs" / "solvers.md"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# MPICH's, which the test extra brings.
MPI = [str(Path(sys.executable).with_name(name)) for name in ("mpicc", "mpirun")]


def of_page(language, word):
    """Return the program of the page about solvers that has a word in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (code,) = (code for code in blocks if re.search(word, code))
    return code


def compiled(folder, name, source, *words, compiler="cc"):
    """Compile a source into a folder; skip where there is no compiler."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}; .ci/run installs it")
    suffix = {"gfortran": "f90", "c++": "cpp"}.get(Path(compiler).name, "c")
    file = folder / f"{name}.{suffix}"
    file.write_text(source)
    words = [*words, f"-I{INCLUDE}", str(file), "-o", str(folder / name), "-lm"]
    done = subprocess.run(
        [compiler, *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / name
