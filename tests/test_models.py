"""Losses and steps against what they are defined as: explicit averages, closed-form gradients, a loop by hand."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lab.data.digits import CentredImages
from lab.data.gaussian_regression import Design, GaussianRegression
from lab.errors import Refusal
from lab.models.least_squares import LeastSquares
from lab.models.reconstruction import Reconstruction, nested_error, reconstruction_error, tied_error
from lab.models.stepped import SteppedModule
from lab.nets.autoencoder import LinearAutoencoder, OrderedAutoencoder
from lab.nets.linear import ReplicatedLinear

pytestmark = pytest.mark.usefixtures("one_thread")

SGD = partial(torch.optim.SGD, lr=1.0)


close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-13)
"""Equal but for rounding in double precision; single precision anywhere on the way is seen."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fit(model: pl.LightningModule, data: pl.LightningDataModule, steps: int) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    return trainer


class Layered(SteppedModule):
    """Networks as they come: layers in a list, networks in a dictionary, one without weights."""

    def __init__(self) -> None:
        super().__init__(SGD)
        self.net = nn.Module()
        self.net.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))
        self.net.head = nn.Linear(4, 2, bias=False)
        self.nets = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False)})
        self.activation = nn.ReLU()


@pytest.fixture
def two_ranks() -> Iterator[Any]:
    """The mesh of rank 0 of 2, of which the other answers nothing."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    torch.distributed.destroy_process_group()


def test_every_network_is_split_over_the_ranks_layer_by_layer(two_ranks: Any) -> None:
    model: Any = Layered()
    model.configure_model()
    assert type(model.net.head.weight) is nn.Parameter, "only a strategy that splits gives a mesh"
    model._device_mesh = two_ranks
    model.configure_model()
    assert {name: tuple(p.to_local().shape) for name, p in model.named_parameters()} == {
        "net.layers.0.weight": (2, 4),
        "net.layers.1.weight": (2, 4),
        "net.head.weight": (1, 2 * 2),
        "nets.a.weight": (2, 4),
    }
    together = [name for name, module in model.named_modules() if isinstance(module, torch.distributed.fsdp.FSDPModule)]
    assert together == ["net", "net.layers.0", "net.layers.1", "nets.a"]


def test_what_cannot_be_split_is_refused(two_ranks: Any) -> None:
    model: Any = Layered()
    model._device_mesh = two_ranks
    model.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(Refusal, match="the model has weights outside its networks"):
        model.configure_model()
    _, model = regression()
    model._device_mesh = two_ranks
    with pytest.raises(Refusal, match="LeastSquares needs its weights whole"):
        model.configure_model()


# ------------------------------------------------------------------------------------------------------- reconstruction


def test_the_reconstruction_error_is_a_mean_over_samples() -> None:
    x, x_hat = normal(5, 3), normal(5, 3, seed=1)
    by_hand = sum(
        float(a - b) ** 2 for row, other in zip(x, x_hat, strict=True) for a, b in zip(row, other, strict=True)
    )
    assert float(reconstruction_error(x, x_hat)) == pytest.approx(by_hand / 5)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_nested_error_is_the_mean_over_truncations(k: int) -> None:
    x, w = normal(11, 7), normal(7, k, seed=1)
    errors = [reconstruction_error(x, x @ w[:, :j] @ w[:, :j].mT) for j in range(1, k + 1)]
    close(nested_error(x, x @ w, w), torch.stack(errors).mean())
    close(tied_error(x, x @ w, w), errors[-1])


def test_the_gradient_of_the_nested_error_is_its_slope() -> None:
    x, w = normal(6, 4), normal(4, 3, seed=1).requires_grad_()
    [gradient] = torch.autograd.grad(nested_error(x, x @ w, w), w)
    step = 1e-6
    for i in range(4):
        for j in range(3):
            change = torch.zeros_like(w)
            change[i, j] = step
            ahead, behind = (nested_error(x, x @ v, v).item() for v in (w + change, w - change))
            assert gradient[i, j].item() == pytest.approx((ahead - behind) / (2 * step), rel=1e-6, abs=1e-6)


def test_the_nested_optimum_is_the_eigenvectors_in_order() -> None:
    """Rotating the first two eigenvectors into each other costs the nested error, and the tied one nothing."""
    x = normal(300, 4) * torch.tensor([3.0, 2.0, 1.0, 0.5])
    vectors = torch.linalg.svd(x).Vh[:2].mT
    best = nested_error(x, x @ vectors, vectors)
    for angle in torch.linspace(0.1, 1.5, 8, dtype=torch.float64):
        c, s = angle.cos(), angle.sin()
        turned = vectors @ torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
        assert nested_error(x, x @ turned, turned) > best
        close(tied_error(x, x @ turned, turned), tied_error(x, x @ vectors, vectors))
    close(nested_error(x, -x @ vectors, -vectors), best)


def autoencoder(**options: Any) -> Reconstruction:
    options = {"optimizer": SGD} | options
    return Reconstruction(LinearAutoencoder(5, 2), OrderedAutoencoder(5, 2), **options).double()


@pytest.mark.parametrize("nested", [True, False])
def test_the_objective_is_the_sum_of_both_errors(nested: bool) -> None:
    model, x = autoencoder(nested=nested), normal(9, 5)
    w = model.ordered.weight
    plain = reconstruction_error(x, model.net(x))
    ordered = (nested_error if nested else tied_error)(x, x @ w, w)
    loss, logged = model.objective((x, 1.0))
    close(loss, plain + ordered)
    close(logged, {"loss/net": plain.detach(), "loss/ordered": ordered.detach()})
    close(model.objective((x, 0.25))[0], loss / 4)


class Handful(CentredImages):
    """Twelve images of one row."""

    def images(self) -> Tensor:
        return normal(12, 1, 5, seed=7)


def test_every_step_of_a_block_steps_optimiser_and_schedule() -> None:
    """Seven steps in blocks of three are seven updates, each at its own rate of the schedule."""
    rates = [0.05, 0.04, 0.03, 0.02, 0.01, 0.005, 0.0025]
    schedule = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: ([*rates, 0.0])[step])
    model, data = autoencoder(scheduler=schedule), Handful(batch_size=4, seed=1, block_size=3)
    by_hand = autoencoder()
    assert fit(model, data, 7).global_step == 7
    for step, rate in enumerate(rates):
        loss, _ = by_hand.objective((data.x[data.order.batch(step)], 1.0))
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for p, gradient in zip(by_hand.parameters(), gradients, strict=True):
                p -= rate * gradient
    for (name, p), q in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        close(p, q, msg=name)
    assert float(model.lr_schedulers().get_last_lr()[0]) == 0.0


RATE = partial(torch.optim.SGD, lr=0.05)


def trained(steps: int = 7, batch_size: int | None = 4, **options: Any) -> Reconstruction:
    model = Reconstruction(LinearAutoencoder(5, 2), OrderedAutoencoder(5, 2), optimizer=RATE, **options).double()
    fit(model, Handful(batch_size=batch_size, seed=1, block_size=3), steps)
    return model


def by_hand(steps: int, longest: float) -> Iterator[dict[str, Tensor]]:
    """The weights after each step of gradient descent on gradients that are shortened to `longest`."""
    model, data = autoencoder(), Handful(batch_size=4, seed=1)
    data.dtype = torch.float64
    data.setup()
    for step in range(steps):
        loss, _ = model.objective((data.x[data.order.batch(step)], 1.0))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
        with torch.no_grad():
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p -= 0.05 * min(1.0, longest / norm) * gradient
        yield {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("parts", [2, 3, 20])
def test_a_batch_in_parts_is_the_same_step(parts: int, batch_size: int | None) -> None:
    """Parts of one, two and no rows: twenty are more than there are rows."""
    whole, cut = (trained(batch_size=batch_size, accumulate=n).state_dict() for n in (1, parts))
    close(cut, whole)


def test_a_part_holds_only_its_rows_in_the_graph() -> None:
    seen = []

    class Watched(Reconstruction):
        def objective(self, batch: Any) -> Any:
            seen.append(len(batch[0]))
            return super().objective(batch)

    model = Watched(LinearAutoencoder(5, 2), OrderedAutoencoder(5, 2), optimizer=RATE, accumulate=3).double()
    fit(model, Handful(batch_size=4), 2)
    assert seen == [1, 1, 2] * 2


def test_a_long_gradient_is_shortened() -> None:
    *_, expected = by_hand(7, longest=7.0)
    norms = []

    class Watched(Reconstruction):
        def training_step(self, *block: Any) -> dict[str, Any]:
            logged = super().training_step(*block)
            norms.extend(float(metrics["gradient_norm"]) for metrics in logged["metrics"])
            return logged

    model = Watched(LinearAutoencoder(5, 2), OrderedAutoencoder(5, 2), optimizer=RATE, clip=7.0).double()
    fit(model, Handful(batch_size=4, seed=1, block_size=3), 7)
    assert min(norms) < 7 < max(norms), "both kinds must be seen"
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-6, atol=1e-6)  # torch divides by norm + 1e-6


def test_the_average_follows_the_weights_and_is_what_is_left() -> None:
    average = {name: p.detach().clone() for name, p in autoencoder().named_parameters()}
    for step, weights in enumerate(by_hand(7, longest=float("inf"))):
        decay = min(0.3, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in weights}
    close(dict(trained(ema=0.3).named_parameters()), average)
    assert (1 + 2) / (10 + 2) < 0.3 < (1 + 6) / (10 + 6), "both decays must be seen"


@pytest.mark.slow
def test_a_compiled_objective_trains_the_same() -> None:
    close(trained(compiled=True).state_dict(), trained().state_dict())


@pytest.mark.parametrize(
    ("net", "ordered", "said"),
    [
        (LinearAutoencoder(4, 2), OrderedAutoencoder(5, 2), "model.net.d=4 must be 5: the data have 5 dimensions"),
        (LinearAutoencoder(5, 2), OrderedAutoencoder(6, 2), "model.ordered.d=6 must be 5: the data have 5 dimensions"),
    ],
)
def test_nets_of_another_dimension_than_the_data_are_refused(
    net: LinearAutoencoder, ordered: OrderedAutoencoder, said: str
) -> None:
    with pytest.raises(Refusal, match=said):
        fit(Reconstruction(net, ordered, optimizer=SGD), Handful(), 1)


def test_data_of_another_kind_are_refused() -> None:
    with pytest.raises(Refusal, match="Reconstruction trains on no other"):
        fit(autoencoder(), regression()[0], 1)
    with pytest.raises(Refusal, match="LeastSquares trains on no other"):
        fit(regression()[1], Handful(), 1)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"optimizer": partial(torch.optim.SGD, lr=-1.0)}, "model.optimizer"),
        ({"scheduler": partial(torch.optim.lr_scheduler.MultiplicativeLR, lr_lambda=[])}, "model.scheduler"),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_refused_by_its_key(options: dict[str, Any], key: str) -> None:
    nets = LinearAutoencoder(5, 2), OrderedAutoencoder(5, 2)
    with pytest.raises(Refusal, match=f"^{key} cannot be made: ValueError: "):
        fit(Reconstruction(*nets, **{"optimizer": SGD, **options}), Handful(), 1)


# -------------------------------------------------------------------------------------------------------- least squares


def regression(**options: Any) -> tuple[GaussianRegression, LeastSquares]:
    """A tall design whose replicates differ in size, and a wide one in minibatches."""
    designs = {
        "tall": Design(3, [8, 12], replicates=4, top=4.0, bottom=0.5),
        "wide": Design(6, [4], replicates=2, batch_size=2),
    }
    data = GaussianRegression(designs, seed=5, block_size=3)
    nets = {"tall": ReplicatedLinear(4, 3, 0.7, seed=1), "wide": ReplicatedLinear(2, 6, 0.7, seed=2)}
    return data, LeastSquares(nets, SGD, **{"record": 3, **options}).double()


def ready(data: GaussianRegression, model: LeastSquares, rank: int = 0, ranks: int = 1) -> None:
    """What Trainer.fit does before the first step."""
    data.rank, data.world_size = rank, ranks
    if data.dtype == torch.float32:
        data.dtype = torch.float64
    data.setup()
    data.place(torch.device("cpu"))
    model.trainer = SimpleNamespace(datamodule=data, max_steps=7)  # type: ignore[assignment]
    model.setup("fit")


def closed_form(data: GaussianRegression, model: LeastSquares, step: int) -> dict[str, Tensor]:
    """η_r (AᵀA w − Aᵀy)/m of the m rows in the batch, replicate by replicate, on rows that were not padded."""
    gradients = {}
    for name, design in data.designs.items():
        rows = []
        for r, size in enumerate(design.sizes.tolist()):
            x, y = design.x[r, :size], design.y[r, :size]
            eigenvalues = torch.linalg.eigvalsh(x.mT @ x / size)
            eigenvalues = eigenvalues[eigenvalues > 1e-9]
            eta = 2 / (eigenvalues[-1] + eigenvalues[0])
            if design.batch_size is not None:
                eta = eta * design.batch_size / size
                chosen = data.orders[name].batch(step)
                x, y = x[chosen], y[chosen]
            w = model.nets[name].weight[r].detach()
            rows.append(eta * (x.mT @ x @ w - x.mT @ y) / len(x))
        gradients[name] = torch.stack(rows)
    return gradients


@pytest.mark.parametrize("step", [0, 1, 5])
def test_the_gradient_is_the_closed_form(step: int) -> None:
    data, model = regression()
    ready(data, model)
    loss, logged = model.objective(next(iter(data.block(step, step + 1).batches)))
    loss.backward()
    for name, expected in closed_form(data, model, step).items():
        close(model.nets[name].weight.grad, expected)
        assert f"loss/{name}" in logged


def test_the_logged_loss_is_half_the_mean_square() -> None:
    data, model = regression()
    ready(data, model)
    _, logged = model.objective(next(iter(data.block(0, 1).batches)))
    design, w = data.designs["tall"], model.nets["tall"].weight.detach()
    losses = [
        0.5 * (design.x[r, :size] @ w[r] - design.y[r, :size]).square().mean()
        for r, size in enumerate(design.sizes.tolist())
    ]
    close(logged["loss/tall"].mean(), torch.stack(losses).mean())


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_of_the_ranks_gradients_is_the_gradient(ranks: int) -> None:
    """Also where the rows do not divide evenly: 12 and 2 rows over 3 ranks, one of which gets none."""
    sums: dict[str, Tensor] = {}
    for rank in range(ranks):
        data, model = regression()
        ready(data, model, rank, ranks)
        model.objective(next(iter(data.block(4, 5).batches)))[0].backward()
        for name, net in model.nets.items():
            sums[name] = sums.get(name, 0) + net.weight.grad / ranks
    for name, expected in closed_form(data, model, 4).items():
        close(sums[name], expected)


def test_step_norms_are_the_lengths_of_the_steps() -> None:
    data, model = regression()
    _, by_hand = regression()
    fit(model, data, 7)
    for step in range(7):
        gradients = closed_form(data, by_hand, step)
        close(model.step_norms[step], gradients["tall"][:3].norm(dim=1))
        with torch.no_grad():
            for name, gradient in gradients.items():
                by_hand.nets[name].weight -= gradient
    for name, net in model.nets.items():
        close(net.weight, by_hand.nets[name].weight)
    assert "step_norms" in model.state_dict()


@pytest.mark.parametrize(
    ("nets", "record", "said"),
    [
        ({"tall": (4, 2), "wide": (2, 6)}, 0, "model.nets.tall.features=2 must equal data.designs.tall.d=3"),
        ({"tall": (3, 3), "wide": (2, 6)}, 0, "model.nets.tall.replicates=3 must equal data.designs.tall.replicates=4"),
        ({"tall": (4, 3)}, 0, "data.designs.wide has no counterpart in model.nets"),
        ({"tall": (4, 3), "wide": (2, 6), "more": (1, 1)}, 0, "model.nets.more has no counterpart in data.designs"),
        ({"tall": (4, 3), "wide": (2, 6)}, 5, "model.record=5 is more than data.designs.tall.replicates=4"),
        ({"wide": (2, 6), "tall": (4, 3)}, 3, "model.record=3 is more than data.designs.wide.replicates=2"),
    ],
)
def test_nets_that_do_not_fit_the_designs_are_refused(nets: dict[str, tuple[int, int]], record: int, said: str) -> None:
    data, _ = regression()
    model = LeastSquares({name: ReplicatedLinear(*shape) for name, shape in nets.items()}, SGD, record)
    with pytest.raises(Refusal, match=said):
        fit(model, data, 1)


def test_a_precision_that_loses_the_steps_is_refused() -> None:
    data, model = regression()
    data.trainer = SimpleNamespace(precision="bf16-true", max_steps=3)  # type: ignore[assignment]
    with pytest.raises(Refusal, match=r"trainer.precision=bf16-true is not allowed"):
        model.check(data)


def test_nothing_is_recorded_unless_asked() -> None:
    data, model = regression(record=0)
    fit(model, data, 2)
    assert model.step_norms.numel() == 0
