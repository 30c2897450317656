from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from lab.claim import Claim, Evidence, Judged, Quantity, Relation, Run, Verdict, at_least, at_most, equal, judge

BECAUSE = "a reason"
NOT_FINITE = [math.nan, math.inf, -math.inf]


class Stated(Claim):
    """What is measured is what was predicted.

    The rest of the docstring is no part of the statement.
    """

    reference = "Nobody §1"
    symbol = "$q$"

    def __init__(self, relation: Relation, predicted: Quantity, measured: Quantity) -> None:
        self.relation, self.predicted, self.measured = relation, predicted, measured

    def predict(self, data: Any) -> Quantity:
        return self.predicted

    def measure(self, run: Run) -> Quantity:
        return self.measured


def judged(
    relation: Relation, predicted: Quantity | ArrayLike, measured: Quantity | ArrayLike, *, finite: bool = True
) -> Judged:
    return evidence(relation, predicted, measured, finite=finite).judged


def evidence(
    relation: Relation, predicted: Quantity | ArrayLike, measured: Quantity | ArrayLike, *, finite: bool = True
) -> Evidence:
    p, m = (q if isinstance(q, Quantity) else Quantity(q) for q in (predicted, measured))
    return judge("stated", Stated(relation, p, m), Run(model=None, data=None, finite=finite))


@pytest.mark.parametrize(
    ("relation", "measured", "holds"),
    [
        (equal(BECAUSE), 2.0, True),
        (equal(BECAUSE), np.nextafter(2.0, 3), False),
        (equal(BECAUSE, atol=0.5), 2.5, True),
        (equal(BECAUSE, atol=0.5), 1.5, True),
        (equal(BECAUSE, atol=0.5), 2.51, False),
        (equal(BECAUSE, rtol=0.25), 2.5, True),
        (equal(BECAUSE, rtol=0.25), 2.51, False),
        (equal(BECAUSE, atol=0.25, rtol=0.125), 2.5, True),
        (equal(BECAUSE, atol=0.25, rtol=0.125), 2.51, False),
        (at_most(BECAUSE), 2.0, True),
        (at_most(BECAUSE), -1e9, True),
        (at_most(BECAUSE), np.nextafter(2.0, 3), False),
        (at_most(BECAUSE, atol=0.5), 2.5, True),
        (at_most(BECAUSE, atol=0.5), 2.51, False),
        (at_most(BECAUSE, rtol=0.25), 2.5, True),
        (at_most(BECAUSE, rtol=0.25), 2.51, False),
        (at_least(BECAUSE), 2.0, True),
        (at_least(BECAUSE), 1e9, True),
        (at_least(BECAUSE), np.nextafter(2.0, 1), False),
        (at_least(BECAUSE, atol=0.5), 1.5, True),
        (at_least(BECAUSE, atol=0.5), 1.49, False),
        (at_least(BECAUSE, rtol=0.25), 1.5, True),
        (at_least(BECAUSE, rtol=0.25), 1.49, False),
    ],
)
def test_a_relation_holds_up_to_its_tolerance(relation: Relation, measured: float, holds: bool) -> None:
    assert judged(relation, 2.0, measured).holds is holds


def test_the_relative_tolerance_is_relative_to_the_size_of_the_prediction() -> None:
    assert judged(equal(BECAUSE, rtol=0.25), -2.0, -2.5).holds
    assert judged(at_most(BECAUSE, rtol=0.25), -2.0, -1.5).holds
    assert not judged(equal(BECAUSE, rtol=0.25), 0.0, 1e-300).holds


@pytest.mark.parametrize("make", [equal, at_most, at_least])
def test_standard_errors_of_both_sides_add_in_squares(make: Callable[..., Relation]) -> None:
    side = -1.0 if make is at_least else 1.0
    predicted = Quantity(0.0, standard_error=3.0)
    assert judged(make(BECAUSE, k=2.0), predicted, Quantity(side * 10.0, 4.0)).holds  # 2·√(3² + 4²)
    assert not judged(make(BECAUSE, k=2.0), predicted, Quantity(side * 10.01, 4.0)).holds
    assert judged(make(BECAUSE, k=2.0, atol=1.0), predicted, Quantity(side * 11.0, 4.0)).tolerance == 11.0


def test_without_k_a_standard_error_allows_nothing() -> None:
    assert not judged(equal(BECAUSE), 0.0, Quantity(1.0, 100.0)).holds


def test_every_element_must_hold_and_the_furthest_past_what_is_allowed_is_quoted() -> None:
    j = judged(equal(BECAUSE, rtol=0.1), [100.0, 1.0, 10.0], [105.0, 1.2, 10.0])
    assert not j.holds
    assert (j.predicted, j.measured, j.tolerance) == (1.0, 1.2, 0.1)
    assert j.difference == pytest.approx(0.2)


def test_where_all_hold_the_element_nearest_to_what_is_allowed_is_quoted() -> None:
    j = judged(at_most(BECAUSE, atol=1.0), [[1.0, 2.0], [3.0, 4.0]], [[-5.0, 2.5], [0.0, 0.0]])
    assert j.holds
    assert (j.predicted, j.measured, j.difference) == (2.0, 2.5, 0.5)


