"""What follows from which networks are trained is that of now, however that was changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metalearn.models import MLP, Ensemble
from metalearn.trainers.loop.compile_course import Course
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.rows import OneNetwork


def _population(count: int) -> Population:
    model = Ensemble.from_factory(lambda seed: MLP((3,), 2, seed=seed), seeds=range(count))
    return Population(model, clip=None, patience=None, larger_is_better=True)


def test_networks_that_stop_or_belong_to_others_are_seen_at_once() -> None:
    population = _population(3)
    assert population.stepped.tolist() == [True] * 3 and not population.out_of_patience
    population.active[1] = False  # in place
    assert population.stepped.tolist() == [True, False, True]
    population.own = torch.tensor([True, True, False])  # another tensor
    population.active = torch.tensor([False, False, False])
    assert population.stepped.tolist() == [False, False, True]  # of which another rank decides
    assert not population.out_of_patience
    population.own.fill_(True)
    assert population.out_of_patience
    population.active[0] = True
    assert not population.out_of_patience


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_norm_of_a_network_is_that_of_torch_bit_for_bit(dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(), (1,), (7,), (64, 33), (3, 5, 3, 3), (0,), (1000, 130)]
    grads = {
        str(shape): 10 ** (index - 3) * torch.randn(shape, generator=draws).to(dtype)
        for index, shape in enumerate(shapes)
    }
    grads["transposed"] = grads["(64, 33)"].T
    wanted = torch.nn.utils.get_total_norm(list(grads.values()))
    found = OneNetwork(nn.Linear(2, 2)).norms(grads)
    assert found.shape == (1,) and found.dtype == wanted.dtype and torch.equal(found[0], wanted)
    mixed = {**grads, "other": torch.randn(5, generator=draws, dtype=torch.float64)}
    wanted = torch.nn.utils.get_total_norm(list(mixed.values()))
    assert torch.equal(OneNetwork(nn.Linear(2, 2)).norms(mixed)[0], wanted)
    assert OneNetwork(nn.Linear(2, 2)).norms({}).tolist() == [0.0]


def test_a_copied_course_is_another_with_the_same_values() -> None:
    course = Course(graph="g", name="n", before="b", like=3, tries=1, calls=7, over=True)
    found = copy.copy(course)
    assert found == course and found is not course and vars(found) == vars(course)
    found.calls = 8
    assert course.calls == 7
