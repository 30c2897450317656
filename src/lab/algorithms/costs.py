"""What it costs to carry a unit of mass from x to y."""

from __future__ import annotations

from torch import Tensor

from lab.types import Positive


class SquaredEuclidean:
    """c(x, y) = ‖l x − r y‖², with l = `left` and r = `right` 1 unless the two sides are measured in other units."""

    def __init__(self, left: Positive = 1.0, right: Positive = 1.0) -> None:
        self.left, self.right = left, right

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """(..., n, d), (..., m, d) → (..., n, m)

        As differences where d is small, which rounds less than ‖x‖² + ‖y‖² − 2xᵀy.
        """
        x, y = self.left * x, self.right * y
        if x.shape[-1] <= 3:
            return sum_of_squares(x, y)
        squares = x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2)
        return (squares - 2 * x @ y.mT).clamp(min=0)


def sum_of_squares(x: Tensor, y: Tensor) -> Tensor:
    """Σ_k (x_ik − y_jk)², one coordinate after another: (..., n, d), (..., m, d) → (..., n, m)."""
    total = (x[..., 0].unsqueeze(-1) - y[..., 0].unsqueeze(-2)).square()
    for k in range(1, x.shape[-1]):
        total = total + (x[..., k].unsqueeze(-1) - y[..., k].unsqueeze(-2)).square()
    return total
