"""Lightning data modules: where batches come from."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from distributed.deploy.cluster import Cluster
from jaxtyping import Float

from surrogate_flow.cluster.batch import Load
from surrogate_flow.cluster.config import ClusterConfig
from surrogate_flow.data.archiving import Archiving
from surrogate_flow.data.checkpoint import StudyCheckpoint
from surrogate_flow.data.checkpoint_folder import checkpoint_folder
from surrogate_flow.data.first_fill import FirstFill, require_reachable
from surrogate_flow.data.module import Cost, SurrogateData, ranks_and_window
from surrogate_flow.data.online_loader import AppliedBatches, OnlineLoader
from surrogate_flow.data.ranks import Ranks, State
from surrogate_flow.data.router import Router
from surrogate_flow.data.source import Local, Source
from surrogate_flow.data.status import Status
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.study import StudySettings
from surrogate_flow.reservoir import Policy, Reservoir, Store
from surrogate_flow.sampling import Design, Observations, Sampler, Uniform
from surrogate_flow.solvers.solver import Solver, spec_of

__all__ = ["OnlineData"]

logger = logging.getLogger(__name__)

_SLICE = 0.5  # seconds of a wait between two looks at the study
_LOOK = 1.0  # seconds between two looks at who waits for whom


class OnlineData(SurrogateData):
    """solver -> stream -> reservoir -> batches, while the simulations run.

    Parameters
    ----------
    solver : Solver
        What to simulate.
    sampler : Sampler, optional
        Which parameters; uniform by default.
    simulations : int, optional
        How many to train on; ``None`` goes on until the trainer stops
        (``trainer.max_steps``).
    held_out : int
        Simulations of the validation set (and of the test set, in ``test``), with a
        seed of their own. They run first and never enter the reservoir.
    batch_size : int
        Samples of a batch.
    reservoir : Policy
        How many steps are held for training, and how batches are drawn from them.
    cluster : ClusterConfig or class of distributed.deploy.Cluster, optional
        Opened when the simulations start: `surrogate_flow.cluster.Slurm`, for example;
        one worker a core on this machine by default.
    cores_per_simulation : int
        Of a worker, for solvers with threads (OpenMP, MKL and OpenBLAS are told) or
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
    name : str, optional
        Of the workflow, in task names and folders; the solver's by default.
    """

    def __init__(
        self,
        solver: Solver,
        *,
        sampler: Sampler | None = None,
        simulations: int | None = 1000,
        held_out: int = 10,
        batch_size: int = 10,
        reservoir: Policy = Reservoir(),  # noqa: B008 - frozen
        cluster: ClusterConfig | Callable[[], Cluster] | None = None,
        cores_per_simulation: int = 1,
        faults: Faults = Faults(),  # noqa: B008 - frozen
        checkpoint_reservoir: bool = False,
        deterministic: bool = False,
        archive: Path | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        for what, value in (
            ("simulations", simulations),
            ("held_out", held_out),
            ("batch_size", batch_size),
            ("cores_per_simulation", cores_per_simulation),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{what}: expected at least 1, got {value}.")
        self.solver = solver
        self.spec = spec_of(solver)
        self.sampler = sampler or Uniform()
        self.observes = self.sampler.adapts
        self.simulations = simulations
        self.count = held_out
        self.batch_size = batch_size
        self.reservoir = reservoir
        self.cluster = cluster
        self.cores_per_simulation = cores_per_simulation
        self.faults = faults
        self.checkpoint_reservoir = checkpoint_reservoir
        self.deterministic = deterministic
        self.archive = None if archive is None else Path(archive)
        self.workflow = name or type(solver).__name__.lower()
        self.store: Store | None = None
        self.held_out: ValidationSet | None = None
        self.source: Source | None = None
        self.memory: StudyCheckpoint | None = None
        self._open = False
        self._archiving: Archiving | None = None
        self._loader: OnlineLoader | None = None
        self.ranks = Ranks()
        #: Number of held-out simulations that the errors are taken over.
        self.validated = 0
        self._stopped = threading.Event()
        self._load, self._looked = Load(), 0.0

    def setup(self, stage: str) -> None:
        """Open the study: everything is checked before anything is submitted."""
        if self._open:
            return
        if self.source is not None:
            # Opened again. A signal that came before the first time still counts.
            self._stopped.clear()
        self.store = self.memory = self._loader = None
        self.ranks, window = ranks_and_window(self.trainer)
        self.window = window
        with self.ranks.fail_together():
            # First: it refuses more simulations than fit into memory.
            self.held_out = ValidationSet.of_rank(
                self.ranks, self.spec, window, self.batch_size, self.count
            )
            self.design = Design(
                self.spec.parameters,
                self.sampler,
                held_out=self.count,
                simulations=self.simulations if stage == "fit" else 0,
                part="test" if stage == "test" else "validation",
                rank=self.ranks.rank,
                world=self.ranks.world,
            )
            if stage == "fit":
                self.store = Store(self.spec, window, self.batch_size, self.reservoir)
                require_reachable(self.store, self._share())
        self._router = Router(
            self.held_out, self.store, deterministic=self.deterministic
        )
        self._archiving = Archiving(
            self.archive if stage == "fit" else None,
            self.solver,
            self.sampler,
            held_out=self.count,
            simulations=self.simulations,
            workflow=self.workflow,
            ranks=self.ranks,
        )
        self.source = self._local(self._archiving)
        if self.store is not None:
            self.memory = StudyCheckpoint(
                self.store,
                self.held_out,
                self.source.ledger,
                self.design.first,
                fields=self.checkpoint_reservoir or self.deterministic,
            )
        # What a checkpoint says that has ended is there before the first is taken.
        self.design.skip(self.source.ledger)
        self._open = True

    def _share(self) -> int | None:
        """Return how many simulations for training this rank has."""
        if self.simulations is None:
            return None
        numbers = range(self.count, self.count + self.simulations)
        return sum(map(self.ranks.mine, numbers))

    def _local(self, archiving: Archiving) -> Local:
        folder = Path((self.trainer.log_dir if self.trainer else None) or ".")
        return Local(
            self.solver,
            self.design,
            self._router,
            cluster=self.cluster,
            faults=self.faults,
            settings=StudySettings(
                self.workflow,
                folder,
                cores=self.cores_per_simulation,
                # A retry must find a free worker, or the others wait for its turn for
                # ever.
                ahead=1 if self.deterministic else 2,
                writer=archiving.writer,
            ),
            listeners=[archiving, self._router],
            ranks=self.ranks,
        )

    def stop(self) -> None:
        """Deliver no further batch; what waits wakes up.

        Takes the reservoir's lock: call it from another thread than one that may hold
        it, so never in a signal handler itself.
        """
        self._stopped.set()
        if self.store is not None:
            self.store.stop()

    def close(self) -> None:
        """End the study; may be called again."""
        self.stop()
        if self.source is not None:
            self.source.close()
        if self._archiving is not None:
            self._archiving.close(self.effort().solver_seconds)
        self._open = False

    def teardown(self, stage: str) -> None:
        """End the study with the run."""
        self.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the study when the run fails."""
        self.ranks.leave()
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on, for Lightning's checkpoints."""
        if self.memory is None or self.trainer is None:
            return {}
        folder = checkpoint_folder(self.trainer)
        with self.ranks.fail_together():
            trained = self._loader.trained() if self._loader else 0
            mine = self.memory.save(self.trainer.global_step, trained, folder)
        self.ranks.gather_states(State.READY)
        state: dict[str, Any] = {"ranks": self.ranks.gather(mine)}
        if self.sampler.adapts:
            state["design"] = self.design.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if self.memory is not None:
            path = (self.trainer.ckpt_path if self.trainer else None) or "."
            state = self.ranks.share_of(state_dict["ranks"])
            self.memory.load(state, Path(path).parent)
            if "design" in state_dict:
                self.design.load_state_dict(state_dict["design"])

    def observe(self, seen: Observations) -> None:
        """Pass the losses of a training step to a sampler that adapts."""
        self.design.tell(seen)

    def moments(
        self,
    ) -> tuple[Float[np.ndarray, " channel"], Float[np.ndarray, " channel"]]:
        """Wait for the first fill; return mean and std of each variable.

        Raises
        ------
        EnsembleError
            If the study ended before a single sample arrived.
        TimeoutError
            If nothing arrives within ``faults.patience``.
        """
        self._start()
        store = self.store
        assert store is not None, "only a fit has a reservoir"
        fill = FirstFill(store, deterministic=self.deterministic)
        self._wait(fill.wait)
        return fill.moments(self.ranks)

    def _wait_held_out(self) -> ValidationSet:
        self._start()
        held_out = self.held_out
        assert held_out is not None, "setup() makes it"
        self._wait(lambda s: State.READY if held_out.wait(s) else State.WAITING)
        self.validated = held_out.validated(self.ranks, self.count)
        return held_out

    def _wait(self, wait: Callable[[float], State]) -> None:
        self.ranks.wait(wait, self._check, _SLICE)
        self._check()

    def _check(self) -> None:
        if self._stopped.is_set():
            # Nothing has been trained that could be saved.
            raise KeyboardInterrupt
        self._check_source()

    def _check_source(self) -> None:
        assert self.source is not None, "setup() makes it"
        if time.monotonic() - self._looked > _LOOK:
            self._looked = time.monotonic()
            self._load = self._router.load(
                self._loader.waited if self._loader else None
            )
        self.source.check(self._load, held_up=self._router.held_up)

    def _start(self) -> None:
        if self.source is None:
            raise RuntimeError(
                "The study has not started: expected setup() to be called first, which "
                "Trainer.fit, validate, test and predict do."
            )
        self.source.start()

    def train_dataloader(self) -> OnlineLoader:
        """Return the batches of the reservoir; a study has one loader, which counts."""
        self._start()
        store, memory = self.store, self.memory
        assert store is not None, "only a fit has a reservoir"
        assert memory is not None, "and what keeps it"
        if self._loader is None:
            trainer = self.trainer
            self._loader = OnlineLoader(
                store,
                pending=memory.pending,
                check=self._check_source,
                applied=AppliedBatches(trainer) if trainer else None,
                ranks=self.ranks,
                stopped=self._stopped,
                patient=self.deterministic,
                device=trainer.strategy.root_device if trainer else None,
            )
        return self._loader

    def val_dataloader(self) -> ValidationSet:
        """Wait for the held-out set, then return its batches."""
        return self._wait_held_out()

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def effort(self) -> Cost:
        """Return what simulations took, those of this process."""
        if self.source is None:
            return Cost(0, 0, 0.0)
        stream = self.source.stream()
        drawn = 0 if self.store is None else sum(self.store.stats().times_seen[1:])
        return Cost(stream.finished, drawn, stream.worked)

    def status(self) -> Status | None:
        """Return the state of the study, or None before it has started."""
        source, held_out, store = self.source, self.held_out, self.store
        if source is None or held_out is None:
            return None
        if held_out.complete:
            waiting = "" if store is None else store.waiting()
        else:
            waiting = f"trainer waits for held-out simulations: {held_out.progress}"
        return Status(
            ensemble=source.stats(),
            store=None if store is None else store.stats(),
            stream=source.stream(),
            waiting="; ".join(filter(None, [waiting, source.waiting()])),
        )
