"""The recipe of a sweep: which options take which values, and how they are searched."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import msgspec
import yaml
from jsonargparse import get_loader

from surrogate_flow.cli.recipes import given_recipe, is_data_set
from surrogate_flow.fields.names import RecipeError, nearest
from surrogate_flow.report.folder.words import flattened
from surrogate_flow.stream.fanout import Late

__all__ = ["CASE", "SEED", "Point", "Range", "SweepRecipe", "words_of"]

_T = TypeVar("_T")
Value = str | int | float | bool | None
#: Values of one trial, by their options.
Point = Mapping[str, Value]

#: What the case of a trial is called among its values.
CASE = "case"
#: The option of which a network is built for one value alone: all others are as good.
SEED = "seed_everything"
# An option of the same trial, whose value stands there.
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
# Options that the sweep itself sets.
_OWN = re.compile(r"(trainer\.default_root_dir|data\.attach|ckpt_path|config)\b")
# Values with which a trial has no checkpoint with an error.
_UNTRAINED = {
    **dict.fromkeys(("trainer.max_steps", "trainer.max_epochs"), "0"),
    **dict.fromkeys(
        ("trainer.limit_train_batches", "trainer.limit_val_batches"), r"0|0\.0*"
    ),
    "trainer.fast_dev_run": r"true|True|[1-9]\d*",
    "trainer.enable_checkpointing": "false|False",
}
_POINTS = 100_000  # of a grid, which is noted whole
# Options of the data that change no simulation.
_TRAINING = re.compile(r"data\.(reservoir|batch_size|checkpoint_reservoir)\b")


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values from `low` to `high`, both included; whole ones if both are whole."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def require_sense(self, name: str) -> None:
        """Refuse a range without values, as `SweepRecipe.require_sense` does."""
        expected = got = ""
        if not (0 if self.log else -math.inf) < self.low < self.high < math.inf:
            expected = "0 < low < high" if self.log else "low < high"
            got = f"low: {self.low}, high: {self.high}"
        elif self.step is not None:
            whole = isinstance(self.low, int) and isinstance(self.high, int)
            got = f"step: {self.step}"
            if self.log:
                expected = "log or step, not both"
            elif not 0 < self.step <= self.high - self.low:
                expected = "0 < step <= high - low"
            elif whole and self.step % 1:
                expected = "a whole step between whole ends; write low: "
                expected += f"{float(self.low)} for others"
        if expected:
            raise RecipeError(f"{name}: expected {expected}, got {got}.")


class SweepRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a sweep tries.

    Attributes
    ----------
    data, model : str
        Recipes, as `fit` takes them; `space` may have them instead.
    space : dict
        Option of `fit` -> its values, as a list or a `Range`.
    cases : dict
        Name -> options of `fit` with values that belong together; each trial has those
        of one case.
    options : dict
        Option of `fit` -> the value that all trials have.
    search : {"grid", "random", "tpe"}, optional
        Each combination of lists, random points, or Optuna's tree-structured Parzen
        estimator; the grid by default, or ``tpe`` where there is a range.
    trials : int, optional
        How many; all of a grid by default, else 20.
    seed : int
        Of the search.
    prune : bool
        Whether a trial ends early that is worse than the median of those before at the
        same validation.
    at_once : int, optional
        Trials at a time; by default one a GPU, or one for two cores.
    jobs : str or dict, optional
        Recipe of a batch system: each trial is a job of it. Otherwise here.
    controller : str or dict, optional
        Recipe of a batch system: what is detached is a job of it. Otherwise a process.
    late : {"wait", "drop", "spool"}
        What becomes of a trial that is slower than others; as `SharedStudy`.
    share_simulations : bool
        Whether one ensemble feeds all trials, or each has its own.
    resume : bool
        Whether a trial that was interrupted goes on from its last checkpoint. Otherwise
        it begins again: its counts and seconds are those of a whole run.
    """

    space: dict[str, list[Any] | Range] = {}
    cases: dict[str, dict[str, Any]] = {}
    data: str = ""
    model: str = ""
    options: dict[str, Any] = {}
    search: Literal["grid", "random", "tpe"] | None = None
    trials: int | None = None
    seed: int = 0
    prune: bool = False
    at_once: int | None = None
    jobs: str | dict[str, Any] | None = None
    controller: str | dict[str, Any] | None = None
    late: Late = "wait"
    share_simulations: bool = True
    resume: bool = True

    @classmethod
    def read(cls, path: Path, changed: Mapping[str, str] | None = None) -> SweepRecipe:
        """Read a file.

        Parameters
        ----------
        path : Path
        changed : mapping of str to str, optional
            Keys of the recipe and options of `fit`, with values as YAML, that go before
            those of the file.

        Raises
        ------
        RecipeError
            If it is none, with what is wrong and what would be right.
        """
        try:
            # As in all recipes, 1e-4 is a number, which plain YAML takes for text.
            plain = get_loader("yaml")(path.read_text("utf-8"))
        except IsADirectoryError:
            raise RecipeError(f"{path}: expected a file, got a folder.") from None
        except FileNotFoundError:
            raise RecipeError(f"No file {str(path)!r} in {Path.cwd()}.") from None
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())
            raise RecipeError(f"{path}: not valid YAML: {said}") from error
        try:
            recipe = cls._of(_with(plain, changed or {}))
            recipe.require_sense()
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None
        return recipe

    def written(self) -> str:
        """Return the file that `read` reads."""
        return yaml.dump(msgspec.to_builtins(self), Dumper=_Dumper, sort_keys=False)

    @classmethod
    def _of(cls, plain: Any) -> SweepRecipe:
        if not isinstance(plain, dict):
            got = "an empty file" if plain is None else type(plain).__name__
            raise RecipeError(
                f"expected keys such as data, model and space, got {got}."
            )
        if other := {"solver": "workflow", "network": "model"}.get(
            next((key for key in ("solver", "network") if key in plain), "")
        ):
            raise RecipeError(
                f"expected the recipe of a sweep, got that of a {other}. Write one "
                "that names it and has a space, as docs/sweeps.md shows."
            )
        space = plain.get("space")
        for name, values in space.items() if isinstance(space, dict) else ():
            if not isinstance(name, str):
                raise RecipeError(f"space: expected an option of fit, got {name!r}.")
            if not isinstance(values, list | dict):
                raise RecipeError(
                    f"space.{name}: expected a list of values, or a range such as "
                    f"{{low: 1e-4, high: 1e-2, log: true}}, got {values!r}."
                )
            if isinstance(values, dict):
                _convert(values, Range, f"space.{name}")
        return _convert(plain, cls)

    def require_sense(self) -> None:
        """Refuse what no trial could have.

        Raises
        ------
        RecipeError
            With the key, and what would be right.
        """
        if not (self.space or self.cases):
            raise RecipeError(
                "space: expected options with their values, got none. For example: "
                "space: {model.optimizer.init_args.lr: {low: 1e-4, high: 1e-2, log: "
                "true}}"
            )
        for name, values in self.space.items():
            if isinstance(values, Range):
                values.require_sense(f"space.{name}")
            elif not values:
                raise RecipeError(f"space.{name}: expected values, got an empty list.")
        for name, texts in self.choices().items():
            if twice := [text for text in texts if texts.count(text) > 1]:
                raise RecipeError(f"space.{name}: {twice[0]!r} is there twice.")
        for seed in self._tried().get(SEED, ()):
            if not (re.fullmatch(r"\d+", str(seed)) and int(seed) < 2**32):
                raise RecipeError(
                    f"space.{SEED}: expected whole numbers from 0 to {2**32 - 1}, got "
                    f"{seed!r}."
                )
        for options in self._by_case().values():
            for name in ("data", "model"):
                known = (bool(getattr(self, name)), name in self.space, name in options)
                if sum(known) != 1:
                    got = "several" if any(known) else "none of them"
                    raise RecipeError(
                        f"{name}: expected it as a recipe, in the space or in each "
                        f"case, got {got}."
                    )
        self._require_options()
        if self.search == "grid" and (ranges := [*self.ranges()]):
            raise RecipeError(
                f"space.{ranges[0]}: a grid needs a list of values, got a range. Give "
                "a list, or search: tpe."
            )
        points = math.prod(map(len, self.choices().values()))
        if self.searched == "grid" and points > _POINTS:
            got = f"{points:,}. Set search: random, and trials."
            raise RecipeError(f"space: expected {_POINTS:,} points at most, got {got}")
        for name, least in (("trials", 1), ("at_once", 1), ("seed", 0)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise RecipeError(f"{name}: expected at least {least}, got {number}.")
        if self.share_simulations:
            self._require_one_ensemble()

    def _by_case(self) -> dict[str, dict[str, Any]]:
        """Return the options of each case; a recipe without cases is one."""
        return self.cases or {"": {}}

    def _require_options(self) -> None:
        """Refuse an option in two places, and the value of one that there is not."""
        for case, options in self._by_case().items():
            if self.cases and not options:
                raise RecipeError(f"cases.{case}: expected options, got none.")
            named = {f"cases.{case}": options, "options": self.options}
            named["space"] = {k: v for k, v in self.choices().items() if k != CASE}
            named["space"] |= dict.fromkeys(self.ranges())
            given = [
                (place, k, v) for place, of in named.items() for k, v in of.items()
            ]
            known = {"data": "", "model": ""}
            for place, name, _ in given:
                if known.get(name):
                    raise RecipeError(f"{name} is in {known[name]} and in {place}.")
                known[name] = place
            for place, name, value in given:
                _require_free(place, name, value)
                for other in _REFERENCE.findall(_text(value)):
                    if other not in known:
                        raise RecipeError(
                            f"{place}.{name}: no option {other!r} in a trial. "
                            f"{nearest(other, known)}"
                        )

    def _require_one_ensemble(self) -> None:
        named = {f"space.{name}": name for name in self.space}
        named |= {f"cases.{c}.{n}": n for c, of in self.cases.items() for n in of}
        same = {f"options.{name}": (name, v) for name, v in self.options.items()}
        same["data"] = "data", self.data
        for _ in same:  # one may be the value of another
            for place, (name, value) in same.items():
                if {*_REFERENCE.findall(_text(value))} & {*named.values()}:
                    named[f"{place}: {value}"] = name
        for place, name in named.items():
            if name == "data" or (
                name.startswith("data.") and not _TRAINING.match(name)
            ):
                raise RecipeError(
                    f"{place} changes the simulations, and one ensemble feeds all "
                    "trials. Set share_simulations: false, so that each has its own."
                )

    @property
    def searched(self) -> str:
        """How the space is searched."""
        return self.search or ("tpe" if self.ranges() else "grid")

    @property
    def count(self) -> int:
        """Number of trials."""
        if self.searched != "grid":
            return self.trials or 20
        points = math.prod(map(len, self.choices().values()))
        return min(points, self.trials or points)

    def choices(self) -> dict[str, list[Value]]:
        """Return the values of each list; what is none of numbers or text, as JSON."""
        lists = {
            name: [_plain(value) for value in values]
            for name, values in self.space.items()
            if not isinstance(values, Range)
        }
        return lists | ({CASE: [*self.cases]} if self.cases else {})

    def grid(self) -> list[dict[str, Value]]:
        """Return the points of a grid, or as many at random as there are trials."""
        choices = self.choices()
        points = [
            dict(zip(choices, values, strict=True))
            for values in itertools.product(*choices.values())
        ]
        if self.count < len(points):
            # Those of fewer trials are the first of those of more.
            random.Random(self.seed).shuffle(points)
        return points[: self.count]

    def kept(self) -> dict[str, Any]:
        """Return what is the same in all recipes of one sweep, by its place.

        A grid may get and lose values, and cases.
        """
        plain = msgspec.to_builtins(self)
        for name in ("trials", "at_once", "jobs", "controller"):
            del plain[name]
        if self.searched == "grid":
            plain["space"] = sorted(plain["space"])
            del plain["cases"]
        return {name: value for name, value in flattened(plain).items() if value != {}}

    def made_of(self) -> dict[str, Any]:
        """Return by their names the cases, and the text of recipes of data and model.

        They may not change while a sweep goes on.
        """
        found: dict[str, Any] = {f"the case {k}": v for k, v in self.cases.items()}
        for option in ("data", "model"):
            named = [getattr(self, option), *self.choices().get(option, ())]
            named += [case.get(option) for case in self.cases.values()]
            for name in map(str, filter(None, named)):
                if option == "data" and is_data_set(name):
                    continue
                if (path := given_recipe(f"--{option}", name)) is not None:
                    found[name] = path.read_text("utf-8")
        return found

    def ranges(self) -> dict[str, Range]:
        """Return the ranges."""
        return {k: v for k, v in self.space.items() if isinstance(v, Range)}

    def _tried(self) -> dict[str, list[Any]]:
        """Return the values of each list, and the ends of each range."""
        return self.choices() | {k: [v.low, v.high] for k, v in self.ranges().items()}

    def corners(self) -> list[dict[str, Value]]:
        """Return points that have each value of each list, and the ends of each range.

        What is wrong in one option shows before a trial begins. They have one seed.
        """
        each = self._tried()
        first = {name: values[0] for name, values in each.items()}
        built = [(k, v) for k in each if k != SEED for v in each[k][1:]]
        return [first, *(first | {k: v} for k, v in built)]

    def words(self, point: Point) -> list[str]:
        """Return the options of `fit` for a trial."""
        named = {"data": self.data, "model": self.model}
        own = {name: value for name, value in point.items() if name != CASE}
        case = self._by_case()[str(point.get(CASE, ""))]
        named = {name: value for name, value in named.items() if value}
        return words_of({**named, **self.options, **case, **own})


class _Dumper(yaml.SafeDumper):
    """Quotes a text such as 1e-4, which recipes take for a number."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[\d_.]+[eE][-+]?\d+"),
    [*"-+.0123456789"],
)


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Return options as the words of a command line, and others' values in them.

    Examples
    --------
    >>> words_of({"seed_everything": 3, "data.seed": "${seed_everything}"})
    ['--seed_everything', '3', '--data.seed', '3']
    """
    texts = {name: _text(value) for name, value in options.items()}
    return [
        word
        for name, text in texts.items()
        for word in (f"--{name}", _REFERENCE.sub(lambda m: texts[m[1]], text))
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: Any) -> Value:
    scalar = value is None or isinstance(value, str | int | float | bool)
    return value if scalar else json.dumps(value)


def _require_free(place: str, name: str, value: Any) -> None:
    """Refuse an option that the sweep sets, and one without which it has no error."""
    if _OWN.match(name):
        raise RecipeError(
            f"{place}.{name}: the sweep sets it for each trial. Leave it out."
        )
    values = value if isinstance(value, list) else [value]
    if any(re.fullmatch(_UNTRAINED.get(name, ""), _text(v) or " ") for v in values):
        raise RecipeError(
            f"{place}.{name}: trials are compared by the error of their checkpoints "
            f"on held-out simulations, and have none with {value}. Leave it out."
        )


def _with(plain: Any, changed: Mapping[str, str]) -> Any:
    if not (changed and isinstance(plain, dict)):
        return plain
    keys = {k: get_loader("yaml")(v) for k, v in changed.items()}
    options = {
        k: keys.pop(k) for k in [*keys] if k not in SweepRecipe.__struct_fields__
    }
    before = plain.get("options") or {}
    return {**plain, **keys, "options": {**before, **options}}


def _convert(plain: Any, to: type[_T], place: str = "") -> _T:
    try:
        return msgspec.convert(plain, to)
    except msgspec.ValidationError as error:
        raise RecipeError(_explained(error, place)) from error


def _explained(error: msgspec.ValidationError, within: str) -> str:
    """Return what is wrong, with the key's place and the nearest name."""
    text = str(error)
    if found := re.search(r"unknown field `([^`]+)`(?: - at `\$\.?([^`]*)`)?", text):
        known = Range if within else SweepRecipe
        near = nearest(found[1], known.__struct_fields__)
        return f"{within and within + ': '}unknown key {found[1]!r}. {near}"
    what, _, place = text.partition(" - at ")
    if what.startswith("Invalid enum value"):
        choices = get_args(get_type_hints(SweepRecipe)[place.strip("`$.")])
        words = [w for c in choices for w in get_args(c) or [c] if isinstance(w, str)]
        what += f". {nearest(what.split()[-1].strip(chr(39)), words).rstrip('.')}"
    if place in ("`$.data`", "`$.model`"):
        what += f". Several are values of the space: {{{place[3:-1]}: [...]}}"
    key = ".".join(
        filter(None, [within, re.sub(r"\[\.\.\.\]", "", place.strip("`$."))])
    )
    return f"{key}: {what[0].lower()}{what[1:]}."
