"""Types with ranges for the signatures that YAML fills; `lab.check` holds every configuration against them.

They say where a number may lie, so that a value out of range is refused before anything heavy is imported.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, MinLen

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Gt(0), Lt(1)]
Probability = Annotated[float, Ge(0), Le(1)]
Rate = Annotated[float, Ge(0), Lt(1)]
"""A share that is left out; not all of it."""
Scale = Annotated[float, Ge(1e-12), Le(1e12)]
"""A length or a variance whose squares and ratios float64 still tells apart from 0 and ∞."""
NonEmptyStr = Annotated[str, MinLen(1)]
