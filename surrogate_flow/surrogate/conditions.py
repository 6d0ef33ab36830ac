"""What a network is conditioned on: which parameters, and whether the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window

__all__ = ["TIME", "Conditions"]

TIME = "time"  # no parameter is called so


@dataclass(frozen=True)
class Conditions:
    """Names of the parameters that a network sees, and `TIME` if it sees the time.

    Examples
    --------
    >>> from surrogate_flow.fields import Autoregressive, Direct
    >>> from surrogate_flow.solvers import Lorenz
    >>> spec = Lorenz().spec
    >>> Conditions.of(spec, Autoregressive()).names
    ('sigma', 'rho', 'beta', 'time')
    >>> len(Conditions.of(spec, Direct()).names)
    7
    """

    names: tuple[str, ...]

    @classmethod
    def of(
        cls, spec: FieldSpec, window: Window, given: Sequence[str] | None = None
    ) -> Conditions:
        """Return the conditions that are given, or the usual ones of a window.

        With a history these are all parameters but those that only make the initial
        state; without one, all; and the time. A vector is named whole, or by component.

        Raises
        ------
        ArgumentError
            If a name is unknown, or the fields at several times would be predicted
            without a history and without the time.
        """
        parameters = spec.parameters
        if given is None:
            seen = [p.name for p in parameters if not (window.inputs and p.initial)]
            return cls((*seen, TIME))
        given = [given] if isinstance(given, str) else list(given)
        vectors = dict.fromkeys(p.of for p in parameters if p.of)
        valid = [*(p.name for p in parameters), *vectors, TIME]
        for name in given:
            if name not in valid:
                hint = nearest(str(name), valid)
                raise ArgumentError(f"conditions: there is no {name!r}. {hint}")
        if not window.inputs and spec.steps > 1 and TIME not in given:
            raise ArgumentError(
                "conditions",
                f"{TIME!r} among them, to predict {spec.steps} times from no history",
                given,
                "Add it, or use a window with a history, Autoregressive.",
            )
        seen = [p.name for p in parameters if p.name in given or p.of in given]
        return cls((*seen, *[TIME] * (TIME in given)))

    @classmethod
    def all_of(cls, spec: FieldSpec) -> Conditions:
        """Return all that there are, as networks had before they could be chosen."""
        return cls((*(p.name for p in spec.parameters), TIME))

    @property
    def time(self) -> bool:
        """Whether the time is seen."""
        return TIME in self.names

    def columns(self, spec: FieldSpec) -> list[int]:
        """Return where the parameters that are seen stand in a vector of all."""
        return [k for k, p in enumerate(spec.parameters) if p.name in self.names]

    def seen(self, spec: FieldSpec) -> FieldSpec:
        """Return the spec with the parameters that are seen alone."""
        seen = tuple(spec.parameters[k] for k in self.columns(spec))
        return replace(spec, parameters=seen)

    def not_seen(self, spec: FieldSpec) -> list[str]:
        """Return names of what is not seen; of a vector that is not at all, its own."""
        hidden = [name for name in self.all_of(spec).names if name not in self.names]
        partly = {p.of for p in spec.parameters if p.name in self.names}
        vectors = {p.name: p.of for p in spec.parameters if p.of not in partly | {""}}
        return [*dict.fromkeys(vectors.get(name, name) for name in hidden)]

    def in_words(self, spec: FieldSpec) -> str:
        """Return what the network sees of them, and what it does not."""
        seen = ", ".join(self.names) or "neither parameters nor time"
        hidden = self.not_seen(spec)
        return seen + f"; not {', '.join(hidden)}" * bool(hidden)
