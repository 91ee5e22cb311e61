"""Influence of support examples through adaptation against plain loops and real removal.

Axes: T tasks, S support examples, Q queries, K inner steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.attribution import learner_support_scores, support_example_scores
from metalearn.core import adam, adamw, adapt, sgd, with_gradients
from metalearn.core.tree import tree_map
from metalearn.core.vectorization import VectorizationError
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.trainers import ANIL, MAML, ImplicitMAML, MAMLPlusPlus, MetaLearner, ProtoNet
from metalearn.types import TaskBatch
from tests.contracts.test_learners import INNER, WITH_RATES, doubled
from tests.contracts.test_learners import learner as table_learner
from tests.contracts.test_learners import network as table_network
from tests.support.oracles import adam_rule, draw, sgd_rule, task_list
from tests.support.task_attribution import (
    SHAPES,
    FewShot,
    adapted_losses,
    few_shot,
    scores_by_loops,
)

close = torch.testing.assert_close
RULES: dict[str, tuple[Any, Any]] = {
    "sgd": (sgd(0.4), partial(sgd_rule, 0.4)),
    "momentum and decay": (
        sgd(0.3, momentum=0.8, weight_decay=0.05), partial(sgd_rule, 0.3, 0.8, 0.05)
    ),
    "adam": (adam(0.1), partial(adam_rule, 0.1)),
}  # fmt: skip


both_ways = pytest.mark.parametrize(("support", "query"), SHAPES)


def scores(known: FewShot, **settings: Any) -> Tensor:
    given: Any = {"optimizer": sgd(0.4), "steps": 3, **settings}
    return support_example_scores(known.losses_fn, known.params, known.tasks, **given)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
@both_ways
def test_they_are_those_of_a_loop(
    name: str, steps: int, engine: Any, support: int, query: int
) -> None:
    known, (optimizer, rule) = few_shot(support=support, query=query), RULES[name]
    found = scores(known, optimizer=optimizer, steps=steps, engine=engine)
    assert found.shape == (3, query, support)
    assert bool(found.any()) is bool(steps)
    close(found, scores_by_loops(known, rule, steps), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(6),
        nn.BatchNorm1d(6, track_running_stats=False),
        nn.GroupNorm(2, 6),
        nn.RMSNorm(6),
    ],
    ids=lambda norm: type(norm).__name__,
)
@pytest.mark.parametrize("engine", ["vmap", "loop"])
@both_ways
def test_norms_with_affine_parameters_that_adapt(
    norm: nn.Module, engine: Any, support: int, query: int
) -> None:
    layers = nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 3))
    known = few_shot(layers, support=support, query=query)
    expected = scores_by_loops(known, partial(sgd_rule, 0.4), 3)
    close(scores(known, engine=engine), expected, rtol=1e-10, atol=1e-14)


@both_ways
def test_convolutions(support: int, query: int) -> None:
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    known = few_shot(layers, (2, 4, 4), support=support, query=query)
    close(scores(known), scores_by_loops(known, partial(sgd_rule, 0.4), 3), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("chunk_size", [1, 2, 100, "auto", None])
@both_ways
def test_chunks_of_tasks_are_all_at_once(
    engine: Any, chunk_size: Any, support: int, query: int
) -> None:
    known = few_shot(support=support, query=query)
    close(scores(known, engine=engine, chunk_size=chunk_size), scores(known, chunk_size=None))


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize(("support", "query"), [(5, 4), (1, 1), (1, 3), (4, 1)])
def test_the_mean_of_query_losses_has_the_mean_scores(
    engine: Any, support: int, query: int
) -> None:
    known = few_shot(support=support, query=query)
    found = scores(known, engine=engine, reduction="mean")
    assert found.shape == (3, support)
    close(found, scores(known).mean(1))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_they_are_finite_differences(name: str) -> None:
    known, (optimizer, rule), width = few_shot(tasks=1), RULES[name], 1e-5
    (task,) = task_list(known.tasks)
    found = scores(known, optimizer=optimizer)[0]
    for s in range(5):
        ends = []
        for sign in (1, -1):
            weights = torch.ones(5, dtype=torch.float64)
            weights[s] += sign * width
            ends.append(adapted_losses(known, task, weights, rule(), 3).detach())
        close(found[:, s], (ends[1] - ends[0]) / (2 * width), rtol=1e-6, atol=1e-9)


def test_of_a_sum_that_is_linear_in_weights_they_are_real_removals() -> None:
    """One step on a sum, and queries that are linear in the parameters: no order is left out."""
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unknown = torch.full((2, 2), torch.nan, dtype=torch.float64)
    tasks = TaskBatch((x, x.sum(-1).sin()), (x[:, :2].cos(), unknown))
    params = {"w": torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)}

    def losses_fn(params: Any, batch: Any) -> Tensor:
        inputs, targets = batch
        outputs = inputs @ params["w"]
        asked = targets.isnan()  # queries have no targets
        squares = len(inputs) * (outputs - torch.where(asked, 0, targets)) ** 2
        return torch.where(asked, outputs, squares)

    found = support_example_scores(losses_fn, params, tasks, optimizer=sgd(0.1), steps=1)

    def after(support: Any, query: Any) -> Tensor:
        end = adapt(
            lambda p, b: losses_fn(p, b).mean(), params, support, optimizer=sgd(0.1), steps=1
        )
        return losses_fn(end.params, query)

    for t, (support, query) in enumerate(task_list(tasks)):
        for s in range(5):
            others = [i for i in range(5) if i != s]
            without = after(tree_map(lambda v, o=others: v[o], support), query)
            close(found[t, :, s], without - after(support, query))


def test_the_first_order_change_where_an_example_counts_less() -> None:
    known, share = few_shot(tasks=1), 1e-3
    (task,) = task_list(known.tasks)
    weights = torch.ones(5, dtype=torch.float64)
    whole = adapted_losses(known, task, weights, sgd_rule(0.4), 3)
    weights[2] -= share
    less = adapted_losses(known, task, weights, sgd_rule(0.4), 3)
    close(scores(known)[0, :, 2], ((less - whole) / share).detach(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("query", [4, 7])
def test_parts_of_the_support_set_are_weighted_within_them(query: int) -> None:
    known = few_shot(support=5, query=query)
    optimizer = with_gradients(sgd(0.4), support_batch=2)
    seen = scores(known, optimizer=optimizer, steps=1)
    assert (seen.abs().sum((0, 1)) > 0).tolist() == [True, False, False, True, False]
    part = TaskBatch(tree_map(lambda x: x[:, [0, 3]], known.tasks.support), known.tasks.query)
    alone = scores(known._replace(tasks=part), steps=1)
    close(seen[..., [0, 3]], alone)


@both_ways
def test_clipped_gradients_differ_and_are_differentiated(support: int, query: int) -> None:
    known, width = few_shot(tasks=1, support=support, query=query), 1e-6
    optimizer = with_gradients(sgd(0.4), clip_norm=0.05)
    found = scores(known, optimizer=optimizer)
    examples, asked = task_list(known.tasks)[0]

    def after(weights: Tensor) -> Tensor:
        end = adapt(
            lambda p, b: (weights * known.losses_fn(p, b)).mean(),
            known.params, examples, optimizer=optimizer, steps=3,
        )  # fmt: skip
        return known.losses_fn(end.params, asked)

    for s in range(support):
        step = width * torch.eye(support, dtype=torch.float64)[s]
        difference = (after(1 - step) - after(1 + step)) / (2 * width)
        close(found[0, :, s], difference, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@both_ways
def test_frozen_parameters_stay(engine: Any, support: int, query: int) -> None:
    known = few_shot(support=support, query=query)
    found = scores(known, frozen="0.*", engine=engine)
    expected = scores_by_loops(known, partial(sgd_rule, 0.4), 3, frozen=("0.weight", "0.bias"))
    close(found, expected)
    assert not bool(scores(known, frozen="*", engine=engine).any())


def test_step_sizes_that_are_tensors_are_values() -> None:
    known = few_shot()
    rates = torch.full((3,), 0.4, dtype=torch.float64, requires_grad=True)
    found = scores(known, optimizer=sgd(rates))
    assert not found.requires_grad
    close(found, scores(known))
    with pytest.raises(SettingError, match="lr='3 values': 2 are needed"):
        scores(known, optimizer=sgd(rates), steps=2)


@pytest.mark.parametrize("optimizer", [adam(0.1), adamw(0.1), sgd(0.4)])
@both_ways
def test_members_are_scored_under_vmap(optimizer: Any, support: int, query: int) -> None:
    known = few_shot(support=support, query=query)
    many = [known.params, tree_map(lambda p: p + 0.1, known.params)]
    stacked = {n: torch.stack([one[n] for one in many]) for n in known.params}

    def of(params: Any) -> Tensor:
        return scores(known._replace(params=params), optimizer=optimizer, chunk_size=2)

    close(torch.vmap(of)(stacked), torch.stack([of(one) for one in many]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
@both_ways
def test_it_is_the_same_where_autograd_records_nothing(
    mode: Any, engine: Any, support: int, query: int
) -> None:
    known = few_shot(support=support, query=query)
    with mode():
        found = scores(known, engine=engine)
    close(found, scores(known))


@both_ways
def test_nothing_is_recorded(support: int, query: int) -> None:
    known = few_shot(support=support, query=query)
    params = {n: p.clone().requires_grad_() for n, p in known.params.items()}
    state = torch.get_rng_state()
    assert not scores(known._replace(params=params)).requires_grad
    assert all(p.grad is None for p in params.values())
    assert torch.equal(torch.get_rng_state(), state)


@both_ways
def test_float32_is_close_to_float64(support: int, query: int) -> None:
    known = few_shot(support=support, query=query)
    expected = scores(known)
    single = tree_map(lambda x: x.float() if x.is_floating_point() else x, known[1:])
    found = scores(FewShot(known.losses_fn, *single))
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-4 * expected.norm()


@both_ways
def test_what_vmap_cannot_take_is_looped_over(support: int, query: int) -> None:
    known = few_shot(support=support, query=query)

    def losses_fn(params: Any, batch: Any) -> Tensor:
        losses = known.losses_fn(params, batch)
        return losses * (1.0 if float(losses.detach().sum()) > 0 else 2.0)

    other = known._replace(losses_fn=losses_fn)
    with pytest.raises(VectorizationError, match="engine='loop' can"):
        scores(other)
    close(scores(other, engine="loop"), scores(known))


def mean_loss(params: Any, batch: Any) -> Tensor:
    return few_shot().losses_fn(params, batch).mean()


def constant(params: Any, batch: Any) -> Tensor:
    return torch.zeros(len(batch[1]), dtype=torch.float64)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses_fn": mean_loss}, r"losses_fn=\(\): losses \(\d,\), one for each sample"),
        ({"losses_fn": constant}, "losses_fn=.*no parameter reached"),
        ({"steps": -1}, "steps=-1: a whole number of at least 0"),
        ({"reduction": "sum"}, "reduction='sum': one of none, mean is needed"),
        ({"engine": "batched"}, "engine='batched': one of vmap, loop is needed"),
        ({"frozen": "head"}, "frozen='head': a pattern that matches"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
        ({"chunk_size": 1, "memory": "1GB"}, "memory='1GB': it goes with chunk_size"),
        ({"memory": 1}, "memory=1: one task takes"),
        ({"tasks": (1, 2, 3)}, "tasks="),
    ],
)
def test_mistakes_are_one_sentence(engine: Any, changes: dict[str, Any], message: str) -> None:
    known = few_shot()
    given = {**known._asdict(), "optimizer": sgd(0.1), "steps": 2, "engine": engine}
    with pytest.raises(SettingError, match=message):
        support_example_scores(**{**given, **changes})


@pytest.mark.parametrize("part", ["support", "query"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: (b[0][:, :0], b[1][:, :0]), "it needs samples"),
        (lambda b: (b[0][:, :2], b[1]), "the same number of samples"),
        (lambda b: (b[0][:1], b[1][:1]), "the same leading task axis"),
    ],
)
def test_sets_that_do_not_fit_are_named(part: str, change: Any, message: str) -> None:
    known = few_shot()
    tasks = known.tasks._replace(**{part: change(getattr(known.tasks, part))})
    with pytest.raises(SettingError, match=message):
        scores(known._replace(tasks=tasks))


# --- of learners -----------------------------------------------------------------------------


def net(seed: int = 0) -> MLP:
    return MLP((4,), 3, hidden=(6,), activation="tanh", seed=seed).double()


def maml(**settings: Any) -> MAML:
    return MAML(inner_lr=0.4, inner_steps=2, eval_steps=3, **settings)


def of_learner(learner: MetaLearner, tasks: TaskBatch) -> Tensor:
    """What a plain loop finds for a learner that descends its loss by gradient descent."""
    known = few_shot()

    def losses_fn(params: Any, batch: Any) -> Tensor:
        outputs = learner.apply(params, learner.buffers, batch[0])
        return nn.functional.cross_entropy(outputs, batch[1], reduction="none")

    frozen = [n for n in learner.params if n not in learner.adapting()]
    known = FewShot(losses_fn, learner.params, tasks)
    return scores_by_loops(known, partial(sgd_rule, 0.4), 3, frozen=frozen)


@pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])
@pytest.mark.parametrize("kind", [MetaLearner, ANIL])
@both_ways
def test_those_of_a_learner(kind: Any, engine: Any, support: int, query: int) -> None:
    tasks = few_shot(support=support, query=query).tasks
    learner = kind(net(), maml(engine=engine))
    found = learner_support_scores(learner, tasks)
    close(found, of_learner(learner, tasks), rtol=1e-10, atol=1e-14)
    close(learner_support_scores(learner, tasks, reduction="mean", chunk_size=2), found.mean(1))


def test_the_pull_of_implicit_maml_is_in_the_inner_loss() -> None:
    tasks, learner = few_shot(tasks=2).tasks, ImplicitMAML(net(), maml(method="implicit"))
    apply, params = learner.apply, learner.params
    strength = learner.maml.regularization
    found = learner_support_scores(learner, tasks)
    for t, (support, query) in enumerate(task_list(tasks)):
        weights = torch.ones(5, dtype=torch.float64, requires_grad=True)
        at = {n: p.clone().requires_grad_() for n, p in params.items()}
        for _ in range(3):
            outputs = apply(at, {}, support[0])
            losses = nn.functional.cross_entropy(outputs, support[1], reduction="none")
            pull = sum(((at[n] - p) ** 2).sum() for n, p in params.items())
            inner = (weights * losses).mean() + strength / 2 * pull
            grads = torch.autograd.grad(inner, list(at.values()), create_graph=True)
            at = {n: p - 0.4 * g for (n, p), g in zip(at.items(), grads)}
        ends = nn.functional.cross_entropy(apply(at, {}, query[0]), query[1], reduction="none")
        for q, end in enumerate(ends):
            (grad,) = torch.autograd.grad(end, weights, retain_graph=True)
            close(found[t, q], -grad)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize(
    "name", [name for name in [*INNER, *WITH_RATES] if not name.startswith("protomaml")]
)
def test_forward_is_backward_for_every_learner_with_weights(name: str, engine: str) -> None:
    learner, tasks = table_learner(name, table_network(name, 0), engine), doubled(name, "train")
    twice = tree_map(lambda x: torch.cat([x, x], 1), tasks.query)
    backward = learner_support_scores(learner, tasks)
    forward = learner_support_scores(learner, TaskBatch(tasks.support, twice))
    assert bool(backward.any())
    close(forward, torch.cat([backward, backward], 1), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("queries", [2, 9])
def test_norms_that_move_by_step(queries: int) -> None:
    norm = nn.BatchNorm1d(6)
    layers = draw(nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 3)))
    settings: Any = {"affine_per_step": True, "statistics_per_step": True}
    learner = MAMLPlusPlus(layers, maml(), **settings)
    tasks = few_shot(query=9).tasks
    some = TaskBatch(tasks.support, tree_map(lambda x: x[:, :queries], tasks.query))
    one_by_one = [
        learner_support_scores(
            learner, TaskBatch(tasks.support, tree_map(lambda x, q=q: x[:, q : q + 1], tasks.query))
        )
        for q in range(queries)
    ]
    close(learner_support_scores(learner, some), torch.cat(one_by_one, 1))


def test_padding_counts_nowhere() -> None:
    known, learner = few_shot(), MetaLearner(net(), maml())
    (x, y), (query_x, query_y) = known.tasks
    y, query_y = y.clone(), query_y.clone()
    y[:, 1], query_y[:, 2] = -100, -100
    kept, asked = [0, 2, 3, 4], [0, 1, 3]
    found = learner_support_scores(learner, TaskBatch((x, y), (query_x, query_y)))
    shorter = TaskBatch((x[:, kept], y[:, kept]), (query_x[:, asked], query_y[:, asked]))
    expected = learner_support_scores(learner, shorter)
    close(found[:, asked][..., kept], expected)
    assert not found[..., 1].any() and not found[:, 2].any()
    mean = learner_support_scores(learner, TaskBatch((x, y), (query_x, query_y)), reduction="mean")
    close(mean[:, kept], expected.mean(1))


def test_probabilities_as_targets_are_those_of_labels_where_they_are_certain() -> None:
    known, learner = few_shot(), MetaLearner(net(), maml())
    (x, y), (query_x, query_y) = known.tasks
    certain = [nn.functional.one_hot(v, 3).double() for v in (y, query_y)]
    soft = TaskBatch((x, certain[0]), (query_x, certain[1]))
    close(learner_support_scores(learner, soft), learner_support_scores(learner, known.tasks))


@pytest.mark.parametrize("steps", [None, 0, 1])
def test_regression_and_steps(steps: int | None) -> None:
    x = torch.randn(3, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x.sum(-1).sin(), x.prod(-1), x[..., 0]], -1)
    tasks = TaskBatch((x[:, :5], y[:, :5]), (x[:, 5:], y[:, 5:]))
    learner = MetaLearner(net(), maml(), kind="regression")

    def losses_fn(params: Any, batch: Any) -> Tensor:
        return (learner.apply(params, learner.buffers, batch[0]) - batch[1]).square().mean(-1)

    known = FewShot(losses_fn, learner.params, tasks)
    expected = scores_by_loops(known, partial(sgd_rule, 0.4), 3 if steps is None else steps)
    close(learner_support_scores(learner, tasks, steps=steps), expected)


def test_members_are_learners_alone() -> None:
    tasks = few_shot().tasks
    together = MetaLearner(Ensemble.from_factory(net, range(2)), maml())
    found = learner_support_scores(together, tasks)
    assert found.shape == (2, 3, 4, 5)
    for seed in range(2):
        close(found[seed], learner_support_scores(MetaLearner(net(seed), maml()), tasks))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner": ProtoNet(net())}, "learner='ProtoNet': .*leave_one_support_out takes every"),
        ({"steps": -1}, "steps=-1: a whole number of at least 0"),
        ({"reduction": "sum"}, "reduction='sum': one of none, mean"),
        ({"learner": None}, "learner=None: a Learner is needed"),
    ],
)
def test_what_a_learner_cannot_be_asked(changes: dict[str, Any], message: str) -> None:
    given: Any = {"learner": MetaLearner(net(), maml()), "tasks": few_shot().tasks}
    with pytest.raises(SettingError, match=message):
        learner_support_scores(**{**given, **changes})
