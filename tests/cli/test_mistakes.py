"""What a user gets wrong, and the one line that says what, where and what was meant."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

import surrogate_flow.ensemble.study
from surrogate_flow.cli import explain, trainer
from surrogate_flow.cli.app import main

DATA, MODEL = ["--data", "heat2d"], ["--model", "fully_connected"]
FIT = ["fit", *DATA, *MODEL]
OWN = ["fit", "--data", "wrong.yaml", *MODEL]
SMALL = ["--data.solver.cells=[4,4]", "--data.solver.steps=2"]
HEAT = "surrogate_flow.solvers.Heat2D"
QUEUE = "class_path: dask_jobqueue.SLURMCluster"

# Words, then what the line must have; with "wrong.yaml" among the words, its text first.
MISTAKES = {
    # Commands, files and recipes: answered before anything is imported.
    "a command that is none": (["generat", *DATA], "Did you mean 'generate'"),
    "another tool's command": (["train", *DATA], "Did you mean 'fit'"),
    "an option for a command": (["--data=heat2d"], "Expected a command first"),
    "missing recipe": (["fit", "--data=heat", *MODEL], "'heat'", "mean 'heat2d'"),
    "a path that is none": (["fit", "--data", "./nope"], "No recipe './nope'"),
    "missing model": (
        [*FIT[:3], "--model=fulli_connected"],
        "'fulli_connected'",
        "mean 'fully_connected'",
    ),
    "missing cluster": (
        ["plan", *DATA, "--data.cluster=slrm"],
        "No recipe 'slrm'",
        "Did you mean 'slurm'",
    ),
    "missing cluster's file": (
        ["plan", *DATA, "--data.cluster=slurm.yml"],
        "no such file",
        "'slurm'",
    ),
    "sweep: no recipe": (["sweep"], "sweep needs a recipe, got none"),
    "sweep: missing recipe": (["sweep", "networkz"], "mean 'networks'"),
    "sweep: status of nothing": (["sweep", "status"], "needs the folder of a sweep"),
    "sweep: no sweep": (["sweep", "resume", "."], "one with sweep.yaml, got ."),
    "sweep: a misspelt option": (
        ["sweep", "networks", "--detatch"],
        "Did you mean '--detach'",
    ),
    "missing settings": (["fit", "--config=nope.yaml"], "No file 'nope.yaml'"),
    "missing checkpoint": (
        [*FIT, "--ckpt_path=none.ckpt"],
        "No checkpoint 'none.ckpt'",
    ),
    "predict: missing checkpoint": (
        ["predict", "--ckpt_path=none.ckpt", "--parameters={a: 1}"],
        "No checkpoint 'none.ckpt'",
    ),
    "no checkpoint": (["validate", *FIT[1:]], "validate needs --ckpt_path"),
    "export: no checkpoint": (
        ["export", "--format=onnx"],
        "export needs --ckpt_path, got none",
    ),
    "export: missing checkpoint": (
        ["export", "--ckpt_path=none.ckpt", "--format=pt2"],
        "No checkpoint 'none.ckpt'",
    ),
    "export: no checkpoint yet": (
        ["export", "--ckpt_path=best", "--format=pt2"],
        "No checkpoint 'best'",
    ),
    "export: no format": (
        ["export", "--ckpt_path=best"],
        "--format",
    ),
    "export: an unknown format": (
        ["export", "--ckpt_path=best", "--format=onx"],
        "--format: expected one of 'pt2', 'onnx', got 'onx'",
    ),
    "export: an output in no folder": (
        ["export", "--ckpt_path=best", "--format=pt2", "--output=none/a.pt2"],
        "--output none/a.pt2: there is no folder none. Make it first.",
    ),
    "export: an output of another format": (
        ["export", "--ckpt_path=best", "--format=pt2", "--output=a.onnx"],
        "--output a.onnx: expected a file's name that ends in .pt2, got 'a.onnx'",
        "Such as --output a.pt2.",
    ),
    "export: an option for a run": (
        ["export", "--ckpt_path=best", "--format=pt2", *DATA],
        "--data",
    ),
    "no data": (["fit", *MODEL], "fit needs --data", "--data heat2d"),
    "no data, but an argument of it": (
        ["fit", "--data.solver.steps=3", *MODEL],
        "fit needs --data, got none",
        "or a class, such as --data.solver package.module.Class",
    ),
    "a file of Python for a recipe": (
        ["fit", "--data", "own_solvers.py", *MODEL],
        "--data: expected a recipe or a class path, got the file own_solvers.py",
        "--data.solver own_solvers.Own",
    ),
    "a file of Python for a solver": (
        [*FIT, "--data.solver=own_solvers.py"],
        "--data.solver: expected a class path such as own_solvers.Own, got a file",
    ),
    "check: a file of Python": (
        ["check", "./own_solvers.py"],
        "class_path: expected one such as 'own_solvers.Own', got './own_solvers.py'",
    ),
    "watch: no run": (["watch"], "got runs, no folder in", "Go to where fit was typed"),
    "watch: two runs": (
        ["watch", "a", "b"],
        "expected one folder of a run or a sweep, got 2",
    ),
    "watch: no run's folder": (["watch", "nope"], "nope"),
    "watch: a port that is none": (["watch", "--port=99999"], "expected 0 to 65535"),
    "report: no run": (
        ["report"],
        "got runs, no folder in",
        "Go to where fit was typed, or name the folder that it printed",
    ),
    "report: an option that is none": (["report", "a", "--out=b"], "mean '--output'"),
    "report: what is no run": (
        ["report", "nope"],
        "expected one with config.yaml",
        "got nope, no folder in",
    ),
    "no value": (
        ["fit", *MODEL, *DATA, "--data.simulations"],
        "--data.simulations needs a value, got none",
    ),
    "a value that begins with dashes": (
        [
            *("plan", *DATA, "--data.cluster=slurm"),
            *("--data.cluster.options.job_extra_directives", "--constraint=cpu"),
        ],
        "job_extra_directives='[\"--constraint=cpu\"]'",
    ),
    "recipes without options": (
        ["fit", "heat2d", "fully_connected"],
        "unexpected word 'heat2d'",
        "'--data heat2d --model fully_connected'",
    ),
    "a list without quotes": (
        [*FIT, "--data.solver.cells", "[20,", "20]"],
        "--data.solver.cells: put quotes around its value: '[20, 20]'",
    ),
    "a mapping without quotes": (
        ["predict", "--ckpt_path=a", "--parameters", "{a:", "1,", "b:", "2}"],
        "--parameters: put quotes around its value: '{a: 1, b: 2}'",
    ),
    "a mapping without blanks": (
        ["predict", "--ckpt_path=a", "--parameters={a:1}"],
        "a blank behind each colon: '{a: 1}'",
    ),
    "predict: no checkpoint yet": (
        ["predict", "--ckpt_path=last", "--parameters={a: 1}"],
        "No checkpoint 'last'",
    ),
    "a syntax error of the user's": (
        [*FIT, "--data.solver=broken_syntax.Wave"],
        "--data.solver: ",
        "expected ':' (broken_syntax.py, line 1)",
    ),
    "check: a syntax error of the user's": (
        ["check", "broken_syntax.Wave"],
        "expected ':' (broken_syntax.py, line 1)",
    ),
    "an import within a module of the user's": (
        [*FIT, "--data.solver=broken_import.Wave"],
        "broken_import.py:1",
        "Install 'pandass', or correct its name",
    ),
    "check: another error of the user's module": (
        ["check", "broken_name.Wave"],
        "name 'nothing' is not defined",
        "broken_name.py:1",
    ),
    "a module with the name of a standard one": (
        ["check", "wave.Wave"],
        "'wave' was imported from ",
        "type PYTHONPATH=",
    ),
    "a recipe in the folder, by its stem": (
        ["fit", "--data=mine", *MODEL],
        "'mine.yaml'",
    ),
    "a recipe in the folder, with another suffix": (
        ["fit", "--data=mine.yml", *MODEL],
        "'mine.yaml'",
    ),
    "a data set in the folder": (["fit", "--data=heat.zar", *MODEL], "'heat.zarr'"),
    "a network of another shape": (
        [*FIT, "--model.network=own_networks.Wrong"],
        "own_networks.Wrong, called on 2 samples: expected a tensor of shape (2, 1, "
        "1, 100, 100), got (2, 1)",
    ),
    "a network that is lazy, of another shape": (
        [*FIT, "--model.network=own_networks.Lazy"],
        "expected a tensor of shape (2, 1, 1, 100, 100), got (2, 1, 1, 100, 7)",
    ),
    "a network of complex numbers": (
        [*FIT, "--model.network=own_networks.Complex"],
        "own_networks.Complex, called on 2 samples: ",
        "got torch.complex64",
    ),
    "a network of two outputs": (
        [*FIT, "--model.network=own_networks.Two"],
        "own_networks.Two, called on 2 samples: ",
        "got tuple",
    ),
    "a network that is not trained": (
        [*FIT, "--model.network=own_networks.Detached"],
        "got one that does not depend on parameters that can be trained",
    ),
    "a network that begins otherwise": (
        [*FIT, "--model.network=own_networks.NoSuper"],
        "own_networks.NoSuper, built as network(spec, window): cannot assign module "
        "before Module.__init__() call. At ",
        "own_networks.py:",
    ),
    "a module of a library for a network": (
        [*FIT, "--model.network=torch.nn.Sequential"],
        "surrogate_flow.nn.OnGrid(module=...)",
    ),
    "a function for a network": (
        [*FIT, "--model.network=own_networks.function"],
        "--model.network: expected a subclass of Module, or a function with the "
        "annotation -> Module, got own_networks.function.",
    ),
    "a module of a library whose forward takes more": (
        [
            *(*FIT, "--model.network=OnGrid"),
            "--model.network.module=own_networks.OfGraph",
        ],
        "missing 1 required positional argument: 'edges'",
    ),
    "a loss of three": (
        [*FIT, "--model.loss=torch.nn.GaussianNLLLoss"],
        "model.loss: expected one that is called as loss(prediction, target)",
        "'var'",
    ),
    "a loss of many numbers": (
        [*FIT, "--model.loss=MSELoss", "--model.loss.reduction=none", *SMALL],
        "model.loss: expected one that is called as loss(prediction, target), for one "
        "number, got 32 numbers",
    ),
    "a loss of probabilities": (
        [*FIT, "--model.loss=BCELoss"],
        "model.loss: expected one that is called as loss(prediction, target), for one "
        "number, got RuntimeError (all elements of ",
    ),
    "an optimizer of sparse gradients": (
        [*FIT, "--model.optimizer=SparseAdam"],
        "model.optimizer: expected one that trains such networks, got RuntimeError "
        "(SparseAdam does not support dense gradients",
    ),
    "a schedule in steps of no batch": (
        [*FIT, "--model.scheduler=StepLR", "--model.scheduler.step_size=0"],
        "model.scheduler: expected one that follows the batches, got ZeroDivisionError",
    ),
    "a schedule of no length": (
        [*FIT, "--model.scheduler=CosineAnnealingLR", "--model.scheduler.T_max=0"],
        "model.scheduler: expected one that follows the batches, got ZeroDivisionError",
    ),
    "a solver that cannot be built": (
        [*FIT, "--data.solver=own_solvers.Fails"],
        "FileNotFoundError: [Errno 2] No such file or directory: 'no.msh'. At ",
        "own_solvers.py:",
    ),
    "a solver that takes other arguments": (
        [*FIT, "--data.solver=own_solvers.Stepping"],
        "Stepping.solve: expected (self, parameters), got (parameters, dt)",
    ),
    "a solver that ends the process": (
        [*FIT, "--data.solver=own_solvers.Exits"],
        "SystemExit(0): raise an error instead",
        "own_solvers.py:",
    ),
    "plan: a solver whose spec fails": (
        ["plan", *DATA, "--data.solver=own_solvers.Unset"],
        "AttributeError: 'Unset' object has no attribute 'mesh'. At ",
    ),
    "a module that reads the words": (
        [*FIT, "--data.solver=broken_words.Wave"],
        "SystemExit(2): raise an error instead, or put what ends the process under if "
        "__name__ == '__main__'. At ",
        "broken_words.py:2",
    ),
    "a module that needs a variable": (
        [*FIT, "--data.solver=broken_variable.Wave"],
        "KeyError: 'NOT_SET'. At ",
        "broken_variable.py:2",
    ),
    "a class that is called": (
        [*FIT, "--data.solver=own_solvers.Own()"],
        "expected a class path such as package.module.Class, got 'own_solvers.Own()'",
    ),
    "one dash": (
        [*FIT, "-data.simulations=3"],
        "unknown option '-data.simulations'. Did you mean '--data.simulations'?",
    ),
    "no seed": ([*FIT, "--seed_everything=-1"], "--seed_everything: expected from 0"),
    "no rate at all": (
        [*FIT, "--model.optimizer.lr=null"],
        "model.optimizer.lr: expected a finite number above 0, got null",
    ),
    "no model": (["fit", *DATA], "fit needs --model"),
    "generate: no data": (["generate", "--output=x.zarr"], "generate needs --data"),
    "generate: a data set": (["generate", "--data=x.zarr"], "expected a workflow"),
    "compare: a data set": (["compare", "--data=x.zarr"], "expected a workflow"),
    # Options.
    "no prefix": ([*FIT, "--simulations=60"], "Did you mean '--data.simulations'"),
    "no prefix, dotted": (
        [*FIT, "--solver.cells=[4,4]"],
        "Did you mean '--data.solver.cells'",
    ),
    "no prefix of a model": ([*FIT, "--window=x"], "Did you mean '--model.window'"),
    "no prefix of the trainer": (
        [*FIT, "--max_steps", "3"],
        "Did you mean '--trainer.max_steps'",
    ),
    "no prefixes": ([*FIT, "--lr=1"], "Did you mean '--model.optimizer.lr'"),
    "another tool's option": (
        [*FIT, "--epochs", "3"],
        "unknown option '--epochs'. Did you mean '--trainer.max_epochs'",
    ),
    "another tool's option, deeper": (
        [*FIT, "--learning_rate=1"],
        "Did you mean '--model.optimizer.lr'",
    ),
    "hyphens": ([*FIT, "--batch-size=3"], "Did you mean '--data.batch_size'"),
    "hyphens behind a prefix": (
        [*FIT, "--data.batch-size=3"],
        "--data.batch-size: unknown argument 'batch-size' of OnlineData",
        "Did you mean 'batch_size'",
    ),
    "an unknown section": ([*FIT, "--dta.simulations=3"], "Did you mean '--data'"),
    "a shortened option": (
        [*FIT, "--seed_every=3"],
        "unknown option '--seed_every'",
        "Did you mean '--seed_everything'",
    ),
    "a likely name": (
        [*FIT, "--data.validation_simulations=3"],
        "'validation_simulations' of OnlineData. Did you mean 'held_out'",
    ),
    "a likely name without prefix": (
        [*FIT, "--validation_simulations=3"],
        "Did you mean '--data.held_out'",
    ),
    "a likely name in another place": (
        [*FIT, "--model.learning_rate=1"],
        "'learning_rate' of model. Did you mean '--model.optimizer.lr'",
    ),
    "a word too many": ([*FIT, "30"], "unexpected word '30'"),
    "unknown option of data": (
        [*FIT, "--data.simulation=3"],
        "--data.simulation: unknown argument 'simulation' of OnlineData",
        "Did you mean 'simulations'",
    ),
    "unknown option of a solver": (
        [*FIT, "--data.solver.cell=[4,4]"],
        "--data.solver.cell: unknown argument 'cell' of Heat2D",
        "Did you mean 'cells'",
    ),
    "unknown option of faults": (
        [*FIT, "--data.faults.retry", "3"],
        "--data.faults.retry: ",
        "Did you mean 'retries'",
    ),
    "unknown option of a data set": (
        ["fit", "--data=x.zarr", "--data.memry=1", *MODEL],
        "--data.memry: unknown argument 'memry' of StoredData",
        "Did you mean 'memory'",
    ),
    "unknown option of the network": (
        [*FIT, "--model.network.width=3"],
        "--model.network.width: unknown argument 'width' of FullyConnected",
        "Did you mean 'widths'",
    ),
    "unknown option of the optimizer": (
        [*FIT, "--model.optimizer.learning_rate=1"],
        "--model.optimizer.learning_rate: ",
        "of Adam. Did you mean 'lr'? Valid names: lr, betas",
    ),
    "unknown option of the schedule": (
        [*FIT, "--model.scheduler=StepLR", "--model.scheduler.step_sise=1"],
        "--model.scheduler.step_sise: unknown argument 'step_sise' of StepLR",
        "Did you mean 'step_size'",
    ),
    "unknown option of the trainer": (
        [*FIT, "--trainer.max_step=3"],
        "--trainer.max_step: unknown argument 'max_step' of trainer",
        "Did you mean 'max_steps'",
    ),
    "an option of dask-jobqueue's": (
        ["plan", *DATA, "--data.cluster=slurm", "--data.cluster.processes=1"],
        "--data.cluster.processes: unknown argument 'processes' of Slurm",
        "Did you mean '--data.cluster.options.processes'",
    ),
    "a misspelt option of dask-jobqueue's": (
        ["plan", *DATA, "--data.cluster=slurm", "--data.cluster.jobextra=[a]"],
        "Did you mean '--data.cluster.options.job_extra_directives'",
    ),
    "an option of dask-jobqueue's, for any of its classes": (
        [
            *("plan", *DATA, "--data.cluster=surrogate_flow.cluster.JobQueue"),
            "--data.cluster.cluster_class=dask_jobqueue.SGECluster",
            "--data.cluster.security=false",
        ],
        "--data.cluster.security: unknown argument 'security' of JobQueue",
        "Did you mean '--data.cluster.options.security'",
    ),
    "an option of no class": (
        [*FIT, "--data.cluster.cores=3"],
        "--data.cluster.cores: no class is named yet, whose 'cores' could be set",
    ),
    "an option of no class, of which there are some": (
        [*FIT, "--data.sampler.seed=3"],
        "--data.sampler.seed: no class is named yet",
        "Sobol",
    ),
    "generate: no output": (["generate", *DATA], "generate needs --output"),
    "generate: a file": (
        ["generate", *DATA, "--output=x.nc"],
        "x.nc: a data set is a folder of Zarr, got the suffix of a file. Name it "
        "x.zarr",
    ),
    "an archive in a file": (
        [*FIT, "--data.archive=x.h5", *SMALL],
        "x.h5: a data set is a folder of Zarr",
    ),
    "generate: unknown option": (
        ["generate", *DATA, "--output=x.zarr", "--data.solver.cell=[4,4]"],
        "Did you mean 'cells'",
    ),
    "generate: a shortened option": (
        ["generate", *DATA, "--outp=x.zarr"],
        "unknown option '--outp'. Did you mean '--output'",
    ),
    "predict: a shortened option": (
        ["predict", "--ckpt=a"],
        "unknown option '--ckpt'. Did you mean '--ckpt_path'",
    ),
    "predict: no parameters": (
        ["predict", "--ckpt_path=last"],
        "predict needs --parameters",
    ),
    "predict: no mapping": (
        ["predict", "--ckpt_path=last", "--parameters=3"],
        "--parameters: expected a mapping, or a table such as points.csv, got '3'",
    ),
    "predict: another format": (
        ["predict", "--ckpt_path=last", "--parameters={a: 1}", "--output=a.csv"],
        "--output a.csv: expected the name of a netCDF file, or of a Zarr store, got "
        "'.csv'. Name it a.nc",
    ),
    "predict: broken YAML": (
        ["predict", "--ckpt_path=last", "--parameters={a: 1"],
        "--parameters: expected a mapping, or a table such as points.csv, got '{a: 1'",
    ),
    "predict: no table": (
        ["predict", "--ckpt_path=last", "--parameters=points.csv"],
        "No file 'points.csv'",
    ),
    "predict: no table in netCDF": (
        ["predict", "--ckpt_path=last", "--parameters=points.nc"],
        "--parameters: no file 'points.nc'",
    ),
    "predict: a table and samples": (
        ["predict", "--ckpt_path=last", "--parameters={a: 1}", "--samples=3"],
        "predict needs --parameters or --samples, got both",
    ),
    "predict: a sampler that is none": (
        ["predict", "--ckpt_path=last", "--samples=3", "--sampler=sobl"],
        "--sampler: expected one of 'sobol', 'halton', 'latin_hypercube', 'uniform'",
    ),
    "predict: no samples": (
        ["predict", "--ckpt_path=last", "--samples=0"],
        "--samples: expected a number >0, got 0",
    ),
    "predict: another device": (
        ["predict", "--ckpt_path=last", "--samples=3", "--device=tpu"],
        "--device: expected ",
        "got 'tpu'",
    ),
    "predict: a seed below 0": (
        ["predict", "--ckpt_path=last", "--samples=3", "--seed=-1"],
        "Sobol: seed: expected a whole number >= 0, got -1",
    ),
    "compare: epochs": (
        ["compare", *FIT[1:], "--trainer.max_epochs=3"],
        "--trainer.max_epochs: compare trains each variant for the same number of "
        "batches. Say how many with --batches",
    ),
    "compare: unknown option": (
        ["compare", *FIT[1:], "--batch=3"],
        "Did you mean '--batches'",
    ),
    "compare: no batches": (
        ["compare", *FIT[1:], "--batches=0"],
        "--batches: expected a number >0, got 0",
    ),
    "compare: no number": (
        ["compare", *FIT[1:], "--batches=many"],
        "--batches: expected a number, got many",
    ),
    "compare: a file for its folder": (
        ["compare", *FIT[1:], "--variants=fifo", "--output=own_solvers.py"],
        "own_solvers.py: expected a new folder, or that of the same sweep, got a file",
    ),
    "compare: a wrong value for its runs": (
        ["compare", *FIT[1:], "--data.solver.steps=x"],
        "case: fifo is refused: --data.solver.steps: expected int, got 'x'",
    ),
    "compare: unknown variant": (
        ["compare", *FIT[1:], "--variants", "fif"],
        "Did you mean 'fifo'",
    ),
    # Classes.
    "a module that is none": (
        ["fit", "--data", "nowhere.Data", *MODEL],
        "--data: ",
        "cannot import 'nowhere'",
        "PYTHONPATH",
    ),
    "unknown class": (
        [*FIT, "--data.solver", "surrogate_flow.solvers.Heat2"],
        "--data.solver: ",
        "has no 'Heat2'. Did you mean 'Heat2D'",
    ),
    "unknown bare class": (
        [*FIT, "--data.reservoir", "Resevoir"],
        "--data.reservoir: no class 'Resevoir'. Did you mean 'Reservoir'",
    ),
    "a bare class in another case": (
        [*FIT, "--data.reservoir=fifo"],
        "no class 'fifo'. Did you mean 'FIFO'",
    ),
    "a bare network in another case": (
        [*FIT, "--model.network=fno"],
        "no class 'fno'. Did you mean 'FNO'",
    ),
    "a bare optimizer in another case": (
        [*FIT, "--model.optimizer=adamw"],
        "no class 'adamw'. Did you mean 'AdamW'",
    ),
    "unknown sampler": ([*FIT, "--data.sampler", "Sobl"], "Did you mean 'Sobol'"),
    "unknown path of a sampler": (
        [*FIT, "--data.sampler=surrogate_flow.sampling.Sobl"],
        "has no 'Sobl'. Did you mean 'Sobol'",
    ),
    "unknown sampler, the long way": (
        [*FIT, "--data.sampler.class_path=Sobl"],
        "Did you mean 'Sobol'",
    ),
    "unknown sampler in YAML": (
        [*FIT, "--data.sampler={class_path: surrogate_flow.sampling.Sobl}"],
        "has no 'Sobl'. Did you mean 'Sobol'",
    ),
    "unknown bare sampler in YAML": (
        [*FIT, "--data.sampler={class_path: Sobl}"],
        "no class 'Sobl'. Did you mean 'Sobol'",
    ),
    "unknown option of a sampler in YAML": (
        [
            *FIT,
            "--data.sampler={class_path: surrogate_flow.sampling.Sobol, "
            "init_args: {sed: 3}}",
        ],
        "--data.sampler: unknown argument 'sed' of Sobol. Did you mean 'seed'",
    ),
    "another class": (
        [*FIT, f"--data.sampler={HEAT}"],
        "--data.sampler: expected a subclass of Sampler, got Heat2D",
    ),
    "a table that is none": (
        [*FIT, "--data.sampler=Table", "--data.sampler.points=none.csv"],
        "No file 'none.csv'",
    ),
    "a table of other parameters": (
        [
            *("plan", *DATA, "--data.sampler=Table", "--data.simulations=1"),
            "--data.sampler.points={lift: [1, 2]}",
        ],
        "Table: expected a column for each parameter, and 'initial' is one",
    ),
    "held-out simulations of a sampler that is none": (
        [*FIT, "--data.held_out_sampler", "Sobl"],
        "--data.held_out_sampler: ",
        "Sobl",
    ),
    "unknown cluster": (
        [*FIT, "--data.cluster", "dask_jobqueue.SLURMClustr"],
        "--data.cluster: ",
        "Did you mean 'SLURMCluster'",
    ),
    "unknown limiter": (
        [*FIT, "--data.reservoir.limiter", "SamplesPerInser"],
        "Did you mean 'SamplesPerInsert'",
    ),
    "unknown window": ([*FIT, "--model.window=Directt"], "Did you mean 'Direct'"),
    "unknown loss": (
        [*FIT, "--model.loss=torch.nn.L1Los"],
        "has no 'L1Los'. Did you mean 'L1Loss'",
    ),
    "unknown bare loss": ([*FIT, "--model.loss=L1Los"], "Did you mean 'L1Loss'"),
    "unknown network": (
        [*FIT, "--model.network=surrogate_flow.nn.FON"],
        "--model.network: ",
        "has no 'FON'. Did you mean 'FNO'",
    ),
    "unknown bare network": ([*FIT, "--model.network=UNett"], "Did you mean 'UNet'"),
    "unknown optimizer": (
        [*FIT, "--model.optimizer=torch.optim.Adamm"],
        "Did you mean 'Adam'",
    ),
    "unknown bare optimizer": (
        [*FIT, "--model.optimizer=Adamm"],
        "Did you mean 'Adam'",
    ),
    # Values.
    "no number": (
        [*FIT, "--data.batch_size=many"],
        "--data.batch_size: expected int, got 'many'",
    ),
    "no number of a solver": (
        [*FIT, "--data.solver.steps=many"],
        "--data.solver.steps: expected int, got 'many'",
    ),
    "no number of the trainer": (
        [*FIT, "--trainer.max_steps=many"],
        "--trainer.max_steps: expected int, got 'many'",
    ),
    "no number where none is possible, too": (
        [*FIT, "--data.simulations", "many"],
        "--data.simulations: expected int or null, got 'many'",
    ),
    "no number of faults": (
        [*FIT, "--data.faults.step_timeout=x", "--trainer.default_root_dir=x"],
        "--data.faults.step_timeout: expected float or null, got 'x'",
    ),
    "no number of the optimizer": (
        [*FIT, "--model.optimizer.lr=1e-3x"],
        "--model.optimizer.lr: expected float, got '1e-3x'",
    ),
    "no size of a cluster": (
        ["plan", *DATA, "--data.cluster=slurm", "--data.cluster.memory=8gigs"],
        "data.cluster.memory: expected a size such as '8 GB' or '500 MiB', got '8gigs'",
    ),
    "no logger that is installed": (
        [*FIT, "--trainer.max_steps=3", "--trainer.logger=CometLogger"],
        "--trainer.logger: Requirement 'comet-ml",
        "Leave --trainer.logger out",
    ),
    "no mode of a callback": (
        [
            *(*FIT, "--trainer.callbacks+=EarlyStopping"),
            *("--trainer.callbacks.monitor=val_loss", "--trainer.callbacks.mode=big"),
        ],
        "--trainer.callbacks.mode: `mode` can be min, max, got big",
    ),
    "no number of a cluster": (
        ["plan", *DATA, "--data.cluster=slurm", "--data.cluster.cores=x"],
        "--data.cluster.cores: expected int or null, got 'x'",
    ),
    "no list": (
        [*FIT, "--model.network.widths=3"],
        "--model.network.widths: expected a list of int, such as [1, 2], got '3'",
    ),
    "no list of two": (
        [*FIT, "--data.solver.cells=3"],
        "--data.solver.cells: expected a list of 2 int, such as [1, 2], got '3'",
    ),
    "a rate below 0": (
        [*FIT, "--model.optimizer.lr", "-1"],
        "model.optimizer: Invalid learning rate: -1.0",
    ),
    "a rate that is no number": (
        [*FIT, "--model.optimizer.lr=.nan"],
        "Invalid learning rate: nan",
    ),
    "no rate": (
        [*FIT, "--model.optimizer=SGD", "--model.optimizer.lr=0"],
        "model.optimizer.lr: expected a finite number above 0, got 0.0",
    ),
    "an unlimited rate": ([*FIT, "--model.optimizer.lr=.inf"], "above 0, got inf"),
    "no length of a schedule": (
        [*FIT, "--model.scheduler=OneCycleLR", "--model.scheduler.max_lr=1"],
        "model.scheduler: You must define either",
    ),
    "a plateau of nothing": (
        [*FIT, "--model.scheduler=pytorch_lightning.cli.ReduceLROnPlateau"],
        "--model.scheduler: ReduceLROnPlateau needs 'monitor'",
    ),
    "a plateau of another thing": (
        [
            *(*FIT, "--model.scheduler=pytorch_lightning.cli.ReduceLROnPlateau"),
            "--model.scheduler.monitor=val_relativel2",
        ],
        "no metric 'val_relativel2'. Did you mean 'val_relative_l2'",
    ),
    "no list of the optimizer": (
        [*FIT, "--model.optimizer.betas=1"],
        "--model.optimizer.betas: expected a list of 2 float, such as [0.5, 1.0]",
    ),
    "no list that closes": ([*FIT, "--data.solver.cells=[4"], "a list of 2 int"),
    "no whole number": (
        [*FIT, "--data.held_out", "1e1"],
        "--data.held_out: expected int or null, got '10.0'",
    ),
    "a workflow in another folder": (
        [*FIT, "--data.name=.."],
        "data: name: expected text without '/', of more than dots, and without blanks "
        "around it, got '..'. Rename it.",
    ),
    "a workflow within another": ([*FIT, "--data.name=a/b"], "data: name: expected"),
    "no held-out simulation": (
        [*FIT, "--data.held_out=0"],
        "expected at least 1, got 0",
        "--trainer.limit_val_batches 0",
    ),
    "no whole number of the trainer": (
        [*FIT, "--trainer.max_steps=1e3"],
        "--trainer.max_steps: expected int, got '1000.0'",
    ),
    "an empty value": ([*FIT, "--data.simulations="], "--data.simulations: expected"),
    "two classes of a name": (
        [*FIT, "--model.scheduler=ReduceLROnPlateau"],
        "--model.scheduler: ",
        "torch.optim.lr_scheduler.ReduceLROnPlateau",
    ),
    "none of some words and numbers": (
        [*FIT, "--trainer.precision=12"],
        "--trainer.precision: expected one of 64, 32, 16, 'transformer-engine'",
        "or null, got '12'",
    ),
    "no accelerator of Lightning": (
        [*FIT, "--trainer.accelerator=quantum"],
        "--trainer.accelerator: ",
        "Available names are: ",
        "Leave --trainer.accelerator out",
    ),
    "no strategy of Lightning": (
        [*FIT, "--trainer.devices=2", "--trainer.strategy=nonsense"],
        "--trainer.strategy: ",
        "Leave --trainer.strategy out",
    ),
    "no number of devices": (
        [*FIT, "--trainer.accelerator=cpu", "--trainer.devices=many"],
        "--trainer.devices: ",
    ),
    "no batches to accumulate": (
        [*FIT, "--trainer.accumulate_grad_batches=0"],
        "--trainer.accumulate_grad_batches: expected more than 0, got 0",
    ),
    "no batches between validations": (
        [*FIT, "--trainer.val_check_interval=0"],
        "--trainer.val_check_interval: expected more than 0, got 0",
    ),
    "no steps to train": ([*FIT, "--trainer.max_steps=-5"], "--trainer.max_steps: "),
    "none of some words": (
        [*FIT, "--model.normalisation=standart"],
        "--model.normalisation: expected one of 'standard', 'none', got 'standart'",
    ),
    "code in a checkpoint": (
        [*FIT, "--weights_only=false"],
        "--weights_only: expected true, got false",
    ),
    "capacity below threshold": (
        [*FIT, "--data.reservoir.capacity=500", "--data.reservoir.threshold=501"],
        "threshold",
    ),
    "capacity below a batch": (
        [*FIT, "--data.reservoir.capacity=5", "--data.reservoir.threshold=5"],
        "batch",
    ),
    "simulations shorter than a sample": (
        [*FIT[:3], "--model=fully_connected_autoregressive", *SMALL],
        "at least 3 steps",
    ),
    "threshold never reached": ([*FIT, *SMALL, "--data.simulations=3"], "threshold"),
    "bounds upside down": (
        [*FIT, "--data.solver.low=500", "--data.solver.high=100"],
        "500",
    ),
    "no cells": ([*FIT, "--data.solver.cells=[0,4]"], "cells"),
    "no simulations": ([*FIT, "--data.simulations=0"], "simulations", "at least 1"),
    "no activation": (
        [*FIT, "--model.network.activation", "3"],
        "activation of FullyConnected: expected one such as",
        "got '3'",
    ),
    "no class of a queue": (
        [
            *("fit", *DATA, *MODEL, "--data.cluster=surrogate_flow.cluster.JobQueue"),
            "--data.cluster.cluster_class=3",
        ],
        "data.cluster.cluster_class: expected one such as",
    ),
    "no widths": ([*FIT, "--model.network.widths=[]"], "widths"),
    "no data set": (["fit", "--data=x.zarr", *MODEL], "x.zarr is no data set"),
    "too large a reservoir": (
        [*FIT, "--data.reservoir.capacity=8 TiB"],
        "8.00 TiB",
        "Lower capacity",
    ),
    "too many held out": (
        [*FIT, "--data.held_out=1000000"],
        "TiB",
        "Lower data.held_out",
    ),
}

# The text of a workflow's recipe, then what the line must have behind its name.
RECIPES = {
    "nothing": ("", "expected a mapping of names to values, got NoneType"),
    "a list": ("- 1", "expected a mapping of names to values, got list"),
    "no YAML": ("a: [1", "not valid YAML", "line 1"),
    "settings of the trainer": (
        f"solver: {HEAT}\ntrainer: {{max_epochs: 3}}",
        "expected the arguments of --data alone, got settings of a run (trainer)",
    ),
    "a key that is no text": (
        "1: 2",
        "expected a mapping of names to values, got dict",
    ),
    "argument": ("simulation: 3", "'simulation' of OnlineData", "'simulations'"),
    "no solver": ("simulations: 3", "OnlineData needs 'solver'"),
    "class": (
        "solver: {class_path: surrogate_flow.solvers.Heat2}",
        "solver: class_path",
        "has no 'Heat2'. Did you mean 'Heat2D'",
    ),
    "class as text": ("solver: surrogate_flow.solvers.Heat2", "solver: ", "'Heat2D'"),
    "module": (
        "solver: {class_path: surrogate_flo.Heat2D}",
        "solver: ",
        "cannot import 'surrogate_flo'",
    ),
    "nested argument": (
        f"solver: {{class_path: {HEAT}, init_args: {{cell: [9, 9]}}}}",
        "solver.cell: unknown argument 'cell' of Heat2D. Did you mean 'cells'",
    ),
    "key": (
        f"solver: {{class_path: {HEAT}, init_arg: {{}}}}",
        "solver: unknown key 'init_arg'. Did you mean 'init_args'",
    ),
    "class that is no text": (
        "solver: {class_path: 3}",
        "solver: class_path: expected 'package.module.Class', got 3",
    ),
    "arguments that are no mapping": (
        f"solver: {{class_path: {HEAT}, init_args: [1]}}",
        "solver: expected a mapping of names to values, got list",
    ),
    "argument of a dataclass": (
        "faults: {retry: 3}",
        "faults.retry: ",
        "Did you mean 'retries'",
    ),
    "limiter": (
        "reservoir: {class_path: surrogate_flow.reservoir.Reservoir, "
        "init_args: {limiter: {ratios: 4}}}",
        "reservoir.limiter.ratios: ",
        "Did you mean 'ratio'",
    ),
    "a number in another form": (
        f"solver: {HEAT}\nsimulations: 1e3",
        "simulations: expected int or null, got '1000.0'",
    ),
    "bare class": (
        "reservoir: Resevoir",
        "reservoir: no class 'Resevoir'. Did you mean 'Reservoir'",
    ),
    "value": (
        f"solver: {{class_path: {HEAT}, init_args: {{steps: many}}}}",
        "solver.steps: expected int, got 'many'",
    ),
    "no such name": ("solver: own_solvers.Other", "'own_solvers' has no 'Other'"),
    "no solver's class": (
        "solver: {class_path: own_solvers.NoSolver}",
        "solver: expected a subclass of Solver, got NoSolver",
    ),
    "abstract": (
        "solver: own_solvers.NoSolve",
        "NoSolve has no solve yet",
    ),
    "abstract, or null": (
        f"solver: {HEAT}\nsampler: own_solvers.NoAsk",
        "NoAsk has no ask yet",
    ),
    "required": (
        "solver: own_solvers.Sized",
        "solver: Sized needs 'size', which has no default",
    ),
    "value that may be none": (
        f"solver: {HEAT}\nsimulations: many",
        "simulations: expected int or null, got 'many'",
    ),
    "behind a protocol": (
        "solver: {class_path: own_solvers.Own, init_args: "
        "{scheme: {class_path: own_solvers.Euler, init_args: {oder: 2}}}}",
        "solver.scheme.oder: ",
        "Did you mean 'order'",
    ),
}

# The same for the recipe of a cluster.
CLUSTERS = {
    "no class": ("n_workers: 2", "expected class_path, and its arguments in init_args"),
    "a list": ("- a", "expected a mapping of names to values, got list"),
    "unknown class": (
        "class_path: dask_jobqueue.SLURMClustr",
        "Did you mean 'SLURMCluster'",
    ),
    "unknown key": (f"{QUEUE}\ndict_kwarg: {{}}", "Did you mean 'dict_kwargs'"),
    "unknown argument": (
        "class_path: distributed.LocalCluster\ninit_args: {n_worker: 2}",
        "n_worker: unknown argument 'n_worker' of LocalCluster",
        "Did you mean 'n_workers'",
    ),
    "unknown argument of a queue": (
        f"{QUEUE}\ninit_args: {{corez: 2}}",
        "unknown argument 'corez' of SLURMCluster. Did you mean 'cores'",
    ),
    "arguments of jobs among its own": (
        f"{QUEUE}\ninit_args: {{n_workers: 2, cores: 2, memory: 2GB}}",
        "passes 'cores' on to its jobs: move it, dict_kwargs: {cores: ...}",
    ),
}

MODULE = """
import typing
from surrogate_flow import Solver
from surrogate_flow.sampling import Sampler
from surrogate_flow.solvers import Heat2D

class NoSolver:
    pass

class NoSolve(Solver):
    spec = None

class NoAsk(Sampler):
    def block(self, index, dimensions):
        return []

class NoSpec(Solver):
    def solve(self, parameters):
        yield

class Text(NoSpec):
    spec = "nothing"

class Stepping(Heat2D):
    def solve(self, parameters, dt):
        yield

class Unset(NoSpec):
    @property
    def spec(self):
        return self.mesh

class Fails(Heat2D):
    def __init__(self):
        open("no.msh")

class Exits(Heat2D):
    def __init__(self):
        raise SystemExit(0)

class Method(NoSpec):
    def spec(self):
        return None

class Sized(Heat2D):
    def __init__(self, size: int, *, steps: int = 10):
        super().__init__(steps=steps)

class Scheme(typing.Protocol):
    def step(self, x: float) -> float: ...

class Euler:
    def __init__(self, order: int = 1): ...
    def step(self, x: float) -> float: ...

class Own(Heat2D):
    def __init__(self, scheme: Scheme | None = None):
        super().__init__()
"""

# Other modules of the user's.
BROKEN = {
    "broken_syntax": "class Wave\n",
    "broken_import": "import pandass\n",
    "broken_name": "nothing\n",
    "broken_variable": "import os\nos.environ['NOT_SET']\n",
    "broken_words": "import sys\nsys.exit(2)\n",
    "wave": "class Wave: ...\n",
    "own_networks": """
import torch
class Wrong(torch.nn.Linear):
    def __init__(self, spec, window):
        super().__init__(len(spec.parameters), 1)
    def forward(self, parameters, step, history):
        return super().forward(parameters)
class Lazy(torch.nn.Module):
    def __init__(self, spec, window):
        super().__init__()
        self.layer = torch.nn.LazyLinear(7)
    def forward(self, parameters, step, history):
        field = torch.zeros(len(step), 1, 1, 100, 5) + parameters[:, :1, None, None, None]
        return self.layer(field)
class Two(torch.nn.Module):
    def __init__(self, spec, window):
        super().__init__()
        self.layer = torch.nn.Linear(5, 10000)
    def forward(self, parameters, step, history):
        return self.field(parameters), step
    def field(self, parameters):
        return self.layer(parameters).reshape(-1, 1, 1, 100, 100)
class Complex(Two):
    def forward(self, parameters, step, history):
        return 1j * self.field(parameters)
class Detached(Two):
    def forward(self, parameters, step, history):
        return self.field(parameters).detach()
class NoSuper(torch.nn.Module):
    def __init__(self, spec, window):
        self.layer = torch.nn.Linear(5, 10000)
class OfGraph(torch.nn.Conv2d):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1)
    def forward(self, x, edges):
        return super().forward(x)
def function(spec, window):
    return Two(spec, window)
""",
}


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """An empty one with a module of the user's; opening a cluster fails the test."""

    def refuse(*arguments, **others):
        pytest.fail("a cluster was opened")

    monkeypatch.setattr(surrogate_flow.ensemble.study, "open_cluster", refuse)
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    monkeypatch.chdir(tmp_path)
    for name, text in {"own_solvers": MODULE, **BROKEN}.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "heat.zarr").mkdir()
    importlib.import_module("wave")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("own_solvers", "own_networks"):
        sys.modules.pop(name, None)


def error_of(words, capsys):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    shown = err.splitlines()
    assert len(shown) == 1, shown
    assert shown[0].startswith("surrogate-flow: error: ")
    for noise in ("Traceback", "Namespace(", "usage:", "<class", "⟦", "given: none"):
        assert noise not in shown[0]
    return shown[0].removeprefix("surrogate-flow: error: ")


@pytest.mark.parametrize("words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(words, capsys, folder):
    """It says what is wrong, where, and the nearest name; nothing is left behind."""
    words, *expected = words
    error = error_of(words, capsys)
    for part in expected:
        assert part in error
    assert not list(folder.rglob("runs/**/*.*"))


def test_an_import_that_fails_is_not_for_want_of_a_path(capsys, monkeypatch):
    """The folder is named where it is missing, and only there."""
    Path("broken_solvers.py").write_text("import nonsense_of_mine\nclass A: ...\n")
    error = error_of(["check", "broken_solvers.A"], capsys)
    assert "No module named 'nonsense_of_mine'" in error
    assert "PYTHONPATH=" not in error
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(Path.cwd())])
    error = error_of(["check", "broken_solvers.A"], capsys)
    assert f"type PYTHONPATH={Path.cwd()} before the command" in error


