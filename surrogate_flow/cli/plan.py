"""``surrogate-flow plan``: what a study would ask of a cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dask.utils import format_bytes
from distributed import Client
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from surrogate_flow.cluster.batch import Bounds, batch_system
from surrogate_flow.cluster.open import open_cluster
from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.ensemble.user_code import user_code
from surrogate_flow.fields.errors import UserError, line_of
from surrogate_flow.fields.inputs import inputs_in, named_inputs, without_inputs
from surrogate_flow.fields.quantities import Simulation, counted
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Direct, Window
from surrogate_flow.files import own_folder
from surrogate_flow.report.console import print_lines, the_console
from surrogate_flow.report.folder.words import seconds
from surrogate_flow.reservoir import Store
from surrogate_flow.reservoir.layout import require_reachable
from surrogate_flow.sampling import InputSampler
from surrogate_flow.solvers.child_processes import ChildProcesses
from surrogate_flow.solvers.solver import (
    Ended,
    Recorded,
    Run,
    Solver,
    datasets_of,
    unwrapped,
)
from surrogate_flow.stream import Encoder
from surrogate_flow.surrogate.schedule import (
    advance,
    built_optimizer,
    built_schedule,
    monitor_of,
)
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.surrogate.trial import needs_gpu, require_shape

__all__ = [
    "Pace",
    "Places",
    "add_arguments",
    "measure",
    "places",
    "require_reservoir",
    "require_trained",
    "run",
    "show",
    "size",
]

_LONGEST = 10.0  # seconds that a solver runs here
_MIDDLE = "each parameter in the middle of its range"


def add_arguments(parser: ArgumentParser) -> None:
    """Add what is simulated, how it is sampled, and on which cluster."""
    parser.add_subclass_arguments(OnlineData, "data", required=True)
    parser.set_defaults({"data": {"class_path": "surrogate_flow.OnlineData"}})


def run(options: Any) -> None:
    """Print what a study would ask of its cluster."""
    show(options.data, the_console())


def require_reservoir(data: OnlineData, window: Window) -> None:
    """Refuse a reservoir, or held-out simulations, that ``fit`` would refuse."""
    ValidationSet.of_rank(Ranks(), data.spec, window, data.batch_size, data.held_out)
    Store(data.spec, window, data.batch_size, data.reservoir)
    require_reachable(data.reservoir, data.spec, window, data.simulations)


def require_trained(surrogate: Surrogate) -> None:
    """Refuse a model that ``fit`` could not train: make one step with a copy of it."""
    recipe: Any = surrogate.recipe["network"]
    spec, window = surrogate.conditions.seen(surrogate.spec), surrogate.window
    module = recipe["init_args"].get("module")  # of OnGrid
    name = recipe["class_path"] + (f" of {module}" if module else "")
    tried = require_shape(surrogate.network, name, spec, window)
    if tried is None:
        surrogate.configure_optimizers()
        return
    out, weights = tried
    # As fields are: of a zero mean, some are below it.
    standard = surrogate.recipe["normalisation"] == "standard"
    target = torch.full_like(out, -1.0 if standard else 0.0)
    what = "model.loss"
    expected = "one that is called as loss(prediction, target), for one number"
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            loss = surrogate.loss(out, target)
            if loss.numel() != 1:
                raise UserError(what, expected, f"{loss.numel()} numbers")
            what, expected = f"model.loss of {name}", "one that can be differentiated"
            loss.backward()
            trains = "model.optimizer", "one that trains such networks"
            follows = "model.scheduler", "one that follows the batches"
            what, expected = trains
            optimizer = built_optimizer(surrogate.optimizer, weights)
            build, schedule = surrogate.scheduler, None
            if build is not None:
                what, expected = follows
                schedule = built_schedule(build, optimizer, surrogate.metrics)
            what, expected = trains
            optimizer.step(lambda: loss.item())
            if schedule is not None:
                what, expected = follows
                metrics = {monitor_of(schedule) or "": torch.ones(())}
                for validated in (False, True):
                    advance(schedule, metrics, validated=validated)
    except UserError:
        raise
    except Exception as error:  # of any type: the class is the user's, or torch's
        if not needs_gpu(error):
            got = f"{type(error).__name__} ({error}) {line_of(error).strip()}"
            raise UserError(what, expected, got.rstrip()) from error


def size(surrogate: Surrogate, data: Any) -> str:
    """Return in words how large a model is, and how long its training."""
    count = sum(weights.numel() for weights in surrogate.network.parameters())
    each, and_average = (20, " and average") if surrogate.averaging else (16, "")
    words = (
        f"Model: {type(surrogate.network).__name__}, {count:,} parameters, "
        f"{format_bytes(each * count)} with gradients, Adam's two moments{and_average}"
    )
    if hidden := surrogate.conditions.not_seen(surrogate.spec):
        words += f"; it does not see {', '.join(hidden)}"
    if not isinstance(data, OnlineData) or data.simulations is None:
        return words
    samples = data.simulations * surrogate.window.samples(surrogate.spec.steps)
    batches = -(-samples // data.batch_size)
    return f"{words}; {batches:,} batches of {data.batch_size} have each sample once"


@dataclass(frozen=True)
class Pace:
    """How fast a solver was on this machine.

    Attributes
    ----------
    steps : int
        That it made.
    seconds : float
    lost : str
        What single precision does not keep, in words; "" if it keeps all.
    """

    steps: int
    seconds: float
    lost: str = ""

    def simulation(self, spec: FieldSpec) -> float:
        """Return the seconds of a complete simulation."""
        return self.seconds * spec.steps / self.steps


@dataclass(frozen=True)
class Places:
    """Where simulations would run.

    Attributes
    ----------
    script : str
        Of a job; empty without a batch system.
    jobs : Bounds or None
    resources : str
        Of each job, in words.
    each : int
        Simulations that a job, or the cluster, runs at once.
    walltime : float, optional
        Seconds that a job may run.
    """

    script: str
    jobs: Bounds | None
    resources: str
    each: int
    walltime: float | None = None

    @property
    def at_once(self) -> tuple[int, int]:
        """Simulations at once, at least and at most."""
        least, most = (self.jobs.minimum, self.jobs.maximum) if self.jobs else (1, 1)
        return least * self.each, most * self.each


def measure(
    solver: Solver,
    longest: float = _LONGEST,
    cores: int = 1,
    inputs: InputSampler | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Pace | None:
    """Run a simulation here, for some seconds; None if not a single step came.

    `inputs` draw its input fields, if the solver does not make them.

    Raises
    ------
    Exception
        Whatever the solver raises, or the refusal of what it yields.
    """
    spec = solver.spec
    stored = solver.stored_parameters
    parameters = parameters or {
        p.name: stored[p.name][0] if stored else p.at(0.5) for p in spec.parameters
    }
    given: dict[str, Any] = {}
    if inputs is not None:
        drawn = inputs.fields(Simulation(0, "training", parameters), spec)
        given = named_inputs(spec, drawn)
    made: list[Pace] = []
    errors: list[BaseException] = []

    def solve(folder: Path) -> None:
        encoder, steps = Encoder(spec, 0), 0
        try:
            with (
                user_code(),
                ChildProcesses().marked(),
                closing(
                    datasets_of(
                        solver,
                        Run(parameters, folder=folder, cores=cores, inputs=given),
                    )
                ) as datasets,
            ):
                type(solver).setup(solver, cores)  # as a worker does
                start = time.perf_counter()
                for dataset in datasets:
                    if not steps and not given and spec.inputs:
                        inputs_in(spec, dataset, "The first dataset")
                    dataset = without_inputs(dataset, spec)
                    steps += len(encoder.convert(dataset, steps))
                    seconds = time.perf_counter() - start
                    made.append(Pace(steps, seconds, encoder.lost))
                    if made[-1].seconds > longest:
                        return
        except Ended as error:
            if not steps:
                errors.append(error)
        except BaseException as error:
            errors.append(error)
        finally:
            try:
                type(solver).close(solver)
            except BaseException as error:
                errors.append(error)

    # A step may take hours, and nothing can interrupt it.
    with own_folder("plan-") as folder:
        thread = threading.Thread(None, solve, "solver", [folder], daemon=True)
        thread.start()
        thread.join(longest)
        if errors:
            raise errors[0]
        return made[-1] if made else None


def places(data: OnlineData) -> Places:
    """Open the cluster of a study without submitting anything, and close it again."""
    cores = data.cores_per_simulation
    with (
        own_folder("plan-") as folder,
        open_cluster(data.cluster, folder, cores_per_simulation=cores) as cluster,
    ):
        if system := batch_system(data.cluster):
            jobs = system.request(cluster)
            script = jobs.script.strip().replace(str(folder), "<run>")
            return Places(
                script, jobs.bounds, jobs.resources, jobs.per_job, jobs.walltime
            )
        with Client(
            cluster.scheduler_address,
            security=getattr(cluster, "security", None),
            set_as_default=False,
        ) as client:
            return Places("", None, "", sum(client.nthreads().values()))


def show(data: OnlineData, console: Console) -> None:
    """Print the job's script and the plan."""
    require_reservoir(data, Direct())  # which asks least, of an unknown network
    first, share = None, 1.0
    if data.constraint is not None:
        design = data.new_design()
        # The middle of the ranges may be a point that the constraint refuses.
        first, share = design.first, design.share_accepted()
    with console.status("A simulation runs here, to see how long it takes"):
        pace = _tried(data, first)
    where = places(data)
    if where.script:
        console.rule("The script of each job")
        print_lines(console, where.script)
    console.rule("The plan; nothing was submitted")
    table = Table("", "", show_header=False, box=None)
    for name, value in _rows(data, where, pace, share):
        table.add_row(name, value)
    console.print(table)


