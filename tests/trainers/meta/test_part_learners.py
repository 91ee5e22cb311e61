"""ANIL and BOIL: against an inner loop that is written out, and what the head is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import ANIL, BOIL, MAML, MetaLearner
from metalearn.types import TaskBatch

RATE, STEPS = 0.05, 2
both = pytest.mark.parametrize("kind", [ANIL, BOIL])


def waves() -> TaskBatch:
    tasks = SinusoidTasks(shot=4, query=4).sample("train", range(3))
    batch: TaskBatch = tree_map(lambda x: x.double(), tasks)
    return batch


def network(seed: int = 0) -> MLP:
    return MLP((1,), 1, hidden=(5,), seed=seed).double()


def written_out(module: nn.Module, adapting: set[str]) -> dict[str, Tensor]:
    """The mean over tasks of the query loss's gradient through an unrolled inner loop."""
    start = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    total = torch.zeros((), dtype=torch.float64)
    (xs, ys), (xq, yq) = waves()

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(module, params, (x,))
        return ((out - y) ** 2).mean()

    for t in range(3):
        params = dict(start)
        for _ in range(STEPS):
            names = sorted(adapting)
            slopes = torch.autograd.grad(
                loss(params, xs[t], ys[t]), [params[n] for n in names], create_graph=True
            )
            params |= {n: params[n] - RATE * g for n, g in zip(names, slopes)}
        total = total + loss(params, xq[t], yq[t]) / 3
    return dict(zip(start, torch.autograd.grad(total, list(start.values()))))


@both
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize("method", ["reverse", "mixed"])
def test_the_gradient_is_that_of_a_loop_written_out(kind: Any, engine: Any, method: Any) -> None:
    module = network()
    names = [n for n, _ in module.named_parameters()]
    adapting = set(names[-2:] if kind is ANIL else names[:-2])
    maml = MAML(inner_lr=RATE, inner_steps=STEPS, eval_steps=STEPS, engine=engine, method=method)
    learner = kind(module, maml, kind="regression")
    assert set(learner.adapting()) == adapting
    wanted = written_out(module, adapting)
    for name, grad in learner.meta_gradient(waves()).grads.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-10, atol=1e-13)


@both
def test_the_rest_stays_as_it_is(kind: Any) -> None:
    tasks, module = waves(), network()
    learner = kind(module, MAML(inner_lr=RATE, eval_steps=3), kind="regression")
    adapted = learner.adapt((tasks.support[0][0], tasks.support[1][0]))
    moved = {
        name
        for (name, before), after in zip(module.named_parameters(), adapted.parameters())
        if not torch.equal(before, after)
    }
    assert moved == set(learner.adapting())


def test_a_network_that_is_all_head_is_maml() -> None:
    maml = MAML(inner_lr=RATE, inner_steps=STEPS)
    part = ANIL(network(), maml, kind="regression", head="*").meta_gradient(waves())
    whole = MetaLearner(network(), maml, kind="regression").meta_gradient(waves())
    for name, grad in whole.grads.items():
        assert torch.equal(part.grads[name], grad)


def test_the_log_says_what_adapts() -> None:
    learner = ANIL(network(), kind="regression")
    plan = learner.prepare(waves(), 3, deterministic=True)
    assert f"adapts {', '.join(learner.adapting())}" in str(plan)