def test_without_a_tolerance_the_largest_violation_is_quoted_before_what_holds() -> None:
    assert judged(equal(BECAUSE), [1.0, 2.0, 3.0], [1.1, 2.5, 3.0]).measured == 2.5
    assert judged(at_most(BECAUSE), [1.0, 2.0], [0.9, 1.5]).measured == 0.9


def test_each_element_has_its_own_standard_error() -> None:
    j = judged(equal(BECAUSE, k=3.0), [0.0, 0.0], Quantity([1.0, 1.0], [1.0, 0.25]))
    assert not j.holds
    assert j.standard_error == 0.25


def test_a_norm_judges_vectors_not_coordinates() -> None:
    p, m = [3.0, 4.0], [3.0, 4.05]  # ‖p‖ = 5, ‖m − p‖ = 0.05
    assert judged(equal(BECAUSE, rtol=0.0100001, norm=True), p, m).holds
    assert not judged(equal(BECAUSE, rtol=0.0099, norm=True), p, m).holds
    zero = judged(equal(BECAUSE, rtol=0.1, norm=True), [1.0, 0.0], [1.0, 0.05])
    assert zero.holds, "a coordinate predicted as 0 is held against the whole vector"


def test_a_norm_of_several_vectors_quotes_the_deciding_one() -> None:
    p, m = [[3.0, 4.0], [0.0, 1.0]], [[3.0, 4.1], [0.0, 1.5]]
    j = judged(equal(BECAUSE, rtol=0.1, norm=True), p, Quantity(m, 0.25, x=[[0.0, 1.0], [2.0, 3.0]]))
    assert not j.holds
    assert (j.predicted, j.measured, j.difference, j.tolerance) == (1.0, 1.5, 0.5, 0.1)
    assert j.standard_error == pytest.approx(0.25 * math.sqrt(2))
    assert j.curve is not None
    assert j.curve["predicted"] == [0.0, 1.0]
    assert j.curve["measured"] == [0.0, 1.5]
    assert j.curve["standard_error"] == [0.25, 0.25]


def test_standard_errors_of_a_norm_add_in_squares_over_the_vector() -> None:
    allowed = judged(equal(BECAUSE, k=2.0, norm=True), [0.0, 0.0], Quantity([1.0, 0.0], [3.0, 4.0])).tolerance
    assert allowed == 10.0


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("make", [equal, at_most, at_least])
@pytest.mark.parametrize("tolerance", [{}, {"atol": 1.0}, {"rtol": 1.0}, {"k": 1.0}])
@pytest.mark.parametrize("place", ["measured", "predicted", "both", "error"])
@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_refutes_and_says_so(
    make: Callable[..., Relation], bad: float, tolerance: dict[str, float], place: str
) -> None:
    good = Quantity([1.0, 1.0], 0.5)
    odd = Quantity([1.0, 1.0], [0.5, bad]) if place == "error" else Quantity([1.0, bad], 0.5)
    p, m = {"measured": (good, odd), "predicted": (odd, good), "both": (odd, odd), "error": (good, odd)}[place]
    j = judged(make(BECAUSE, **tolerance), p, m)
    assert not j.holds
    assert j.note == "not finite"
    quoted = [j.difference, j.tolerance]
    assert not all(math.isfinite(v) for v in quoted), "the element quoted is the one that refutes"
    json.dumps(j.to_json(), allow_nan=False)


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("place", ["measured", "predicted"])
@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_in_a_vector_refutes(bad: float, place: str) -> None:
    good, odd = [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [bad, 4.0]]
    j = judged(equal(BECAUSE, rtol=1.0, norm=True), *((good, odd) if place == "measured" else (odd, good)))
    assert not j.holds
    assert j.note == "not finite"


@pytest.mark.filterwarnings("error")
def test_huge_numbers_overflow_silently() -> None:
    assert not judged(equal(BECAUSE, atol=1e-300), 0.0, 1e300).holds
    assert not judged(equal(BECAUSE, k=1.0), Quantity(0.0, 1.7e308), Quantity(1e300, 1.7e308)).holds
    assert not judged(equal(BECAUSE, rtol=1.0, norm=True), [1.0, 1.0], [1e200, 1e200]).holds


@pytest.mark.filterwarnings("error")
def test_weights_that_are_not_finite_refute_without_measuring() -> None:
    class Unmeasurable(Stated):
        """Never measured."""

        def measure(self, run: Run) -> Quantity:
            raise AssertionError

    claim = Unmeasurable(equal(BECAUSE, atol=1.0), Quantity([1.0, 2.0], x=[0.0, 1.0]), Quantity(0.0))
    found = judge("c", claim, Run(model=None, data=None, finite=False))
    assert not found.judged.holds
    assert "not finite" in found.judged.note
    assert np.isnan(np.asarray(found.measured.value)).all()
    assert np.shape(found.measured.value) == (2,)