def _tried(data: OnlineData, parameters: Mapping[str, Any] | None) -> Pace | None:
    """Return the pace of the solver, or its error with the line."""
    try:
        return measure(
            data.solver,
            cores=data.cores_per_simulation,
            inputs=data.inputs,
            parameters=parameters,
        )
    except UserError:
        raise
    except Exception as error:
        name = type(unwrapped(data.solver)).__name__
        raise UserError(
            f"{name} failed, with {parameters or _MIDDLE}: "
            f"{type(error).__name__}: {error}.{line_of(error)}"
        ) from error


def _rows(
    data: OnlineData, where: Places, pace: Pace | None, share: float
) -> Iterator[tuple[str, str]]:
    spec, cores, (least, most) = data.spec, data.cores_per_simulation, where.at_once
    count = "without end" if data.simulations is None else data.simulations
    yield "simulations", f"{data.held_out} held out, then {count}"
    if data.constraint is not None:
        yield "constraint", f"accepts {share:.1%} of the points of the sampler"
    size = f"{_size(spec.step_bytes)}: {_size(spec.steps * spec.step_bytes)}"
    yield "each", f"{counted(spec.steps, 'step')} of {size}"
    if isinstance(data.solver, Recorded):
        every = counted(data.solver.solver.spec.steps, "step")
        yield "kept", f"one of {data.solver.every} steps: the solver makes {every}"
    if spec.inputs:
        names = ", ".join(v.name for v in spec.inputs)
        rows = f"{_size(spec.input_bytes)} a simulation, held once for all its samples"
        yield "inputs", f"{names}: {rows}"
    if where.jobs:
        jobs = _range(where.jobs.minimum, where.jobs.maximum)
        yield "jobs", f"{jobs}, each with {where.resources}"
    at_once = _range(least, most, of="simulation")
    yield "at once", f"{at_once}, {counted(cores, 'core')} each"
    if pace is None:
        yield "pace", f"no step within {_LONGEST:g} s on this machine"
        return
    one, rate = pace.simulation(spec), pace.steps / pace.seconds
    yield "pace", f"{seconds(one)} for a simulation on this machine"
    if pace.lost:
        yield "note", pace.lost
    if not least:
        yield "note", "the scheduler has no workers yet"
        return
    each = rate * spec.step_bytes
    stream = _range(least * each, most * each, _size)
    steps = _range(round(least * rate), round(most * rate), of="step")
    yield "stream", f"{stream} a second expected, {steps}"
    if data.simulations is not None:
        total = one * (data.held_out + data.simulations)
        yield "solving", _range(total / most, total / least, seconds)
    if where.walltime and one > where.walltime:
        yield "note", "a simulation takes longer than the walltime: none would end"


def _size(count: float) -> str:
    """Return bytes in three digits."""
    value, units = format_bytes(int(count)).split()
    return f"{float(value):.3g} {units}"


def _range(
    low: float, high: float, name: Callable[[Any], str] = str, of: str = ""
) -> str:
    words = name(low) if low == high else f"{name(low)} to {name(high)}"
    return words + f" {of}{'s' * (high != 1)}" * bool(of)
