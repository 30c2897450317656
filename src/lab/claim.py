"""What a run states and how it is judged.

A claim predicts a quantity from theory and the data's true parameters, measures the same quantity on the trained run,
and names the relation the two must satisfy. `predict` never sees the run; `measure` never calls what `predict` calls.
"""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quantity:
    """A number or an array of numbers with its standard error (one for all, or one each).

    `x` are the abscissae when the numbers form a curve over one variable.
    """

    value: ArrayLike
    standard_error: ArrayLike = 0.0
    x: ArrayLike | None = None

    def __post_init__(self) -> None:
        value = np.asarray(self.value, dtype=np.float64).copy()  # the weights it was read from may change
        if not value.size:
            raise ValueError("a quantity is empty")
        error = np.broadcast_to(np.asarray(self.standard_error, dtype=np.float64), value.shape)
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "standard_error", error)
        if self.x is not None:
            x = np.asarray(self.x, dtype=np.float64).copy()
            if x.shape != value.shape:
                raise ValueError(f"a curve needs one x per value: x has shape {x.shape}, value {value.shape}")
            object.__setattr__(self, "x", x)


@dataclass(frozen=True, eq=False)
class Run:
    """What `measure` sees: the trained module and the data it was trained on.

    `finite` is whether every weight is; where one is not there is no trained model to measure.
    """

    model: Any
    data: Any
    finite: bool = True


Kind = Literal["equal", "at_most", "at_least"]


@dataclass(frozen=True)
class Relation:
    """How measured m and predicted p may differ: |m − p|, m − p or p − m is at most `allowed`.

    allowed = atol + rtol·|p| + k·√(SE_m² + SE_p²); `because` is the argument for these numbers.

    With `norm=True` the last axis is one vector and the differences are ‖m − p‖₂ against atol + rtol·‖p‖₂ (+ k standard
    errors of the norm), so a relation between vectors is not judged coordinate by coordinate.
    """

    kind: Kind
    because: str
    atol: float = 0.0
    rtol: float = 0.0
    k: float = 0.0
    norm: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"a relation is one of {', '.join(get_args(Kind))}, not {self.kind}")
        for name in ("atol", "rtol", "k"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} is no tolerance")
        if self.norm and self.kind != "equal":
            raise ValueError(f"norm=True is for equal, not {self.kind}")

    def excess(self, predicted: Quantity, measured: Quantity) -> tuple[Floats, Floats]:
        """(difference, allowed), elementwise; the relation holds where difference ≤ allowed."""
        p, m = np.asarray(predicted.value), np.asarray(measured.value)
        if p.shape != m.shape:
            raise ValueError(f"predicted has shape {p.shape}, measured {m.shape}")
        with np.errstate(invalid="ignore", over="ignore"):  # a diverged run has inf − inf here, which refutes
            error = np.hypot(np.asarray(predicted.standard_error), np.asarray(measured.standard_error))
            if self.norm:
                size, difference, error = (np.linalg.norm(v, axis=-1) for v in (p, m - p, error))
            else:
                size = np.abs(p)
                difference = {"equal": np.abs(m - p), "at_most": m - p, "at_least": p - m}[self.kind]
            return difference, self.atol + self.rtol * size + self.k * error


def equal(because: str, *, atol: float = 0.0, rtol: float = 0.0, k: float = 0.0, norm: bool = False) -> Relation:
    """measured = predicted within the stated tolerance."""
    return Relation("equal", because, atol, rtol, k, norm)


def at_most(because: str, *, atol: float = 0.0, rtol: float = 0.0, k: float = 0.0) -> Relation:
    """measured ≤ predicted, up to the stated tolerance."""
    return Relation("at_most", because, atol, rtol, k)


def at_least(because: str, *, atol: float = 0.0, rtol: float = 0.0, k: float = 0.0) -> Relation:
    """measured ≥ predicted, up to the stated tolerance."""
    return Relation("at_least", because, atol, rtol, k)


class Claim(ABC):
    """One statement of theory about a run.

    The first line of a subclass's docstring is the statement; the rest derives it. A subclass sets `relation`,
    `reference` and how the quantity is called on an axis, and implements `predict` and `measure`.
    """

    relation: Relation
    reference: ClassVar[str]
    symbol: ClassVar[str]
    x_symbol: ClassVar[str] = ""
    log: ClassVar[Literal["", "x", "y", "xy"]] = ""

    @property
    def statement(self) -> str:
        return (inspect.getdoc(type(self)) or type(self).__name__).splitlines()[0]

    def check(self, data: Any, model: Any) -> None:  # noqa: B027 - most claims can be judged wherever they are made
        """Raise `Refusal` where this claim cannot be judged on these data or this model.

        Called once, before the first step. A line that begins with one of the claim's own parameters is given the
        claim's key.
        """

    @abstractmethod
    def predict(self, data: Any) -> Quantity:
        """What theory says, from the data and its true parameters."""

    @abstractmethod
    def measure(self, run: Run) -> Quantity:
        """What the trained run shows."""


