"""What a run has cost, and after how many evaluations that is back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surrogate_flow.report.folder.commands import spec_of
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.folder.words import arguments, number, seconds

__all__ = ["PAID_BACK", "RunCost", "at_equal_error", "break_even", "solver_of"]

#: Solvers of which benchmarks/payback.py knows coarser settings.
PAID_BACK = [
    f"surrogate_flow.solvers.{name}"
    for name in ("Combined1D", "Heat2D", "NaturalConvection", "NavierStokes2D")
]

_SENT = (
    " Its steps take less than a millisecond each, with their sending: by itself the "
    "solver is quicker, and the surrogate may never pay."
)


def break_even(spent: float, solver: float, surrogate: float) -> int | None:
    """Return N = spent / (solver - surrogate), rounded up; None if none saves anything.

    Parameters
    ----------
    spent : float
        Seconds of solvers and training, once.
    solver, surrogate : float
        Seconds of one simulation, and of its prediction.

    Examples
    --------
    >>> break_even(100.0, 0.5, 0.1), break_even(100.0, 0.1, 0.5)
    (250, None)
    """
    saved = solver - surrogate
    known = math.isfinite(spent) and math.isfinite(saved)
    return math.ceil(spent / saved) if known and saved > 0 else None


@dataclass(frozen=True)
class RunCost:
    """What a run took, in seconds; None is not known, as of a data set of others.

    Attributes
    ----------
    simulations : int
        Complete ones.
    solver : float, optional
        Of all simulations together, as they ran.
    training : float
        Of the trainer.
    surrogate : float, optional
        Of one evaluation: a whole simulation predicted, with what the solver takes for
        the steps that an autoregressive surrogate goes on from.
    many : float, optional
        The same where `batch` are predicted at once.
    batch : int
        How many these are.
    quickest : float, optional
        Of the quickest simulation.
    cores, ranks : int
        Of a simulation, and processes that trained. Of several, the simulations of all
        are counted by telemetry.csv, and take as long as those of the first.
    shared : bool
        Whether the simulations had the machine of the training, while that went on.
    part : bool
        Whether the run went on from a checkpoint, and these are the numbers since then.
    simulates : bool
        Whether a solver ran for it, rather than that it read a data set.
    steps : int
        Of a simulation; 0 if not known.
    """

    simulations: int
    solver: float | None
    training: float
    surrogate: float | None
    many: float | None = None
    batch: int = 1
    quickest: float | None = None
    cores: int = 1
    ranks: int = 1
    shared: bool = False
    part: bool = False
    simulates: bool = False
    steps: int = 0

    @classmethod
    def of(cls, run: RunFolder) -> RunCost | None:
        """Return that of a run which has ended."""
        outcome = run.outcome
        if outcome is None:
            return None
        solver, simulations = outcome.solver_seconds, outcome.simulations
        ranks = _positive(run.about.get("ranks"))
        done = run.telemetry.simulations_done.dropna()
        # Each rank counts its own, and the file is of the first.
        if ranks > 1 and len(done) and 0 < simulations < done.iloc[-1]:
            solver *= float(done.iloc[-1]) / simulations
            simulations = int(done.iloc[-1])
        settings = arguments(run.settings.get("data"))
        cost = cls(
            simulations,
            solver if solver > 0 else None,
            outcome.training_seconds,
            outcome.surrogate_seconds,
            outcome.batch_seconds,
            outcome.batch,
            outcome.quickest_seconds,
            _positive(settings.get("cores_per_simulation")),
            ranks,
            bool(solver_of(run)) and "LocalCluster" in _class(settings.get("cluster")),
            bool(run.resumed_from),
            bool(solver_of(run)),
            _positive(arguments(spec_of(run).get("times")).get("count"), 0),
        )
        share = outcome.history * (cost.per_simulation or 0.0)
        one, many = (
            None if taken is None else taken + share
            for taken in (cost.surrogate, cost.many)
        )
        return replace(cost, surrogate=one, many=many)

    @property
    def per_simulation(self) -> float | None:
        """Seconds of one: the quickest if training took their cores, or the mean."""
        if self.solver is None or not self.simulations:
            return None
        each = self.solver / self.simulations
        return self.quickest if self.shared and self.quickest else each

    @property
    def beside(self) -> bool:
        """Whether these are of simulations that had the cores of the training."""
        return self.shared and not self.quickest

    @property
    def sends(self) -> bool:
        """Whether sending counts in what a simulation took: 0.02 to 0.1 ms a step."""
        each = self.per_simulation
        return self.simulates and each is not None and each < 1e-3 * self.steps

    @property
    def evaluation(self) -> float | None:
        """Seconds of a prediction: of one in a batch, if that was measured."""
        return self.surrogate if self.many is None else self.many

    @property
    def break_even(self) -> int | None:
        """Evaluations after which the run breaks even, predicted in batches."""
        return self._after(self.evaluation)

    @property
    def one_by_one(self) -> int | None:
        """Evaluations after which it does so, each predicted by a call of its own."""
        return self._after(self.surrogate)

    def _after(self, surrogate: float | None) -> int | None:
        each = self.per_simulation
        if self.solver is None or each is None or surrogate is None or self.part:
            return None
        return break_even(self.solver + self.training, each, surrogate)

    @property
    def never(self) -> bool:
        """Whether a prediction takes as long as the solver, or longer."""
        each, surrogate = self.per_simulation, self.evaluation
        return each is not None and surrogate is not None and each <= surrogate

    def __str__(self) -> str:
        """Return in a sentence after how many evaluations it pays, or why not.

        Examples
        --------
        >>> cost = RunCost(200, 620.0, 412.0, 0.05, 0.002, 256)
        >>> print(cost)  # doctest: +NORMALIZE_WHITESPACE
        Pays after 334 evaluations, against the solver as it ran: a simulation takes
        3.1 s and a prediction 2 ms (in batches of 256); simulations took 10.3 min and
        training 6.87 min.
        >>> print(RunCost(100, 0.5, 60.0, 0.05))
        Never pays: a prediction takes 50 ms, and a simulation 5 ms.
        >>> cost = RunCost(100, None, 60.0, 0.05)
        >>> print(cost)  # doctest: +NORMALIZE_WHITESPACE
        When it pays is not known: the data set does not say what simulations took.
        """
        each, took = self.per_simulation, self.evaluation
        why = ""
        if self.part:
            why = "the run went on from a checkpoint, and has the seconds since then"
        elif each is None:
            why = "the data set does not say what simulations took"
            if self.simulates:
                why = "no simulation has ended"
        elif took is None:
            why = "no prediction was measured"
        if why:
            return f"When it pays is not known: {why}."
        if self.never:
            both = f"{seconds(took)}, and a simulation {seconds(each)}"
            return f"Never pays: a prediction takes {both}."
        batch = f" (in batches of {self.batch})" if self.many is not None else ""
        how = " beside the training, which is longer than alone," if self.beside else ""
        if self.shared and self.quickest:
            how = " at its quickest"
        return (
            f"Pays after {number(self.break_even)} evaluations, against the solver as "
            f"it ran: a simulation takes {seconds(each)}{how} and a prediction "
            f"{seconds(took)}{batch}; simulations took {seconds(self.solver)} and "
            f"training {seconds(self.training)}." + _SENT * self.sends
        )


def at_equal_error(folder: Path) -> dict[str, Any] | None:
    """Return what benchmarks/payback.py measured of a run, if it did so.

    Its name, seconds and error: of the cheapest setting of the solver that errs no more
    than the surrogate.
    """
    try:
        rows = json.loads((folder / "payback.json").read_text("utf-8"))
        row = rows[0]
        return {name: row[name] for name in ("peer", "peer_seconds", "peer_error")}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def solver_of(run: RunFolder) -> str:
    """Return the class of a solver that ran while the network was trained, if known."""
    return _class(arguments(run.settings.get("data")).get("solver"), "")


def _class(settings: Any, absent: str = "LocalCluster") -> str:
    path = settings.get("class_path") if isinstance(settings, Mapping) else settings
    return path if isinstance(path, str) else absent


def _positive(value: Any, otherwise: int = 1) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise
