"""A linear autoencoder is principal component analysis.

X (n×d) centred, C = XᵀX/n = UΛUᵀ with λ₁ ≥ … ≥ λ_d, U_k the first k eigenvectors, D (d×k) the decoder, E (k×d) the
encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lab.claim import Claim, Quantity, Run, equal
from lab.data.digits import CentredImages
from lab.errors import Refusal
from lab.models.reconstruction import Reconstruction
from lab.theory import pca as theory
from lab.types import PositiveInt


class _AboutTopK(Claim):
    """A claim about the first k principal components."""

    def __init__(self, k: PositiveInt) -> None:
        self.k = k

    def check(self, data: CentredImages, model: Reconstruction) -> None:
        if self.k >= data.d:
            raise Refusal(
                f"k={self.k} must be less than the {data.d} dimensions of the data: nothing would be discarded"
            )

    def spectrum(self, data: CentredImages) -> tuple[Tensor, Tensor]:
        return theory.principal_components(data.x.double())


class _Angles(_AboutTopK):
    """A claim that k angles are 0."""

    relation = equal(
        "optimisation error: turning uᵢ towards uⱼ by θ rad costs the loss only (λᵢ − λⱼ)θ². Of the digits 3e-3 rad at "
        "most were left, over 20 seeds; an eigenvector taken for another is 1.57 off",
        atol=1e-2,
    )

    def predict(self, data: CentredImages) -> Quantity:
        return Quantity([0.0] * self.k, x=range(1, self.k + 1))


def _right_singular_vectors(x: Tensor) -> Tensor:
    """V of X = QR, R = SΣVᵀ: (n, d) → (d, d), columns by decreasing singular value."""
    triangle = torch.linalg.qr(x.double(), mode="r").R
    return torch.linalg.svd(triangle).Vh.mT


class ReconstructionError(_AboutTopK):
    """The optimal reconstruction error is the sum of the discarded eigenvalues, Σ_{i>k} λᵢ

    min over P of rank k of E‖x − Px‖² = Σ_{i>k} λᵢ.
    """

    reference = "Eckart & Young 1936; Mirsky 1960; Bishop, PRML, §12.1.2"
    symbol = r"$\mathbb{E}\,\|x-\hat x\|^2$"
    relation = equal(
        "optimisation error alone: both sides are about the same sample. It is a third of the 1/n by which a "
        "covariance of the 1797 digits divided by n − 1 would differ",
        rtol=2e-4,
    )

    def predict(self, data: CentredImages) -> Quantity:
        eigenvalues, _ = self.spectrum(data)
        return Quantity(theory.best_reconstruction_error(eigenvalues, self.k))

    def measure(self, run: Run) -> Quantity:
        x = run.data.x
        return Quantity((run.model.net(x) - x).detach().double().square().sum(1).mean())


class PrincipalAngles(_Angles):
    """The decoder's column space is the top-k eigenspace: every principal angle between the two is 0

    The loss has no local minima but the global one, where D spans U_k; every other critical point is a saddle.
    cos θᵢ are the singular values of QᵀU_k, Q an orthonormal basis of D's columns. A space of another dimension than k
    is not the eigenspace: each direction that the larger of the two has more is at a right angle to the smaller. The k
    largest angles are judged.
    """

    reference = "Baldi & Hornik 1989; Bishop, PRML, §12.4.2"
    symbol, x_symbol, log = r"principal angle $\theta_i$ / rad", "$i$", "y"

    def measure(self, run: Run) -> Quantity:
        top = _right_singular_vectors(run.data.x)[:, : self.k]  # (d, k)
        basis = torch.linalg.qr(run.model.net.decoder.detach().double()).Q  # (d, number of codes)
        smaller, larger = sorted((top, basis), key=lambda space: space.shape[1])
        # sin θ keeps the digits of a small angle that cos θ rounds away
        sines = torch.linalg.svdvals(larger - smaller @ (smaller.mT @ larger))[: self.k]
        return Quantity(torch.asin(sines.clamp(max=1)).flip(0))


class Projector(_AboutTopK):
    """Decoder · encoder acts on the data as the orthogonal projector on the top-k eigenspace

    At the minimum DE x = U_k U_kᵀ x for every x in the span of the data. The distance is the Frobenius norm in the
    data's own metric, ‖(DE − U_k U_kᵀ)Xᵀ‖: directions in which the data do not vary (pixels that are always blank)
    never enter the loss, so there DE stays what it was initialised to. Judged on the first `samples` rows
    of X, or on all.
    """

    reference = "Baldi & Hornik 1989"
    symbol = r"$\hat x_j$"
    relation = equal(
        "optimisation error: once D spans U_k the squared distance is the excess error itself, and 1e-2 squared of "
        "E‖U_k U_kᵀ x‖² (810 for the digits) is the excess that reconstruction_error allows (2e-4 of 392)",
        rtol=1e-2,
        norm=True,
    )

    def __init__(self, k: PositiveInt, samples: PositiveInt = 500) -> None:
        super().__init__(k)
        self.samples = samples

    def predict(self, data: CentredImages) -> Quantity:
        _, vectors = self.spectrum(data)
        return Quantity((data.x[: self.samples].double() @ theory.projector(vectors, self.k)).flatten())

    def measure(self, run: Run) -> Quantity:
        return Quantity(run.model.net(run.data.x[: self.samples]).detach().double().flatten())


class _AboutCodes(_AboutTopK):
    """A claim about each of the k ordered codes."""

    def check(self, data: CentredImages, model: Reconstruction) -> None:
        super().check(data, model)
        codes = model.ordered.k
        if self.k != codes:
            raise Refusal(f"k={self.k} must equal model.ordered.k={codes}: the claim is about each of the codes")


class OrderedEigenvectors(_Angles, _AboutCodes):
    """The tied, ordered autoencoder recovers the eigenvectors themselves, in order

    Nested dropout asks the first j codes to be the best j for every j at once; the nested optima U_1 ⊂ U_2 ⊂ … leave no
    rotation free, so column i of W is ±uᵢ. Measured by the angle between wᵢ and the i-th right singular vector of the
    data.
    """

    reference = "Rippel, Gelbart & Adams 2014, Thm 1; Sanger 1989; Oja 1982"
    symbol, x_symbol, log = r"angle between $w_i$ and $u_i$ / rad", "$i$", "y"

    def measure(self, run: Run) -> Quantity:
        u = _right_singular_vectors(run.data.x)[:, : self.k]  # (d, k)
        w = torch.nn.functional.normalize(run.model.ordered.weight.detach().double(), dim=0)
        sines = torch.linalg.vector_norm(w - u * (u * w).sum(0), dim=0)
        return Quantity(torch.asin(sines.clamp(max=1)))


class OrderedVariances(_AboutCodes):
    """The variance of the i-th ordered code is the i-th eigenvalue λᵢ

    Var(zᵢ) = wᵢᵀCwᵢ = λᵢ once wᵢ = ±uᵢ of length one.
    """

    reference = "Bishop, PRML, §12.1.1"
    symbol, x_symbol, log = r"variance of code $i$", "$i$", ""
    relation = equal(
        "optimisation error: Var(zᵢ) is off by the fraction 2δ where ‖wᵢ‖ = 1 + δ and by (1 − λⱼ/λᵢ)θ² where wᵢ is "
        "turned towards uⱼ by θ. Of the digits 3e-6 at most was left, over 20 seeds; a covariance divided by n − 1 is "
        "5.6e-4 off",
        rtol=2e-4,
    )

    def predict(self, data: CentredImages) -> Quantity:
        eigenvalues, _ = self.spectrum(data)
        return Quantity(eigenvalues[: self.k], x=range(1, self.k + 1))

    def measure(self, run: Run) -> Quantity:
        x = run.data.x
        return Quantity(run.model.ordered(x).detach().double().square().mean(0))