def test_a_dry_run_tries_the_network(capsys):
    """As a fit would."""
    Path("other.yaml").write_text("network: own_networks.Wrong")
    error = error_of(["plan", *DATA, "--model=other.yaml"], capsys)
    assert error.startswith("own_networks.Wrong, called on 2 samples: expected a tens")


def test_a_gpu_that_is_not_there_is_a_mistake(capsys, monkeypatch):
    """What to leave out is said."""
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: False)
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: False)
    error = error_of([*FIT, "--trainer.accelerator", "gpu"], capsys)
    assert "gpu" in error
    assert "Leave --trainer.accelerator out" in error


@pytest.mark.parametrize("row", RECIPES.values(), ids=RECIPES)
def test_a_mistake_in_a_recipe_names_the_file_and_the_place(row, capsys):
    """As one on the command line does the option."""
    text, *expected = row
    Path("wrong.yaml").write_text(text)
    error = error_of(OWN, capsys)
    assert error.startswith("wrong.yaml: ")
    for part in expected:
        assert part in error


@pytest.mark.parametrize("row", CLUSTERS.values(), ids=CLUSTERS)
def test_a_mistake_in_the_recipe_of_a_cluster_names_the_file(row, capsys):
    """Its own, and the workflow's that has it."""
    text, *expected = row
    Path("wrong.yaml").write_text(text)
    errors = [error_of([*FIT, "--data.cluster=wrong.yaml"], capsys)]
    if "class_path" in text:
        lines = "".join(f"  {line}\n" for line in text.splitlines())
        Path("wrong.yaml").write_text(f"solver: {HEAT}\ncluster:\n{lines}")
        errors.append(error_of(OWN, capsys))
        assert errors[-1].startswith("wrong.yaml: cluster")
    for error in errors:
        assert error.startswith("wrong.yaml: ")
        for part in expected:
            assert part in error


