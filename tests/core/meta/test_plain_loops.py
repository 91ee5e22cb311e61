"""What vmap cannot take: the loop takes it, everything else names the loop.

Axes: T tasks, M members, N samples.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metalearn import Ensemble
from metalearn.core import (
    check_per_sample,
    clipped_gradient,
    fisher_diagonal,
    fisher_kfac,
    fisher_operator,
    fisher_vp,
    functionalize,
    ghost_parameters,
    gradient_mean,
    gradient_norms,
    meta_gradient,
    per_sample_gradients,
    per_sample_norms,
    plan_meta_gradient,
    reduce_per_sample,
    sgd,
)
from metalearn.core.ensemble.stacking import member_gradients, stack
from metalearn.core.vectorization import VectorizationError
from metalearn.errors import SettingError
from metalearn.types import TaskBatch
from tests.support.oracles import assert_trees, generator

Tree = dict[str, Tensor]


class Linear(nn.Module):
    """One layer and an activation, with the means that vmap refuses."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.layer = kind, nn.Linear(3, 3), nn.Linear(3, 2)
        if kind == "LSTM":
            self.lstm = nn.LSTM(3, 3, batch_first=True)
        if kind == "full hook":
            self.layer.register_full_backward_hook(lambda _, grads, __: (2 * grads[0],))
        if kind == "pre-hook":
            self.layer.register_full_backward_pre_hook(lambda _, grads: (2 * grads[0],))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "LSTM":
            x = self.lstm(x[:, None])[0][:, 0]
        if self.kind == "item":
            return torch.tanh(self.layer(x)) * (2 if float(x.sum().detach()) > 0 else 1)
        if self.kind == "branch":
            return torch.tanh(self.layer(x)) if x.sum() > 0 else self.layer(x)
        if self.kind == "not reentrant":
            return checkpoint(lambda x: torch.tanh(self.layer(x)), x, use_reentrant=False)
        if self.kind == "saved by hooks":
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
                return torch.tanh(self.layer(x))
        if self.kind == "hook on a tensor" and x.requires_grad:
            x.register_hook(lambda grad: 2 * grad)
        return torch.tanh(self.layer(x))


REASONS = {
    "LSTM": ".",
    "item": "it reads a value of a tensor",
    "branch": "it reads a value of a tensor",
    "boolean mask": "a boolean mask or another operation whose output's shape depends on values",
    "not reentrant": "activation checkpointing",
    "saved by hooks": "hooks on saved tensors, which activation checkpointing sets",
    "hook on a tensor": "transforms of torch.func pass over hooks on tensors",
    "full hook": "transforms of torch.func pass over its backward hooks",
    "pre-hook": "transforms of torch.func pass over its backward hooks",
}
kinds = pytest.mark.parametrize("kind", REASONS)


