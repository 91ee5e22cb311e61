"""Settings that limit inner gradients, in learners: scores, adapted modules, members.

Axes: T tasks, K inner steps, B samples of the support set in an inner step.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks
from metalearn.trainers import LEARNERS, MAML, Learner, MetaLearner
from metalearn.trainers.meta.making import takes_maml
from metalearn.types import TaskBatch
from tests.support.builders import patterns

TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2)
LIMITS: dict[str, Any] = {"inner_clip": 0.2, "support_batch": 2}
every_engine = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
every_learner = pytest.mark.parametrize(
    "name", [n for n in LEARNERS if takes_maml(LEARNERS[n].make)]
)


def doubled() -> TaskBatch:
    batch: TaskBatch = tree_map(
        lambda x: x.double() if x.is_floating_point() else x, TASKS.sample("train", range(3))
    )
    return batch


def network(seed: int = 0) -> MLP:
    return MLP(TASKS.input_shape, 3, hidden=(6,), seed=seed).double()


def learner(name: str = "maml", module: Any = None, **settings: Any) -> Learner:
    inner: dict[str, Any] = {"inner_lr": 0.5, "inner_steps": 2, "eval_steps": 3, **settings}
    return LEARNERS[name].make(module or network(), maml=MAML(**inner))


def slopes(one: Learner) -> torch.Tensor:
    grads = one.meta_gradient(doubled()).grads
    return torch.cat([g.reshape(-1) for g in grads.values()])


@every_learner
@every_engine
@pytest.mark.parametrize("limit", LIMITS)
def test_gradients_and_scores_are_limited_in_every_engine(
    name: str, engine: Any, limit: str
) -> None:
    given = {limit: LIMITS[limit]}
    one, free = learner(name, **given, engine=engine), learner(name, engine=engine)
    plain = learner(name, **given, engine="loop")
    torch.testing.assert_close(slopes(one), slopes(plain), rtol=1e-9, atol=1e-12)
    assert float((slopes(one) - slopes(free)).abs().max()) > 1e-5
    scores = one.score(doubled())
    torch.testing.assert_close(scores.losses, plain.score(doubled()).losses)
    assert float((scores.losses - free.score(doubled()).losses)[:, 1].abs().max()) > 1e-5
    for t in range(3):
        support, (queries, targets) = tree_map(lambda x, t=t: x[t], doubled())
        outputs = one.adapt(support)(queries)
        torch.testing.assert_close(one.criterion(outputs, targets), scores.losses[t, -1])


def test_the_steps_of_sgd_are_no_longer_than_the_limit() -> None:
    one = learner(inner_clip=0.2)
    support, _ = tree_map(lambda x: x[0], doubled())
    states = list(one.fit(one.params, support, steps=3))
    for before, after in pairwise(states):
        squares = [(after[n] - before[n]).square().sum() for n in before]
        assert float(torch.stack(squares).sum().sqrt()) <= 0.5 * 0.2 + 1e-12


def test_each_member_is_clipped_by_itself() -> None:
    together = learner("maml", Ensemble.from_factory(network, range(2)), **LIMITS)
    found = together.meta_gradient(doubled()).grads
    for index in range(2):
        alone = learner("maml", network(index), **LIMITS).meta_gradient(doubled()).grads
        for name, grad in alone.items():
            torch.testing.assert_close(found[name][index], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_clip": 0}, r"^inner_clip=0: a finite number above 0 is needed"),
        ({"inner_clip": -0.5}, r"^inner_clip=-0\.5: a finite number above 0 is needed"),
        ({"inner_clip": float("inf")}, r"^inner_clip=inf: a finite number above 0 is needed"),
        ({"inner_clip": "1"}, r"^inner_clip='1': a finite number above 0"),
        ({"support_batch": 0}, r"^support_batch=0: a whole number of at least 1 is needed"),
        ({"support_batch": 1.0}, r"^support_batch=1\.0: a whole number"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        partial(MetaLearner, network())(MAML(**settings))