class WithHead(nn.Module):
    """A submodule ``head`` that is not the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(3, 1), nn.Linear(1, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(inputs).tanh())
        return found


NORMALISED = nn.Sequential(nn.Linear(1, 3), nn.LayerNorm(3))
LAST = nn.utils.parametrizations.weight_norm(nn.Linear(3, 1))
PARAMETRISED = nn.Sequential(nn.Linear(1, 3), LAST)


def tied_head() -> nn.Module:
    """The matrix is known by the name of the first layer."""
    module = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 3)})
    module["head"].weight = module["body"].weight
    return module


def fixed_head() -> nn.Module:
    module = WithHead()
    module.head.requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("module", "head", "wanted"),
    [
        (WithHead(), None, {"head.weight", "head.bias"}),
        (WithHead(), "body.*", {"body.weight", "body.bias"}),
        (WithHead(), ["body.bias", "head.*"], {"body.bias", "head.weight", "head.bias"}),
        (nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)), None, {"2.weight", "2.bias"}),
        (nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1, bias=False)), None, {"1.weight"}),
        (
            PARAMETRISED,
            None,
            {f"1.{n}" for n, _ in LAST.named_parameters()},
        ),
    ],
)
def test_what_the_head_is(module: nn.Module, head: Any, wanted: set[str]) -> None:
    assert set(ANIL(module, kind="regression", head=head).adapting()) == wanted
    every = {name for name, _ in module.named_parameters()}
    assert set(BOIL(module, kind="regression", head=head).adapting()) == every - wanted


@both
@pytest.mark.parametrize("inductive", [False, True])
def test_the_order_of_samples_and_the_names_of_classes_do_not_matter(
    kind: Any, inductive: bool
) -> None:
    """Classes renamed are rows of the head exchanged."""
    draw, order = torch.Generator().manual_seed(0), torch.tensor([4, 0, 3, 1, 5, 2])
    x = torch.randn(2, 6, 3, generator=draw, dtype=torch.float64)
    y = torch.arange(3).repeat(2).expand(2, 6)
    maml = MAML(inner_lr=0.3, inner_steps=2, eval_steps=2)
    module = MLP((3,), 3, hidden=(16,)).double()
    scores = kind(module, maml).score(TaskBatch((x, y), (x + 1, y)), inductive=inductive)
    shuffled = TaskBatch((x[:, order], y[:, order]), (x[:, order] + 1, y[:, order]))
    found = kind(module, maml).score(shuffled, inductive=inductive)
    torch.testing.assert_close(found.losses, scores.losses, rtol=1e-11, atol=0)
    assert torch.equal(found.predictions, scores.predictions[..., order])
    renamed, new_name = copy.deepcopy(module), torch.tensor([2, 0, 1])
    with torch.no_grad():
        head = list(renamed.modules())[-1]
        head.weight[new_name], head.bias[new_name] = head.weight.clone(), head.bias.clone()
    again = kind(renamed, maml).score(
        TaskBatch((x, new_name[y]), (x + 1, new_name[y])), inductive=inductive
    )
    torch.testing.assert_close(again.losses, scores.losses, rtol=1e-11, atol=0)
    assert torch.equal(again.predictions, new_name[scores.predictions])


@both
def test_members_have_the_same_head(kind: Any) -> None:
    together = kind(Ensemble.from_factory(network, range(2)), kind="regression")
    assert together.adapting() == kind(network(), kind="regression").adapting()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ANIL(network(), MAML(frozen="*")), "maml.frozen='\\*': null is needed"),
        (lambda: BOIL(network(), MAML(frozen="*")), "maml.frozen='\\*': null is needed"),
        (lambda: ANIL(network(), MAML(method="reptile")), "maml.method='reptile': another is need"),
        (lambda: BOIL(network(), MAML(method="reptile")), "maml.method='reptile': another is need"),
        (lambda: ANIL(network(), head="nope"), "learner.head='nope': a pattern that matches"),
        (lambda: BOIL(nn.Linear(1, 1)), "learner.head='weight, bias': parameters that are not"),
        (lambda: BOIL(network(), head="*"), "parameters that are not the head are needed"),
        (
            lambda: ANIL(NORMALISED),
            "'1.weight, 1.bias': a pattern is needed: the last layer",
        ),
        (lambda: BOIL(tied_head()), "'head.bias': a pattern is needed: the submodule head has no"),
        (lambda: ANIL(network(), head=[]), "learner.head=\\[\\]: a pattern is needed, or null"),
        (lambda: BOIL(network(), head=""), "learner.head='': a pattern is needed, or null"),
        (lambda: ANIL(fixed_head()), "none of these parameters is trained"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
