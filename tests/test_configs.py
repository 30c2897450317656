"""Every experiment, as it is and under each of its controls, composes, passes the check, and binds to real objects."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lab.check import check
from lab.claim import Claim
from lab.compose import compose
from lab.compose.files import experiments, source
from lab.data.sources import SOURCES
from lab.models.stepped import _cut
from lab.pictures import Picture

CASES = [(name, control) for name in experiments() for control in (None, *source(name)["controls"])]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory, planetoid: Any) -> Path:
    """A data root with files of every data set that is not shipped: the format of the real ones, random content."""
    root = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 256, (6000, 28, 28), dtype=np.uint8)
    planetoid(root, "cora", d=1433, classes=7)
    planetoid(root, "citeseer", d=3703, classes=6)
    for known in (SOURCES[name] for name in SOURCES.keys() - {"cora", "citeseer"}):
        for name in known.files:
            path = root / known.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = pixels if "images" in name else pixels[:, 0, 0]
            path.write_bytes(
                struct.pack(f">4B{content.ndim}I", 0, 0, 8, content.ndim, *content.shape) + content.tobytes()
            )
    (root / "text.txt").write_text("the cat sat on the mat; the rat ran from the cat\n" * 600, encoding="utf-8")
    return root


def composed(name: str, control: str | None, data_root: Path) -> DictConfig:
    overrides = [f"experiment={name}", "seed=3", f"data_root={data_root}", f"run_dir={data_root / 'run'}"]
    if control is not None:
        overrides += [f"control={control}", *source(name)["controls"][control]["overrides"]]
    return compose([*overrides, "trainer.accelerator=cpu"])


def inherited(name: str, control: str) -> bool:
    """Whether a `_large` experiment has this control word for word from one that is not: its model is made once."""
    own = source(name)["controls"][control]
    smaller = (other for other in experiments() if not other.endswith("_large"))
    return name.endswith("_large") and any(source(other)["controls"].get(control) == own for other in smaller)


def test_every_experiment_is_here() -> None:
    assert {name for name, control in CASES if control is None} == set(experiments())
    assert all(any(control for experiment, control in CASES if experiment == name) for name in experiments())


@pytest.mark.parametrize(("name", "control"), CASES)
def test_a_config_composes_checks_and_binds(name: str, control: str | None, data_root: Path) -> None:
    cfg = composed(name, control, data_root)
    check(cfg)
    assert not list(data_root.glob("run*"))
    torch.set_num_threads(cfg.threads)

    for node in cfg.pictures.values():
        assert isinstance(instantiate(node), Picture)
    claims = {key: instantiate(node) for key, node in cfg.claims.items()}
    assert all(isinstance(claim, Claim) for claim in claims.values())
    if control is not None:
        plain = composed(name, None, data_root)
        if (cfg.data, cfg.model) == (plain.data, plain.model) or inherited(name, control):
            return  # the rest is seen without the control, or of a smaller model

    trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert trainer.max_steps == cfg.trainer.max_steps
    for node in cfg.callbacks.values():
        instantiate(node)

    data = instantiate(cfg.data)
    data.trainer = trainer
    data.prepare_data()
    data.setup("fit")
    with trainer.init_module():
        model = instantiate(cfg.model)
    model.trainer = SimpleNamespace(datamodule=data, max_steps=cfg.trainer.max_steps)
    model.setup("fit")
    assert model.configure_optimizers()

    torch.manual_seed(0)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.01)  # weights that start at 0 hold gradients back from what lies before them

    block = data.block(0, 2)
    assert len(block) == 2
    rows = 32 if sum(p.numel() for p in model.parameters()) < 5 * 10**7 else 1  # of a large model few are enough
    loss, logged = model.objective(_cut(next(iter(model.batches(block))), 0, rows))
    assert torch.isfinite(loss)
    assert logged
    loss.backward()
    trained = {key: p.grad is not None and bool(p.grad.any()) for key, p in model.named_parameters()}
    assert all(trained.values()), f"no gradient reaches {[key for key, reached in trained.items() if not reached]}"

    for key, claim in claims.items() if control is None else ():
        predicted = claim.predict(data)
        assert np.isfinite(predicted.value).all(), key
        if predicted.x is not None:
            assert claim.x_symbol, f"{key} is a curve whose axis has no name"
