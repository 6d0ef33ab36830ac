"""What a run records of itself while it goes on: run.json, losses.csv, newest.nc."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import pytorch_lightning as L
import xarray as xr

from surrogate_flow.data.module import RunCallback, Status, data_of
from surrogate_flow.fields.conventions import masked
from surrogate_flow.fields.names import apart
from surrogate_flow.fields.quantities import attributes
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.staggered import box
from surrogate_flow.fields.thinning import SURROGATE, Thinning
from surrogate_flow.files import observing, write_atomically
from surrogate_flow.report.about import about_run, now
from surrogate_flow.report.folder.run_folder import INTERRUPTED
from surrogate_flow.report.pictures.axes import across_up_and_cut
from surrogate_flow.report.report import held_out_of, next_command
from surrogate_flow.surrogate.observation import Look, Probe
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["LossTable", "NewestFile", "Records", "Throttle", "cut_dims"]

logger = logging.getLogger(__name__)

_SHARE = 0.002  # of the trainer's time that a record may take
_LOSSES, _FIELD = 10.0, 2.0  # seconds between two versions of their files, at least
_LIMIT = 64_000  # bytes of newest.nc
_POINTS = 1000  # of each of its variables, before any of them is left out
_KEPT = 2000  # simulations in losses.csv
_SAMPLES = 256  # of a batch whose fields have no dims
_NAMED = 24  # parameters in newest.nc, each of which takes half a kilobyte


class Throttle:
    """Says when a thing may be done again, so that it takes a small share of the time.

    Parameters
    ----------
    seconds : float
        Between two times, at least.
    share : float
        Of the time of a processor, at most; but for the first time, in which imports
        are, which no other has.
    """

    def __init__(self, seconds: float, share: float = _SHARE) -> None:
        self._seconds, self._share = seconds, share
        self._due, self._first = -math.inf, True

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._due

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Do it, and measure how long this thread works on it."""
        begin = time.thread_time()
        try:
            yield
        finally:
            self.took(time.thread_time() - begin)

    def took(self, seconds: float) -> None:
        """Take into account how long it was worked on."""
        wait = self._seconds if self._first else seconds / self._share
        self._first = False
        self._due = time.monotonic() + max(self._seconds, wait)


class LossTable:
    """The newest loss of each of the last simulations that were trained on.

    Parameters
    ----------
    spec : FieldSpec
    kept : int
        Number of simulations.
    """

    def __init__(self, spec: FieldSpec, kept: int = _KEPT) -> None:
        own = ["simulation", "step", "loss", "seconds"]
        self.columns = own + apart([p.name for p in spec.parameters], own)
        self._kept = kept
        self._rows: dict[int, list[Any]] = {}

    def add(self, look: Look, seconds: float) -> None:
        """Take the losses of a batch into account, which are so old."""
        seen = look.seen
        for simulation, step, loss, point in zip(
            seen.simulation.tolist(),
            seen.step.tolist(),
            seen.loss.tolist(),
            seen.parameters.tolist(),
            strict=True,
        ):
            # At the end, behind those that were trained on before.
            self._rows.pop(simulation, None)
            self._rows[simulation] = [simulation, step, loss, seconds, *point]
        while len(self._rows) > self._kept:
            del self._rows[next(iter(self._rows))]

    def write(self, path: Path) -> None:
        """Write a row a simulation, of which the last was trained on last."""
        numbers = "{},{},{:.5g},{:.3f}" + ",{:.7g}" * (len(self.columns) - 4)
        rows = [numbers.format(*row) for row in self._rows.values()]
        head = io.StringIO()
        csv.writer(head, lineterminator="\n").writerow(self.columns)
        path.write_text(head.getvalue() + "\n".join(rows) + "\n", "utf-8")


