"""Ranges of hyperparameters and protocol keys, as annotations: `margin: NonNegative = 0.2`. None admits NaN."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Fold = Annotated[int, Ge(0), Le(999)]
Neighbours = Annotated[int, Ge(1), Le(1_000_000)]
Rate = Annotated[float, Ge(0), Le(10)]
Pixels = Annotated[int, Ge(1), Le(4096)]

Real = Annotated[float, Gt(float("-inf")), Lt(float("inf"))]
NonNegative = Annotated[float, Ge(0), Lt(float("inf"))]
Positive = Annotated[float, Gt(0), Lt(float("inf"))]
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
Momentum = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
NonNegativeCount = Annotated[int, Ge(0)]
