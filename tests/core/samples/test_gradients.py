"""Per-sample gradients and their norms, against a loop of backward passes and other libraries.

Axes: N samples, M parameter sets.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import (
    check_per_sample,
    functionalize,
    ghost_parameters,
    per_sample_gradients,
    per_sample_module,
    per_sample_norms,
)
from metalearn.errors import SettingError
from tests.support.sample_oracles import PROBLEMS, build, looped, noise, norms_of

close = torch.testing.assert_close


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", ["layers", "vmap"])
def test_gradients_are_those_of_a_loop(name: str, method: Any) -> None:
    module, loss, params, batch = build(name)
    wanted = looped(loss, params, batch)
    found = per_sample_gradients(loss, params, batch, method=method)
    assert list(found) == list(params)
    for n in params:
        close(found[n], wanted[n], rtol=0, atol=1e-11, msg=n)
    module.zero_grad()
    torch.autograd.backward((module(batch[0]) - batch[1]).square().sum(1).mean())
    for n, p in module.named_parameters():
        whole = torch.zeros_like(p) if p.grad is None else p.grad
        close(found[n].mean(0), whole, rtol=0, atol=1e-11, msg=n)


@pytest.mark.parametrize("name", PROBLEMS)
def test_norms_are_those_of_the_gradients(name: str) -> None:
    _, loss, params, batch = build(name)
    wanted = norms_of(looped(loss, params, batch))
    by_leaf = per_sample_norms(loss, params, batch, by_leaf=True)
    for n in params:
        close(by_leaf[n], wanted[n], rtol=0, atol=1e-6 if not wanted[n].any() else 1e-10, msg=n)
    total = torch.stack(list(wanted.values())).norm(dim=0)
    for size in (None, 2, 100, "auto"):
        found = per_sample_norms(loss, params, batch, chunk_size=size)  # type: ignore[arg-type]
        close(found, total, rtol=0, atol=1e-10)


def test_which_norms_need_no_gradients() -> None:
    """All of layers, tied ones too; nothing that is used otherwise, or not at all."""
    for name, wanted in (
        ("mlp", {"0.weight", "0.bias", "2.weight"}),
        ("many channels", {"0.weight", "0.bias"}),
        ("groups", {"0.weight", "0.bias"}),
        ("norms", {f"{i}.{n}" for i in (0, 1, 3, 5, 6) for n in ("weight", "bias")}),
        ("embedding", {"0.weight", "2.weight", "2.bias"}),
        ("tied", {"embed.weight", "head.bias", "scale"}),
        ("twice and unused", {"layer.bias"}),
    ):
        _, loss, params, batch = build(name)
        ghosts = ghost_parameters(loss, params, batch)
        assert {n for n, ghost in ghosts.items() if ghost} == wanted, name


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 100, "auto"])
def test_chunks_change_nothing(chunk_size: Any) -> None:
    _, loss, params, batch = build("norms")
    whole = per_sample_gradients(loss, params, batch)
    memory = "10MB" if chunk_size == "auto" else None
    found = per_sample_gradients(loss, params, batch, chunk_size=chunk_size, memory=memory)
    for n in params:
        close(found[n], whole[n], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "many channels", "norms", "tied"])
def test_inside_an_outer_vmap_over_parameter_sets(name: str) -> None:
    _, loss, params, batch = build(name)
    stacked = {n: torch.stack([p, p.sin(), 0.5 * p]) for n, p in params.items()}
    rows = [{n: p[m] for n, p in stacked.items()} for m in range(3)]
    grads = torch.func.vmap(lambda p: per_sample_gradients(loss, p, batch))(stacked)
    norms = torch.func.vmap(lambda p: per_sample_norms(loss, p, batch))(stacked)
    for m, row in enumerate(rows):
        wanted = looped(loss, row, batch)
        for n in params:
            close(grads[n][m], wanted[n], rtol=0, atol=1e-11)
        total = torch.stack(list(norms_of(wanted).values())).norm(dim=0)
        close(norms[m], total, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "many channels"])
def test_norms_can_be_differentiated(name: str) -> None:
    """A penalty on gradient norms: its gradient by the exact way through plain autograd."""
    _, loss, params, batch = build(name)

    def penalty(params: dict[str, Tensor]) -> Tensor:
        return per_sample_norms(loss, params, batch).sum()

    def plain(params: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(len(batch[0])):
            one = tuple(part[i : i + 1] for part in batch)
            grads = torch.autograd.grad(loss(params, one), list(params.values()), create_graph=True)
            total = total + torch.cat([g.flatten() for g in grads]).norm()
        return total

    found = torch.func.grad(penalty)(params)
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    wanted = torch.autograd.grad(plain(leaves), list(leaves.values()))
    for n, g in zip(params, wanted):
        close(found[n], g, rtol=0, atol=1e-10)


def peer_problem() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)
        )
    return module, noise(6, 1, 8, 8).float(), torch.tensor([0, 1, 2, 3, 4, 0])


def test_against_opacus_and_backpack() -> None:
    found = {}
    module, x, y = peer_problem()
    apply, params, buffers = functionalize(module)

    def loss(params: Any, batch: Any) -> Tensor:
        return F.cross_entropy(apply(params, buffers, batch[0]), batch[1])

    ours = per_sample_gradients(loss, params, (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opacus = pytest.importorskip("opacus.grad_sample")
        wrapped = opacus.GradSampleModule(peer_problem()[0])
        torch.autograd.backward(F.cross_entropy(wrapped(x), y))
        found["opacus"] = {n[8:]: p.grad_sample for n, p in wrapped.named_parameters()}
        backpack = pytest.importorskip("backpack")
        from backpack.extensions import BatchGrad

        extended = backpack.extend(peer_problem()[0])
        criterion = backpack.extend(nn.CrossEntropyLoss())
        with backpack.backpack(BatchGrad()):
            torch.autograd.backward(criterion(extended(x), y))
        found["backpack"] = {n: 6 * p.grad_batch for n, p in extended.named_parameters()}
    for library, grads in found.items():
        for n in ours:
            close(ours[n], grads[n], rtol=1e-4, atol=1e-6, msg=f"{library} {n}")


def test_the_check_finds_small_errors_and_dependence_between_samples() -> None:
    _, loss, params, batch = build("norms")
    report = check_per_sample(loss, params, batch)
    assert max(*report.vmap.values(), *report.layers.values(), report.norms) < 1e-10
    assert max(report.batch.values()) < 1e-10

    def dependent(params: Any, batch: Any) -> Tensor:
        x = batch[0] - batch[0].mean(0)
        return (x.flatten(1) @ params["w"]).square().mean()

    wrong = check_per_sample(dependent, {"w": noise(36)}, (noise(4, 1, 6, 6),))
    assert max(wrong.batch.values()) > 0.1


def test_batch_norm_has_a_policy() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    assert not per_sample_module(module)[1].training  # type: ignore[index]
    assert isinstance(per_sample_module(module, batch_norm="groupnorm")[1], nn.GroupNorm)  # type: ignore[index]
    with pytest.raises(SettingError, match="depend on all others"):
        per_sample_module(module, batch_norm="batch_stats")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="batch_norm='none': one of eval, groupnorm"):
        per_sample_module(module, batch_norm="none")  # type: ignore[arg-type]
    bare = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(SettingError, match=r"module\[0\]=.*no running statistics"):
        per_sample_module(bare)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"chunk_size": "some"}, "chunk_size='some'"),
        ({"chunk_size": "auto", "memory": "much"}, "memory='much'"),
        ({"method": "one"}, "method='one': one of"),
    ],
)
def test_bad_settings_are_one_sentence(change: dict[str, Any], sentence: str) -> None:
    _, loss, params, batch = build("mlp")
    with pytest.raises(SettingError, match=sentence):
        per_sample_gradients(loss, params, batch, **change)


def test_bad_batches_and_losses_are_one_sentence() -> None:
    _, loss, params, (x, y) = build("mlp")
    with pytest.raises(SettingError, match="batch"):
        per_sample_gradients(loss, params, (x, y[:3]))
    with pytest.raises(SettingError, match="a scalar is needed"):
        per_sample_gradients(lambda p, b: b[0].sum(1), params, (x, y))
    with pytest.raises(SettingError, match="floating-point"):
        per_sample_gradients(loss, {"w": torch.ones(2, dtype=torch.long)}, (x, y))


@pytest.mark.parametrize("take", [per_sample_gradients, per_sample_norms])
def test_an_input_that_is_changed_after_its_layer_is_refused(take: Any) -> None:
    """As autograd refuses it; the layer's weight gradient needs the input as it was."""

    def loss(params: Any, sample: Any) -> Tensor:
        h = sample.clone()
        y = F.linear(h, params["weight"])
        h.mul_(2.0)
        return y.square().sum()

    params, batch = {"weight": torch.ones(4, 3)}, torch.ones(6, 3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        take(loss, params, batch)
