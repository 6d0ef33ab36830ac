"""Folders of runs as a fit leaves them, written by hand: small, and known to the last number."""

import json

import numpy as np
import pandas as pd
import xarray as xr
import yaml

NAMES = ("best", "median", "worst")
OUTCOME = {
    "batches": 1900,
    "samples": 60800,
    "unique_samples": 16239,
    "simulations": 200,
    "solver_seconds": 80.0,
    "training_seconds": 40.0,
    "samples_per_second": 1520.0,
    "errors": {
        "val_relative_l2": 0.0321,
        "val_relative_l2_standard_error": 0.0045,
        "val_skill": 0.876,
    },
    "validated": 40,
    "set_aside": [],
    "surrogate_seconds": 0.1,
}
SETTINGS = {
    "seed_everything": 3,
    "model": {
        "network": {"class_path": "surrogate_flow.nn.FNO", "init_args": {"width": 8}}
    },
    "data": {
        "class_path": "surrogate_flow.OnlineData",
        "init_args": {"name": "heat", "simulations": 200, "cores_per_simulation": 2},
    },
}


def spec(shape=(12, 10), steps=6, variables=("u",), cells=None):
    dims = ["x", "y", "z"][: len(shape)]
    coordinates = [
        {"name": d, "dim": d, "values": np.linspace(0, 1, n).tolist(), "units": "m"}
        for d, n in zip(dims, shape, strict=True)
    ]
    if cells is not None:
        dims = ["node"]
        nodes = np.random.default_rng(0).random((2, shape[0])).tolist()
        coordinates = [
            {"name": n, "dim": "node", "values": v, "units": "m"}
            for n, v in zip("xy", nodes, strict=True)
        ]
    return {
        "parameters": [
            {"name": "left", "low": 100.0, "high": 500.0, "units": "K"},
            {"name": "speed", "low": 0.0, "high": 1.0, "units": "m/s"},
        ],
        "variables": [{"name": v, "units": "K", "long_name": ""} for v in variables],
        "dims": dims,
        "shape": list(shape),
        "times": [0.5 * (k + 1) for k in range(steps)],
        "time_units": "s",
        "coordinates": coordinates,
        "cells": cells,
        "dtype": "float32",
    }


def cases(of, noise=0.05, seed=0):
    """Waves and, as the surrogate's, the same with noise."""
    rng, sizes = np.random.default_rng(seed), (3, len(of["times"]), *of["shape"])
    dims = ("case", "time", *of["dims"])
    phase = np.add.outer(np.arange(3.0), np.array(of["times"]))
    phase = phase.reshape(phase.shape + (1,) * len(of["shape"]))
    place = sum(
        np.meshgrid(*[np.linspace(0, 6, n) for n in of["shape"]], indexing="ij")
    )
    fields = {}
    for variable in of["variables"]:
        truth = (
            300 + 100 * np.sin(phase + place)
            if of["shape"]
            else 300 + 100 * np.sin(phase)
        )
        guess = truth + noise * 100 * rng.standard_normal(sizes)
        for name, values in (
            (variable["name"], truth),
            (f"{variable['name']}_surrogate", guess),
        ):
            fields[name] = (
                dims,
                values.astype("float32"),
                {"units": variable["units"]},
            )
    if (
        of["cells"]
        and np.max([n for cell in of["cells"] for n in cell]) < of["shape"][0]
    ):
        most = max(map(len, of["cells"]))
        cells = [[*cell, *[-1] * (most - len(cell))] for cell in of["cells"]]
        fields["cells"] = (("cell", "corner"), np.array(cells, np.int32))
    return xr.Dataset(
        fields,
        {
            "case": list(NAMES),
            "time": ("time", of["times"], {"units": of["time_units"]}),
            **{
                c["name"]: (c["dim"], c["values"], {"units": c["units"]})
                for c in of["coordinates"]
            },
            "simulation": ("case", [7, 3, 11]),
            "relative_l2": ("case", [0.011, 0.032, 0.21]),
            "left": ("case", [200.0, 300.0, 450.0], {"units": "K"}),
            "speed": ("case", [0.1, 0.5, 0.9], {"units": "m/s"}),
        },
    )


