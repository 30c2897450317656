"""The same config gives the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = ["pca_autoencoder", "linear_regression", "vae", "diffusion", "sinkhorn_ot", "gnn", "transformer"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_same_seed_gives_bitwise_the_same_run(
    experiment: str, start: Any, finished: Any, words: Any, outcome: Any, tmp_path: Path
) -> None:
    """In a process of its own, whose hashes and addresses are others, and in a fork of one that has imported all."""
    code, err = start(tmp_path / "run", words(experiment)).end()
    assert code in (0, 3), err
    assert outcome(tmp_path / "run").differs_from(finished(words(experiment))) == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_another_seed_gives_another_run(experiment: str, finished: Any, words: Any) -> None:
    run = finished(words(experiment))
    assert {"metrics.csv", "claims", *run.weights} <= set(run.differs_from(finished(words(experiment, "seed=1"))))
