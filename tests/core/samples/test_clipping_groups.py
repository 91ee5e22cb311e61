"""Clipping by groups of parameters, and automatic clipping, against a loop over samples.

Axes: N samples, K groups.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import clipped_gradient
from metalearn.errors import SettingError
from tests.support.sample_oracles import PROBLEMS, build, looped

close = partial(torch.testing.assert_close, rtol=0, atol=1e-9)


def expected(
    grads: dict[str, Tensor], groups: list[list[str]], bound: float, clipping: str
) -> dict[str, Tensor]:
    """Sample by sample and group by group, as the formula says."""
    count = len(next(iter(grads.values())))
    total = {n: torch.zeros_like(g[0]) for n, g in grads.items()}
    limit = bound / math.sqrt(len(groups))
    for i in range(count):
        for names in groups:
            norm = math.sqrt(sum(float(grads[n][i].square().sum()) for n in names))
            factor = limit / (norm + 0.01) if clipping == "automatic" else 1.0
            if clipping == "flat" and norm > limit:
                factor = limit / norm
            for n in names:
                total[n] += factor * grads[n][i] / count
    return total


def by_layer(names: list[str]) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return list(found.values())


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("groups", ["all", "layers"])
def test_groups_are_those_of_a_loop(name: str, clipping: Any, groups: Any) -> None:
    _, loss, params, batch = build(name)
    grads = looped(loss, params, batch)
    bound = float(torch.cat([g.flatten(1) for g in grads.values()], 1).norm(dim=1).median())
    names = [list(params)] if groups == "all" else by_layer(list(params))
    wanted = expected(grads, names, bound, clipping)
    for settings in ({}, {"chunk_size": 1}, {"method": "vmap"}, {"method": "loop"}):
        found = clipped_gradient(
            loss, params, batch, max_norm=bound, clipping=clipping, groups=groups, **settings
        )  # type: ignore[call-overload]
        for n in params:
            close(found.grads[n], wanted[n], msg=n)
        whole = torch.cat([g.flatten(1) for g in grads.values()], 1).norm(dim=1)
        close(found.norms, whole)


def test_patterns_make_groups_and_the_rest_is_one() -> None:
    _, loss, params, batch = build("norms")
    names = list(params)
    grads = looped(loss, params, batch)
    groups = {"first": names[0], "next": [names[1], names[2]]}
    wanted = expected(grads, [names[:1], names[1:3], names[3:]], 0.3, "flat")
    found = clipped_gradient(loss, params, batch, max_norm=0.3, groups=groups)
    for n in params:
        close(found.grads[n], wanted[n], msg=n)


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("groups", ["all", "layers"])
def test_no_sample_moves_the_sum_by_more_than_the_bound(clipping: Any, groups: Any) -> None:
    _, loss, params, batch = build("norms")
    how: Any = {"clipping": clipping, "groups": groups, "max_norm": 0.1}
    for i in range(len(batch[0])):
        one = tuple(1e3 * x[i : i + 1] if x.is_floating_point() else x[i : i + 1] for x in batch)
        found = clipped_gradient(loss, params, one, **how).grads
        norm = math.sqrt(sum(float(g.square().sum()) for g in found.values()))
        assert norm <= 0.1 * (1 + 1e-9)


def test_bounds_of_samples_are_shared_out_among_groups() -> None:
    _, loss, params, batch = build("norms")
    bounds = torch.linspace(0.01, 1, len(batch[0]), dtype=torch.float64)
    found = clipped_gradient(loss, params, batch, max_norm=bounds, groups="layers")
    grads, names = looped(loss, params, batch), by_layer(list(params))
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    for i, bound in enumerate(bounds.tolist()):
        one = expected({n: g[i : i + 1] for n, g in grads.items()}, names, bound, "flat")
        total = {n: total[n] + one[n] / len(bounds) for n in total}
    for n in params:
        close(found.grads[n], total[n], msg=n)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clipping": "norm"}, "clipping='norm': "),
        ({"groups": "layer"}, "groups='layer': "),
        ({"groups": {"a": "nothing.*"}}, r"groups.a='nothing.\*': a pattern that matches"),
        ({"groups": {"a": "*", "b": "*"}}, r"groups.b='\*': parameters are needed that no earlier"),
        ({"groups": {"a": 3}}, "groups"),
    ],
)
def test_mistakes_are_one_sentence(settings: dict[str, Any], message: str) -> None:
    _, loss, params, batch = build("norms")
    with pytest.raises(SettingError, match=message):
        clipped_gradient(loss, params, batch, max_norm=1.0, **settings)
