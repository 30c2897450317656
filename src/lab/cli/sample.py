"""`lab sample <run directory>`: draw from the model that a run has trained."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lab.cli.arguments import Arguments
from lab.errors import HOLDS, Refusal
from lab.rundir import RunDir, write_atomically

DESCRIPTION = """\
Draw samples from the model that a run has trained, from the newest whole checkpoint, which may be that of a run that
still goes on. No data are read. They are written as .npy and, where they are images, as .png, sequences as .txt.

The same seed gives the same samples of the same checkpoint."""


def main(argv: list[str]) -> int:
    """Draw and write."""
    arguments = Arguments("sample", DESCRIPTION)
    arguments.add_argument("run_directory", type=Path, help="the folder of the run, outputs/<name>/<id>")
    arguments.add_argument("--count", type=int, default=64, help="how many (64)")
    arguments.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    arguments.add_argument("--out", type=Path, help="folder to write to; default: samples/ in the run directory")
    given = arguments.parse_args(argv)
    for flag, least in (("count", 1), ("seed", 0)):
        if getattr(given, flag) < least:
            raise Refusal(f"--{flag} {getattr(given, flag)} is out of range; allowed: at least {least}")
    run = RunDir(given.run_directory)
    if not run.exists:
        raise Refusal(f"{run.path} is not a run directory: it has no config.yaml")
    checkpoint, _ = run.newest_checkpoint()
    if checkpoint is None:
        raise Refusal(f"{run.path} has no whole checkpoint yet; go on with {run.continued}")
    from lab.reproduce import refuse_strangers

    refuse_strangers(run.path, run.read_config())
    return _write(run, checkpoint, given.count, given.seed, given.out or run.path / "samples")


def _write(run: RunDir, checkpoint: Path, count: int, seed: int, folder: Path) -> int:
    from lab.run import trained  # first: it hides from torchmetrics what takes seconds to import

    model: Any = trained(run, checkpoint)
    if not callable(getattr(model, "sample", None)):
        raise Refusal(f"{run.path} is a run of {type(model).__name__}, which draws no samples")
    import numpy as np

    from lab.random import generator

    samples = model.sample(count, generator(seed, "sample")).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{checkpoint.stem}-seed-{seed}"
    array = io.BytesIO()
    np.save(array, samples)
    write_atomically(stem.with_suffix(".npy"), array.getvalue())
    print(f"samples {stem.with_suffix('.npy')}  {'×'.join(map(str, samples.shape))}")
    if callable(getattr(model, "written", None)):
        text = "\n\n".join(model.written(samples)) + "\n"
        write_atomically(stem.with_suffix(".txt"), text)
        print(f"text    {stem.with_suffix('.txt')}\n\n{text}", end="")
    if samples.ndim == 3:
        from lab.figures.images import png

        write_atomically(stem.with_suffix(".png"), png(samples))
        print(f"images  {stem.with_suffix('.png')}")
    return HOLDS