def test_settings_of_a_run_are_no_recipe(capsys):
    """How to give them is said."""
    Path("config.yaml").write_text("data: {}\nmodel: {}\n")
    error = error_of(["fit", "--data=config.yaml", *MODEL], capsys)
    assert "Type surrogate-flow fit --config config.yaml" in error


def test_a_logger_begins_no_run_that_cannot_be(capsys, monkeypatch):
    """Nor is its package, which is there but broken, a traceback."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    fit = [*FIT, *SMALL, "--data.simulations=8", "--trainer.logger=wandb"]
    broken = error_of([*fit, "--data.reservoir.threshold=2"], capsys)
    assert broken.startswith("--trainer.logger: import of wandb halted")
    assert "never be reached" in error_of(
        [*fit, "--data.reservoir.threshold=50"], capsys
    )


def test_hardware_that_is_not_there_names_its_options():
    """Lightning names none of them."""
    error = trainer.refused_by_trainer(
        ValueError("You requested gpu: [0, 1]\n But your machine only has: [0]"),
        [
            "--trainer.devices=2",
            "--trainer.accelerator",
            "gpu",
            "--trainer.max_steps=3",
        ],
    )
    assert str(error).startswith("--trainer.devices and --trainer.accelerator: You ")


@pytest.mark.parametrize("text", ["a: [b", "- a", "trainr: {max_steps: 3}"])
def test_broken_settings_of_a_run_are_named(text, capsys):
    """A file given as --config that is none, or has an unknown section."""
    Path("config.yaml").write_text(text)
    error = error_of(["fit", "--config=config.yaml"], capsys)
    assert error.startswith("config.yaml: ")
    assert ("Did you mean '--trainer'" in error) == ("trainr" in text)


@pytest.mark.parametrize("name", ["Text", "Method"])
def test_a_solver_without_a_spec_is_named(name, capsys):
    """However it is given."""
    Path("own.yaml").write_text(f"solver: {{class_path: own_solvers.{name}}}")
    for words in (
        ["--data=own.yaml"],
        ["--data=heat2d", f"--data.solver=own_solvers.{name}"],
        ["--data=surrogate_flow.OnlineData", f"--data.solver=own_solvers.{name}"],
    ):
        error = error_of(["fit", *words, *MODEL], capsys)
        assert f"{name}.spec: expected a FieldSpec" in error


ASK = """
import sys
from surrogate_flow.cli import main
for words in {words!r}:
    try:
        main(words)
    except SystemExit as ended:
        assert ended.code == 2
