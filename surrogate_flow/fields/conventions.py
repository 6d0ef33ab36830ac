"""What files say of themselves by the CF conventions, so that other programs read them.

https://cfconventions.org/Data/cf-conventions/cf-conventions-1.8/cf-conventions.html
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.files import write_atomically

__all__ = [
    "about",
    "command",
    "for_files",
    "masked",
    "time_attributes",
    "time_units",
    "to_netcdf",
    "version",
    "without_secrets",
]

# In UDUNITS, which CF goes by, SINCE and since are one; xarray makes dates of the
# second, and simulations have none.
_NOMINAL = " SINCE 0001-01-01"
_OWN = "simulated_units"
_SECRET = re.compile(r"key|token|passw|secret|credential", re.IGNORECASE)
_NAMED = rf"[\w.-]*(?:{_SECRET.pattern})[\w.-]*[\"']?\s*[=:]\s*[\"']?"
_PAIR = re.compile(rf"({_NAMED})[^&\s\"',}}]+", re.IGNORECASE)
_ACCOUNT = re.compile(r"://[^/\s]*@")  # in a URI: name and password
_NOT_OF_CF = {np.dtype(a): b for a, b in (("int64", "int32"), ("uint8", "int8"))}


def version(name: str = "surrogate-flow") -> str:
    """Return the version of a package, or nothing if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def masked(words: Sequence[str]) -> list[str]:
    """Return the words of a command without what is secret, for files that are shared.

    These are values that are called key, token, password, secret or credential, and
    accounts in addresses.

    Examples
    --------
    >>> print(*masked(["fit", "--logger.api_key", "12", "--uri=http://me:pw@host/a"]))
    fit --logger.api_key *** --uri=http://***@host/a
    """
    shown, hidden = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = name.startswith("-") and bool(_SECRET.search(name))
        if hidden and not word.startswith("--"):
            word = "***"
        elif secret and equals:
            word = f"{name}=***"
        elif not secret:
            word = _ACCOUNT.sub("://***@", _PAIR.sub(r"\1***", word))
        shown.append(word)
        hidden = secret and not equals
    return shown


def without_secrets(settings: Any, name: str = "") -> Any:
    """Return nested settings, masked as the words of a command with their options.

    Examples
    --------
    >>> without_secrets({"logger": [{"api_key": 12, "uri": "http://me:pw@host"}]})
    {'logger': [{'api_key': '***', 'uri': 'http://***@host'}]}
    """
    if isinstance(settings, Mapping):
        inside = settings.items()
        return {key: without_secrets(v, f"{name}.{key}") for key, v in inside}
    if isinstance(settings, list):
        return [without_secrets(value, name) for value in settings]
    if settings is None or isinstance(settings, bool):
        return settings
    shown = masked([f"--{name}={settings}"])[0].removeprefix(f"--{name}=")
    return settings if shown == str(settings) else shown


def command() -> str:
    """Return the command of this process, masked; empty in a notebook."""
    program, *words = sys.argv
    name = Path(program).name
    return "" if name.startswith("ipykernel") else shlex.join(masked([name, *words]))


def about(title: str, made_by: str = "") -> dict[str, str]:
    """Return a file's attributes: what it holds, what made it, and with which command.

    Examples
    --------
    >>> about("Predictions", "FNO")["Conventions"]
    'CF-1.8'
    """
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {
        "Conventions": "CF-1.8",
        "title": title,
        "source": f"surrogate_flow {version()}" + f": {made_by}" * bool(made_by),
        "history": f"{now} {command() or 'in a notebook'}",
    }


def time_attributes(units: str) -> dict[str, str]:
    """Return the attributes of simulated time; CF wants a date that it counts from.

    Examples
    --------
    >>> time_attributes("s")["units"]
    's SINCE 0001-01-01'
    >>> time_units(time_attributes("1")), time_units(time_attributes("ms"))
    ('1', 'ms')
    """
    named = {"standard_name": "time", "long_name": "time"}
    if " since " in units.lower():
        return {**named, "units": units}
    if units in ("", "1"):
        said = "Dimensionless time of the simulation; its seconds and date are nominal."
        return {**named, "units": f"s{_NOMINAL}", _OWN: units or "1", "comment": said}
    said = "Time of the simulation; its date is nominal."
    return {**named, "units": f"{units}{_NOMINAL}", "comment": said}


def time_units(attributes: Mapping[Any, Any]) -> str:
    """Return the units of time that a file was written with."""
    units = str(attributes.get("units", "")).removesuffix(_NOMINAL)
    return str(attributes.get(_OWN, units))


def for_files(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset of a spec as files have it: with CF's time and number types."""
    written = dataset.copy()
    for name, variable in dataset.variables.items():
        kept = variable
        if number_type := _NOT_OF_CF.get(variable.dtype):
            kept = variable.astype(number_type)
            if not (kept == variable).all():
                raise ArgumentError(
                    f"to_netcdf: {name}: expected numbers that fit into {number_type}, "
                    f"as CF has no {variable.dtype}, got larger ones. Pass "
                    f"dataset.assign({name}=dataset[{str(name)!r}].astype(float))."
                )
        kept = kept.copy(deep=False)
        if name == "time":
            kept.attrs = time_attributes(time_units(variable.attrs))
        if "flag_values" in kept.attrs:
            kept.attrs["flag_values"] = np.array(kept.attrs["flag_values"], kept.dtype)
        if kept.dims[1:2] == ("time",):
            kept.encoding["chunksizes"] = _chunks(kept)
        if name in dataset.coords:
            # They have no missing values.
            kept.encoding = {"_FillValue": None}
        written[name] = kept
    # Where time is of one length, CF wants all dims behind it in another order.
    written.encoding["unlimited_dims"] = {"time"}
    return written


def _chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Return chunks of samples: netCDF's own would have one time of all of them."""
    samples, times, *space = variable.shape
    step = variable.dtype.itemsize * math.prod(space)
    most = min(times, max(1, 2**24 // step))
    return min(samples, max(1, 2**20 // (step * most))), most, *space


def to_netcdf(dataset: xr.Dataset, path: Path, **attributes: str) -> None:
    """Write a dataset of a spec, whole or not at all, so that CF checkers find nothing.

    Parameters
    ----------
    dataset : xr.Dataset
        Such as a prediction, or the content of a data set.
    path : Path
    attributes : str
        Of the file, in the place of those of the dataset.

    Raises
    ------
    ArgumentError
        If a variable of a type that CF lacks holds numbers that do not fit into its.
    """
    title = f"Fields: {', '.join(map(str, dataset.data_vars))}"
    noted = {**about(title), **dataset.attrs, **attributes}
    written = for_files(dataset).assign_attrs(noted)
    with write_atomically(Path(path)) as part:
        written.to_netcdf(part)