@dataclass(frozen=True)
class Judged:
    """One claim of one run, judged. Scalars are those of the element nearest to, or furthest past, what is allowed."""

    name: str
    statement: str
    reference: str
    relation: Kind
    because: str
    predicted: float
    measured: float
    standard_error: float
    difference: float
    tolerance: float
    holds: bool
    note: str = ""
    curve: dict[str, list[float]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite becomes null."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "curve"}
        out |= {name: _finite_or_none(value) for name, value in out.items() if isinstance(value, float)}
        if (
            self.curve is not None and "x" in self.curve
        ):  # without x it is a cloud of numbers for the figure, not a curve
            out["curve"] = {name: [_finite_or_none(v) for v in values] for name, values in self.curve.items()}
        return out

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Judged:
        """What `to_json` wrote; null becomes NaN. ValueError where it is not what that writes."""
        for name, kind in _KINDS.items():
            value = record.get(name, "")
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"{name} of a claim is {json.dumps(value)[:40]}")
        if record["relation"] not in get_args(Kind):
            raise ValueError(f"relation of a claim is {record['relation']}")
        out = record | {name: math.nan for name in _NUMBERS if record[name] is None}
        if record.get("curve") is not None:
            out["curve"] = {n: [math.nan if v is None else v for v in values] for n, values in record["curve"].items()}
        return cls(**out)


@dataclass(frozen=True)
class Verdict:
    """The judged claims of one run."""

    experiment: str
    chapter: int
    claims: tuple[Judged, ...]
    provenance: dict[str, Any]

    @property
    def holds(self) -> bool:
        return all(claim.holds for claim in self.claims)

    def to_json(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment,
            "chapter": self.chapter,
            "holds": self.holds,
            "claims": [claim.to_json() for claim in self.claims],
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Verdict:
        """What `to_json` wrote; ValueError where it is not what that writes."""
        verdict = cls(
            record["experiment"],
            record["chapter"],
            tuple(Judged.from_json(claim) for claim in record["claims"]),
            dict(record["provenance"]),
        )
        if not verdict.claims:
            raise ValueError("it has no claims")
        if record["holds"] is not verdict.holds:
            raise ValueError(f"holds is {json.dumps(record['holds'])[:40]}, its claims say {verdict.holds}")
        return verdict


@dataclass(frozen=True, eq=False)
class Evidence:
    """A claim with both its quantities: what the verdict is read from and the figure is drawn from."""

    name: str
    claim: Claim
    predicted: Quantity
    measured: Quantity
    judged: Judged


def judge(name: str, claim: Claim, run: Run) -> Evidence:
    """Hold `claim` against `run`; whatever is not finite refutes."""
    predicted = claim.predict(run.data)
    note = ""
    if run.finite:
        measured = claim.measure(run)
    else:
        measured = Quantity(np.full_like(np.asarray(predicted.value), math.nan), x=predicted.x)
        note = "the weights are not finite"
    difference, allowed = claim.relation.excess(predicted, measured)
    finite = np.isfinite(difference) & np.isfinite(allowed)
    holds = bool(np.all(finite & (difference <= allowed)))  # −∞ is below every bound and ∞ within ∞: neither holds
    if not note and not np.all(finite):
        note = "not finite"
    return Evidence(
        name, claim, predicted, measured, _judged(name, claim, predicted, measured, difference, allowed, holds, note)
    )


def _judged(
    name: str,
    claim: Claim,
    predicted: Quantity,
    measured: Quantity,
    difference: Floats,
    allowed: Floats,
    holds: bool,
    note: str,
) -> Judged:
    p, m, error = (np.asarray(a) for a in (predicted.value, measured.value, measured.standard_error))
    finite = np.isfinite(difference) & np.isfinite(allowed)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        past = np.where(allowed > 0, difference / allowed, np.where(difference > 0, np.inf, difference))
    # NaN sorts last; among several with nothing allowed the largest difference decides
    order = np.lexsort((np.ravel(difference), np.ravel(np.where(finite, past, math.nan))))
    worst = np.unravel_index(int(order[-1]), past.shape)
    curve = None
    if p.ndim:
        shown = worst if claim.relation.norm else ...  # of many vectors, the one that decides
        curve = {} if predicted.x is None else {"x": np.ravel(np.asarray(predicted.x)[shown]).tolist()}
        curve |= {"predicted": np.ravel(p[shown]).tolist(), "measured": np.ravel(m[shown]).tolist()}
        if np.any(error):
            curve["standard_error"] = np.ravel(error[shown]).tolist()
    if claim.relation.norm:  # one number for a vector: its length
        with np.errstate(over="ignore"):
            p, m, error = (np.linalg.norm(a, axis=-1) for a in (p, m, error))
    return Judged(
        name=name,
        statement=claim.statement,
        reference=claim.reference,
        relation=claim.relation.kind,
        because=claim.relation.because,
        predicted=float(p[worst]),
        measured=float(m[worst]),
        standard_error=float(error[worst]),
        difference=float(difference[worst]),
        tolerance=float(allowed[worst]),
        holds=holds,
        note=note,
        curve=curve,
    )


_NUMBERS = {"predicted", "measured", "standard_error", "difference", "tolerance"}
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("name", "statement", "reference", "relation", "because", "note"), str),
    **dict.fromkeys(_NUMBERS, int | float | None),
    "holds": bool,
}
"""What a judged claim is made of, as JSON."""


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
