"""The order of a run before its first step: what is refused there, by which key, and what is not begun before."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from lab import loggers, making
from lab import run as module
from lab.claim import Run
from lab.claims import linear_regression, pca_autoencoder
from lab.compose import compose
from lab.data.gaussian_regression import Design, GaussianRegression
from lab.errors import Refusal
from lab.rundir import RunDir

WIDE = {"d": 8, "samples": [5], "replicates": 2}
SMALL = {"d": 3, "samples": [8, 9], "replicates": 4}


@pytest.mark.parametrize(
    ("key", "node", "said"),
    [
        (
            "data.designs.a",
            {"_target_": "lab.data.gaussian_regression.Design", "d": 3, "samples": [4], "batch_size": 5},
            "data.designs.a.batch_size=5 is more than samples=[4]",
        ),
        ("model", {"_target_": "torch.optim.SGD", "params": []}, "model: ValueError: optimizer got an empty parameter"),
        ("model", {"_target_": "builtins.int", "_args_": ["x"]}, "model: ValueError: invalid literal for int()"),
        ("model", {"_target_": "lab.nowhere.X"}, "model: "),
    ],
)
def test_what_a_constructor_raises_is_refused_by_its_full_key(key: str, node: dict[str, Any], said: str) -> None:
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, key, node, force_add=True)
    top = key.partition(".")[0]
    if top == "data":
        cfg.data._target_ = "lab.data.gaussian_regression.GaussianRegression"
    with pytest.raises(Refusal) as refused:
        making.made(cfg, top)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def fitted(**designs: Any) -> tuple[GaussianRegression, Any]:
    """Data as they are before the first step, and as much of a model as a claim looks at."""
    data = GaussianRegression({name: Design(**options) for name, options in designs.items()})
    data.setup()
    return data, SimpleNamespace(nets=data.designs, record=3)


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (linear_regression.LeastSquaresSolution("smal"), "design=smal is none of data.designs; allowed: small, wide"),
        (linear_regression.LeastSquaresSolution("smal"), "did you mean 'small'?"),
        (linear_regression.ExcessRisk("wide"), "data.designs.wide.samples=[5] must be above d + 3 = 11"),
        (linear_regression.ExcessRisk("edge"), "data.designs.edge.samples=[8, 6] must be above d + 3 = 6"),
        (linear_regression.ExcessRisk("quiet"), "data.designs.quiet.noise=0 must be above 0"),
        (linear_regression.ExcessRisk("few"), "data.designs.few.replicates=3 must be at least 4"),
        (linear_regression.LeastSquaresSolution("wide"), "data.designs.wide.samples=[5] must be at least d = 8"),
        (linear_regression.MinimumNorm("small"), "data.designs.small.samples=[8, 9] must be below d = 3"),
        (linear_regression.Contraction(4, "small"), "replicates=4 is more than model.record=3"),
        (linear_regression.Contraction(1, "wide"), "design=wide must be small, the design whose steps are recorded"),
    ],
)
def test_a_claim_that_cannot_be_judged_on_these_designs(claim: Any, said: str) -> None:
    others = {"edge": {"samples": [8, 6]}, "quiet": {"noise": 0.0}, "few": {"replicates": 3}}
    data, model = fitted(small=SMALL, wide=WIDE, **{name: SMALL | more for name, more in others.items()})
    with pytest.raises(Refusal) as refused:
        claim.check(data, model)
    assert said in str(refused.value)


def test_claims_that_can_be_judged_are_not_refused() -> None:
    data, model = fitted(small=SMALL, wide=WIDE)
    for claim in (
        linear_regression.LeastSquaresSolution("small"),
        linear_regression.ExcessRisk("small"),
        linear_regression.MinimumNorm("wide"),
        linear_regression.Contraction(3, "small"),
    ):
        claim.check(data, model)


@pytest.mark.parametrize("name", ["ReconstructionError", "PrincipalAngles", "Projector", "OrderedEigenvectors"])
def test_components_that_the_data_do_not_have(name: str) -> None:
    data: Any = SimpleNamespace(d=5)
    model: Any = SimpleNamespace(ordered=SimpleNamespace(k=5))
    claim = getattr(pca_autoencoder, name)
    with pytest.raises(Refusal, match="k=5 must be less than the 5 dimensions of the data"):
        claim(5).check(data, model)
    if name.startswith("Ordered"):
        with pytest.raises(Refusal, match=r"k=4 must equal model.ordered.k=5"):
            claim(4).check(data, model)
    else:
        claim(4).check(data, model)


@pytest.mark.parametrize(("codes", "right_angles"), [(1, 1), (2, 0), (3, 1), (4, 2), (5, 2)])
def test_a_space_of_another_dimension_is_not_the_eigenspace(codes: int, right_angles: int) -> None:
    """Even where it lies within the eigenspace, or contains it."""
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([6.0, 5, 4, 3, 2, 1])
    u = torch.linalg.svd(x).Vh.mT
    mix = torch.randn(codes, codes, generator=torch.Generator().manual_seed(1))
    model: Any = SimpleNamespace(net=SimpleNamespace(decoder=u[:, :codes] @ mix))
    angles = pca_autoencoder.PrincipalAngles(2).measure(Run(model, SimpleNamespace(x=x))).value
    expected = [0.0] * (2 - right_angles) + [math.pi / 2] * right_angles
    assert np.asarray(angles) == pytest.approx(expected, abs=1e-5)


def test_wandb_begins_after_the_last_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    began: list[str] = []
    monkeypatch.setattr(loggers.Wandb, "start", lambda self: began.append("wandb"))
    wandb = loggers.Wandb(save_dir=str(tmp_path))
    trainer: Any = SimpleNamespace(datamodule=None, loggers=[wandb], is_global_zero=True, world_size=1)

    def refuse(*_: Any) -> None:
        began.append("claim")
        raise Refusal("k=5 is too many")

    cfg = compose(["experiment=pca_autoencoder", "trainer.accelerator=cpu"])
    claim: Any = SimpleNamespace(check=refuse)
    with pytest.raises(Refusal, match=r"^claims.projector.k=5 is too many"):
        module._BeforeTraining({"projector": claim}, cfg, tmp_path).on_train_start(trainer, None)  # type: ignore[arg-type]
    assert began == ["claim"]
    claim.check = lambda *_: began.append("claim")
    module._BeforeTraining({"projector": claim}, cfg, tmp_path).on_train_start(trainer, None)  # type: ignore[arg-type]
    assert began == ["claim", "claim", "wandb"]
    assert list(tmp_path.iterdir()) == []


def test_lightning_leaves_the_signals_to_the_lab(tmp_path: Path) -> None:
    """Its own handler would run a collective wherever a rank happens to be."""
    cfg = compose(["experiment=pca_autoencoder", "trainer.accelerator=cpu", "logger=none"])
    trainer = making.make_trainer(cfg, RunDir(tmp_path), None, 0, [])
    before = signal.getsignal(signal.SIGTERM)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ranks meet; torch's part of it only notes who came, and to leave is to raise."""
    store = tmp_path / "store"
    monkeypatch.setenv("LAB_RANKS_MEET_AT", str(store))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, rank, **__: store.write_text(str(rank)))
    monkeypatch.setattr("lab.run.leave", lambda signum, _: sys.exit(128 + signum))
    return store