class Problem:
    """A loss of samples ``[N, 3]``, and its gradients by a loop of backward passes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = Linear(kind).double()
        self.apply, self.params, self.buffers = functionalize(self.module, vectorize=False)
        self.x = torch.randn(5, 3, generator=generator(1), dtype=torch.float64)
        self.y = torch.randn(5, 2, generator=generator(2), dtype=torch.float64)

    def loss(self, params: Any, batch: Any) -> Tensor:
        x, y = batch
        gaps = self.apply(params, self.buffers, x) - y
        if self.kind == "boolean mask":
            gaps = gaps[y > 0]
        return gaps.square().sum()

    def gradient(self, x: Tensor, y: Tensor) -> Tree:
        self.module.zero_grad()
        gaps = self.module(x) - y
        gaps = gaps[y > 0] if self.kind == "boolean mask" else gaps
        gaps.square().sum().backward()
        return {n: p.grad.clone() for n, p in self.module.named_parameters() if p.grad is not None}

    def gradients(self) -> Tree:
        rows = [self.gradient(x[None], y[None]) for x, y in zip(self.x, self.y)]
        return {n: torch.stack([row[n] for row in rows]) for n in rows[0]}


def given_or_refused(kind: str, call: Callable[[], Any]) -> Any:
    """What the call gives; None where it is refused in a sentence that names the loop."""
    refusal: VectorizationError | None = None
    try:
        return call()
    except VectorizationError as error:
        refusal = error
    assert re.search(REASONS[kind], str(refusal))
    assert "engine='loop'" in str(refusal)
    return None


@kinds
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_loop_over_samples_takes_it(kind: str, chunk: int | None) -> None:
    problem = Problem(kind)
    given = problem.loss, problem.params, (problem.x, problem.y)
    wanted = problem.gradients()
    flat = torch.cat([g.flatten(1) for g in wanted.values()], 1)
    norms, cut = flat.norm(dim=1), float(flat.norm(dim=1).sort().values[2:4].mean())
    settings: dict[str, Any] = {"method": "loop", "chunk_size": chunk}

    assert_trees(per_sample_gradients(*given, **settings), wanted)
    torch.testing.assert_close(per_sample_norms(*given, **settings), norms)
    by_leaf = per_sample_norms(*given, by_leaf=True, **settings)
    assert_trees(by_leaf, {n: g.flatten(1).norm(dim=1) for n, g in wanted.items()})
    clipped = clipped_gradient(*given, max_norm=cut, **settings)
    share = (cut / norms).clamp_max(1)
    assert_trees(
        clipped.grads, {n: torch.einsum("n,n...->...", share, g) / 5 for n, g in wanted.items()}
    )
    torch.testing.assert_close(clipped.norms, norms)
    assert float(clipped.clipped_fraction) == 0.4
    found = reduce_per_sample(
        *given, {"mean": gradient_mean(), "norms": gradient_norms()}, **settings
    )
    assert_trees(found["mean"], {n: g.mean(0) for n, g in wanted.items()})
    torch.testing.assert_close(found["norms"], norms)


@kinds
@pytest.mark.parametrize("method", ["layers", "vmap"])
def test_other_methods_name_the_loop_or_are_right(kind: str, method: Any) -> None:
    problem = Problem(kind)
    given = problem.loss, problem.params, (problem.x, problem.y)
    calls = {
        "gradients": lambda: per_sample_gradients(*given, method=method),
        "chunks": lambda: per_sample_gradients(*given, method=method, chunk_size="auto"),
        "norms": lambda: per_sample_norms(*given, method=method),
        "clipped": lambda: clipped_gradient(*given, method=method, max_norm=1.0),
        "reduced": lambda: reduce_per_sample(*given, {"n": gradient_norms()}, method=method),
    }
    for name, call in calls.items():
        with pytest.raises(VectorizationError, match=REASONS[kind]) as caught:
            call()
        if "hook" not in kind or kind == "saved by hooks":
            assert str(caught.value).startswith(f"method='{method}': vmap cannot"), name
            assert str(caught.value).endswith("method='loop' can"), name
        else:
            where = "" if kind == "hook on a tensor" else "layer"
            assert f"module[{where}]='Linear'" in str(caught.value)
            assert "method='loop'" in str(caught.value)
    with pytest.raises(VectorizationError):
        ghost_parameters(*given)


@kinds
@pytest.mark.parametrize("engine", ["batched", "vmap", "auto"])
def test_meta_gradients_name_the_loop_and_plans_choose_it(kind: str, engine: Any) -> None:
    problem = Problem(kind)
    tasks = TaskBatch(*[(problem.x[None], problem.y[None])] * 2)
    settings: dict[str, Any] = {"optimizer": sgd(0.01), "steps": 1}
    given = problem.loss, problem.params, tasks
    wanted = meta_gradient(*given, engine="loop", **settings)
    found = given_or_refused(kind, lambda: meta_gradient(*given, engine=engine, **settings))
    if found is not None:
        assert_trees(found.grads, wanted.grads)
        assert kind in ("LSTM", "saved by hooks")
    if engine == "auto":
        plan = plan_meta_gradient(*given, **settings)
        assert plan.engine == "loop" or kind in ("LSTM", "saved by hooks")


@kinds
@pytest.mark.parametrize("engine", ["batched", "vmap"])
def test_members_name_the_loop(kind: str, engine: Any) -> None:
    problem = Problem(kind)
    rows = stack([problem.params, {n: 2 * v for n, v in problem.params.items()}])
    given = problem.loss, rows, (problem.x, problem.y)
    wanted = member_gradients(*given, in_dims=None, engine="loop")
    assert_trees({n: g[0] for n, g in wanted.grads.items()}, problem.gradient(problem.x, problem.y))
    found = given_or_refused(kind, lambda: member_gradients(*given, in_dims=None, engine=engine))
    if found is not None:
        assert_trees(found.grads, wanted.grads)
        assert kind in ("LSTM", "saved by hooks", "item", "branch", "boolean mask")


@pytest.mark.parametrize("kind", [k for k in REASONS if "hook" not in k])
def test_fisher_matrices_say_what_vmap_cannot_take(kind: str) -> None:
    problem = Problem(kind)

    def outputs_fn(params: Any, x: Tensor) -> Tensor:
        found = problem.apply(params, problem.buffers, x)
        scale = torch.ones_like(found)
        if kind == "boolean mask":
            scale[x[:, :2] > 0] = 2
        return found * scale

    model, rule = problem.module, {"likelihood": "gaussian", "kind": "exact"}
    given = outputs_fn, problem.params, (problem.x, None)
    ways: list[Callable[[], Any]] = [
        lambda: fisher_diagonal(*given, **rule),
        lambda: fisher_vp(*given, problem.params, **rule),
        lambda: fisher_operator(*given[:2], [given[2]], **rule)(problem.params),
    ]
    if kind not in ("LSTM", "boolean mask"):  # which the module itself has no part in, or refuses
        ways.append(lambda: fisher_kfac(model, *given[1:], **rule))
    for way in ways:
        with pytest.raises(VectorizationError, match=REASONS[kind]) as caught:
            way()
        assert re.search("Fisher matrices have no plain loop; per_sample.*", str(caught.value))


@pytest.mark.parametrize("engine", ["batched", "vmap"])
def test_a_refused_call_leaves_the_buffers_of_members_alone(engine: Any) -> None:
    """Whether a loop would do is tried on copies."""

    def make() -> nn.Module:
        return nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        ensemble = Ensemble.from_modules([make(), make()])
    before = {name: value.clone() for name, value in ensemble.named_buffers()}
    with pytest.raises(VectorizationError, match="engine='loop' can"):
        ensemble(torch.ones(4, 16), engine=engine)
    assert_trees(dict(ensemble.named_buffers()), before)
    part = ensemble.stacks[0]
    params, buffers = part.state()

    def loss(params: Any, buffers: Any) -> Tensor:
        return part.call(params, buffers, torch.ones(4, 16)).square().mean()

    with pytest.raises(VectorizationError, match="engine='loop' can"):
        member_gradients(loss, params, buffers, engine=engine)
    assert_trees(dict(ensemble.named_buffers()), before)
    ensemble(torch.ones(4, 16), engine="loop")
    assert any(not torch.equal(v, before[n]) for n, v in ensemble.named_buffers())


def test_a_mistake_of_the_user_is_not_laid_on_vmap() -> None:
    problem = Problem("plain")
    short = torch.zeros(5, 3, dtype=torch.float64)
    for method in ("layers", "vmap", "loop"):
        with pytest.raises(RuntimeError, match="must match the size") as caught:
            per_sample_gradients(problem.loss, problem.params, (problem.x, short), method=method)  # type: ignore[arg-type]
        assert not isinstance(caught.value, SettingError)

    labels = torch.tensor([0, 1, 1, 7, 0])

    def classify(params: Any, batch: Any) -> Tensor:
        return F.cross_entropy(problem.apply(params, {}, batch[0]), batch[1])

    for method in ("layers", "vmap", "loop"):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            per_sample_gradients(classify, problem.params, (problem.x, labels), method=method)  # type: ignore[arg-type]
        assert not isinstance(caught.value, VectorizationError)


def test_reentrant_checkpointing_is_refused_in_torchs_own_words() -> None:
    problem = Problem("plain")

    def loss(params: Any, batch: Any) -> Tensor:
        hidden = problem.apply(params, {}, batch[0])
        return checkpoint(torch.tanh, hidden, use_reentrant=True).sum()

    for method in ("layers", "vmap", "loop"):
        with pytest.raises(RuntimeError, match="set use_reentrant=False"):
            per_sample_gradients(loss, problem.params, (problem.x, problem.y), method=method)  # type: ignore[arg-type]


def test_samples_without_a_part_are_zero_and_batches_without_one_refused() -> None:
    problem = Problem("boolean mask")

    def loss(params: Any, batch: Any) -> Tensor:
        x, _ = batch
        return problem.loss(params, batch) if float(x.sum()) > 0 else x.sum()

    given = loss, problem.params, (problem.x, problem.y)
    found = per_sample_gradients(*given, method="loop")
    for i, x in enumerate(problem.x):
        expected = problem.gradient(x[None], problem.y[i : i + 1])["layer.weight"]
        right = expected if float(x.sum()) > 0 else torch.zeros_like(expected)
        torch.testing.assert_close(found["layer.weight"][i], right)
    nothing = (-problem.x.abs(), problem.y)
    for call in (per_sample_gradients, per_sample_norms):
        with pytest.raises(SettingError, match="no parameter reached"):
            call(loss, problem.params, nothing, method="loop")  # type: ignore[operator]


def test_loops_are_differentiable_and_work_inside_transforms() -> None:
    problem = Problem("plain")
    batch = problem.x, problem.y

    def penalty(params: Any, method: Any) -> Tensor:
        grads = per_sample_gradients(problem.loss, params, batch, method=method)
        return torch.stack([g.square().sum() for g in grads.values()]).sum()

    for method in ("layers", "loop"):
        values = {n: v.clone().requires_grad_() for n, v in problem.params.items()}
        by_autograd = torch.autograd.grad(penalty(values, method), list(values.values()))
        by_func = torch.func.grad(penalty)(problem.params, method)
        assert_trees(by_func, dict(zip(values, by_autograd)))
        if method == "layers":
            wanted = by_func
    assert_trees(by_func, wanted)
    rows = stack([problem.params, {n: 2 * v for n, v in problem.params.items()}])
    found, other = (
        torch.vmap(lambda p, m=m: per_sample_gradients(problem.loss, p, batch, method=m))(rows)
        for m in ("loop", "vmap")
    )
    assert_trees(found, other)


def test_checks_of_models_take_the_loop_for_the_truth() -> None:
    problem = Problem("plain")
    found = check_per_sample(problem.loss, problem.params, (problem.x, problem.y))
    assert max(*found.vmap.values(), *found.layers.values(), found.norms) < 1e-12


@pytest.mark.parametrize("wrap", ["torch.compile", "compile inside", "Module.compile"])
def test_compiled_modules_run_as_they_were_written_inside_transforms(wrap: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    apply, params, buffers = functionalize(net)
    x = torch.randn(5, 3, generator=generator(1), dtype=torch.float64)
    y = torch.randn(5, 2, generator=generator(2), dtype=torch.float64)

    def run(apply: Any, params: Any, engine: Any) -> Any:
        def loss(params: Any, batch: Any) -> Tensor:
            return (apply(params, buffers, batch[0]) - batch[1]).square().sum()

        tasks = TaskBatch((x[None], y[None]), (x[None], y[None]))
        found = meta_gradient(loss, params, tasks, optimizer=sgd(0.1), steps=1, engine=engine)
        samples = per_sample_gradients(loss, params, (x, y))
        return {n.replace("_orig_mod.", ""): g for n, g in found.grads.items()}, {
            n.replace("_orig_mod.", ""): g for n, g in samples.items()
        }

    wanted = run(apply, params, "vmap")
    if wrap == "torch.compile":
        net = torch.compile(net, backend="eager")
    elif wrap == "compile inside":
        net[0] = torch.compile(net[0], backend="eager")
    else:
        net.compile(backend="eager")
    apply, params, _ = functionalize(net)
    for engine in ("batched", "vmap", "loop"):
        for found, right in zip(run(apply, params, engine), wanted):
            assert_trees(found, right)


def test_an_ensemble_of_networks_with_hooks_calls_them_in_a_loop() -> None:
    network = nn.Sequential(nn.Linear(3, 2)).double()
    network[0].register_full_backward_pre_hook(lambda _, grads: (2 * grads[0],))
    ensemble = Ensemble.from_modules([network])
    x = torch.randn(4, 3, generator=generator(3), dtype=torch.float64)
    with pytest.raises(VectorizationError, match="pass over its backward hooks"):
        ensemble(x)
    with torch.no_grad():
        torch.testing.assert_close(ensemble(x)[0], network(x))
    network(x).sum().backward()
    ensemble(x, engine="loop").sum().backward()
    (weight,) = (p for n, p in ensemble.named_parameters() if n.endswith("weight"))
    assert weight.grad is not None and network[0].weight.grad is not None
    torch.testing.assert_close(weight.grad[0], network[0].weight.grad)


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize("method", ["reverse", "mixed", "implicit"])
def test_losses_without_second_derivatives_name_the_first_order(method: Any, engine: Any) -> None:
    problem = Problem("plain")
    labels = torch.arange(5)[None] % 2
    tasks = TaskBatch(*[(problem.x[None], labels)] * 2)

    def loss(params: Any, batch: Any) -> Tensor:
        return F.multi_margin_loss(problem.apply(params, {}, batch[0]), batch[1])

    given: dict[str, Any] = {"optimizer": sgd(0.1), "steps": 1, "engine": engine}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        needed = "torch has no derivative of multi_margin_loss_backward, which .*'first_order'"
        with pytest.raises(SettingError, match=f"^method='{method}': {needed}"):
            meta_gradient(loss, problem.params, tasks, method=method, **given)
        found = meta_gradient(loss, problem.params, tasks, method="first_order", **given)
    assert float(found.grads["layer.weight"].abs().max()) > 0
