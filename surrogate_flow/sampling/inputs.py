"""Samplers of input fields: the coefficient or initial state of each simulation."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from hashlib import sha256
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Float, Float32
from scipy import fft

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.inputs import stacked_inputs
from surrogate_flow.fields.quantities import Simulation, checked_seed, numbers
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.sampling.design import SEEDS, Design

__all__ = [
    "FourierModes",
    "GaussianRandomField",
    "InputSampler",
    "identity",
    "require_inputs",
]

logger = logging.getLogger(__name__)

_UNEVEN = 0.01  # of the distance between two points, as rounding may move them


class InputSampler(ABC):
    """simulation -> its input fields, drawn on the worker that solves it.

    Parameters
    ----------
    seed : int
        Of the random numbers, >= 0; default 0. Held-out simulations have a seed of
        their own, whatever this one is.

    Attributes
    ----------
    count : int, optional
        For how many simulations there are fields; without end by default.

    Examples
    --------
    >>> class Steps(InputSampler):
    ...     def draw(self, number, spec, random):
    ...         return random.integers(0, 2, spec.input_shape)
    """

    count: int | None = None

    def __init__(self, seed: int = 0) -> None:
        self.seed = checked_seed(seed, self)

    @abstractmethod
    def draw(
        self, number: int, spec: FieldSpec, random: np.random.Generator
    ) -> Float[np.ndarray, " input *space"]:
        """Return the input fields of a simulation, the same for each call.

        Parameters
        ----------
        number : int
            Of the simulation, from 0; held-out ones come first.
        spec : FieldSpec
        random : numpy.random.Generator
            Of this simulation alone: it depends on the seed and the number.

        Returns
        -------
        array of shape ``(input, *space)``
            In the order and in the units of ``spec.inputs``.
        """

    def require(self, spec: FieldSpec) -> None:  # noqa: B027 - optional
        """Refuse a spec whose inputs it cannot draw, before anything runs."""

    @final
    def fields(
        self, simulation: Simulation, spec: FieldSpec
    ) -> Float32[np.ndarray, " input *space"]:
        """Draw the fields of a simulation, checked, as they are kept.

        Raises
        ------
        ArgumentError
            If they have another shape, or are not finite.
        """
        name, number = type(self).__name__, simulation.number
        seed = SEEDS.get(simulation.part, self.seed)
        drawn = self.draw(number, spec, np.random.default_rng([seed, number]))
        if np.shape(drawn) != spec.input_shape:
            raise ArgumentError(
                f"{name}.draw({number}, ...)",
                f"fields of the shape (input, *space) = {spec.input_shape}",
                np.shape(drawn),
            )
        given = dict(zip((v.name for v in spec.inputs), drawn, strict=True))
        return stacked_inputs(spec, given, f"{name}, simulation {number}")


def require_inputs(
    inputs: InputSampler | None,
    spec: FieldSpec,
    name: str,
    *,
    held_out: int,
    simulations: int | None,
    needed: bool,
) -> int | None:
    """Refuse a sampler that does not fit a spec; return how many simulations train.

    Parameters
    ----------
    inputs : InputSampler, optional
    spec : FieldSpec
    name : str
        Of the solver.
    held_out, simulations : int
        How many are asked for, to train on all that there are.
    needed : bool
        Whether the solver cannot make the fields of the spec itself.

    Raises
    ------
    ArgumentError
    """
    if inputs is None:
        if spec.inputs and needed:
            raise ArgumentError(
                f"data.inputs: {name} needs the input field {spec.inputs[0].name!r}, "
                "got none. Draw it, such as with "
                "--data.inputs surrogate_flow.sampling.GaussianRandomField."
            )
        return simulations
    if not spec.inputs:
        raise ArgumentError(
            f"data.inputs: {name} has no input fields, got {type(inputs).__name__}. "
            "Leave it out, or name them in the solver's spec (inputs=...)."
        )
    inputs.require(spec)
    if inputs.count is None:
        return simulations
    left = inputs.count - held_out
    if left < 1:
        what = f"less than the {inputs.count} simulations with input fields"
        raise ArgumentError("data.held_out", what, held_out)
    if simulations is None or simulations > left:
        logger.info("There are input fields for %d simulations to train on.", left)
        return left
    return simulations


def identity(
    design: Design, inputs: InputSampler | None, spec: FieldSpec
) -> dict[str, Any]:
    """Return what tells studies apart: of their first simulation to train on.

    That is its parameters, and a digest of each input field that is drawn.
    """
    first = design.first
    if inputs is None:
        return first
    fields = inputs.fields(Simulation(design.held_out, "training", first), spec)
    drawn = zip(spec.inputs, fields, strict=True)
    return first | {v.name: sha256(u.tobytes()).hexdigest()[:16] for v, u in drawn}


def _require_grid(sampler: InputSampler, spec: FieldSpec) -> None:
    if not spec.dims or spec.cells is not None:
        raise ArgumentError(
            f"{type(sampler).__name__}: expected fields on a structured grid, got "
            f"{'a mesh' if spec.cells else 'none'}. Write an InputSampler of your own, "
            "or use FieldsFromFile."
        )


def _lengths(spec: FieldSpec) -> Float[np.ndarray, " dim"]:
    """Return the length of each dim: of as many cells as it has points."""
    axes = [spec.axis(dim) for dim in spec.dims]
    return np.array([np.ptp(x) * len(x) / max(len(x) - 1, 1) or 1.0 for x in axes])


class GaussianRandomField(InputSampler):
    """a = mean + N(0, σ² (-Δ + τ² I)^-α), without its constant mode.

    Each mode of the Laplacian, with eigenvalue λ, has the standard deviation
    σ (λ + τ²)^(-α/2). Away from the ends this is the Matérn covariance of smoothness ν
    = α - d/2, in d dims, and correlation length √(2ν)/τ. Each input has a field of its
    own.

    Parameters
    ----------
    tau : float
        τ, in the inverse units of the coordinates; default 3.
    length : float, optional
        Correlation length, in the units of the coordinates, in place of `tau`: τ =
        √(2α - d) / length. At that distance the correlation is 0.4 (ν = 1/2) to 0.6.
    alpha : float
        α, more than half the number of dims; default 2.
    scale : float
        σ; default 1.
    mean : float
        Default 0.
    boundary : {"neumann", "periodic"}
        Of the Laplacian: the slope is zero at the ends, or the field is periodic.
    transform : {"none", "exp", "threshold"}
        What becomes of a: itself, e^a, or the first of two `values` where it is below
        its mean and the second elsewhere.
    values : tuple of float
        For ``threshold``; default (3, 12).
    seed : int
        Default 0.

    References
    ----------
    Z. Li et al., "Fourier Neural Operator for Parametric Partial Differential
    Equations", ICLR 2021, arXiv 2010.08895: Burgers' initial states are N(0, 625 (-Δ +
    25 I)^-2), periodic; Darcy's coefficients are 12 and 3, by the sign of N(0, (-Δ + 9
    I)^-2). Their programs leave out the constant mode, too.

    Examples
    --------
    >>> from surrogate_flow.fields import Variable
    >>> a = (Variable("a"),)
    >>> spec = FieldSpec((), (Variable("u"),), ("x",), (4,), (1.0,), inputs=a)
    >>> field = GaussianRandomField(transform="threshold")
    >>> field.fields(Simulation(7, "training", {}), spec)
    array([[12., 12.,  3.,  3.]], dtype=float32)
    """

    def __init__(
        self,
        tau: float = 3.0,
        alpha: float = 2.0,
        *,
        length: float | None = None,
        scale: float = 1.0,
        mean: float = 0.0,
        boundary: Literal["neumann", "periodic"] = "neumann",
        transform: Literal["none", "exp", "threshold"] = "none",
        values: tuple[float, float] = (3.0, 12.0),
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        for name, value in (
            ("tau", tau),
            ("alpha", alpha),
            ("length", length),
            ("scale", scale),
        ):
            if value is not None and not 0 < value < np.inf:
                raise ArgumentError(
                    f"GaussianRandomField: {name}", "a finite number > 0", value
                )
        if not np.isfinite(mean):
            raise ArgumentError("GaussianRandomField: mean", "a finite number", mean)
        pair = numbers(values, "GaussianRandomField: values")
        if len(pair) != 2 or not np.isfinite(pair).all():
            raise ArgumentError(
                "GaussianRandomField: values", "two finite numbers", pair
            )
        for name, chosen, known in (
            ("boundary", boundary, ("neumann", "periodic")),
            ("transform", transform, ("none", "exp", "threshold")),
        ):
            if chosen not in known:
                raise ArgumentError(
                    f"GaussianRandomField: {name}", " or ".join(known), repr(chosen)
                )
        self.tau, self.alpha, self.scale, self.mean = tau, alpha, scale, mean
        self.length = length
        self.boundary, self.transform = boundary, transform
        self.values = tuple(values)

    def require(self, spec: FieldSpec) -> None:
        """Refuse a mesh, uneven positions, and modes whose variances have no sum."""
        _require_grid(self, spec)
        for dim in spec.dims:
            apart = np.diff(spec.axis(dim))
            if apart.size and np.ptp(apart) > _UNEVEN * abs(apart.mean()):
                raise ArgumentError(
                    "GaussianRandomField",
                    f"evenly spaced positions along {dim!r}",
                    f"{abs(apart).min():.3g} to {abs(apart).max():.3g} between two",
                    "Write an InputSampler of your own, or use FieldsFromFile.",
                )
        if 2 * self.alpha <= len(spec.dims):
            raise ArgumentError(
                "GaussianRandomField: alpha",
                f"more than {len(spec.dims) / 2:g}, half the number of dims",
                self.alpha,
            )

    def draw(
        self, number: int, spec: FieldSpec, random: np.random.Generator
    ) -> Float[np.ndarray, " input *space"]:
        """Draw white noise, and scale its modes."""
        noise = random.standard_normal(spec.input_shape)
        axes = tuple(range(1, noise.ndim))
        periodic = self.boundary == "periodic"
        squares = np.zeros(())
        for n, length in zip(spec.shape, _lengths(spec), strict=True):
            waves = 2 * fft.fftfreq(n, 1 / n) if periodic else np.arange(n)
            squares = np.add.outer(squares, (np.pi / length * waves) ** 2)
        tau = self.tau
        if self.length is not None:
            tau = np.sqrt(2 * self.alpha - len(spec.dims)) / self.length
        deviations = self.scale * (squares + tau**2) ** (-self.alpha / 2)
        deviations *= np.sqrt(noise[0].size / np.prod(_lengths(spec)))
        deviations.flat[0] = 0.0
        if periodic:
            field = fft.ifftn(deviations * fft.fftn(noise, axes=axes), axes=axes).real
        else:
            field = fft.idctn(deviations * noise, axes=axes, norm="ortho")
        if self.transform == "threshold":
            return np.where(field < 0, *self.values)
        field = self.mean + field
        drawn: Float[np.ndarray, " input *space"]
        drawn = np.exp(field) if self.transform == "exp" else field
        return drawn


class FourierModes(InputSampler):
    """a = mean + Σ_j A_j sin(2π l_j · x / L + φ_j), periodic on [0, L) along each dim.

    A_j is uniform in [-amplitude, amplitude], φ_j in [0, 2π), and the whole numbers l_j
    of waves in {1, ..., highest} in one dim, in {-highest, ..., highest} in several.

    Parameters
    ----------
    waves : int
        How many; default 5.
    highest : int
        Most waves along a dim; default 3.
    amplitude : float
        Default 0.5.
    mean : float
        Default 0.
    seed : int
        Default 0.

    References
    ----------
    J. Brandstetter, D. Worrall, M. Welling, "Message Passing Neural PDE Solvers", ICLR
    2022, https://arxiv.org/abs/2202.03376, equation 12: the initial states.
    """

    def __init__(
        self,
        waves: int = 5,
        highest: int = 3,
        *,
        amplitude: float = 0.5,
        mean: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        for name, value in (("waves", waves), ("highest", highest)):
            if value < 1 or value != int(value):
                raise ArgumentError(
                    f"FourierModes: {name}", "a whole number >= 1", value
                )
        self.waves, self.highest = int(waves), int(highest)
        self.amplitude, self.mean = amplitude, mean

    def require(self, spec: FieldSpec) -> None:
        """Refuse a mesh."""
        _require_grid(self, spec)

    def draw(
        self, number: int, spec: FieldSpec, random: np.random.Generator
    ) -> Float[np.ndarray, " input *space"]:
        """Add the waves up."""
        axes = [spec.axis(dim) for dim in spec.dims]
        shares = [(x - x.min()) / n for x, n in zip(axes, _lengths(spec), strict=True)]
        places = np.stack(np.meshgrid(*shares, indexing="ij"))
        least = 1 if len(axes) == 1 else -self.highest
        fields = np.full(spec.input_shape, self.mean)
        for field in fields:
            for _ in range(self.waves):
                numbers = random.integers(least, self.highest + 1, len(axes))
                phase = random.uniform(0, 2 * np.pi)
                angle = 2 * np.pi * np.tensordot(numbers, places, 1) + phase
                field += random.uniform(-1, 1) * self.amplitude * np.sin(angle)
        return fields