def test_a_rank_that_all_have_seen_comes_and_one_that_is_waiting_may_go(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert not module._come(store, 0, 2, coming=True)
    assert not module._come(store, 0, 2, coming=False)
    assert not module._come(store, 1, 2, coming=True), "rank 0 has gone"
    assert module._come(store, 0, 2, coming=True)
    for rank in (0, 1):
        assert module._come(store, rank, 2, coming=False), "the other may be on its way into torch, where it would wait"


@pytest.mark.parametrize("others", [False, True])
def test_a_stop_while_ranks_meet(others: bool, meeting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is heard while others are missing; where all are there this rank meets them first."""

    def sleep(_: float) -> None:
        if others:
            module._come(meeting, 1, 2, coming=True)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(SystemExit) as left:
        module._meet(0, 2, OmegaConf.create({"trainer": {"accelerator": "cpu"}}))
    assert left.value.code == 128 + signal.SIGTERM
    assert meeting.exists() == others


def test_ranks_that_do_not_come_are_not_waited_for_without_end(meeting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEET_WITHIN", 0.05)
    with pytest.raises(Refusal, match=r"not all of 2 ranks came together in 0.05 s"):
        module._meet(0, 2, OmegaConf.create({"trainer": {"accelerator": "cpu"}}))
    assert not meeting.exists()
