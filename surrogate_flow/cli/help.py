"""What ``surrogate-flow --help`` and ``--version`` print, without torch and Lightning.

Both take seconds to import, and neither has a part in the answer.
"""

from __future__ import annotations

import importlib.metadata

__all__ = ["COMMANDS", "show_help", "show_version"]

#: Of each command, what it does.
COMMANDS = {
    "fit": "Train a surrogate while the simulations run.",
    "validate": "Errors of a checkpoint, on held-out simulations.",
    "test": "The same on other ones: simulated anew, or those of a data set.",
    "predict": "Fields from a checkpoint, without solver and cluster.",
    "plan": "What a study would ask of its cluster; submits nothing.",
    "generate": "Write the simulations to a data set on disk.",
    "compare": "Train offline and online, and put the errors side by side.",
}

_HELP = """\
usage: surrogate-flow COMMAND --data RECIPE --model RECIPE [--OPTION VALUE ...]

Train a deep surrogate of a solver while its simulations run. --data and --model
take a recipe: a YAML file, or the name of a shipped one (heat2d,
fully_connected); --data also a data set.

commands:
{commands}

more help:
  surrogate-flow COMMAND --help        options of a command
  surrogate-flow fit --data.help       options of a workflow
  surrogate-flow fit --model.help      options of a model
  surrogate-flow fit --data heat2d --data.solver.help
                                       options of a class that a recipe names

options:
  -h, --help   Show this help and exit.
  --version    Print the version and exit.
"""


def show_help() -> None:
    """Print the commands, a line each, and where there is more."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    print(_HELP.format(commands="\n".join(lines)), end="")


def show_version() -> None:
    """Print the version of what is installed."""
    print(f"surrogate-flow {importlib.metadata.version('surrogate-flow')}")
