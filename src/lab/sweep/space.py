"""The space that a search draws from, as the command line says it. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lab.compose.overrides import parse
from lab.errors import Refusal
from lab.sweep.plan import require_one_each

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override, RangeSweep
    from optuna.distributions import BaseDistribution


def space_of(texts: Sequence[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
    """(key → distribution for each override that sweeps, the other overrides)."""
    require_one_each(texts)
    space: dict[str, BaseDistribution] = {}
    fixed = []
    for text in texts:
        override = parse(text)
        if override.is_sweep_override():
            space[override.key_or_group] = _distribution(text, override)
        else:
            fixed.append(text)
    if not space:
        raise Refusal(
            "hydra/sweeper=optuna has nothing to search: give a key such as model.optimizer.lr=interval(0.1,2)"
        )
    return space, fixed


def _distribution(text: str, override: Override) -> BaseDistribution:
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    tags: set[str] = getattr(value, "tags", set())
    if unknown := tags - {"log", "int"}:
        raise Refusal(f"{text}: the tag {min(unknown)} means nothing to a search; allowed: log, int")
    log = "log" in tags
    low, high = (value.start, value.end) if isinstance(value, IntervalSweep) else (0, 1)
    if not (low or 0) < (high or 0):
        raise Refusal(f"{text} is empty: an interval goes from a number to a greater one")
    if isinstance(value, RangeSweep) and value.step <= 0:
        raise Refusal(f"{text} is not allowed: in a search the step of a range is above 0")
    try:
        match value:
            case ChoiceSweep():
                return CategoricalDistribution([*map(_scalar, override.sweep_iterator())])
            case IntervalSweep(start=low, end=high) if "int" in tags or _whole(low, high):
                return IntDistribution(int(low or 0), int(high or 0), log=log)
            case IntervalSweep(start=low, end=high):
                return FloatDistribution(float(low or 0), float(high or 0), log=log)
            case RangeSweep(start=low, stop=high, step=step) if _whole(low, high, step):
                first, below, apart = int(low or 0), int(high or 0) - 1, int(step)
                return IntDistribution(first, below - (below - first) % apart, step=apart, log=log)
            case RangeSweep(start=low, step=step):
                return FloatDistribution(float(low or 0), _last(value), step=float(step), log=log)
    except ValueError as error:
        raise Refusal(f"{text}: {error}") from None
    raise Refusal(f"{text} is no space to search: allowed are interval, choice and range")


def _last(span: RangeSweep) -> float:
    """The last of the numbers that a grid would run: as many steps from the first, in decimals as Optuna counts.

    Hydra adds up the binary fractions that floats are: 0.7000000000000001 where Optuna has 0.7.
    """
    steps = sum(1 for _ in span.range()) - 1
    return float(Decimal(str(span.start)) + steps * Decimal(str(span.step)))


def _scalar(value: Any) -> int | float | str | None:
    if isinstance(value, list | dict):
        raise Refusal(f"{value} is not allowed: a search chooses between texts and numbers")
    return value


def _whole(*numbers: Any) -> bool:
    return all(isinstance(number, int) for number in numbers)


def corners(space: Mapping[str, BaseDistribution]) -> Iterator[dict[str, str]]:
    """Values at the ends of each dimension: what must be allowed if everything between is to be."""
    from optuna.distributions import CategoricalDistribution

    ends = {
        key: [str(v) for v in (d.choices if isinstance(d, CategoricalDistribution) else (d.low, d.high))]  # type: ignore[attr-defined]
        for key, d in space.items()
    }
    first = {key: values[0] for key, values in ends.items()}
    for key, values in ends.items():
        yield from (first | {key: value} for value in values)
