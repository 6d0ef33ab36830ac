"""The pages that ``--help`` prints: the options that matter among a thousand."""

from __future__ import annotations

import re

from surrogate_flow.cli.recipes import COMMANDS

__all__ = ["MAIN", "PAGES", "options_shown"]

MAIN = """\
usage: surrogate-flow COMMAND --data RECIPE --model RECIPE [--OPTION VALUE ...]

Train a deep surrogate of a solver while its simulations run. --data and --model
take a recipe: a YAML file, or the name of a shipped one (heat2d,
fully_connected); --data also a data set.

commands:
{commands}

more help:
  surrogate-flow COMMAND --help        options of a command
  surrogate-flow fit --data.help       all options of a workflow
  surrogate-flow fit --model.help      all options of a model
  surrogate-flow fit --trainer.help    all options of Lightning's trainer
  surrogate-flow fit --data heat2d --data.solver.help
                                       options of a class that a recipe names

options:
  -h, --help   Show this help and exit.
  --version    Print the version and exit.
"""

_STUDY = """\
what is simulated:
  --data RECIPE                   a workflow: a YAML file, or heat2d, lorenz, ...
  --data.simulations N            how many to train on; null: without end
  --data.held_out N               how many to validate on, never trained on: 30 by
                                  default, 10 where they are large
  --data.solver.OPTION VALUE      of the solver, such as --data.solver.steps 50
  --data.solver CLASS             in place of the recipe's: package.module.MySolver
  --data.every N                  keep each N-th step that the solver makes
  --data.sampler CLASS            Uniform, Sobol, Halton, LatinHypercube or Table
  --data.sampler.points FILE.csv  of a Table: a row of parameters for each simulation

where it is simulated (one worker a core of this machine, but for one that trains):
  --data.cluster RECIPE           slurm, pbs, local, existing, or a YAML file
  --data.cluster.OPTION VALUE     such as --data.cluster.cores 16
  --data.cores_per_simulation N   for solvers with threads or processes
  --data.faults.retries N         of a simulation that fails
  --data.faults.max_failures N    of the study, before it ends
  --data.faults.step_timeout S    seconds for a step, of a solver that may hang
"""

_SETTINGS = """\
settings:
  --print_config                  print all settings, with defaults; run nothing
  --config FILE                   take them from a file, such as a run's config.yaml
"""

_MORE = """\
more options, by group:
  --data.help      of the workflow      --data.solver.help     of its solver
  --model.help     of the model         --model.network.help   of its network
  --trainer.help   of the trainer
  --data.cluster slurm --data.cluster.help   of the cluster that is named
"""

