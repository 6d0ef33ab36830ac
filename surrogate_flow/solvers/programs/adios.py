"""Steps of programs that write by ADIOS2: a BP file that grows, or SST."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from surrogate_flow.fields.errors import ArgumentError, MissingPackageError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.files import leads_out
from surrogate_flow.solvers.programs.process import (
    ProcessError,
    ProcessRun,
    TooFewSteps,
)

__all__ = ["Adios2"]

_CONTACT = {"BP5": "", "SST": ".sst"}  # what a writer leaves, behind the path
_OPEN = "10"  # seconds that ADIOS2 tries to open what is there


class Adios2:
    """Steps of an ADIOS2 stream, while it is written: a `Reader` of a `Program`.

    Parameters
    ----------
    path : str
        That the program opens, in the folder where it runs, such as ``out.bp``.
    engine : str
        Of the program: ``BP5``, a file that is followed while it grows, or ``SST``,
        through memory and the network.
    names : mapping of str to str, optional
        Of variables: in the stream, and in the spec.
    parameters : mapping of str to str, optional
        Of the engine, such as ``{DataTransport: WAN}``.

    Raises
    ------
    ArgumentError
        If there is no such engine, or the path leads elsewhere.
    MissingPackageError
        If ADIOS2 is not installed.

    Notes
    -----
    Its variables are global arrays with the dims of the spec; a scalar ``time`` says
    when a step is, if there is one.
    """

    def __init__(
        self,
        path: str,
        *,
        engine: str = "BP5",
        names: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        if engine not in _CONTACT:
            raise ArgumentError("Adios2: engine", "BP5 or SST", repr(engine))
        if leads_out(path):
            where = "a path in the folder where the program runs"
            raise ArgumentError("Adios2: path", where, repr(path))
        self.path, self.engine, self.names = path, engine, dict(names or {})
        self.parameters = {str(k): str(v) for k, v in (parameters or {}).items()}
        _adios2()

    def read(self, run: ProcessRun, spec: FieldSpec) -> Iterator[xr.Dataset]:
        """Yield the steps as they are complete.

        Raises
        ------
        ProcessError
            If there are more or fewer steps, or other fields, than the spec says.
        """
        adios2 = _adios2()
        path = run.folder / self.path
        run.wait(path.with_name(path.name + _CONTACT[self.engine]).exists)
        io = adios2.Adios().declare_io("reader")
        io.set_engine(self.engine)
        io.set_parameters({"OpenTimeoutSecs": _OPEN, **self.parameters})
        try:
            stream = adios2.Stream(io, str(path), "r")
        except RuntimeError as error:
            run.check()
            said = str(error).partition("\n")[0]
            raise ProcessError(
                f"{self.path} cannot be opened by ADIOS2 ({said})."
            ) from error
        try:
            begun = self._begin(run, stream)
            for step in range(spec.steps):
                if not begun:
                    run.check()
                    raise TooFewSteps(
                        f"{self.path} ended after {step} of {spec.steps} steps. "
                        "If a run may end early, set may_end_early: true."
                    )
                dataset = self._dataset(stream, spec, step)
                stream.end_step()
                # The last waits: further ones would say that it is not the last.
                if step == spec.steps - 1 and self._begin(run, stream):
                    raise ProcessError(
                        f"{self.path}: expected {spec.steps} steps, got more. If the "
                        "first is the initial state, add its time to the spec."
                    )
                yield dataset
                begun = step < spec.steps - 1 and self._begin(run, stream)
        finally:
            stream.close()

    def _begin(self, run: ProcessRun, stream: Any) -> bool:
        """Wait for the next step, and begin it; false at the end of the stream."""
        status = _adios2().bindings.StepStatus
        got = status.NotReady

        def ready() -> bool:
            nonlocal got
            got = stream.begin_step(timeout=0.0)
            return bool(got != status.NotReady)

        run.wait(ready)
        return bool(got == status.OK)

    def _dataset(self, stream: Any, spec: FieldSpec, step: int) -> xr.Dataset:
        there = {self.names.get(n, n): n for n in stream.available_variables()}
        fields = {}
        for name in (v.name for v in spec.variables):
            if name not in there:
                near = nearest(name, there)
                raise ProcessError(
                    f"{self.path}: there is no variable {name!r}. {near}"
                )
            values = np.asarray(stream.read(there[name]))
            if values.shape != spec.shape:
                raise ProcessError(
                    f"{self.path}: variable {name!r} expected the shape {spec.shape} "
                    f"along {spec.dims}, got {values.shape}."
                )
            fields[name] = (("time", *spec.dims), values[None])
        time = spec.times[step]
        if "time" in there:
            time = float(np.ravel(stream.read(there["time"]))[0])
        return xr.Dataset(fields, {"time": [time]})


def _adios2() -> Any:
    try:
        import adios2
    except ImportError as error:
        raise MissingPackageError(
            "Adios2: ADIOS2 is not installed. Type pip install adios2, also where the "
            "workers run."
        ) from error
    return adios2
