"""The lab's run under Hydra's own launchers: what `sweep.py` holds `lab -m` against.

    python scripts/bench/_app.py -m experiment=… seed='range(8)' hydra/launcher=basic hydra/sweeper=basic …

Composing is Hydra's, once a job; the job itself is the lab's, in the process that the launcher gives it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lab import paths
from lab.launch import launch

os.environ.setdefault("OMP_NUM_THREADS", "1")


@hydra.main(version_base="1.3", config_path=str(paths.CONF), config_name="config")
def main(cfg: DictConfig) -> None:
    """One job: run and judge, saying nothing."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        launch(cfg)


if __name__ == "__main__":
    main()
