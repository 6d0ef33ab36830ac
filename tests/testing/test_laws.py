"""Each law is broken by somebody, and says so; those who keep all are named by them."""

import dataclasses
import itertools
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial

import numpy as np
import psutil
import pytest
import torch
import xarray as xr

from surrogate_flow.cli import check
from surrogate_flow.cli.app import main
from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.reservoir import FIFO, FIRO, Policy, Reservoir, Store
from surrogate_flow.sampling import BlockSampler, Sampler, Sobol, Uniform
from surrogate_flow.solvers import Ended, Solver
from surrogate_flow.testing import (
    LawBroken,
    check_network,
    check_sampler,
    check_solver,
    check_store,
)

SPEC = FieldSpec(
    parameters=(Parameter("rate", 0.1, 1.0, "1/s"),),
    variables=(Variable("mass", "kg"),),
    dims=("x",),
    shape=(3,),
    times=tuple(float(t) for t in range(1, 21)),
)


class Decay(Solver):
    """mass = exp(-rate t), alike in three cells."""

    spec = SPEC

    def solve(self, parameters):
        for t in self.spec.times:
            yield self.step(parameters["rate"], t)

    def step(self, rate, t):
        return xr.Dataset(
            {"mass": (("time", "x"), np.full((1, 3), np.exp(-rate * t)))}, {"time": [t]}
        )


class NoSpec(Decay):
    spec = "mass"


class NoParameters(Decay):
    spec = FieldSpec((), SPEC.variables, SPEC.dims, SPEC.shape, SPEC.times)


class Unpicklable(Decay):
    def __init__(self):
        self.lock = threading.Lock()


class Deaf(Decay):
    def step(self, rate, t):
        return super().step(1.0, t)


class MakesNothing(Decay):
    """An input field that is not finite."""

    spec = dataclasses.replace(SPEC, inputs=(Variable("a"),))

    def solve(self, parameters):
        for dataset in super().solve(parameters):
            yield dataset.assign(a=("x", np.full(3, np.nan)))


class Forgets(Decay):
    """An input field of its own, which a retry leaves out."""

    spec = dataclasses.replace(SPEC, inputs=(Variable("a"),))

    def start(self, run):
        for t in self.spec.times[run.first_step :]:
            dataset = self.step(run.parameters["rate"], t)
            yield dataset if run.first_step else dataset.assign(a=("x", np.ones(3)))


class Returning(Decay):
    def solve(self, parameters):
        return self.step(parameters["rate"], 1.0)


class Short(Decay):
    def solve(self, parameters):
        return itertools.islice(super().solve(parameters), 19)


class Empty(Decay):
    def solve(self, parameters):
        raise Ended("there was nothing")
        yield


class Leaves(Decay):
    def step(self, rate, t):
        sys.exit(0)


class Late(Decay):
    def step(self, rate, t):
        return super().step(rate, t + 0.5)


class Random(Decay):
    def step(self, rate, t):
        return super().step(rate, t) + np.random.default_rng().normal()


class Remembering(Decay):
    """Starts from the rate of the simulation before."""

    last = None

    def solve(self, parameters):
        rate, self.last = self.last or parameters["rate"], parameters["rate"]
        return super().solve({"rate": rate})


class Elsewhere(Decay):
    """Depends on what only the process that made it knows."""

    def __init__(self):
        self.factor = 1.0

    def __setstate__(self, state):
        self.factor = 2.0

    def step(self, rate, t):
        return super().step(rate * self.factor, t)


class Resuming(Decay):
    def start(self, run):
        for t in self.spec.times[run.first_step :]:
            yield self.step(run.parameters["rate"], t)


class Fading(Resuming):
    def start(self, run):
        yield from itertools.islice(super().start(run), 7 - run.first_step)
        raise Ended("nothing is left")


class ResumingWrong(Decay):
    def start(self, run):
        for t in self.spec.times[run.first_step :]:
            yield self.step(run.parameters["rate"] * (1 + run.first_step), t)


class Leaving(Decay):
    """Starts a program, and never ends it."""

    def __init__(self, pids):
        self.pids = pids

    def setup(self, cores):
        self.pids.write_text(str(subprocess.Popen(["sleep", "60"]).pid))


