"""Writes small files as this version does: a checkpoint of each network, and a data set.

    python tests/data/write.py tests/data/v0.1

Run it once for each released version, before the next one changes anything; the tests
read the files of all versions ever after.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

from surrogate_flow import Surrogate

GRID = {
    "name": "heat2d",
    "solver": {
        "class_path": "surrogate_flow.solvers.Heat2D",
        "init_args": {"cells": [8, 8], "steps": 6},
    },
    "simulations": 6,
    "held_out": 2,
    "batch_size": 4,
    "reservoir": {
        "class_path": "surrogate_flow.reservoir.Reservoir",
        "init_args": {"capacity": 20, "threshold": 8},
    },
}
AUTOREGRESSIVE = {"inputs": 2, "outputs": 1, "unroll": 1}
NETWORKS = {
    "fully_connected": ("FullyConnected", {"widths": [8]}),
    "fno": ("FNO", {"modes": 4, "width": 4}),
    "unet": ("UNet", {"widths": [8, 16]}),
    "message_passing": ("MessagePassingSolver", {"width": 8, "layers": 1}),
    "on_grid": (
        "OnGrid",
        {
            "module": "torch.nn.Conv2d",
            "arguments": {"kernel_size": 3, "padding": 1},
        },
    ),
}
WALLS = {"initial": 300.0, "left": 100.0, "right": 500.0, "bottom": 200.0, "top": 400.0}


def command(*words: str | Path) -> None:
    """Run one command of the program."""
    subprocess.run(
        [sys.executable, "-m", "surrogate_flow", *map(str, words)], check=True
    )


def main() -> None:
    """Train each network for two steps, and generate a data set."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    work = Path(tempfile.mkdtemp())
    (workflow := out / "heat2d.yaml").write_text(yaml.safe_dump(GRID))
    for name, (kind, arguments) in NETWORKS.items():
        model = {
            "network": {
                "class_path": f"surrogate_flow.nn.{kind}",
                "init_args": arguments,
            }
        }
        rolls = name == "message_passing"
        if rolls:
            model["window"] = {
                "class_path": "surrogate_flow.Autoregressive",
                "init_args": AUTOREGRESSIVE,
            }
        (recipe := out / f"{name}.yaml").write_text(yaml.safe_dump(model))
        folder = work / name
        command(
            "fit",
            *("--data", workflow, "--model", recipe, "--trainer.max_steps", "4"),
            *(
                "--data.checkpoint_reservoir",
                "true" if name == "fully_connected" else "false",
            ),
            *("--trainer.default_root_dir", folder, "--seed_everything", "1"),
        )
        (last,) = folder.rglob("last.ckpt")
        rows = sorted(last.parent.glob("*.npy"))
        last.rename(out / f"{name}.ckpt")
        if name == "fully_connected":
            for row in rows:
                row.rename(out / row.name)
        surrogate = Surrogate.load(out / f"{name}.ckpt")
        past = None
        if rolls:
            values = 300 + np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)
            past = surrogate.spec.dataset(values, surrogate.spec.times[:2], WALLS)
        with torch.no_grad():
            field = surrogate.predict(WALLS, history=past)
        np.save(out / f"{name}.expected.npy", field.temperature.values)
    command("generate", "--data", workflow, "--output", out / "heat2d.zarr")


if __name__ == "__main__":
    main()
