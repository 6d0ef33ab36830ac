"""`OnlineData`: batches from simulations that run meanwhile."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from distributed.deploy.cluster import Cluster

from surrogate_flow.cluster.batch import batch_system
from surrogate_flow.cluster.config import ClusterConfig
from surrogate_flow.data.archiving import Archiving, planned, shared
from surrogate_flow.data.attached import Attach, Attached, require_shared
from surrogate_flow.data.checkpoint import StudyCheckpoint, checkpoint_folder
from surrogate_flow.data.module import (
    Changes,
    Cost,
    Status,
    SurrogateData,
    Vector,
    at_least,
    require_setup,
    run_folder,
)
from surrogate_flow.data.online_loader import AppliedBatches, OnlineLoader
from surrogate_flow.data.ranks import RankState
from surrogate_flow.data.router import Router
from surrogate_flow.data.source import Local, Source
from surrogate_flow.data.validation import ValidationSet, usual_held_out
from surrogate_flow.dataset import Archive
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.study import StudySettings
from surrogate_flow.ensemble.workers import EnsembleError
from surrogate_flow.fields.errors import ArgumentError, UserError, require_kind
from surrogate_flow.fields.quantities import Simulation, named
from surrogate_flow.reservoir import Policy, Reservoir, Store
from surrogate_flow.reservoir.layout import require_reachable
from surrogate_flow.sampling import (
    Design,
    FourierModes,
    InputSampler,
    Observations,
    Sampler,
    Table,
    Uniform,
)
from surrogate_flow.sampling.design import shared_points
from surrogate_flow.sampling.inputs import identity, require_inputs
from surrogate_flow.solvers.grid import GridSolver
from surrogate_flow.solvers.solver import Recorded, Solver, spec_of

__all__ = ["OnlineData"]

_POLL = 0.5  # seconds between two health checks while waiting
_FILL_POLL = 0.05  # seconds between two looks at a reservoir that fills


class OnlineData(SurrogateData):
    """solver -> stream -> reservoir -> batches, while the simulations run.

    Parameters
    ----------
    solver : Solver
        What to simulate.
    sampler : Sampler, optional
        Which parameters; uniform by default, or those of a solver with stored runs.
    inputs : InputSampler, optional
        Draws the input fields of the spec, such as `sampling.GaussianRandomField`; by
        default the solver's first dataset has them.
    simulations : int, optional
        How many to train on; ``None`` goes on until the trainer stops
        (``trainer.max_steps``). No more than the sampler has points.
    held_out : int, optional
        Simulations of the validation set (and of the test set, in ``test``), with a
        seed of their own. They run first and never enter the reservoir; without
        validation (``trainer.limit_val_batches 0``), too, for the rollouts and the
        picture at the end: 1 is the least. By default 30 where these have at most 64
        MiB of fields, and 10 of larger ones; a fifth of a sampler's points at most.
    held_out_sampler : Sampler or "same", optional
        Which parameters these have: those of a sampler, such as `sampling.Table`, or
        the first ones of `sampler`. Uniform by default, or the same where `sampler` has
        an end. ``test`` has others than ``fit`` only by default.
    constraint : callable, optional
        A function that is given the parameters, as a solver is, and returns whether
        they may run; no others are drawn.
    batch_size : int
        Samples of a batch.
    reservoir : Policy
        How many steps are held for training, and how batches are drawn from them.
    cluster : ClusterConfig or class of distributed.deploy.Cluster, optional
        Opened when the simulations start: `surrogate_flow.cluster.Slurm`, for example;
        by default one worker a core of this machine, but for one that trains.
    every : int
        Which steps are kept: 10 is each tenth that the solver makes; the others are not
        sent. A step at time 0, the initial state, is kept, and not counted.
    cores_per_simulation : int
        Of a worker, for solvers with threads (OpenMP, MKL and OpenBLAS are set) or
        with processes of their own.
    faults : Faults
        How much may go wrong.
    checkpoint_reservoir : bool
        Whether checkpoints have the reservoir's fields beside them (its size in bytes,
        each): a resumed run then trains the very same batches. Without, simulations
        whose samples were not trained yet run again.
    deterministic : bool
        Whether two runs with the same seeds draw the same batches: simulations enter
        the reservoir in the order of their numbers, and inserts and draws take turns,
        which costs waiting. Checkpoints have the fields, then.
        ``trainer.deterministic`` makes torch's part repeatable.
    archive : Path, optional
        Data set in Zarr format 3 that the workers write the simulations of a fit into,
        as ``surrogate-flow generate`` does; it may be there, and is completed then.
    attach : Attach, optional
        Of a study that runs elsewhere, such as that of a sweep, and feeds a fit instead
        of one of its own.
    name : str, optional
        Of the workflow, in task names and folders; the solver's by default.
    """

    def __init__(
        self,
        solver: Solver,
        *,
        sampler: Sampler | None = None,
        inputs: InputSampler | None = None,
        simulations: int | None = 1000,
        held_out: int | None = None,
        held_out_sampler: Sampler | Literal["same"] | None = None,
        constraint: Callable[[Mapping[str, Any]], bool] | None = None,
        batch_size: int = 10,
        reservoir: Policy = Reservoir(),  # noqa: B008 - frozen
        cluster: ClusterConfig | Callable[[], Cluster] | None = None,
        every: int = 1,
        cores_per_simulation: int = 1,
        faults: Faults | None = Faults(),  # noqa: B008 - frozen
        checkpoint_reservoir: bool = False,
        deterministic: bool = False,
        archive: Path | None = None,
        attach: Attach | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if held_out is not None and held_out < 1:
            remedy = (
                "--trainer.limit_val_batches 0 leaves validation out; the pictures at "
                "the end still need one."
            )
            raise UserError("data.held_out", "at least 1", held_out, remedy)
        at_least(
            1,
            simulations=simulations,
            batch_size=batch_size,
            every=every,
            cores_per_simulation=cores_per_simulation,
        )
        require_kind("data.solver", solver, Solver, "Heat2D()")
        reservoir, faults = reservoir or Reservoir(), faults or Faults()
        if callable(reservoir):
            reservoir = reservoir()  # In version 0.1 it was what makes one.
        require_kind("data.reservoir", reservoir, Policy, "Reservoir(capacity=2000)")
        require_kind("data.sampler", sampler or Uniform(), Sampler, "Sobol(seed=1)")
        if held_out_sampler not in (None, "same"):
            example = "Sobol(seed=1), or 'same'"
            require_kind("data.held_out_sampler", held_out_sampler, Sampler, example)
        require_kind("data.faults", faults, Faults, "Faults(retries=2)")
        if constraint is not None and not callable(constraint):
            example = "a function, such as my_module.allowed"
            raise UserError("data.constraint", example, repr(constraint))
        self.constraint = constraint
        self.solver = solver if every == 1 else Recorded(solver, every)
        self.spec = spec_of(self.solver)
        known = solver.stored_parameters
        if known is not None:
            count, alone = len(next(iter(known.values()))), held_out_sampler != "same"
            for option, given in (
                ("sampler", sampler),
                ("held_out_sampler", held_out_sampler if alone else None),
                ("constraint", constraint),
            ):
                if given is not None:
                    raise ArgumentError(
                        f"data.{option}: {type(solver).__name__} has {count} stored "
                        "runs, and a study runs each of them once. Leave "
                        f"data.{option} out."
                    )
        usual = Uniform() if known is None else Table(known, shuffle=False)
        self.sampler = sampler or usual
        self.observes = self.sampler.adapts
        if deterministic and self.observes:
            raise ArgumentError(
                f"{type(sampler).__name__} adapts to losses, which arrive at another "
                "time in each run: expected deterministic: false with it, got true. "
                "Use a sampler that does not adapt, such as Sobol."
            )
        self.fixed, self.held_out, self.simulations = shared_points(
            self.sampler,
            held_out_sampler,
            held_out=held_out,
            usual=usual_held_out(self.spec),
            simulations=simulations,
        )
        for given in (self.sampler, self.fixed):
            if given is not None and given.count is not None:
                given.ask(0, 0, self.spec.parameters)  # refuses what does not fit
        example = "GaussianRandomField()"
        require_kind("data.inputs", inputs or FourierModes(), InputSampler, example)
        self.inputs = inputs
        self.simulations = require_inputs(
            inputs,
            self.spec,
            type(solver).__name__,
            held_out=self.held_out,
            simulations=self.simulations,
            needed=isinstance(solver, GridSolver),
        )
        # Of given points or fields none is left for ``test``.
        self.tests_apart = self.fixed is None and getattr(inputs, "count", None) is None
        self.batch_size = batch_size
        self.reservoir = reservoir
        self.cluster = cluster
        if system := batch_system(cluster):
            system.require_known()
        self.cores_per_simulation = cores_per_simulation
        self.faults = faults
        self.checkpoint_reservoir = checkpoint_reservoir
        self.deterministic = deterministic
        self.archive = None if archive is None else Path(archive)
        self.attach = attach
        if attach is not None:
            self.require_shareable()
        self.workflow = name or type(solver).__name__.lower()
        named(self.workflow, "", "data")
        self.store: Store | None = None
        self.source: Source | None = None
        self._checkpoint: StudyCheckpoint | None = None
        self._archiving: Archiving | None = None
        self._loader: OnlineLoader | None = None
        self._open = False

    def require_shareable(self) -> None:
        """Refuse options that trainings which share an ensemble cannot have."""
        require_shared(
            {
                "deterministic": self.deterministic,
                "archive": self.archive is not None,
                "sampler, which adapts": self.observes,
                "simulations: null": self.simulations is None,
            }
        )

    def setup(self, stage: str) -> None:
        """Open the study: everything is checked before anything is submitted."""
        if self._open:
            return
        if self.source is not None:
            # Opened again. A signal that came before the first time still counts.
            self._stopped.clear()
        fit = stage == "fit"
        self.store = self._checkpoint = self._loader = None
        self._begin()
        with self.ranks.fail_together():
            # First: it refuses more simulations than fit into memory.
            self.validation = ValidationSet.of_rank(
                self.ranks, self.spec, self.window, self.batch_size, self.held_out
            )
            self.design = self.new_design(
                simulations=self.simulations if fit else 0,
                part="test" if stage == "test" else "validation",
                rank=self.ranks.rank,
                world=self.ranks.world,
            )
            if fit:
                planned = self.design.planned
                self.store = Store(
                    *(self.spec, self.window, self.batch_size, self.reservoir),
                    planned and planned - self.validation.count,
                )
                require_reachable(
                    *(self.reservoir, self.spec, self.window, self.simulations),
                    self.ranks.world,
                )
        router = Router(self.validation, self.store, deterministic=self.deterministic)
        if fit and self.attach:
            with self.ranks.fail_together():
                self.source = Attached(self.attach, self.design, router, self.ranks)
        else:
            archive = None
            if fit and (path := self.archive):
                archive = shared(path, self.ranks, lambda: self.planned(path)[0])
            self._archiving = Archiving(archive, self.ranks)
            self.source = self._local(self._archiving, router)
        self.client = self.source.client
        if self.store is not None:
            self._checkpoint = StudyCheckpoint(
                self.store,
                self.validation,
                self.source.ledger,
                identity(self.design, self.inputs, self.spec),
                fields=self.checkpoint_reservoir or self.deterministic,
            )
        # What a checkpoint says that has ended is there before the first is taken.
        self.design.skip(self.source.ledger)
        self._open = True

    def new_design(self, **options: Any) -> Design:
        """Return which simulations run, in their order; `options` as of `Design`."""
        return Design(
            self.spec.parameters,
            self.sampler,
            held_out=self.held_out,
            fixed=self.fixed,
            given=bool(self.spec.inputs),
            constraint=self.constraint,
            **{"simulations": self.simulations} | options,
        )

    def planned(self, path: Path) -> tuple[Archive, list[Simulation]]:
        """Return a data set of this study, and its simulations; as `planned`."""
        return planned(
            path,
            self.solver,
            self.sampler,
            held_out=self.held_out,
            fixed=self.fixed,
            simulations=self.simulations,
            workflow=self.workflow,
            inputs=self.inputs,
            constraint=self.constraint,
        )

    def _local(self, archiving: Archiving, router: Router) -> Local:
        return Local(
            self.solver,
            self.design,
            router,
            cluster=self.cluster,
            faults=self.faults,
            settings=StudySettings(
                self.workflow,
                run_folder(self.trainer),
                cores=self.cores_per_simulation,
                # A retry must find a free worker, or the others wait for its turn for
                # ever.
                ahead=1 if self.deterministic else 2,
                writer=archiving.writer,
                inputs=self.inputs,
            ),
            listeners=[archiving],
            ranks=self.ranks,
        )

    def stop(self) -> None:
        """Deliver no further batch; what waits wakes up.

        Takes the reservoir's lock: call it from another thread than one that may hold
        it, so never in a signal handler itself.
        """
        super().stop()
        if self.store is not None:
            self.store.stop()

    def close(self) -> None:
        """End the study; may be called again."""
        self.stop()
        if self.source is not None:
            self.source.close()
        if self._archiving is not None and self.source is not None:
            early = self.source.ledger.early()
            self._archiving.close(self.cost().solver_seconds, early)
        self._open = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on, for Lightning's checkpoints."""
        if self._checkpoint is None or self.trainer is None:
            return {}
        with self.ranks.fail_together():
            trained = self._loader.trained() if self._loader else 0
            mine = self._checkpoint.save(
                self.trainer.global_step, trained, checkpoint_folder(self.trainer)
            )
        self.ranks.gather_states(RankState.READY)
        state: dict[str, Any] = {"ranks": self.ranks.gather(mine)}
        if self.sampler.adapts:
            # Those of the last step, too, which is not trained again.
            deliver = getattr(self.trainer.lightning_module, "deliver_losses", None)
            if deliver is not None:
                deliver()
            state["design"] = self.design.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if self._checkpoint is not None:
            path = (self.trainer.ckpt_path if self.trainer else None) or "."
            state = self.ranks.share_of(state_dict["ranks"])
            self._checkpoint.load(state, Path(path).parent)
            if "design" in state_dict:
                self.design.load_state_dict(state_dict["design"])

    def observe(self, seen: Observations) -> None:
        """Pass the losses of a training step to a sampler that adapts."""
        self.design.tell(seen)

    def moments(self) -> tuple[Vector, Vector]:
        """Wait for the first fill; return mean and std of each variable.

        ``population >= max(threshold, capacity / 2)``, or all that there will be: a
        threshold alone, one batch for FIFO, would give the moments of a few first
        steps. That of the threshold is the same in each run where inserts and draws
        take turns.

        Raises
        ------
        EnsembleError
            If the study ended before a single sample arrived.
        TimeoutError
            If nothing arrives within ``faults.patience``.
        """
        self._start()
        self._wait(self._filled)
        store = require_setup(self.store)
        count = store.stats().population
        moments = self._pooled(count, store.moments() if count else None)
        if not moments.count:
            raise EnsembleError(
                "The study ended before a single sample arrived. Look into "
                "failures.csv in the run's folder."
            )
        return moments.mean, moments.std

    def changes(self) -> Changes:
        """Return the root mean squares of the changes of the first fill."""
        return self._pooled_changes(require_setup(self.store).changes(self.window))

    def _filled(self, seconds: float) -> RankState:
        """Wait for the first fill, for so many seconds at most."""
        store, ready = require_setup(self.store), False
        with contextlib.suppress(TimeoutError):
            ready = store.wait_threshold(seconds) or store.draining
        if self.deterministic or not ready:
            # Nothing comes in before the first draw, so this is the same each time.
            return RankState.READY if ready else RankState.WAITING
        if store.held_up:
            return RankState.FULL
        fill = max(store.threshold, store.capacity // 2)
        if store.stats().population >= fill or store.draining:
            return RankState.READY
        time.sleep(_FILL_POLL)
        return RankState.WAITING

    def _wait(self, ready: Callable[[float], RankState]) -> None:
        def checked(seconds: float) -> RankState:
            state = ready(seconds)
            self._check()
            return state

        self.ranks.wait(checked, _POLL)
        # The others may have been waited for since.
        self._check()

    def _check(self) -> None:
        if self._stopped.is_set():
            # Nothing has been trained that could be saved.
            raise KeyboardInterrupt
        require_setup(self.source).check(self._loader.waited if self._loader else None)

    def _start(self) -> Source:
        source = require_setup(self.source)
        source.start()
        return source

    def train_dataloader(self) -> OnlineLoader:
        """Return the batches of the reservoir; a study has one loader, which counts."""
        source, trainer = self._start(), self.trainer
        leave = source.leave if isinstance(source, Attached) else None
        if self._loader is None:
            self._loader = OnlineLoader(
                require_setup(self.store),
                pending=require_setup(self._checkpoint).pending,
                source=source,
                applied=AppliedBatches(trainer, leave) if trainer else None,
                ranks=self.ranks,
                stopped=self._stopped,
                waits_for_all=self.deterministic,
                device=trainer.strategy.root_device if trainer else None,
            )
        return self._loader

    def val_dataloader(self) -> ValidationSet:
        """Wait for the held-out set, then return its batches."""
        self._start()
        validation = require_setup(self.validation)
        self._wait(
            lambda s: RankState.READY if validation.wait(s) else RankState.WAITING
        )
        self.validated = validation.validated(self.ranks, self.held_out)
        return validation

    test_dataloader = predict_dataloader = val_dataloader

    def cost(self) -> Cost:
        """Return what simulations took, those of this process."""
        if self.source is None:
            return Cost(0, 0, 0.0)
        stream = self.source.stream()
        drawn = 0 if self.store is None else sum(self.store.stats().times_seen[1:])
        stats = self.source.stats()
        return Cost(
            *(stream.finished, drawn, stream.worked, stats.set_aside, stats.early),
            stream.quickest if math.isfinite(stream.quickest) else None,
        )

    def status(self) -> Status | None:
        """Return the state of the study, or None before it has started."""
        source, validation, store = self.source, self.validation, self.store
        if source is None or validation is None:
            return None
        if validation.complete:
            waiting = "" if store is None else store.waiting()
        else:
            waiting = f"trainer waits for held-out simulations: {validation.progress}"
        return Status(
            ensemble=source.stats(),
            store=None if store is None else store.stats(),
            stream=source.stream(),
            waiting="; ".join(filter(None, [waiting, source.waiting()])),
        )