SOLVERS = {
    NoSpec: "expected a FieldSpec, got str",
    NoParameters: "declares neither parameters nor inputs",
    Unpicklable: "pickled and unpickled",
    Returning: "Write yield in place of return",
    Short: "Expected 20 steps, got 19",
    Empty: "one step at least before Ended",
    Leaves: r"SystemExit: 0\s+At .*test_laws\.py:\d+",
    Late: "expected time 1, got 1.5",
    Random: "bit by bit",
    Remembering: "that ran before it",
    Elsewhere: "on another worker",
    ResumingWrong: "a retry goes on",
    Deaf: "gave the same fields: does it read them",
    MakesNothing: "'a'.*3 of 3 that are not",
    Forgets: "a retry goes on.*\\s.*first dataset: expected the input field 'a'",
}


@pytest.mark.parametrize("solver", [Decay, Resuming, Fading])
def test_solvers_that_keep_the_laws(solver):
    """One that begins at the first step, and one that goes on where it is asked to."""
    assert len(check_solver(solver())) == 9
    check_solver(solver(), {"rate": 0.3})


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_that_break_one(solver):
    """The law, and what was expected and got."""
    with pytest.raises(LawBroken, match=SOLVERS[solver]):
        check_solver(solver())


def test_a_process_that_is_left(tmp_path):
    """Of a solver whose close ends nothing."""
    pids = tmp_path / "pids"
    before = set(psutil.Process().children())
    with pytest.raises(LawBroken, match="Processes are left") as broken:
        check_solver(Leaving(pids))
    left = set(psutil.Process().children()) - before
    assert int(pids.read_text()) in {process.pid for process in left}
    assert len(broken.value.kept) == 8
    for process in left:
        process.kill()
    psutil.wait_procs(left)


class Outside(Sampler):
    def ask(self, first, count, bounds):
        return Uniform(self.seed).ask(first, count, bounds) * 1.5


class Flat(Sampler):
    def ask(self, first, count, bounds):
        return Uniform(self.seed).ask(first, count, bounds).ravel()


class Few(BlockSampler):
    """Blocks that are smaller than it says."""

    def block(self, index, dimensions):
        return np.random.default_rng([self.seed, index]).random((100, dimensions))


class Failing(Sampler):
    def ask(self, first, count, bounds):
        return bounds["low"]


class Unseeded(Sampler):
    def ask(self, first, count, bounds):
        return Uniform(np.random.default_rng().integers(1 << 30)).ask(0, count, bounds)


class Streaming(Sampler):
    """Draws on from one generator, whichever point is asked for."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.random = np.random.default_rng(seed)

    def ask(self, first, count, bounds):
        low, high = np.array([(p.low, p.high) for p in bounds]).T
        return low + (high - low) * self.random.random((count, len(bounds)))


class Learning(Sampler):
    """After the first losses the points are nearer to the lower bounds."""

    told = 0

    def ask(self, first, count, bounds):
        points = Uniform(self.seed).ask(first, count, bounds)
        low = np.array([p.low for p in bounds])
        return low + (points - low) / (1 + self.told)

    def tell(self, seen):
        self.told += len(seen.loss)

    def state_dict(self):
        return {"told": self.told}

    def load_state_dict(self, state):
        self.told = state["told"]


class Forgetting(Learning):
    def load_state_dict(self, state):
        pass


class Opaque(Learning):
    def state_dict(self):
        return {"told": object()}


class Guessing(Learning):
    def tell(self, seen):
        self.told = np.random.default_rng().integers(1, 1 << 30)


SAMPLERS = {
    Outside: "within the bounds",
    Flat: r"expected the shape \(40, 1\), got \(40,\)",
    Unseeded: "the same seed",
    Streaming: "not on how many",
    Guessing: "the same losses",
    Forgetting: "(?s)restored from its state_dict.*Override state_dict",
    Opaque: "plain values",
    Few: r"block: expected an array of shape \(block_size, parameters\) = \(1024, 1\)",
    Failing: r'(?s)TypeError: .*test_laws.py:\d+, in ask: return bounds\["low"\]',
}


@pytest.mark.parametrize("sampler", [Sobol(seed=1), Learning(seed=2)])
def test_samplers_that_keep_the_laws(sampler):
    """One of blocks, and one that adapts."""
    assert len(check_sampler(sampler)) == 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_that_break_one(sampler):
    """The law, and what was expected and got."""
    with pytest.raises(LawBroken, match=SAMPLERS[sampler]):
        check_sampler(sampler())


@dataclass(frozen=True, kw_only=True)
class Shuffled(Policy):
    """Draws as FIRO, or with repetition while steps arrive."""

    capacity: int = 40
    threshold: int = 6
    repeats: bool = False
    evicts: bool = True
    first: int = 0

    def needed(self, batch_size, inserted):
        return max(self.threshold, batch_size)

    def take(self, count, size, random, *, draining):
        places = random.choice(count, min(size, count), replace=False)
        if self.repeats and not draining:
            return places, False
        return places, True

    def evict(self, unseen, count, wanted, random):
        places = np.arange(unseen, min(count, unseen + wanted))
        return places + self.first if self.evicts else places[:0]


@dataclass(frozen=True, kw_only=True)
class Unseeing(Shuffled):
    def take(self, count, size, random, *, draining):
        return np.random.default_rng().choice(count, min(size, count), False), True


class Forgotten(Shuffled):
    """A class whose capacity was forgotten."""

    def __init__(self):
        pass

    capacity = property()


POLICIES = [FIFO(capacity=40), FIRO(capacity=40, threshold=6)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("window", [Direct(), Autoregressive(2)])
def test_policies_that_keep_the_laws(policy, window):
    """Exactly once, where that is promised."""
    laws = check_store(lambda: Store(SPEC, window, 4, policy), once=True)
    assert len(laws) == 8
    repeats = Shuffled(repeats=True)
    assert len(check_store(lambda: Store(SPEC, window, 4, repeats))) == 8


@pytest.mark.parametrize(
    ("policy", "once", "law"),
    [
        (Reservoir(capacity=40, threshold=6), True, "exactly once"),
        (Shuffled(repeats=True), True, "exactly once"),
        (Unseeing(), True, "the same batches"),
        (Shuffled(repeats=True, evicts=False), False, "Override evict"),
        (Shuffled(repeats=True, first=-1), False, "twice, one that is not below"),
        (Forgotten(), False, "(?s)can be made of it.*AttributeError"),
    ],
)
def test_policies_that_break_one(policy, once, law):
    """The law, and what was expected and got."""
    with pytest.raises(LawBroken, match=law):
        check_store(lambda: Store(SPEC, Direct(), 4, policy), once=once)


class Linear(torch.nn.Module):
    """All inputs, weighed into each value of the output; options break one law each."""

    def __init__(self, spec, window, fault=""):
        super().__init__()
        self.shape, self.fault = (window.outputs, *spec.step_shape), fault
        count = len(spec.parameters) + 1 + window.inputs * int(np.prod(spec.step_shape))
        self.first = torch.nn.Linear(count, 64)
        self.last = torch.nn.Linear(64, int(np.prod(self.shape)))
        self.unused = torch.nn.Linear(1, 1) if fault == "unused" else None
        self.norm = torch.nn.BatchNorm1d(64) if fault == "mixed" else None
        self.noise = torch.nn.Parameter(torch.rand(1))

    def forward(self, parameters, step, history):
        if self.fault == "blind":
            step = step.detach() * 0 + 0 * parameters.sum()
        x = torch.cat([parameters, step[:, None], history.flatten(1)], 1)
        x = torch.tanh(self.first(x))
        if self.fault == "mixed":
            x = self.norm(x)
        x = self.last(x)
        if self.fault == "small":
            x = 0.001 * torch.tanh(x)
        x = x.reshape(-1, *self.shape) * (1 + self.noise)
        if self.fault == "double":
            x = x.double()
        return x[..., :-1] if self.fault == "cut" else x


NETWORKS = {
    "cut": r"Expected \(3, 1, 1, 3\), got \(3, 1, 1, 2\)",
    "double": "torch.float64",
    "mixed": "(?s)no other of its batch.*test_laws.py",
    "blind": "step is not used",
    "unused": "unused.weight has none",
    "small": "falls to a twentieth",
}


@pytest.mark.parametrize("fault", NETWORKS)
def test_networks_that_break_one(fault):
    """The law, and what was expected and got."""
    with pytest.raises(LawBroken, match=NETWORKS[fault]):
        check_network(partial(Linear, fault=fault), SPEC, Direct())


OWN = '''
import numpy as np, xarray as xr
from surrogate_flow import FieldSpec, Parameter, Solver, Variable
from surrogate_flow.sampling import Sampler, Uniform

class Decay(Solver):
    """A decay.

    Parameters
    ----------
    cells : int
        Number of cells.
    noise : float
        Of each value.
    """
    def __init__(self, cells: int = 3, noise: float = 0.0) -> None:
        self.cells, self.noise = cells, noise
    @property
    def spec(self):
        return FieldSpec((Parameter("rate", 0.1, 1.0),), (Variable("mass"),), ("x",),
                         (self.cells,), (1.0, 2.0))
    def solve(self, parameters):
        for t in self.spec.times:
            mass = np.full((1, self.cells), np.exp(-parameters["rate"] * t))
            mass += self.noise * np.random.rand()
            yield xr.Dataset({"mass": (("time", "x"), mass)}, {"time": [t]})

class Unfinished(Sampler):
    pass

class Middle(Sampler):
    def ask(self, first, count, bounds):
        return np.tile([(p.low + p.high) / 2 for p in bounds], (count, 1))
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with classes of a user."""
    (tmp_path / "own_classes.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_classes"
    sys.modules.pop("own_classes", None)


def test_a_class_is_checked_by_its_path(own, capsys):
    """With options of its own; each law is printed."""
    main(["check", f"{own}.Decay", "--cells", "5"])
    shown = capsys.readouterr().out
    assert shown.count("✓") == 9
    assert "on another worker the fields are the same" in shown
    main(["check", f"{own}.Middle", "--seed=3"])
    assert capsys.readouterr().out.count("✓") == 5
    main(["check", "surrogate_flow.reservoir.FIRO", "--threshold=5"])
    shown = capsys.readouterr().out
    assert shown.count("✓") == 8
    assert "with capacity=40, threshold=5" in " ".join(shown.split())


class Failed(FullyConnected):
    """Has a mistake that shows without a grid only."""

    def __init__(self, spec, window):
        super().__init__(spec, window)
        int("1" if spec.shape else "x")


def test_a_network_that_fails_on_some_grids_does_not_refuse_them():
    """A refusal is a `UserError`: it names what is wrong, and what would do."""
    with pytest.raises(LawBroken, match="invalid literal for int"):
        check.run([f"{__name__}.Failed"])


def test_a_network_is_checked_on_grids_that_it_serves(capsys):
    """And it is said which it refuses."""
    words = ["--modes=2", "--width=8", "--layers=1"]
    main(["check", "surrogate_flow.nn.FNO", *words])
    shown = capsys.readouterr().out
    assert shown.count("✓") == 6 * 6
    assert shown.count("refused: ") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["needs the import path of a class"]),
        (["own_classes.Dekay"], ["has no 'Dekay'", "Did you mean 'Decay'"]),
        (["own_classes.Decay", "--cels=5"], ["unknown", "Did you mean '--cells'"]),
        (["own_classes.Decay", "--cells=x"], ["cells", "int", "'x'"]),
        (["own_classes.Unfinished"], ["Broken law: it can be built", "abstract"]),
        (["own_classes.OWN"], ["has no 'OWN'"]),
        (["builtins.dict"], ["expected a class derived from surrogate_flow.Solver"]),
        (["own_classes.Decay", "--noise=1"], ["Broken law: the same parameters"]),
    ],
)
def test_mistakes_of_check(own, capsys, words, said):
    """One line each; a broken law is an error of the command."""
    with pytest.raises(SystemExit) as ended:
        main(["check", *words])
    broken = any(part.startswith("Broken law") for part in said)
    assert ended.value.code == (1 if broken else 2)
    shown = capsys.readouterr()
    assert ("✗" in shown.out) == broken
    assert all(part in shown.err for part in said), shown.err
    assert ("✓" in shown.out) == ("--noise=1" in words)


def test_help_of_check(own, capsys):
    """A page; and the options of a class."""
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert "surrogate-flow check CLASS" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["check", f"{own}.Decay", "--help"])
    shown = capsys.readouterr().out
    assert "--cells" in shown
    assert "Number of cells." in shown


def test_a_solver_is_checked_without_torch(own, tmp_path):
    """So that the answer is there in a second."""
    code = (
        "import sys; from surrogate_flow.cli.app import main;"
        f"main(['check', '{own}.Decay']); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
