"""Claims about images of an unknown law, on made images whose law is known: the exact score holds, others do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.algorithms.frechet import frechet_distance
from lab.algorithms.samplers.ddim import DDIM
from lab.algorithms.schedules import Linear, signal_and_noise
from lab.claim import Claim, Evidence, Run, judge
from lab.claims import diffusion_mnist as claims
from lab.data.digits import GreyImages
from lab.data.gaussian_mixture import GaussianMixture
from lab.errors import Refusal
from lab.models.diffusion import Diffusion
from lab.nets.denoiser import MLPDenoiser
from lab.random import generator, normal
from lab.theory import transport, wiener

pytestmark = pytest.mark.usefixtures("one_thread")


class Glyphs(GreyImages):
    """600 images, each one of five black-and-white glyphs of 4×4 pixels; 200 more are held out."""

    n, d, grey, shape = 600, 16, 2, (4, 4)
    glyphs = torch.randint(2, (5, 4, 4), generator=generator(3, "glyphs")).to(torch.uint8)

    def images(self) -> Tensor:
        labels = torch.arange(800) % 5
        self.held_out, self.held_out_labels = self.glyphs[labels[:200]].flatten(1), labels[:200]
        self.labels = labels[200:]
        return self.glyphs[self.labels]


class Exact(torch.nn.Module):
    """v = (α x_t − E[x₀|x_t])/σ of five points that are equally likely, or a v that is wrong."""

    d = 16

    def __init__(self, wrong: Callable[[Tensor], Tensor] = lambda v: v) -> None:
        super().__init__()
        self.points, self.wrong = 2 * Glyphs.glyphs.flatten(1).double() - 1, wrong

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = (v[:, None] for v in signal_and_noise(log_snr.double()))
        distances = (x.double()[:, None] - alpha[:, :, None] * self.points).square().sum(-1)  # (n, 5)
        guess = (-distances / (2 * sigma.square())).softmax(-1) @ self.points
        return self.wrong((alpha * x - guess) / sigma).to(x)


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    data = Glyphs()
    data.setup()
    return data


CLAIMS: dict[str, Claim] = {
    "wiener": claims.Wiener(),
    "gaussian_code": claims.GaussianCode(),
    "any_schedule": claims.AnySchedule(),
    "frechet": claims.Frechet(n=150, steps=16),
}


def model(net: Any = None, **options: Any) -> Diffusion:
    scaled = {"offset": 0.5, "scale": 0.5, "shape": [4, 4], "optimizer": partial(torch.optim.SGD, lr=0.1)}
    return Diffusion(net or Exact(), Linear(), DDIM(), **{**scaled, **options})


def judged(name: str, data: Glyphs, claim: Claim | None = None, net: Any = None) -> Evidence:
    return judge(name, claim or CLAIMS[name], Run(model(net), data))


@pytest.mark.parametrize("name", CLAIMS)
def test_the_exact_score_holds(name: str, glyphs: Glyphs) -> None:
    e = judged(name, glyphs)
    assert e.judged.holds, e.judged


@pytest.mark.parametrize("wrong", [lambda v: v + 1, torch.zeros_like])
@pytest.mark.parametrize("name", ["wiener", "gaussian_code", "frechet"])
def test_a_score_that_is_off_is_refuted(name: str, wrong: Callable[[Tensor], Tensor], glyphs: Glyphs) -> None:
    assert not judged(name, glyphs, net=Exact(wrong)).judged.holds


def test_times_that_do_not_count_by_the_speed_of_the_schedule_are_refuted(glyphs: Glyphs) -> None:
    for weighted in (True, False):
        claim = claims.AnySchedule(weighted, images=1000)
        assert judged("any_schedule", glyphs, claim, Exact(torch.zeros_like)).judged.holds is weighted


@pytest.mark.parametrize(
    ("where", "what", "wrong", "name"),
    [
        (wiener, "linear_mean_squared_error", lambda *_: 0.0, "wiener"),
        (wiener, "linear_bound", lambda *_: 0.1, "gaussian_code"),
        (transport, "bures_wasserstein", lambda *_: 0.0, "frechet"),
    ],
)
def test_a_wrong_formula_is_refuted(
    where: Any, what: str, wrong: Any, name: str, glyphs: Glyphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, what, wrong)
    assert not judged(name, glyphs, net=Exact(lambda v: 0.99 * v)).judged.holds


def test_the_two_sides_measure_the_same_distance() -> None:
    """Theory from moments, the run from samples: two programs for one formula."""
    draw = generator(0, "two sides")
    x, y = (normal(draw, n, 6) @ normal(draw, 6, 6) + n for n in (40, 43))
    moments = [moment for sample in (x, y) for moment in (sample.mean(0), sample.mT.cov())]
    assert frechet_distance(x, y) == pytest.approx(float(transport.bures_wasserstein(*moments)), rel=1e-10)


@pytest.mark.parametrize(
    ("claim", "data", "options", "said"),
    [
        (claims.Wiener(), GaussianMixture(), {}, "must be GreyDigits or GreyMNIST"),
        (claims.Frechet(), Glyphs(), {"scale": 1.0}, "model.offset must be 0.5 and model.scale 0.5"),
        (claims.GaussianCode(least=-9.0), Glyphs(), {}, "least=-9.0 must be -6.0, as model.schedule"),
    ],
)
def test_claims_that_cannot_be_judged_are_refused(claim: Claim, data: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        claim.check(data, model(MLPDenoiser(d=16), **options))


def test_levels_that_do_not_rise_are_refused() -> None:
    with pytest.raises(Refusal, match="least=4 must be below most=4"):
        claims.Wiener(4, 4)
