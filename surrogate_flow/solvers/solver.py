"""The interface of everything that simulates, and what a solver knows of a run."""

from __future__ import annotations

import inspect
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from surrogate_flow.fields.encoder import SpecMismatch
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.inputs import split_inputs
from surrogate_flow.fields.spec import FieldSpec

__all__ = [
    "TOGETHER",
    "Ended",
    "Recorded",
    "Run",
    "Solver",
    "Stopped",
    "datasets_of",
    "spec_of",
    "unwrapped",
]

TOGETHER = 0.05  # seconds, whose small steps go to the trainer together


_NO_SPEC = (
    "a FieldSpec",
    "none",
    "Write spec = FieldSpec(...) in the class, self.spec = FieldSpec(...) in __init__, "
    "or a method that returns one, with @property above it.",
)


class Stopped(Exception):
    """The study has ended: no more steps of this run are needed."""


class Ended(Exception):
    """The simulation ends before its last step, which is regular: its text says why.

    A solver raises it behind the step that is the last, one at least. The steps before
    are trained on and kept as those of any other simulation.

    Examples
    --------
    >>> def solve(rate):
    ...     for step in range(100):
    ...         mass = np.exp(-rate * step)
    ...         yield mass
    ...         if mass < 1e-3:
    ...             raise Ended("nothing is left")
    >>> steps = solve(3.0)
    >>> [round(float(next(steps)), 3) for _ in range(4)]
    [1.0, 0.05, 0.002, 0.0]
    """


@dataclass(frozen=True)
class Run:
    """One attempt at one simulation, as its solver sees it.

    Attributes
    ----------
    parameters : mapping of str to float
        One finite value for each parameter of the spec: a word for each with choices,
        an array for a vector.
    simulation : int
        Number of the simulation within the study.
    attempt : int
        Number of the attempt, from 0.
    first_step : int
        Steps before this one have arrived from an earlier attempt. A solver that can
        begin there may leave them out; if it yields them, they are ignored.
    folder : Path
        A scratch folder of this run alone, removed after it.
    cores : int
        How many the run may use.
    inputs : mapping of str to array
        The input fields of the spec, in its units and along its dims, where the recipe
        draws them (``data.inputs``).
    """

    parameters: Mapping[str, Any]
    simulation: int = 0
    attempt: int = 0
    first_step: int = 0
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    cores: int = 1
    inputs: Mapping[str, Float[np.ndarray, " *space"]] = field(default_factory=dict)

    @property
    def given(self) -> Mapping[str, Any]:
        """Parameters and inputs together."""
        return {**self.parameters, **self.inputs} if self.inputs else self.parameters

    def check(self) -> None:
        """Raise `Stopped` if the study has ended; a solver that waits calls it often.

        It takes a few microseconds and never blocks. Yielding a step does the same.
        """

    def alive(self) -> None:
        """Let the study know that a solver makes progress which yields no step yet."""


class Solver(ABC):
    """parameters -> u(t_1), u(t_2), ...: a simulation as a stream of datasets.

    A subclass announces in `spec` what it will yield, and yields it from `solve`, which
    may be a plain Python generator. Workers never import torch.

    A worker builds a solver once, from its pickled arguments, and uses it for one
    simulation after another: a mesh, a factorisation or compiled code that is kept in
    an attribute is made once. Each thread of a worker has a solver of its own. After an
    error a solver is closed, and the next simulation gets a new one.

    Examples
    --------
    >>> import numpy as np
    >>> from surrogate_flow.fields import FieldSpec, Parameter, Variable
    >>> class Decay(Solver):
    ...     spec = FieldSpec(
    ...         parameters=(Parameter("rate", 0.1, 1.0, "1/s"),),
    ...         variables=(Variable("mass", "kg"),),
    ...         dims=(), shape=(), times=(1.0, 2.0), time_units="s",
    ...     )
    ...     def solve(self, parameters):
    ...         for t in self.spec.times:
    ...             mass = np.exp(-parameters["rate"] * t)
    ...             yield xr.Dataset({"mass": ("time", [mass])}, {"time": [t]})
    >>> [float(step["mass"][0].round(3)) for step in Decay().solve({"rate": 0.5})]
    [0.607, 0.368]
    """

    @property
    def spec(self) -> FieldSpec:
        """What a simulation yields; known without running anything.

        A class has it as an attribute or as a property, or sets it in ``__init__``.
        """
        if "spec" not in vars(self):
            raise ArgumentError(f"{type(self).__name__}.spec", *_NO_SPEC)
        spec: FieldSpec = vars(self)["spec"]
        return spec

    if not TYPE_CHECKING:  # which would refuse properties of subclasses

        @spec.setter
        def spec(self, spec: FieldSpec) -> None:
            vars(self)["spec"] = spec

    @property
    def stored_parameters(self) -> Mapping[str, Sequence[float]] | None:
        """The only ones that it has steps for, in the order to run them; None if any.

        A study without a sampler runs each of them once.
        """
        return None

    @abstractmethod
    def solve(self, parameters: Mapping[str, Any]) -> Iterator[xr.Dataset]:
        """Yield the steps in order of time.

        Parameters
        ----------
        parameters : mapping of str to float or array
            As `Run` has them, and the fields of `Run.inputs`, by their names.

        Yields
        ------
        xarray.Dataset
            Every variable of the spec with the dims ``(time, *spec.dims)``; ``time`` is
            a coordinate, of any length >= 1, holding the next times of the spec. The
            dataset may be reused for the next step: it is copied before the generator
            goes on. Where the recipe draws no inputs, the first has them, too, without
            the dim ``time``.

        Raises
        ------
        Ended
            If the simulation ends before the last of the spec's times, and that is no
            failure.
        """

    def start(self, run: Run) -> Iterator[xr.Dataset]:
        """Yield the steps of a run; override it to know more than the parameters."""
        return self.solve(run.given)

    def setup(self, cores: int) -> None:  # noqa: B027 - optional
        """Prepare what all simulations share, on the worker, before the first one."""

    def close(self) -> None:  # noqa: B027 - optional
        """Release what `setup` and the simulations have left, at the end of a study."""


