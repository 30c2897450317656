"""The same config gives the same run."""

from __future__ import annotations

from typing import Any

import pytest

EXPERIMENTS = ["pca_autoencoder", "linear_regression", "vae", "diffusion", "sinkhorn_ot", "gnn", "transformer"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_same_seed_gives_bitwise_the_same_run(experiment: str, finished: Any, words: Any) -> None:
    first, second = (finished(words(experiment), again=i) for i in (0, 1))
    assert first.path != second.path
    assert first.differs_from(second) == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_another_seed_gives_another_run(experiment: str, finished: Any, words: Any) -> None:
    run = finished(words(experiment))
    assert {"metrics.csv", "claims", *run.weights} <= set(run.differs_from(finished(words(experiment, "seed=1"))))