def write_run(
    folder, *, without=(), of=None, noise=0.05, outcome=None, settings=None, about=None
):
    """Write all files of a run that has ended, but those `without`."""
    of, rng = of or spec(), np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    seconds = np.arange(1.0, 61.0)
    telemetry = pd.DataFrame(
        {
            "seconds": seconds,
            "step": (30 * seconds).astype(int),
            "loss": np.exp(-seconds / 20),
            "samples": (960 * seconds).astype(int),
            "samples_per_second": 960.0,
            "simulations_done": (3 * seconds).astype(int),
            "population": np.minimum(100 * seconds, 4000).astype(int),
            "unseen": np.maximum(1000 - 15 * seconds, 0).astype(int),
            "put_wait_seconds": np.maximum(seconds - 30, 0) * 0.2,
            "draw_wait_seconds": np.minimum(seconds, 30) * 0.5,
            "waiting": "",
            "time": pd.date_range("2026-11-27T10:00:00Z", periods=60, freq="s").map(
                lambda t: t.isoformat()
            ),
            "capacity": 5000,
            "inserted": 865,
            "drawn": 36_000,
            "threshold": 500,
            "times_seen": "10 400 300 100 50 5",
        }
    )
    steps = np.arange(9, 1900, 10)
    metrics = pd.DataFrame(
        {"epoch": 0, "step": steps, "train_loss": np.exp(-steps / 500)}
    )
    metrics.loc[::20, "val_relative_l2"] = (
        0.5 * np.exp(-metrics.step[::20] / 600) + 0.03
    )
    metrics.loc[::20, "val_loss"] = np.exp(-metrics.step[::20] / 500) + 0.01
    metrics["lr-Adam"] = 1e-3 * 0.999**steps
    rollout = pd.DataFrame({"step": range(len(of["times"])), "time": of["times"]})
    for variable in of["variables"]:
        rollout[f"relative_l2_{variable['name']}"] = 0.02 + 0.01 * rollout.step
        rollout[f"rmse_{variable['name']}"] = 2.0 + rollout.step
    left, speed = rng.uniform(100, 500, 40), rng.uniform(0, 1, 40)
    validation = pd.DataFrame(
        {
            **{"simulation": range(40), "left": left, "speed": speed},
            **{
                "relative_l2": 0.01 + left / 20000 + 0.002 * rng.random(40),
                "rmse_u": 3.0,
            },
        }
    )
    failures = pd.DataFrame(
        [
            {
                **{"time": "2026-11-27T10:00:20", "simulation": 5, "attempt": 1},
                **{"outcome": "failed permanently", "error": "FloatingPointError"},
                "message": "<script>alert(1)</script> overflow",
            }
        ]
    )
    known = {
        "name": (settings or SETTINGS)["data"]["init_args"]["name"],
        "command": "surrogate-flow fit --data heat --model fno",
        "started": "2026-11-27T10:00:00+00:00",
        "ended": "2026-11-27T10:01:02+00:00",
        "versions": {"surrogate-flow": "0.1.0", "python": "3.13.5", "torch": "2.13.0"},
        **{"host": "node1", "cores": 2, "device": "cpu", "ranks": 1},
        # As run.json has it: without what makes it large.
        "spec": {
            **of,
            "times": {"count": len(of["times"])},
            "cells": of["cells"] and len(of["cells"]),
        },
    }
    files = {
        "telemetry.csv": lambda path: telemetry.to_csv(path, index=False),
        "metrics.csv": lambda path: metrics.to_csv(path, index=False),
        "rollout.csv": lambda path: rollout.to_csv(path, index=False),
        "validation.csv": lambda path: validation.to_csv(path, index=False),
        "failures.csv": lambda path: failures.to_csv(path, index=False),
        "run.json": lambda path: path.write_text(
            json.dumps({**known, **(about or {})})
        ),
        "config.yaml": lambda path: path.write_text(
            yaml.safe_dump(settings or SETTINGS)
        ),
        "outcome.json": lambda path: path.write_text(
            json.dumps({**OUTCOME, **(outcome or {})})
        ),
        "cases.nc": lambda path: cases(of, noise).to_netcdf(path, engine="h5netcdf"),
        "checkpoints/best.ckpt": lambda path: path.write_bytes(b"weights"),
        "checkpoints/last.ckpt": lambda path: path.write_bytes(b"weights"),
    }
    for name, write in files.items():
        if name not in without:
            write(folder / name)
    return folder