heavy = {{"torch", "pytorch_lightning", "distributed", "jsonargparse"}}
print(sorted(heavy & set(sys.modules)))
"""
AT_ONCE = (
    *("a command that is none", "missing recipe", "missing model", "missing cluster"),
    *("missing settings", "missing checkpoint", "no data"),
)


def test_a_misspelt_command_or_file_is_answered_at_once():
    """In a process of their own: before the imports, which take seconds."""
    words = [MISTAKES[name][0] for name in AT_ONCE]
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(words=words)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
    for name, line in zip(AT_ONCE, done.stderr.splitlines(), strict=True):
        for part in MISTAKES[name][1:]:
            assert part in line


def test_a_text_that_is_not_known_loses_its_noise(capsys):
    """What no pattern translates is shown as jsonargparse has it."""
    message = (
        'Parser key "data":\n  Does not validate against any of the Union subtypes\n'
        "  Subtypes: [<class 'Data'>]\n  Errors:\n    - A new complaint\n"
        "    - Expected a <class 'NoneType'>\n  Given value: Namespace(a=1)"
    )
    error = explain.Complaint(message, ArgumentParser()).explained()
    assert str(error) == "A new complaint"


@pytest.mark.parametrize(
    "recipe",
    [
        f"{QUEUE}\ndict_kwargs: {{corse: 2}}",
        "class_path: surrogate_flow.cluster.Slurm\ninit_args: {options: {corse: 2}}",
    ],
)
def test_an_option_of_jobs_that_is_none_is_refused_before_a_cluster_opens(
    recipe, capsys
):
    """Whichever way it is given."""
    Path("wrong.yaml").write_text(recipe)
    with pytest.raises(SystemExit):
        main([*FIT, "--data.cluster=wrong.yaml"])
    said = capsys.readouterr().err
    assert "unknown argument 'corse' of SLURMCluster. Did you mean 'cores'" in said
    assert said.count("\n") == 1
