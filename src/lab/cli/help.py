"""`lab --help`: static text, so that it is there at once."""

from __future__ import annotations

HELP = """\
lab: training runs that hold a textbook's theorems against what a trained model does

usage
  lab experiment=<name> [key=value ...]   run an experiment and judge its claims
  lab run_dir=<path>                      continue the run in that folder from its frozen config
  lab -m experiment=<name> key=1,2,4 ...  every value in a run of its own; one table, one figure
  lab list                                every experiment by chapter, its claims, when it was last verified here
  lab show <name>                         the theory page, the claims, the controls and the composed config
  lab verify [name ...] [--controls] [--seeds N]
                                          run experiments, and their controls, and say what is as theory says
  lab record <run directory>              keep a finished run's verdict and figure in experiments/<name>/
  lab compare <run, sweep, folder or wandb://entity/project> ... [--by key] [--metric name] [--html FILE] [--csv FILE]
                                          runs made anywhere in one table, one figure, one page
  lab reproduce <run directory>           run again what was recorded and say what agrees
  lab sample <run directory> [--count N] [--seed S] [--out FOLDER]
                                          draw from the trained model's newest checkpoint
  lab status <sweep>                      which of a sweep's runs are queued, running, done or failed, and why
  lab cancel <sweep>                      take what SLURM still queues or runs of it off the cluster
  python -m lab ...                       the same; `lab <verb> --help` says more

examples
  lab experiment=pca_autoencoder
  lab experiment=pca_autoencoder seed=1 trainer.devices=2 logger=none
  lab experiment=pca_autoencoder k=4 model.optimizer.lr=3e-3
  lab experiment=pca_autoencoder run_dir=runs/a     again: resumes it, or shows its verdict when it has finished
  lab -m experiment=pca_autoencoder model.net.k=2,4,8 'seed=range(5)'
  lab -m experiment=linear_regression sweep=step_size       search, and find the optimum that theory predicts
  lab -m experiment=pca_autoencoder k=2,4,8 hydra/launcher=slurm      as a SLURM job array; then lab status, lab cancel
  lab experiment=pca_autoencoder --cfg job          print the composed config and run nothing

the same for every experiment
  seed=0                      every draw and the order of the data are functions of it
  trainer.devices=1           processes that train together; a count, a list of GPUs, or auto
  trainer.strategy=auto       ddp, or fsdp, which spreads the weights over the processes
  trainer.accelerator=auto    cpu, gpu, cuda, mps or auto
  trainer.max_steps=...       optimiser steps
  run_dir=<path>              default: outputs/<experiment>/<id>
  data_root=data              where downloaded data sets lie; the variable LAB_DATA sets it too
  logger=none                 no wandb; metrics.csv is always written

  Any parameter of a class that the config names can be set, whether or not a file mentions it.
  A misspelt one is refused with the nearest right name.

Hydra's flags
  --cfg job|hydra|all  --package KEY  --resolve  --info [all|config|defaults|defaults-tree|plugins|searchpath]
  -m, --multirun       --hydra-help   --version  --config-dir DIR  --config-name NAME  --config-path DIR
  tab completion: eval "$(lab -sc install=bash)"

exit codes
  0 every claim holds   1 crash   2 refused: bad configuration or input   3 a claim was refuted (a sweep goes on)
"""


def main(argv: list[str]) -> int:
    """Print the help."""
    print(HELP, end="")
    return 0
