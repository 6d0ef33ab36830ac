"""The laws of solvers."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import xarray as xr
from distributed.protocol import pickle
from jaxtyping import Float32

from surrogate_flow.fields.encoder import Encoder
from surrogate_flow.fields.inputs import (
    inputs_in,
    named_inputs,
    split_inputs,
    without_inputs,
)
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.sampling import GaussianRandomField, Table, Uniform
from surrogate_flow.solvers.solver import Ended, Run, Solver, datasets_of, spec_of
from surrogate_flow.testing.law import Laws

__all__ = ["check_solver"]


def check_solver(solver: Solver, parameters: Mapping[str, Any] | None = None) -> Laws:
    """Try a solver as a worker uses it: pickled, set up, run, run again, closed.

    Parameters
    ----------
    solver : Solver
        With few cells and steps: it runs six times, or five and a part.
    parameters : mapping of str to float or array, optional
        Of the simulation that is tried; by default drawn from the bounds of its spec.
        Input fields are by default positive and smooth.

    Returns
    -------
    Laws
        Those that it keeps, a list of sentences.

    Raises
    ------
    LawBroken
        If it breaks one.

    Examples
    --------
    >>> from surrogate_flow.solvers import Lorenz
    >>> check_solver(Lorenz(steps=3))[0]
    'the spec is a FieldSpec with parameters, the same whenever it is asked for'
    """
    laws = Laws()
    with laws.law(
        "the spec is a FieldSpec with parameters, the same whenever it is asked for"
    ):
        spec = spec_of(solver)
        assert spec.digest() == spec_of(solver).digest(), "Two specs differ."
        varies = spec.parameters or spec.inputs
        assert varies, "The spec declares neither parameters nor inputs."
    stored = solver.stored_parameters
    sampler = Uniform(seed=0) if stored is None else Table(stored, shuffle=False)
    drawn: list[list[float]] = [[], []]
    if spec.parameters:
        drawn = sampler.ask(0, 2, spec.parameters).tolist()
    names = [p.name for p in spec.parameters]
    # Stored runs have their numbers, by which those of the same parameters differ.
    first, second = (
        Run(
            dict(zip(names, point, strict=True)),
            0 if stored is None else number,
            inputs=_drawn_inputs(spec, number),
        )
        for number, point in enumerate(drawn)
    )
    own, fields_of = split_inputs(spec, parameters or {})
    first = replace(
        first,
        parameters={**first.parameters, **own},
        inputs={**first.inputs, **{k: np.asarray(u) for k, u in fields_of.items()}},
    )

    with laws.law("it travels to a worker: pickled and unpickled, it is the same"):
        travelled: Solver = pickle.loads(pickle.dumps(solver))
        assert spec_of(travelled).digest() == spec.digest(), (
            "The spec of the unpickled solver differs."
        )
    with _nothing_left(laws), _closed(solver), _closed(travelled):
        with laws.law("it yields the fields, dims and times of its spec, all finite"):
            type(solver).setup(solver, 1)
            fields = _fields(solver, spec, first, laws=laws)
        with laws.law("the same parameters give the same fields, bit by bit"):
            begin = perf_counter()
            _require_equal(_fields(solver, spec, first), fields)
            laws.pace = len(fields) / (perf_counter() - begin)
        with laws.law("no simulation depends on those that ran before it"):
            others = _fields(solver, spec, second)
            with closing(_steps(solver, second)) as steps:
                begun = next(steps)  # and is given up
            makes = any(v.name in begun for v in spec.inputs)
            _require_equal(_fields(solver, spec, first), fields)
        with laws.law("other parameters give other fields"):
            assert not np.array_equal(others, fields, equal_nan=True), (
                f"{drawn} of {names} gave the same fields: does it read them?"
            )
        with laws.law("on another worker the fields are the same"):
            type(travelled).setup(travelled, 1)
            _require_equal(_fields(travelled, spec, first), fields)
        with laws.law("a retry goes on where the first attempt was, or begins again"):
            half = len(fields) // 2
            again = replace(first, first_step=half)
            _require_equal(_fields(travelled, spec, again, makes), fields, half)
    return laws


def _drawn_inputs(spec: FieldSpec, number: int) -> dict[str, np.ndarray]:
    """Return smooth, positive fields; a solver that makes its own ignores them."""
    simulation = Simulation(number, "training", {})
    if spec.inputs and spec.dims and spec.cells is None:
        sampler = GaussianRandomField(transform="exp")
        return named_inputs(spec, sampler.fields(simulation, spec))
    return {v.name: np.full(spec.shape, 1.0 + number) for v in spec.inputs}


def _fields(
    solver: Solver,
    spec: FieldSpec,
    run: Run,
    makes: bool = False,
    laws: Laws | None = None,
) -> Float32[np.ndarray, "time channel *space"]:
    """Return the steps from the first of a run on, as they would be streamed.

    `makes` is whether its first dataset must have the input fields.
    """
    step, first = 0, run.first_step
    parts: list[Float32[np.ndarray, "time channel *space"]] = []
    with closing(_steps(solver, run)) as datasets:
        encoder = Encoder(spec, 0, datasets)
        early = False
        try:
            for dataset in datasets:
                if not parts and first and encoder.begins_at(dataset, first):
                    step = first
                makes = makes or any(v.name in dataset for v in spec.inputs)
                if not parts and makes:
                    inputs_in(spec, dataset, "The first dataset")
                parts.append(encoder.convert(without_inputs(dataset, spec), step))
                step += len(parts[-1])
        except Ended:
            early = True
    assert step or not early, "Expected one step at least before Ended."
    assert early or step == spec.steps, (
        f"Expected {spec.steps} steps, got {step}. Raise Ended behind the last one if "
        "that is regular."
    )
    assert not encoder.lost, encoder.lost
    if laws is not None:
        laws.cast = encoder.cast
    return np.concatenate(parts)[first - step :]


def _steps(solver: Solver, run: Run) -> Generator[xr.Dataset]:
    """Yield what a run yields; closed early, close the run."""
    with tempfile.TemporaryDirectory() as folder:
        yield from datasets_of(solver, replace(run, folder=Path(folder)))


def _require_equal(
    got: Float32[np.ndarray, "time channel *space"],
    expected: Float32[np.ndarray, "time channel *space"],
    first: int = 0,
) -> None:
    assert len(got) + first == len(expected), (
        f"One run has {len(expected)} steps, another {len(got) + first}."
    )
    expected = expected[first:]
    # Of masked variables some are NaN.
    differ = ~((got == expected) | (np.isnan(got) & np.isnan(expected)))
    differ = differ.reshape(len(got), -1).any(axis=1)
    assert not differ.any(), (
        f"{differ.sum()} of {len(got)} steps differ, by up to "
        f"{np.nanmax(np.abs(got - expected)):.3g}. Usual causes: random numbers "
        "without a seed, or an attribute that a simulation changes."
    )


@contextmanager
def _closed(solver: Solver) -> Iterator[None]:
    try:
        yield
    finally:
        type(solver).close(solver)  # as a worker does


@contextmanager
def _nothing_left(laws: Laws) -> Iterator[None]:
    """Try that no process and no thread is left of what the block has closed."""
    here = psutil.Process()
    threads, children = set(threading.enumerate()), set(here.children(recursive=True))
    yield
    with laws.law("once closed it leaves no process and no thread"):
        _, alive = psutil.wait_procs(
            set(here.children(recursive=True)) - children, timeout=5
        )
        assert not alive, f"Processes are left: {[p.pid for p in alive]}."
        left = set(threading.enumerate()) - threads
        for thread in left:
            thread.join(5)
        left = {thread for thread in left if thread.is_alive()}
        assert not left, f"Threads are left: {[t.name for t in left]}."
