"""The surrogate: a network with its normalisation, trained to stand in for a solver."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as L
import torch
from jaxtyping import Float
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from surrogate_flow.fields.errors import (
    ArgumentError,
    require_kind,
)
from surrogate_flow.fields.html import rows_of, table
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.staggered import box
from surrogate_flow.fields.window import Direct, Window
from surrogate_flow.surrogate import checkpoint
from surrogate_flow.surrogate.averaging import AveragedWeights
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.conditions import Conditions
from surrogate_flow.surrogate.error_curve import (
    FIGURES,
    ErrorCurve,
    log_rollouts,
)
from surrogate_flow.surrogate.metrics import StandardError, field_metrics
from surrogate_flow.surrogate.normalisation import Normalisation
from surrogate_flow.surrogate.observation import (
    Feedback,
    Probe,
    TrainingData,
    evaluate,
    loss_of,
    require_finite,
    sample_losses,
)
from surrogate_flow.surrogate.prediction import Prediction
from surrogate_flow.surrogate.rollout import drawn_noise, drawn_unrolls, pushed_forward
from surrogate_flow.surrogate.schedule import (
    WarmupCosine,
    advance,
    configured,
    reads_loss,
    steps_left,
)
from surrogate_flow.surrogate.speed import Compile, Flush
from surrogate_flow.surrogate.trial import built, require_history
from surrogate_flow.surrogate.writing import write

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Surrogate"]

logger = logging.getLogger(__name__)

_ADAM = partial(torch.optim.Adam, lr=1e-3)


class Surrogate(L.LightningModule):
    """û = network(parameters, t, history), trained on ‖û - u‖² in normalised units.

    Parameters
    ----------
    spec : FieldSpec
        Of the fields; from the command line it comes from the workflow.
    network : class of nn.Module
        Built as ``network(spec, window)``: a recipe carries no sizes.
    window : Window
        What is predicted from what.
    conditions : list of str, optional
        Names of the parameters that the network sees, and ``time``; see `Conditions`.
        By default all, but with a history not those that only make the initial state.
    loss : nn.Module
        Of normalised prediction and target. Means over elements, such as those of
        torch, leave masked points out; others see 0 there in both.
    normalisation : {"standard", "none"}
        ``standard``: parameters and time from their bounds, fields from the first fill
        of the reservoir. ``none``: raw parameters, step index and fields.
    predicts : {"field", "change"}
        ``change``: a network with a history predicts how much the fields differ from
        its last step, each step of them in units of its own root mean square over the
        first fill, and the loss is of that.
    noise : float
        Standard deviation, in normalised units, of what training adds to the history.
    optimizer : callable
        Parameters -> optimizer.
    scheduler : callable, optional
        Optimizer -> schedule of the learning rate, advanced after every batch; a
        ``ReduceLROnPlateau`` when its monitor, by default ``val_loss``, is new. By
        default `WarmupCosine`, to the end of the run; ``None`` keeps the rate constant.
    averaging : bool
        Whether the running average of the weights is what is validated and saved, as
        `AveragedWeights` says.
    compiled : bool
        Whether a fit compiles the network, by ``torch.compile``: its first batch takes
        some ten seconds longer, and needs a C++ compiler on a CPU.

    Examples
    --------
    >>> from surrogate_flow.nn import FullyConnected
    >>> from surrogate_flow.solvers import Heat2D
    >>> surrogate = Surrogate(Heat2D(cells=(8, 8)).spec, FullyConnected)
    >>> walls = dict(initial=300, left=100, right=500, bottom=200, top=400)
    >>> surrogate.predict(walls, times=[0.1, 0.2]).temperature.dims
    ('time', 'x', 'y')
    """

    def __init__(
        self,
        spec: FieldSpec,
        network: Callable[[FieldSpec, Window], nn.Module],
        *,
        window: Window | None = None,
        conditions: list[str] | None = None,
        loss: nn.Module | None = None,
        normalisation: Literal["standard", "none"] = "standard",
        predicts: Literal["field", "change"] = "field",
        noise: float = 0.0,
        optimizer: OptimizerCallable = _ADAM,
        scheduler: LRSchedulerCallable | None = WarmupCosine,
        averaging: bool = True,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        require_kind("Surrogate: spec", spec, FieldSpec, "solver.spec or data.spec")
        self.spec = spec
        self.window = Direct() if window is None else window
        require_kind("Surrogate: window", self.window, Window, "Autoregressive()")
        if isinstance(loss, type) or not callable(optimizer):
            raise ArgumentError(
                "Surrogate: expected a loss such as torch.nn.L1Loss() and an optimizer "
                "such as functools.partial(torch.optim.Adam, lr=1e-3), got "
                f"{loss} and {optimizer!r}."
            )
        self.window.require(spec.steps)
        require_history(self.window, predicts, noise)
        self.noise = noise
        self.recipe: dict[str, Any] = {
            "format": checkpoint.FORMAT,
            "spec": spec.to_plain(),
            "network": checkpoint.plain_recipe(network),
            "window": checkpoint.plain_window(self.window),
            "normalisation": normalisation,
            "predicts": predicts,
        }
        self._factory, self._chosen = network, conditions is not None
        self._build(conditions)
        self.loss = loss or nn.MSELoss()
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.averaging, self.compiled = averaging, compiled
        #: Relative L2, of the validation before it was saved, once it is loaded; named
        #: as validations log it.
        self.error: float | None = None
        self.error_name = self.window.monitor
        #: The rollouts of the last validation or test, and after which batch that was.
        self.rollouts: ErrorCurve | None = None
        self.rolled_out_at = 0
        self._feedback: Feedback | None = None
        #: Looks at a training step now and then, if somebody wants it.
        self.probe: Probe | None = None
        self._trained: tuple[Tensor, int] = torch.tensor(torch.nan), 0
        self._remaining = math.inf
        self._monitored = self._logs = True
        self._said = False
        self._diverged = False
        self.val_errors = field_metrics(spec, "val_")
        self.test_errors = field_metrics(spec, "test_", detailed=True)
        self.spreads = nn.ModuleDict(
            {s: StandardError(of_numbers=not spec.dims) for s in ("val", "test")}
        )

    def _build(self, names: list[str] | None) -> None:
        """Build the network, and the normalisation of what it sees."""
        self.conditions = Conditions.of(self.spec, self.window, names)
        self.recipe["conditions"] = [*self.conditions.names]
        in_box = box(self.spec)
        seen = self.conditions.seen(in_box)
        self.network = built(self._factory, seen, self.window)
        kind = self.recipe["normalisation"]
        self.normalisation = Normalisation.of(kind, in_box, self.conditions)
        if self.recipe["predicts"] == "change":
            self.normalisation.of_changes(self.window.outputs)

    def take_conditions(self, names: list[str]) -> None:
        """Build anew what a checkpoint was trained with, unless others were chosen."""
        known = {*Conditions.all_of(self.spec).names}
        if (
            not self._chosen
            and names != self.recipe["conditions"]
            and known >= {*names}
        ):
            self._build(names)

    def forward(
        self,
        parameters: Float[Tensor, "batch parameter"],
        step: Float[Tensor, " batch"],
        history: Float[Tensor, "batch inputs channel *space"],
        *inputs: Float[Tensor, "batch input *space"],
    ) -> Float[Tensor, "batch outputs channel *space"]:
        """Predict fields as they are stored, ``(u - offset) / scale``."""
        normalised = self.normalised(parameters, step, history, *inputs)
        return self.normalisation.masked(
            self.normalisation.predicted(normalised, history), history
        )

    def normalised(
        self, parameters: Tensor, step: Tensor, history: Tensor, *inputs: Tensor
    ) -> Tensor:
        """Return what the network makes of a batch, of order one."""
        out: Tensor = self.network(
            *self.normalisation.inputs(parameters, step),
            self.normalisation.fields(history),
            *map(self.normalisation.given, inputs),
        )
        return out

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; torch takes long to see whether it is a module."""
        # Lightning's note of its present hook, forty times a step.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def _data(self) -> TrainingData | None:
        """The data module, if it is one of simulations."""
        # Lightning sets the attribute, but does not declare it.
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, TrainingData) else None

    def configure_callbacks(self) -> list[L.Callback]:
        """Have a fit flush subnormals, compile, and average unless a callback does."""
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        averaged = any(isinstance(c, WeightAveraging) for c in callbacks)
        return [
            Flush(),
            *([Compile()] if self.compiled else []),
            *([AveragedWeights()] if self.averaging and not averaged else []),
        ]

    def on_fit_start(self) -> None:
        """Freeze the normalisation, with the moments of the first fill."""
        for errors in (self.val_errors, self.test_errors):
            # A validation before the fit leaves tensors that no fit may write to.
            errors.reset()
        if self.normalisation.frozen:
            return
        if self._data is None:
            raise ArgumentError(
                "normalisation='standard': expected a data module with moments, such "
                "as OnlineData, got none. Use one, or normalisation='none'."
            )
        self.normalisation.freeze(*self._data.moments())
        if self.normalisation.change_scale is not None:
            changes = getattr(self._data, "changes", None)
            if changes is None:
                raise ArgumentError(
                    "model.predicts: change",
                    "data with changes(), the root mean squares of what it predicts",
                    f"{type(self._data).__name__} without",
                    "Write one, as OnlineData has it, or leave model.predicts out.",
                )
            self.normalisation.freeze_changes(changes())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss in normalised units, of the last prediction if unrolled."""
        place = self.current_epoch, batch_idx
        unrolls = drawn_unrolls(self.window.unroll, *place)
        batch = pushed_forward(self, batch, unrolls, self.window.outputs)
        if self.noise:
            noise = drawn_noise(batch.history, self.noise, *place, self.global_rank)
            batch = self.normalisation.noisy(batch, noise)
        prediction = self.normalised(*batch[:3], *batch.given)
        target = self.normalisation.target(batch.target, batch.history)
        if (known := self.normalisation.known(batch.target)) is not None:
            self.normalisation.learn(known)
        loss = loss_of(self.loss, prediction, target, known)
        self._trained = loss.detach(), len(batch.step) if batch.weight else 0
        self._remaining = batch.remaining
        # Not of every step, which takes half a millisecond, unless somebody reads it;
        # but before callbacks do, at the end of the batch.
        self._logs = self._monitored or self._due(self.trainer.global_step + 1)
        if self._logs:
            self._log_loss()
        losses = loss
        if self._feedback is not None:
            losses = sample_losses(self.loss, loss, prediction, target, known)
            self._feedback.add(batch, losses)
        if self.probe is not None and self.probe.wanted:
            self.probe.take(self, batch, prediction, target, losses)
        return loss * batch.weight

    # Lightning inspects it with every batch, which takes a quarter of a millisecond.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def _due(self, step: int) -> bool:
        trainer: Any = self.trainer
        return bool(step % max(1, trainer.log_every_n_steps) == 0)

    def _log_loss(self) -> None:
        loss, samples = self._trained
        if samples:
            self.log("train_loss", loss, on_step=True, batch_size=samples)

    def on_train_start(self) -> None:
        """Compute losses of samples, and log those of steps, where they are used."""
        data = self._data
        self._feedback = Feedback(data) if data and data.observes else None
        self._monitored = reads_loss(self.trainer)

    def on_train_batch_end(self, *_: Any) -> None:
        """Log the last loss, and pass on those that have reached the host's memory."""
        step: int = self.trainer.global_step
        if self._due(step) or step == 1:
            self._diverged = require_finite(self, self._trained[0], self._diverged)
        if self.trainer.should_stop and not self._logs:
            self._log_loss()
        if self._feedback is not None:
            self._feedback.deliver(wait=False)

    def on_train_end(self) -> None:
        """Pass on the losses that are left."""
        self.deliver_losses()
        self._feedback = None

    def deliver_losses(self) -> None:
        """Pass on the losses of all steps up to now."""
        if self._feedback is not None:
            self._feedback.deliver(wait=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation errors."""
        evaluate(self, "val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test errors."""
        evaluate(self, "test", batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predict a batch, as `forward`."""
        out: Tensor = self(*batch[:3], *batch.given)
        return out

    @property
    def metrics(self) -> list[str]:
        """Names of what a fit logs, by which its best model may be chosen."""
        rolled_out = [f"val_rollout_{n}" for n in FIGURES if self.window.inputs]
        return ["train_loss", "val_loss", *map(str, self.val_errors), *rolled_out]

    def configure_optimizers(self) -> Any:
        """Build the optimizer, and the schedule if there is one."""
        weights = self.network.parameters()
        return configured(self.optimizer, self.scheduler, weights, self.metrics)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance the schedule after a batch."""
        self._advance(scheduler, validated=False)

    def on_test_epoch_end(self) -> None:
        """Add the errors of rollouts."""
        log_rollouts(self, "test", self._data)

    def on_validation_epoch_end(self) -> None:
        """Let the schedule see the errors, before they are saved with it."""
        log_rollouts(self, "val", self._data)
        for config in self.trainer.lr_scheduler_configs:
            if not self.trainer.sanity_checking:
                self._advance(config.scheduler, validated=True)

    def _advance(self, schedule: Any, *, validated: bool) -> None:
        left = steps_left(self.trainer, self._remaining)
        seen = self.trainer.callback_metrics
        said = advance(schedule, seen, validated=validated, left=left)
        if said and not self._said:
            logger.warning(said)
        self._said = self._said or bool(said)

    def predict(
        self,
        parameters: Mapping[str, Any] | pd.DataFrame | xr.Dataset,
        times: Sequence[float] | None = None,
        history: xr.Dataset | None = None,
        *,
        inputs: Mapping[str, Any] | xr.Dataset | None = None,
        batch_size: int | None = None,
    ) -> xr.Dataset:
        """Return what the solver would yield, with coordinates and units.

        Of several samples it has a dim ``sample``, along which the parameters lie.
        They are evaluated in batches, on the device that the surrogate is on.

        Parameters
        ----------
        parameters : mapping of str to float or sequence, DataFrame or xr.Dataset
            One value for each parameter that the network sees, and for others if known;
            or a column of them, whose units, in ``attrs`` or as ``speed [m/s]``, must
            be those of the spec. A column ``id``, or an index that is not 0, 1, 2, ...,
            has labels of the samples.
        times : sequence of float, optional
            In the units of the spec. With a direct window the network interpolates
            between two steps of the solver; an autoregressive one rolls out over steps
            alone, to the last of those asked for. All steps of the solver by default,
            or all that come after the history.
        history : xr.Dataset, optional
            For autoregressive windows: consecutive steps as the solver yields them,
            ``inputs`` or more, of which the last are seen. One for all samples, or one
            for each, along the dim ``sample``.
        inputs : mapping of str to array, or xr.Dataset, optional
            The input fields of the spec, if it has any, along its dims. One of each for
            all samples, or one for each sample, along the dim ``sample``, the first.
        batch_size : int, optional
            Samples that are evaluated together; as many as fit by default.

        Raises
        ------
        ArgumentError
            If a parameter is unknown, missing, of other units or not finite, a time
            lies outside of the spec's, or the history or the inputs are missing, not
            needed, too few or do not match the spec.
        UserError
            If it does not fit into memory.
        """
        return Prediction(
            self, parameters, times, history, batch_size, inputs
        ).dataset()

    def predict_to_file(
        self, path: str | Path, parameters: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Write what `predict` returns: netCDF, or, part by part, Zarr (``.zarr``).

        The other arguments are those of `predict`. Of Zarr, no more than a part is in
        memory at a time. Whatever fails leaves no file.
        """
        prediction = Prediction(self, parameters, *args, **kwargs)
        write(prediction, Path(path), type(self.network).__name__)

    def _rows(self) -> list[tuple[str, str]]:
        """Return what it predicts from what."""
        return [*rows_of(self.spec), *checkpoint.rows_of(self)]

    def __repr__(self) -> str:
        """Return it line by line; the layers are those of ``network``."""
        rows = (f"{name}: {said}".splitlines() for name, said in self._rows())
        return "\n  ".join(["Surrogate", *map("\n    ".join, rows)])

    def _repr_html_(self) -> str:
        """Return it as a table, for a notebook."""
        return table("Surrogate", self._rows())

    def on_save_checkpoint(self, saved: dict[str, Any]) -> None:
        """Add what `load` needs, as plain values."""
        saved[checkpoint.KEY] = self.recipe

    def on_load_checkpoint(self, saved: dict[str, Any]) -> None:
        """Refuse a checkpoint of another surrogate, naming the difference."""
        checkpoint.require_same(self.recipe, saved)

    @classmethod
    def load(cls, path: str | Path) -> Surrogate:
        """Rebuild a surrogate from a checkpoint, without its solver and its cluster.

        Raises
        ------
        MissingFileError, ArgumentError
            If there is no checkpoint at `path`, or not one of a surrogate.
        """
        recipe, state = checkpoint.read(path)
        surrogate = cls(**checkpoint.arguments(recipe))
        checkpoint.require_tensors(surrogate.state_dict(), state, str(path))
        surrogate.load_state_dict(state)
        if recipe["error"] is not None:
            surrogate.error_name, surrogate.error = recipe["error"]
        return surrogate.eval()
