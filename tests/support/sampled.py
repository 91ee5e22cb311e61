"""Products of several axes, of which every run takes a Latin share and the campaign all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import pytest

__all__ = ["sampled"]


def sampled(every: int, **axes: Mapping[str, Any] | Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise by a product: those whose places add up to a multiple of ``every``.

    Without any one axis of at least ``every`` values, all combinations of the others are taken: of
    four axes, every three values meet. The other cases stand under the marker ``campaign``.

    Args:
        every: one case of so many is taken.
        axes: arguments of the test with their values, or with a mapping of their names to them.
    """
    named = [
        [*values.items()] if isinstance(values, Mapping) else [(str(v), v) for v in values]
        for values in axes.values()
    ]
    cases = []
    for chosen in product(*(enumerate(values) for values in named)):
        apart = sum(place for place, _ in chosen) % every != 0
        cases.append(
            pytest.param(
                *(value for _, (_, value) in chosen),
                id="-".join(name for _, (name, _) in chosen),
                marks=[pytest.mark.campaign] * apart,
            )
        )
    return pytest.mark.parametrize(tuple(axes), cases)