def spec_of(solver: Solver) -> FieldSpec:
    """Return the checked spec of a solver.

    Raises
    ------
    ArgumentError
        If it is anything else than a `FieldSpec`.
    """
    spec = solver.spec
    if not isinstance(spec, FieldSpec):
        value = "" if callable(spec) else f" {str(spec)[:40]!r}"
        raise ArgumentError(
            f"{type(solver).__name__}.spec",
            "a FieldSpec",
            f"{type(spec).__name__}{value}",
            "Write spec = FieldSpec(...) in the class, or a method that returns one, "
            "with @property above it.",
        )
    for name, argument in {"solve": "parameters", "start": "run"}.items():
        form = inspect.signature(getattr(solver, name))
        try:
            form.bind(argument)
        except TypeError as error:
            what = f"{type(solver).__name__}.{name}"
            raise ArgumentError(what, f"(self, {argument})", f"{form}") from error
    return spec


class Recorded(Solver):
    """Each so many-th step of another solver, which computes all: ``data.every``.

    The spec has the times that are kept. A step at time 0 is the initial state: it is
    kept, and the others are counted from it.

    Parameters
    ----------
    solver : Solver
    every : int
        1 keeps all steps.

    Raises
    ------
    ArgumentError
        If no step would be kept.

    Examples
    --------
    >>> from surrogate_flow.solvers import Lorenz
    >>> solver = Recorded(Lorenz(steps=30, time_step=0.1), 10)
    >>> [round(t, 1) for t in solver.spec.times]
    [1.0, 2.0, 3.0]
    """

    def __init__(self, solver: Solver, every: int) -> None:
        self.solver, self.every = solver, every
        spec = spec_of(solver)
        self._first = 0 if spec.times[0] == 0 else every - 1
        if not 1 <= every <= spec.steps:
            raise ArgumentError("data.every", f"1 to {spec.steps} steps", every)
        self._spec = replace(spec, times=spec.times[self._first :: every])

    @property
    def spec(self) -> FieldSpec:
        """That of the other solver, with fewer times."""
        return self._spec

    @property
    def stored_parameters(self) -> Mapping[str, Sequence[float]] | None:
        """Those of the other solver."""
        return self.solver.stored_parameters

    def solve(self, parameters: Mapping[str, Any]) -> Iterator[xr.Dataset]:
        """Yield the steps that are kept."""
        numbers, fields = split_inputs(self.spec, parameters)
        return self.start(Run(numbers, inputs=fields))

    def start(self, run: Run) -> Iterator[xr.Dataset]:
        """Yield the steps that are kept, and no more behind the last of them.

        A solver that can begin in the middle is asked for the step behind the last one
        that was kept.
        """
        spec, every, kept = self.solver.spec, self.every, self.spec.steps
        last = self._first + every * (kept - 1)
        begin = last - every * (kept - run.first_step) + 1 if run.first_step else 0
        step, given = 0, dict[str, xr.Variable]()
        datasets = _started(self.solver, replace(run, first_step=begin))
        for number, dataset in enumerate(datasets):
            known = isinstance(dataset, xr.Dataset)
            time = dataset.variables.get("time") if known else None
            if time is None or time.ndim != 1:
                yield dataset  # It is refused.
                return
            if not number:
                if begin and np.abs(np.array(spec.times) - time.values[0]).argmin():
                    step = begin
                # Those that the solver makes come with its first step alone.
                names = {v.name for v in spec.inputs} & {*dataset.variables}
                given = {str(n): dataset.variables[n].copy() for n in names}
            offset = (self._first - step) % every
            if offset < time.size:
                few = time.size == 1
                some = dataset if few else dataset.isel(time=slice(offset, None, every))
                yield some.assign(given) if given else some
                given = {}
            else:
                run.alive()
            step += time.size
            if step > spec.steps:
                raise SpecMismatch(
                    f"Simulation {run.simulation}: expected {spec.steps} steps in all, "
                    f"got at least {step}. If the solver yields its initial state, add "
                    "its time to the spec, or leave it out."
                )
            if last < step < spec.steps:
                return

    def setup(self, cores: int) -> None:
        """Prepare the other solver."""
        type(self.solver).setup(self.solver, cores)

    def close(self) -> None:
        """Close the other solver."""
        type(self.solver).close(self.solver)


def unwrapped(solver: Solver) -> Solver:
    """Return the solver of which another one keeps some steps, or itself."""
    return solver.solver if isinstance(solver, Recorded) else solver


def datasets_of(solver: Solver, run: Run) -> Generator[xr.Dataset]:
    """Start a run, and yield what the solver yields; closed early, close the run.

    Raises
    ------
    SpecMismatch
        If the solver returns something else than an iterator of datasets.
    """
    run = replace(run, parameters=solver.spec.arguments(run.parameters))
    yield from _started(solver, run)


def _started(solver: Solver, run: Run) -> Generator[xr.Dataset]:
    # By the class: attributes of solvers written before may have its name.
    datasets = type(solver).start(solver, run)
    if isinstance(datasets, xr.Dataset) or not isinstance(datasets, Iterable):
        raise SpecMismatch(
            f"Simulation {run.simulation}: expected solve to yield datasets, step by "
            f"step; solve returned {type(datasets).__name__}. Usual cause: a function "
            "without yield. Write yield in place of return."
        )
    yield from datasets