#: Of each command, its help.
PAGES = {
    "fit": f"""\
usage: surrogate-flow fit --data RECIPE --model RECIPE [--OPTION VALUE ...]

{COMMANDS["fit"]} An example:

  surrogate-flow fit --data heat2d --model fully_connected \\
      --data.simulations 2000 --trainer.max_steps 5000

Results go to runs/<workflow>/<time>/: checkpoints, metrics, pictures, config.yaml.
Ctrl-C ends a run in order; --ckpt_path last goes on with it.

{_STUDY}
what is trained:
  --model RECIPE                  fully_connected, fno, unet, ..., or a YAML file
  --model.network.OPTION VALUE    such as --model.network.widths '[512, 512]'
  --model.optimizer.lr RATE       learning rate; --model.optimizer CLASS: another
  --model.loss CLASS              such as torch.nn.L1Loss
  --data.batch_size N             samples of a batch
  --data.reservoir CLASS          FIFO, FIRO or Reservoir
  --data.reservoir.capacity N     steps that it holds, or bytes: 2GiB
  --data.reservoir.threshold N    samples before the first batch

how long, on what, and where results go:
  --trainer.max_steps N           batches; by default until the simulations end
  --trainer.max_epochs N          passes over a data set
  --trainer.val_check_interval N  batches between validations and checkpoints
  --trainer.accelerator gpu       cpu, gpu or auto; --trainer.devices N: how many
  --trainer.default_root_dir DIR  in the place of runs/
  --trainer.logger wandb|mlflow   in the place of TensorBoard; or a YAML file
  --ckpt_path last|best|FILE      go on from a checkpoint, 'last': the newest one
  --data.checkpoint_reservoir true   checkpoints keep the reservoir's fields, too
  --data.archive PATH             write a data set beside the training
  --seed_everything N             of weights and batches; 0 by default

{_SETTINGS}
{_MORE}  --data.reservoir FIFO --data.reservoir.help  of the reservoir that is named
""",
    "predict": f"""\
usage: surrogate-flow predict --ckpt_path FILE --parameters YAML [--OPTION VALUE ...]
       surrogate-flow predict --ckpt_path FILE --parameters FILE [--OPTION VALUE ...]
       surrogate-flow predict --ckpt_path FILE --samples N [--OPTION VALUE ...]

{COMMANDS["predict"]} An example:

  surrogate-flow predict --ckpt_path runs/heat2d/<time>/checkpoints/best.ckpt \\
      --parameters '{{initial: 300, left: 100, right: 500, bottom: 200, top: 400}}'

options:
  --ckpt_path FILE    a checkpoint, or 'last' or 'best' of the newest run in runs/
  --parameters YAML   of the simulation, in the units of the solver's spec
  --parameters FILE   a table: CSV with a column for each parameter, such as
                      'left [K]', or netCDF with a variable for each
  --samples N         draw so many within the bounds, in the place of a table
  --sampler NAME      sobol (the default), halton, latin_hypercube or uniform
  --seed N            of the sampler; 0 by default
  --times YAML        such as '[0.1, 0.5]'; all steps of the solver by default
  --history FILE      netCDF with the first steps, for one that rolls out from them;
                      one for all samples, or one for each along the dim 'sample'
  --inputs FILE       netCDF with the input fields of the spec, if it has any; for all
                      samples, or for each along the dim 'sample'
  --batch_size N      samples that are predicted together; as many as fit by default
  --device DEVICE     cpu or cuda; auto, the default, takes a GPU if there is one
  --output FILE       netCDF (field.nc by default), or Zarr: a name that ends with
                      .zarr is written part by part, and never lies in memory whole;
                      a file that is there is replaced, a Zarr store is not

A table gives one dataset with the dim 'sample'. What is interrupted leaves no file.

With --data and --model it is Lightning's own predict.
""",
    "export": f"""\
usage: surrogate-flow export --ckpt_path FILE --format pt2|onnx [--output FILE]

{COMMANDS["export"]} Inputs are
the parameters, the time, the input fields if there are any and, of an autoregressive
surrogate, the history; outputs are the fields: by their names, in their units, for
batches of any size. Examples:

  surrogate-flow export --ckpt_path best --format onnx
  surrogate-flow export --ckpt_path runs/heat2d/<time>/checkpoints/best.ckpt \\
      --format pt2 --output heat2d.pt2

options:
  --ckpt_path FILE    a checkpoint, or 'last' or 'best' of the newest run in runs/
  --format FORMAT     onnx: for ONNX Runtime and others, from C to JavaScript; it needs
                      pip install onnx onnxscript onnxruntime
                      pt2: for torch.export.load, and AOTInductor
  --output FILE       surrogate.onnx or surrogate.pt2 by default

The file is compared with the surrogate before it is kept. docs/export.md has programs
in Python and in C that use one.
""",
    "plan": f"""\
usage: surrogate-flow plan --data RECIPE [--OPTION VALUE ...]

{COMMANDS["plan"]}

It runs the solver for some seconds on this machine, calls the network of --model on two
samples, and prints the script of a job, how many jobs and simulations run at once, and
the bytes a second of the stream. Nothing is submitted. An example:

  surrogate-flow plan --data heat2d --model fno --data.cluster slurm

{_STUDY}
more options: surrogate-flow fit --data.help
""",
    "generate": f"""\
usage: surrogate-flow generate --data RECIPE --output PATH [--OPTION VALUE ...]

{COMMANDS["generate"]} It is in Zarr format 3:
xarray.open_zarr opens it, and 'fit --data PATH' trains on it. The workers write it, so
they must share its file system. Typed again, the command adds what is missing.
An example:

  surrogate-flow generate --data heat2d --output heat2d.zarr

  --output PATH                   the data set, such as heat2d.zarr

{_STUDY}
more options: surrogate-flow fit --data.help; --model is ignored.
""",
    "import": f"""\
usage: surrogate-flow import FILES --output PATH [--OPTION VALUE ...]

{COMMANDS["import"]} Files are
netCDF, or what else xarray opens, with the steps along a dim 'time'; 'fit --data PATH'
trains on them. Parameters are the numbers that differ between files, of their
attributes and scalar variables. Typed again, the command goes on. An example:

  surrogate-flow import 'campaign/*.nc' --output campaign.zarr

options:
  --output PATH            the data set, such as campaign.zarr
  --parameters FILE.csv    a table: the column 'file', and one for each parameter;
  --parameters NAME,NAME   or which of the numbers that differ
  --variables NAME,NAME    all with the time axis and the most dims by default
  --inputs NAME,NAME       fields without steps, or variables, whose first step it is
  --initial NAME,NAME      parameters that only make the initial state
  --masked NAME,NAME       fields that are NaN where they are not defined, as over land
  --time DIM               the dim of the steps, if it is not called time
  --held_out N             files to validate on; a fifth by default, 30 at most
  --held_out 'PATTERN'     or these, such as 'campaign/test_*.nc'
  --seed N                 of the choice of the held-out ones; 0 by default
  --skip_damaged true      leave out files that cannot be read or differ from others
  --may_end_early true     take runs with fewer steps than others, the first ones
""",
    "inspect": f"""\
usage: surrogate-flow inspect FILES [--OPTION VALUE ...]

{COMMANDS["inspect"]} Files are
netCDF, Zarr, or HDF5 as PDEBench and The Well have it, with a run each or a dim 'run'.
Comments say what it found: parameters, variables, grid, times. An example:

  surrogate-flow inspect 'runs/*.nc' > mine.yaml
  surrogate-flow fit --data mine.yaml --model fully_connected

options:
  --parameters FILE.csv    a table: the column 'file', and one for each parameter;
  --parameters NAME,NAME   or which of the numbers that differ
  --variables NAME,NAME    all with the time axis and the most dims by default
  --inputs NAME,NAME       fields without steps, or variables, whose first step it is
  --initial NAME,NAME      parameters that only make the initial state
  --masked NAME,NAME       fields that are NaN where they are not defined, as over land
  --time DIM               the dim of the steps, if it is not called time
  --skip_damaged true      leave out files that cannot be read or differ from others
  --may_end_early true     take runs with fewer steps than others, the first ones
""",
    "sweep": f"""\
usage: surrogate-flow sweep RECIPE [--folder FOLDER] [--detach] [--KEY VALUE ...]
       surrogate-flow sweep status | resume [--failed] | stop FOLDER

{COMMANDS["sweep"]} Every step that a
solver produces goes to all trials, so that ten models cost one ensemble. A recipe names
a workflow, a model, and options of 'fit' with their values, as a list or a range:

  data: heat2d
  model: fully_connected
  options: {{trainer.max_steps: 2000}}
  space:
    model.optimizer.init_args.lr: {{low: 1.0e-4, high: 1.0e-2, log: true}}
    seed_everything: [0, 1, 2]

  surrogate-flow sweep learning_rate
  surrogate-flow sweep learning_rate --trials 3 --trainer.max_steps 200
  surrogate-flow sweep my_sweep.yaml --detach
  surrogate-flow sweep status sweeps/my_sweep

options:
  RECIPE            a file, or one of learning_rate, networks, reservoir
  --folder FOLDER   sweeps/<recipe> by default; the same command goes on there
  --detach          run in the background, and return
  --KEY VALUE       a key below, or an option of 'fit' for all trials

keys of a recipe, beside those above:
  search: tpe               or grid (all lists: the default), random
  trials: N                 all of a grid by default, else 20
  prune: true               end trials that lag behind the median
  at_once: N                trials at a time: by default one a GPU, or one for two cores
  jobs: slurm               each trial is a job of a batch system, by a cluster's recipe
  late: wait                for the slowest trial; drop: it misses steps; spool: it
                            reads them later in the data set
  share_simulations: true   false: each trial has its own ensemble
  seed: N                   of the search

status shows the trials, resume goes on after whatever has ended it, with --failed also
with the trials that have failed, from their beginning, stop ends it, and
'surrogate-flow watch FOLDER' has a live page of them; all read the folder alone.
docs/sweeps.md tells more.
""",
    "report": f"""\
usage: surrogate-flow report [RUN ...] [--output FILE]

{COMMANDS["report"]} It is made
of the run's folder alone, needs no network, and opens in every browser; also of a run
that goes on or was killed. A run leaves its own, report.html. Several are put side by
side: errors, cost, settings that differ, and curves over each other. RUN may be a
folder of runs, such as that of 'compare'. Examples:

  surrogate-flow report
  surrogate-flow report runs/heat2d/2026-01-31_12-00-00
  surrogate-flow report runs/compare/heat2d-fully_connected

options:
  RUN             the folder of a run; the newest one under runs/ by default
  --output FILE   RUN/report.html by default; of several comparison.html in the
                  current folder; a file that is there is replaced
""",
    "watch": f"""\
usage: surrogate-flow watch [RUN] [--port N]

{COMMANDS["watch"]} The run may go on, have
ended, or have been killed; nothing of it is needed but its folder. The page of a sweep
lists its trials, and shows the run of the one that is clicked on. The page listens on
127.0.0.1; the line to reach it through ssh is printed. Ctrl-C ends it. Examples:

  surrogate-flow watch
  surrogate-flow watch runs/heat2d/2026-01-31_12-00-00
  surrogate-flow watch sweeps/my_sweep

options:
  RUN        the folder of a run or a sweep; the newest run under runs/ by default
  --port N   5006 by default; another, which is printed, if that is taken

While a fit runs, the same page is in the dashboard of its cluster.
""",
    "check": f"""\
usage: surrogate-flow check CLASS|FILE.py:CLASS|RECIPE [--OPTION VALUE ...]

{COMMANDS["check"]} It is built
with the options, run as a study would run it, and each law that it keeps is printed:
that a solver yields what its spec says, that the same seed gives the same points, that
a network learns and comes back from its checkpoint, that a store loses no sample.
Of a solver it says how fast it is and what a step and the reservoir take. The exit
status is 1 if a law is broken. Examples:

  surrogate-flow check my_solvers.py:MySolver --cells 16
  PYTHONPATH=. surrogate-flow check my_solvers.MySolver --cells 16
  surrogate-flow check heat2d --cells '[16, 16]'     # the solver of a workflow

  surrogate-flow check CLASS --help    options of the class

Few cells and steps, and few weights, are enough. surrogate_flow.testing has the same
functions for your tests.
""",
    "new": f"""\
usage: surrogate-flow new solver|network|program NAME

{COMMANDS["new"]} NAME.py (of a program
NAME.c), NAME.yaml and test_NAME.py go into this folder, and what to type next is
printed; a file that is there is not overwritten. They run as they are: replace the
equation or the layers. Examples:

  surrogate-flow new solver my_wave
  surrogate-flow new network my_network
  surrogate-flow new program flow       # in C; surrogate-flow include --help
""",
    "include": f"""\
usage: surrogate-flow include [--help]

{COMMANDS["include"]} It has
surrogate_flow.h (C99 and C++) and surrogate_flow.f90 (Fortran 2003), whose three calls
send the steps of a program to the worker that runs it. Examples:

  surrogate-flow include                          # prints it
  cc -I$(surrogate-flow include) heat.c -lm -o heat
  mpicc -I$(surrogate-flow include) heat.c -lm -o heat

docs/solvers.md has whole programs, and their recipes.
""",
    "compare": f"""\
usage: surrogate-flow compare --data RECIPE --model RECIPE [--OPTION VALUE ...]

{COMMANDS["compare"]} Offline means: from a data
set of few simulations that is read many times; online: from simulations as they run,
with several policies of the reservoir. The number of batches and the validation set
are the same. Typed again, the command goes on where it was: what has ended is not
repeated, what was interrupted or has failed begins again. An example:

  surrogate-flow compare --data heat2d --model fully_connected --batches 3000 --seeds 3

options:
  --data RECIPE       a workflow, such as heat2d
  --model RECIPE      a model, such as fully_connected
  --batches N         of each run; 3000 by default
  --offline N ...     simulations of the data set; 50 by default. Several, as 10 30 100,
                      show from how few on training online gains. Online ones go on as
                      long as they are trained on, or --data.simulations says how many
  --seeds N           runs of each way to train; 3 by default
  --variants NAME ... of offline, fifo, firo, reservoir; all by default
  --output FOLDER     of the comparison; runs/compare/<workflow>-<model> by default

Options of 'fit' under --data., --model. and --trainer. go to every run, those under
--data. only where something is simulated.

It is a sweep over the sources of samples, one run after the other; 'sweep status
FOLDER' shows how it stands. It leaves comparison.csv, comparison.png and
report.html there.
""",
}
for _command, _on in (
    ("validate", "on the held-out simulations of the workflow or data set"),
    ("test", "on new simulations, or on the held-out ones of a data set"),
):
    _simulated = "".join(
        line.replace("validate on", f"{_command} on")
        for line in _STUDY.splitlines(keepends=True)
        if "--data.simulations" not in line
    )
    PAGES[_command] = f"""\
usage: surrogate-flow {_command} --data RECIPE --model RECIPE --ckpt_path FILE [...]

{COMMANDS[_command]} An example:

  surrogate-flow {_command} --data heat2d --model fully_connected --ckpt_path last

Errors of a checkpoint {_on}.
--ckpt_path last or best is that of the newest run of the workflow in runs/.

{_simulated}
{_SETTINGS}
{_MORE}"""


def options_shown() -> list[str]:
    """Return the options that the help of ``fit`` names."""
    return re.findall(r"--[\w.]+", PAGES["fit"])
