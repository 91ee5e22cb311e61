"""Products of all gradients of one batch with all of another, without the gradients.

Axes: R and N samples.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn.core.samples.gradient_totals import RowSlice, gram_of_totals
from metalearn.core.samples.norms import collector_of
from metalearn.core.samples.outer_products import IndexedRows, OuterProducts
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients
from metalearn.core.tree import leaves, tree_map
from tests.support.networks import CASES, case
from tests.support.oracles import generator
from tests.support.sample_oracles import PROBLEMS, build, looped

close = torch.testing.assert_close


def rows(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.reshape(len(g), -1) for g in grads.values()], 1)


@pytest.mark.parametrize("name", [*CASES, *PROBLEMS])
@pytest.mark.parametrize("method", ["layers", "vmap"])
def test_products_of_networks_are_those_of_gradients_by_a_loop(name: str, method: str) -> None:
    loss, params, batch = case(name)[:3] if name in CASES else build(name)[1:]
    flat = rows(looped(loss, params, batch))
    take = collector_of(loss, params, method)
    found = take(tree_map(lambda x: x[:2], batch)).gram(take(batch))
    close(found, flat[:2] @ flat.mT)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def outer(count: int, positions: int, seed: int, shape: tuple[int, int] = (3, 4)) -> OuterProducts:
    left = noise(count, positions, shape[0], seed=seed)
    return OuterProducts(left, noise(count, positions, shape[1], seed=seed + 1))


def indexed(count: int, positions: int, seed: int) -> IndexedRows:
    index = torch.randint(3, (count, positions), generator=generator(seed))
    return IndexedRows(index, noise(count, positions, 4, seed=seed), 3)


KINDS = {
    "one position": lambda n, s: outer(n, 1, s),
    "two positions": lambda n, s: outer(n, 2, s, (30, 40)),
    "many positions": lambda n, s: outer(n, 9, s),
    "no position": lambda n, s: outer(n, 0, s),
    "indexed": lambda n, s: indexed(n, 5, s),
    "formed": lambda n, s: FormedGradients(noise(n, 3, 4, seed=s)),
    "a slice": lambda n, s: RowSlice(FormedGradients(noise(n, 1, 4, seed=s)), 1, 3),
}


LARGE = "two positions"  # the only kind of its shape
PAIRS = [(a, b) for a in KINDS for b in KINDS if (a == LARGE) == (b == LARGE)]


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_products_of_kinds_are_those_of_what_they_form(name: str, other: str) -> None:
    ours, theirs = KINDS[name](3, 0), KINDS[other](5, 7)
    expected = ours.formed().flatten(1) @ theirs.formed().flatten(1).mT
    close(gram_of_totals([ours], [theirs]), expected)
    both = ours.formed().flatten(1) + KINDS[other](3, 3).formed().flatten(1)
    parts: list[SampleGradients] = [ours, KINDS[other](3, 3)]
    close(gram_of_totals(parts, [theirs]), both @ theirs.formed().flatten(1).mT)


def test_what_the_factors_give_sooner_is_not_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = outer(2, 1, 0, (50, 60)), outer(4, 1, 3, (50, 60))
    expected = ours.formed().flatten(1) @ theirs.formed().flatten(1).mT
    monkeypatch.setattr(OuterProducts, "formed", lambda self: pytest.fail("they were formed"))
    close(gram_of_totals([ours], [theirs]), expected)


def test_scalars_empty_parameters_and_those_without_a_part() -> None:
    formed = FormedGradients(noise(3))
    close(gram_of_totals([formed], [formed]), torch.outer(formed.gradients, formed.gradients))
    nothing = FormedGradients(noise(3, 0, 2))
    assert not gram_of_totals([nothing], [nothing]).any()

    def loss(params: dict[str, Tensor], batch: Tensor) -> Tensor:
        return (params["used"] * batch).mean()

    params = {"used": noise(()), "unused": noise(2, 3)}
    found = collector_of(loss, params, "layers")(leaves(noise(4))[0])
    close(found.gram(found), torch.outer(noise(4), noise(4)))


def test_narrow_types_are_multiplied_in_float32() -> None:
    ours = OuterProducts(torch.full((1, 1, 8), 300.0).half(), torch.full((1, 1, 8), 300.0).half())
    found = gram_of_totals([ours], [ours])
    assert found.dtype == torch.float32
    close(found, torch.full((1, 1), (8 * 300.0**2) ** 2))