class NewestFile:
    """One sample of a training step as a small netCDF file.

    The file is made once, with all names and units; later its numbers are replaced,
    which takes a tenth of the time.

    Parameters
    ----------
    spec : FieldSpec
    samples : int
        Of a batch; all of them are kept where fields have no dims.
    cut : sequence of str
        Dims of which the middle alone is shown.
    limit : int
        Bytes of the file, at most.
    """

    def __init__(
        self,
        spec: FieldSpec,
        samples: int,
        *,
        cut: tuple[str, ...] = (),
        limit: int = _LIMIT,
    ) -> None:
        self.spec, self._times = spec, np.array(spec.times)
        self._samples = min(samples, _SAMPLES)
        count = len(spec.variables)
        points = max(_POINTS, limit // (8 * count))
        while True:
            some = replace(spec, variables=spec.variables[:count])
            self._thin = Thinning.of(some, points, cut).apart(("sample", "simulation"))
            self._template = self._made()
            part = min(0.95, limit / len(self._template))
            if len(self._template) <= limit or (count == 1 and points < 2):
                break
            if count > 1 and points <= _POINTS:
                count = max(1, int(part * count))
            else:
                points = int(part * points)

    @property
    def index(self) -> tuple[slice, ...]:
        """Of the axes of space: the cells that are kept."""
        return self._thin.index

    def write(self, look: Look, step: int, path: Path) -> None:
        """Write what was seen at a step of the optimizer."""
        seen, newest = look.seen, look.newest
        numbers = (int(n[newest]) for n in (seen.simulation, seen.step))
        names = ("simulation", "step", "batch")
        pair, along = self._numbers(look)
        axis = 0 if self.spec.dims else 1
        file = io.BytesIO(self._template)
        with h5py.File(file, "r+") as stored:
            for name, value in along.items():
                stored[name][...] = value
            for suffix, fields in zip(("", SURROGATE), pair, strict=True):
                for channel, v in enumerate(self._thin.spec.variables):
                    stored[v.name + suffix][...] = fields.take(channel, axis)
            for name, number in zip(names, (*numbers, step), strict=True):
                stored.attrs.modify(name, np.int64(number))
        path.write_bytes(file.getvalue())

    def _numbers(
        self, look: Look | None = None
    ) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
        """Return the fields of both in their units, and what varies beside them.

        What is not known is NaN, as behind a batch that is shorter than others.
        """
        spec, shape = self.spec, self._thin.spec.step_shape
        whole = not spec.dims
        count = self._samples if whole else 1
        truth, guess = np.full((2, count, *shape), np.nan, dtype=np.float32)
        steps, numbers = np.zeros(count, dtype=np.int64), np.full(count, -1)
        points = np.full((count, len(spec.parameters)), np.nan)
        if look is not None:
            shown = slice(count) if whole else slice(look.newest, look.newest + 1)
            seen, some = look.seen, len(look.seen.step[shown])
            some_of = slice(count), slice(shape[0])
            truth[:some] = look.truth[some_of].reshape(-1, *shape)
            guess[:some] = look.guess[some_of].reshape(-1, *shape)
            steps[:some], numbers[:some] = seen.step[shown], seen.simulation[shown]
            points[:some] = seen.parameters[shown]
        along = {"time": self._times[steps]}
        named = self._thin.spec.parameters[:_NAMED]
        along |= {p.name: points[:, k] for k, p in enumerate(named)}
        if whole:
            along["simulation"] = numbers
        one: Any = slice(None) if whole else 0
        physical = self._thin.spec.physical
        pair = physical(truth)[one], physical(guess)[one]
        return pair, {name: values[one] for name, values in along.items()}

    def _made(self) -> bytes:
        """Return a file without numbers."""
        pair, along = self._numbers()
        lead = () if self.spec.dims else ("sample",)
        units = {p.name: attributes(p.units) for p in self._thin.spec.parameters}
        units["time"] = attributes(self.spec.time_units, "time")
        coordinates = {n: (lead, v, units.get(n, {})) for n, v in along.items()}
        attrs = dict.fromkeys(("simulation", "step", "batch"), np.int64(-1))
        if out := len(self.spec.variables) - len(self._thin.spec.variables):
            attrs["variables_left_out"] = np.int64(out)
        dataset = self._thin.dataset(*pair, lead, coordinates).assign_attrs(attrs)
        file = io.BytesIO()
        with h5netcdf.File(file, "w") as stored:
            dataset.dump_to_store(xr.backends.H5NetCDFStore(stored))
        return file.getvalue()


class Records(RunCallback):
    """Writes run.json as a run begins and ends, losses.csv and newest.nc meanwhile.

    Who shows a run reads these files, with `RunFolder`, from wherever they can be read.

    A listener of the `Monitor`, in whose thread losses and fields are written: the
    trainer looks at one step a second, and copies what was seen. What fails is logged
    once, and ends no run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.about: dict[str, Any] = {}
        self._surrogate: Surrogate | None = None
        self._losses: LossTable | None = None
        self._field: NewestFile | None = None
        self._look: Look | None = None
        self._looks = Throttle(0.0)
        self._paces = {"losses.csv": Throttle(_LOSSES), "newest.nc": Throttle(_FIELD)}
        self._unwritten: set[str] = set()
        self._trains = False

    def setup(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Write what is run, and with what."""
        data = data_of(trainer)
        if trainer.is_global_zero and data is not None:
            # Each run of a trainer has its own, without how the one before has ended.
            self.about = {}
            with observing(self.folder / "run.json"):
                self.about = about_run(trainer, data)
            self._note()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the checkpoint that the fit goes on from, which is known by now."""
        if self.about and trainer.ckpt_path:
            self.about["resumed_from"] = str(Path(trainer.ckpt_path).absolute())
            self._note()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to look at training steps."""
        data, first = data_of(trainer), trainer.is_global_zero
        if data is None or not first or not isinstance(pl_module, Surrogate):
            return
        size = getattr(data, "batch_size", _SAMPLES)
        self._losses = LossTable(data.spec)
        with observing(f"losses.csv and newest.nc of {self.folder}"):
            self._field = NewestFile(data.spec, size, cut=cut_dims(data.spec))
            pl_module.probe = Probe(self._field.index)
            self._surrogate, self._trains = pl_module, True

    def on_train_end(self, *_: Any) -> None:
        """Look no more; the next status is the last that is written."""
        self._trains = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the command that predicts, and whether a signal has ended the fit."""
        data, held_out = data_of(trainer), held_out_of(trainer)
        if self.about and data is not None and data.stopped:
            self.about["ended_early"] = True
            self._note()
        if self.about and held_out is not None and isinstance(pl_module, Surrogate):
            with observing("The command in run.json"):
                command = next_command(self.folder, trainer, pl_module, held_out)
                self.about["next"] = command
            self._note()

    def __call__(self, status: Status) -> None:
        """Write what was seen since the last time; in the monitor's thread."""
        probe = self._surrogate.probe if self._surrogate else None
        if probe is None or self._losses is None or self._field is None:
            return
        if (look := probe.look()) is not None:
            self._look = look
            self._losses.add(look, round(status.seconds, 3))
            self._looks.took(probe.seconds)
        probe.wanted = self._trains and self._looks.due
        step = status.training.step if status.training else -1
        if self._look is not None:
            newest, field = self._look, self._field
            self._write("losses.csv", self._losses.write)
            self._write("newest.nc", lambda part: field.write(newest, step, part))

    def teardown(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Note when the run has ended."""
        self._detach()
        if self.about:
            self.about["ended"] = now()
            self._note()

    def on_exception(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        exception: BaseException,
    ) -> None:
        """Note why the run has failed."""
        self._detach()
        said = " ".join(f"{type(exception).__name__}: {exception}".split())
        if isinstance(exception, KeyboardInterrupt):
            said = INTERRUPTED
        if self.about:
            self.about |= {"ended": now(), "error": " ".join(masked(said.split()))}
            self._note()

    def _detach(self) -> None:
        if self._surrogate is not None:
            self._surrogate.probe = None
            self._surrogate = None

    def _note(self) -> None:
        with observing(self.folder / "run.json"):
            text = json.dumps(self.about, indent=1)
            self._write("run.json", lambda part: part.write_text(text, "utf-8"))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a file whole, if it is time; what fails is logged once."""
        pace = self._paces.get(name)
        if pace is not None and self._trains and not pace.due:
            return
        path = self.folder / name
        known = name in self._unwritten
        self._unwritten.add(name)
        with suppress(Exception) if known else observing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            timed = pace.taking() if pace else nullcontext()
            with timed, write_atomically(path) as part:
                write(part)
            self._unwritten.discard(name)


def cut_dims(spec: FieldSpec) -> tuple[str, ...]:
    """Return the dims that do not lie in a picture."""
    if len(spec.dims) < 3:
        return ()
    nothing = np.broadcast_to(np.float32(0), (1, *spec.step_shape))
    points, spec = {p.name: p.low for p in spec.parameters}, box(spec)
    one = spec.dataset(nothing, spec.times[:1], points).isel(time=0)
    return tuple(across_up_and_cut(one[spec.variables[0].name])[2:])