@pytest.mark.parametrize("norm", [False, True])
def test_quantities_of_different_shape_are_an_error(norm: bool) -> None:
    with pytest.raises(ValueError, match=r"\(2,\).*\(1,\)"):
        judged(equal(BECAUSE, norm=norm), [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="shape"):
        judged(equal(BECAUSE, norm=norm), 1.0, [1.0])


def test_a_quantity_checks_its_parts() -> None:
    with pytest.raises(ValueError, match="one x per value"):
        Quantity([1.0, 2.0], x=[1.0])
    with pytest.raises(ValueError, match="broadcast"):
        Quantity([1.0, 2.0], standard_error=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="empty"):
        Quantity([])


def test_a_quantity_is_float64_with_one_error_each() -> None:
    q = Quantity(np.arange(3, dtype=np.float32), standard_error=1)
    assert np.asarray(q.value).dtype == np.asarray(q.standard_error).dtype == np.float64
    assert np.array_equal(q.standard_error, [1.0, 1.0, 1.0])


def test_a_quantity_does_not_follow_the_array_it_was_made_from() -> None:
    weights = np.ones(3)
    q = Quantity(weights, x=weights)
    weights[:] = 5.0
    assert np.array_equal(q.value, np.ones(3))
    assert q.x is not None
    assert np.array_equal(q.x, np.ones(3))


@pytest.mark.parametrize("wrong", [{"atol": -1.0}, {"rtol": math.nan}, {"k": math.inf}])
def test_a_relation_refuses_a_tolerance_that_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        equal(BECAUSE, **wrong)


def test_a_relation_refuses_a_bound_on_a_norm_and_unknown_kinds() -> None:
    with pytest.raises(ValueError, match="norm"):
        Relation("at_most", BECAUSE, norm=True)
    with pytest.raises(ValueError, match="about"):
        Relation("about", BECAUSE)  # type: ignore[arg-type]


def test_what_is_stated_is_frozen() -> None:
    e = evidence(equal(BECAUSE), [1.0], [1.0])
    verdict = Verdict("e", 1, (e.judged,), {})
    for frozen, field in [
        (e, "name"),
        (e.judged, "holds"),
        (e.predicted, "value"),
        (e.claim.relation, "atol"),
        (verdict, "claims"),
        (Run(None, None), "finite"),
    ]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field, None)


def test_the_statement_is_the_first_line_of_the_docstring() -> None:
    assert judged(equal(BECAUSE), 1.0, 1.0).statement == "What is measured is what was predicted."


def test_a_claim_needs_no_docstring_of_its_own() -> None:
    class Silent(Stated):  # a class does not inherit __doc__
        pass

    claim = Silent(equal(BECAUSE), Quantity(1.0), Quantity(1.0))
    assert judge("c", claim, Run(None, None)).judged.statement == "What is measured is what was predicted."


def test_a_judged_claim_says_what_was_stated() -> None:
    j = judged(at_least(BECAUSE, atol=2.0), 1.0, Quantity(3.0, 0.5))
    assert (j.name, j.reference, j.relation, j.because) == ("stated", "Nobody §1", "at_least", BECAUSE)
    assert (j.predicted, j.measured, j.standard_error, j.difference, j.tolerance) == (1.0, 3.0, 0.5, -2.0, 2.0)
    assert j.curve is None
    assert j.note == ""


def test_a_curve_keeps_its_abscissae_and_errors() -> None:
    x = [1.0, 2.0, 3.0]
    j = judged(equal(BECAUSE, k=3.0), Quantity([1.0, 2.0, 3.0], x=x), Quantity([1.0, 2.0, 3.1], 0.1, x=x))
    assert j.curve == {
        "x": x,
        "predicted": [1.0, 2.0, 3.0],
        "measured": [1.0, 2.0, 3.1],
        "standard_error": [0.1, 0.1, 0.1],
    }


def test_a_verdict_holds_when_all_its_claims_do() -> None:
    good, bad = judged(equal(BECAUSE), 1.0, 1.0), judged(equal(BECAUSE), 1.0, 2.0)
    assert Verdict("e", 1, (good, good), {}).holds
    assert not Verdict("e", 1, (good, bad), {}).holds


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_verdict_goes_through_json_without_nan(bad: float) -> None:
    claims = (
        judged(equal(BECAUSE, rtol=0.5, k=1.0), Quantity([1.0, 2.0], x=[0.0, 1.0]), Quantity([1.0, bad], 0.1)),
        judged(at_most(BECAUSE), 1.0, 0.5),
        judged(equal(BECAUSE, norm=True), [1.0, 2.0], [1.0, 2.0]),
    )
    written = json.dumps(Verdict("e", 3, claims, {"seed": 0}).to_json(), allow_nan=False)
    record = json.loads(written)
    assert record["holds"] is False
    assert record["claims"][0]["measured"] is None
    assert record["claims"][0]["curve"]["measured"] == [1.0, None]
    read = Verdict.from_json(record)
    assert json.dumps(read.to_json(), allow_nan=False) == written
    assert read.claims[1] == claims[1]
    assert "curve" not in record["claims"][2]  # a vector without abscissae is drawn, not recorded
    assert math.isnan(read.claims[0].measured)
    assert read.claims[0].curve is not None
    assert math.isnan(read.claims[0].curve["measured"][1])
    assert read.holds is False
