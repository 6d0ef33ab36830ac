"""What runs tell a live page: of each kind of field, with and without each part."""

import numpy as np
import xarray as xr

from surrogate_flow.report.live import LiveState

PARAMETERS = ("initial", "left", "right", "bottom", "top")
METRES = {"units": "m"}


def row(second, **columns):
    """A row of telemetry.csv of an online run."""
    return {
        **{"seconds": float(second), "step": 10 * second, "loss": 1 / (1 + second)},
        **{"samples": 100 * second, "samples_per_second": 100.0, "workers": 2},
        **{"simulations_done": second // 4, "simulations_running": 2},
        **{"simulations_failed": 0, "simulations_planned": 250},
        **{"steps_received": 25 * second, "population": 20 * second, "unseen": second},
        **{"capacity": 2000, "threshold": 200, "times_seen": "30 20 0 10"},
        **{"put_wait_seconds": 0.1 * second, "draw_wait_seconds": 0.3 * second},
        **{"waiting": "", "validation": 0.5 if second > 5 else None},
        **columns,
    }


def field(kind):
    """What newest.nc has: one moment of a simulation, by the solver and the surrogate."""
    x, y = np.linspace(0, 1, 8), np.linspace(0, 2, 6)
    coordinates = {"x": ("x", x, METRES), "y": ("y", y, METRES)}
    if kind == "2D":
        dims, values = ("y", "x"), np.sin(3 * x) + y[:, None]
    elif kind == "3D":
        dims, values = ("z", "y", "x"), np.arange(5)[:, None, None] * np.ones((6, 8))
        coordinates["z"] = "z", np.linspace(0, 1, 5), METRES
    elif kind == "1D":
        dims, values, coordinates = ("x",), np.sin(x), {"x": coordinates["x"]}
    elif kind in ("mesh", "nodes"):
        dims, values = ("node",), np.arange(4.0)
        corners = [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]
        coordinates = {n: ("node", c) for n, c in zip("xy", corners, strict=True)}
    elif kind == "times":
        dims, values = ("time",), np.sin(x)
        coordinates = {"time": ("time", x)}
    elif kind == "samples":
        dims, values = ("sample",), np.sin(x)
        coordinates = {n: ("sample", x) for n in ("time", "simulation", "left")}
    else:
        dims, values, coordinates = (), np.array(1.0), {}
    fields = {"u": (dims, values, {"units": "K"}), "u_surrogate": (dims, values + 0.5)}
    if kind == "mesh":
        fields["cells"] = ("cell", "corner"), [[0, 1, 2, -1], [0, 1, 2, 3]]
    return xr.Dataset(fields, coordinates, {"simulation": 137, "step": 3})


def losses(count=20, parameters=PARAMETERS):
    """The columns of losses.csv."""
    numbers = np.arange(count, dtype=np.float32)
    columns = {"simulation": numbers, "step": numbers, "loss": 0.1 * (1 + numbers)}
    return {**columns, "seconds": numbers, **dict.fromkeys(parameters, 100 + numbers)}


def state(kind="2D", rows=10, name="heat2d/now", **columns):
    """A run as it goes on."""
    made = LiveState(name)
    made.update({"rows": [row(second, **columns) for second in range(rows)]})
    spec = [{"name": n, "low": 100.0, "high": 500.0, "units": "K"} for n in PARAMETERS]
    made.update({"losses": losses(), "about": {"spec": {"parameters": spec}}})
    if kind:
        made.update({"newest": field(kind)})
    return made
