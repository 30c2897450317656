"""What data, model and claims refuse in each other is told from the config as the objects themselves would tell it."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from lab import binding, check, compose
from lab.data.digits import Digits
from lab.errors import Refusal
from lab.signature.checks import Part, refuses

Make = Callable[..., str]

_numbers = count()
LINEAR, PCA, VAE, GNN = "linear_regression", "pca_autoencoder", "vae", "gnn"
OT, DIGITS = "sinkhorn_ot", "sinkhorn_ot_digits"
K8 = [f"claims.{c}.k=8" for c in ("evidence", "decoder_variance", "aggregate_posterior", "importance_weighted")]
REFUSED = [
    (LINEAR, ["claims.excess_risk.design=smal"], "claims.excess_risk.design=smal is none of data.designs"),
    (LINEAR, ["claims.contraction.design=small"], "claims.contraction.design=small must be tall"),
    (LINEAR, ["claims.contraction.replicates=321"], "claims.contraction.replicates=321 is more than model.record=320"),
    (LINEAR, ["data.designs.small.samples=[7]"], "data.designs.small.samples=[7] must be above d + 3 = 7"),
    (LINEAR, ["data.designs.small.noise=0"], "data.designs.small.noise=0 must be above 0"),
    (LINEAR, ["data.designs.small.replicates=7"], "data.designs.small.replicates=7 must be at least 8"),
    (LINEAR, ["data.designs.wide.samples=[50]"], "data.designs.wide.samples=[50] must be below d = 40"),
    (LINEAR, ["data.designs.tall.samples=[5]"], "data.designs.tall.samples=[5] must be at least d = 10"),
    (LINEAR, ["model.nets.tall.features=11"], "model.nets.tall.features=11 must equal data.designs.tall.d=10"),
    (LINEAR, ["model.record=4000"], "model.record=4000 is more than data.designs.tall.replicates=320"),
    (LINEAR, ["~model.nets.wide"], "data.designs.wide has no counterpart in model.nets"),
    (LINEAR, ["trainer.precision=bf16-true"], "trainer.precision=bf16-true is not allowed"),
    (PCA, ["data.batch_size=1798"], "data.batch_size=1798 is more than the 1797 samples there are"),
    (PCA, ["model.net.d=63"], "model.net.d=63 must be 64"),
    (PCA, ["model.ordered.d=65"], "model.ordered.d=65 must be 64"),
    (PCA, ["model.ordered.k=9"], "must equal model.ordered.k=9"),
    (PCA, ["claims.projector.k=64"], "claims.projector.k=64 must be less than the 64 dimensions of the data"),
    (VAE, ["model.net.d=63"], "model.net.d=63 must be 64"),
    (VAE, ["model.linear.d=65"], "model.linear.d=65 must be 64"),
    (VAE, ["model.shape=[4,16]"], "model.shape=[4, 16] must be [8, 8]"),
    (VAE, ["claims.evidence.k=7"], "claims.evidence.k=7 must equal model.linear.k=8"),
    (VAE, ["model.linear=null", *K8], "model.linear=null is not allowed"),
    (GNN, ["model.nets.gcn.d=9"], "model.nets.gcn.d=9 must be 8"),
    (GNN, ["model.nets.gat.classes=3"], "model.nets.gat.classes=3 must be 2"),
    (GNN, ["model.nets.mlp.dropout=0.5"], "model.nets.mlp.dropout=0.5 must be 0"),
    (GNN, ["claims.mean_accuracy.net=means"], "claims.mean_accuracy.net=means is none of model.nets"),
    (GNN, ["claims.told_apart.net=gcn"], "claims.told_apart.net=gcn is no GIN"),
    (GNN, ["claims.oversmoothing.net=gin"], "claims.oversmoothing.net=gin is no GCN"),
    (OT, ["model.inner.tolerance=1e-8"], "model.inner.tolerance=1e-08 must be at least 5e-07"),
    (OT, ["model.inner.tolerance=1e-8", "trainer.precision=bf16-mixed"], "with trainer.precision=bf16-mixed"),
    (OT, ["trainer.precision=bf16-true"], "trainer.precision=bf16-true is not allowed"),
    (DIGITS, ["model.inner.tolerance=1e-8"], "model.inner.tolerance=1e-08 must be at least 5e-07"),
    (DIGITS, ["trainer.precision=bf16-true"], "trainer.precision=bf16-true is not allowed"),
    (VAE, ["model.net.k=3"], "claims.importance_bounds.evidence=true needs model.net.k of 1 or 2, not 3"),
]


@pytest.mark.parametrize(("experiment", "overrides", "said"), REFUSED)
def test_told_from_the_config_and_by_the_objects(experiment: str, overrides: list[str], said: str) -> None:
    cfg = compose.compose([f"experiment={experiment}", *overrides])
    with pytest.raises(Refusal) as told:
        check.check_config(cfg)
    assert said in str(told.value)
    with pytest.raises(Refusal) as raised:
        ask_the_objects(cfg)
    name = str(raised.value).rpartition("must")[2]  # what stands before may be said by its variable
    assert str(told.value).endswith(name)


@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        *((name, []) for name in (LINEAR, PCA, VAE, GNN, OT, DIGITS)),
        (OT, ["model.inner.tolerance=1e-8", "trainer.precision=64-true"]),
    ],
)
def test_what_is_allowed_is_refused_by_neither(experiment: str, overrides: list[str]) -> None:
    cfg = compose.compose([f"experiment={experiment}", *overrides])
    check.check_config(cfg)
    ask_the_objects(cfg)


def ask_the_objects(cfg: Any) -> None:
    """The checks in the order in which a run comes to them."""
    trainer: Any = SimpleNamespace(
        precision=cfg.trainer.precision,
        max_steps=3,
        global_rank=0,
        world_size=1,
        strategy=SimpleNamespace(root_device="cpu"),
    )
    data, model = instantiate(cfg.data), instantiate(cfg.model)
    data.trainer, trainer.datamodule = trainer, data
    data.place = lambda device: None
    data.setup()
    try:
        model.check(data)
    except Refusal as refusal:
        raise refusal.within("model") from None
    for name, node in cfg.claims.items():
        try:
            instantiate(node).check(data, model)
        except Refusal as refusal:
            raise refusal.within(f"claims.{name}") from None


def test_the_digits_are_as_many_as_their_class_says() -> None:
    data = Digits()
    data.setup()
    assert (Digits.n, Digits.d) == tuple(data.x.shape) == (data.n, data.d)
    assert data.x.dtype == torch.float32


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a module that raises when it is imported, and returns its name."""

    def make(source: str) -> str:
        name = f"checked_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(f"{textwrap.dedent(source)}\nraise AssertionError('imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        return name

    return make


def test_a_check_is_followed(package: Make) -> None:
    source = """
    from lab.errors import Refusal
    class Base:
        size = 3
        def __init__(self, a, b=2): ...
        def check(self, other):
            if self.a > self.size:
                raise Refusal(f"a={self.a} is more than {self.size}")
    class Other:
        def __init__(self, items): ...
    class C(Base):
        def check(self, other):
            super().check(other)
            if not isinstance(other, Other):
                raise Refusal("another kind")
            for name, item in other.items.items():
                least: int = min(item)
                if least < self.b:
                    raise Refusal(f"items.{name}={item} must be at least {self.b}, of {', '.join(other.items)}")
            unknown = open(self.a)
            if unknown:
                raise Refusal("not to be told")
            if other.length > 3:
                raise Refusal("not to be told either")
    """
    name = package(source)

    def part(what: str, **given: Any) -> Part:
        return Part({"_target_": f"{name}.{what}", **given})

    other = part("Other", items={"x": [2, 3], "y": [1]})
    assert refuses(part("C", a=4), other) == "a=4 is more than 3"
    assert refuses(part("C", a=1), other) == "items.y=[1] must be at least 2, of x, y"
    assert refuses(part("C", a=1, b=1), other) == ""
    assert refuses(part("C", a=1), part("Base", a=1)) == "another kind"


def test_nothing_is_called_that_is_not_known(package: Make, tmp_path: Path) -> None:
    source = """
    from lab.errors import Refusal
    class C:
        def __init__(self, a): ...
        def check(self):
            if __import__("os").mkdir(self.a) or self.a.__class__ or open(self.a, "w"):
                raise Refusal("called")
    """
    made = tmp_path / "made"
    assert refuses(Part({"_target_": f"{package(source)}.C", "a": str(made)})) == ""
    assert not made.exists()


def test_a_variable_is_named_where_a_check_blames_what_it_sets() -> None:
    raw = compose.compose([f"experiment={PCA}", "model.ordered.k=9"])
    config, written = compose.plain(raw), compose.plain(raw, resolve=False)
    with pytest.raises(Refusal, match=r"^k=8 \(claims.ordered_eigenvectors.k is \$\{k\}\) must equal"):
        binding.check_parts(config, written)
