"""Networks all of whose parameters go without gradients, and what other libraries say of them.

Axes: N samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import (
    check_per_sample,
    clipped_gradient,
    functionalize,
    ghost_parameters,
    per_sample_norms,
)
from tests.support.networks import Case, tiny_bert, tiny_gpt2
from tests.support.oracles import draw
from tests.support.sample_oracles import noise

close = torch.testing.assert_close


class Attending(nn.Module):
    """Attention to what follows from the input in another way than the query, mean over places."""

    def __init__(self, same: bool, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **settings)
        self.key, self.value, self.same = nn.Linear(8, 8), nn.Linear(8, 8), same

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.key(x), self.value(x)
        value = key if self.same else value
        return self.attention(x, key, value, need_weights=not self.same)[0].mean(1) + value.mean(1)


class Averaged(nn.Module):
    def __init__(self, layer: nn.Module, *more: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer, *more])

    def forward(self, x: Tensor) -> Tensor:
        layer, *more = self.layers
        return layer(x, *(m(x) for m in more)).mean(1)


SETTINGS: Any = {"dropout": 0.0, "batch_first": True}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "encoder layer": lambda: Averaged(nn.TransformerEncoderLayer(8, 2, 12, **SETTINGS)),
    "encoder layer, evaluated": lambda: Averaged(
        nn.TransformerEncoderLayer(8, 2, 12, **SETTINGS)).eval(),
    "encoder layer, norm first": lambda: Averaged(
        nn.TransformerEncoderLayer(8, 2, 12, norm_first=True, bias=False, **SETTINGS)),
    "decoder layer": lambda: Averaged(nn.TransformerDecoderLayer(8, 2, 12, **SETTINGS),
                                      nn.Linear(8, 8)),
    "attention to one": lambda: Attending(True),
    "attention to two": lambda: Attending(False),
    "attention of several sizes": lambda: Attending(False, kdim=8, vdim=8),
}  # fmt: skip


def of(name: str) -> Case:
    module = draw(NETWORKS[name]().double())
    apply, params, buffers = functionalize(module)

    def loss_fn(params: Any, batch: Any) -> Tensor:
        return F.cross_entropy(apply(params, buffers, batch[0]), batch[1])

    return Case(loss_fn, params, (noise(3, 4, 8), torch.arange(3)), module)


def unused(name: str, case: Case) -> set[str]:
    """What a loss does not use at all is no matter of rules."""
    return {n for n in case.params if name == "attention to one" and n.startswith("value.")}


@pytest.mark.parametrize("name", [*NETWORKS, "gpt2", "bert"])
def test_all_parameters_go_without_gradients(name: str) -> None:
    if name in ("gpt2", "bert"):
        pytest.importorskip("transformers")
    case = {"gpt2": tiny_gpt2, "bert": tiny_bert}[name]() if name in ("gpt2", "bert") else of(name)
    loss_fn, params, batch, _ = case
    ghosts = ghost_parameters(loss_fn, params, batch)
    assert {n for n, ghost in ghosts.items() if not ghost} == unused(name, case)
    report = check_per_sample(loss_fn, params, batch)
    assert max(report.norms, *report.layers.values()) < 1e-10
    found, exact = (
        clipped_gradient(loss_fn, params, batch, max_norm=0.3, method=method)  # type: ignore[arg-type]
        for method in ("layers", "loop")
    )
    close(found.grads, exact.grads, rtol=1e-10, atol=1e-12)
    close(found.losses, exact.losses, rtol=1e-10, atol=0)


def several_kinds() -> nn.Module:
    """What opacus has rules for."""
    return nn.Sequential(
        nn.Embedding(9, 4), nn.LayerNorm(4), nn.Conv1d(5, 6, 2, groups=1), nn.GroupNorm(2, 6),
        nn.Tanh(), nn.Unflatten(1, (2, 3, 1)), nn.Conv3d(2, 3, (2, 1, 2)),
        nn.InstanceNorm3d(3, affine=True), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def test_norms_against_opacus() -> None:
    opacus = pytest.importorskip("opacus.grad_sample")
    x, y = torch.randint(9, (4, 5), generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3
    module = draw(several_kinds())
    apply, params, buffers = functionalize(module)

    def loss(params: Any, batch: Any) -> Tensor:
        return F.cross_entropy(apply(params, buffers, batch[0]), batch[1])

    assert all(ghost_parameters(loss, params, (x, y)).values())
    norms: Any = per_sample_norms(loss, params, (x, y), by_leaf=True)
    # Opacus sets a flag of torch's, which torch's own lists of operations freeze when imported.
    thaw = getattr(torch.backends, "__allow_nonbracketed_mutation")
    with warnings.catch_warnings(), thaw():
        warnings.simplefilter("ignore")
        wrapped = opacus.GradSampleModule(module)
        torch.autograd.backward(F.cross_entropy(wrapped(x), y))
    for n, p in wrapped.named_parameters():
        close(norms[n[8:]], p.grad_sample.flatten(1).norm(dim=1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    """Products of 300 × 300, whose squares float16 does not hold."""
    weight, x = noise(3, 4).to(dtype), (300 * noise(5, 6, 4, seed=1)).to(dtype)

    def loss(params: Any, batch: Any) -> Tensor:
        return (3 * F.linear(batch[0], params["w"], params["b"])).sum((1, 2)).mean()

    params = {"w": weight, "b": noise(3).to(dtype)}
    norms = per_sample_norms(loss, params, (x,))
    wide = {n: p.double() for n, p in params.items()}
    wanted = per_sample_norms(loss, wide, (x.double(),), method="loop")
    assert norms.dtype == torch.float32  # type: ignore[union-attr]
    close(norms.double(), wanted, rtol=0.02, atol=0)  # type: ignore[union-attr]
    clipped = clipped_gradient(loss, params, (x,), max_norm=100.0)
    assert all(g.dtype == dtype for g in clipped.grads.values())
    exact = clipped_gradient(loss, wide, (x.double(),), max_norm=100.0)
    close(clipped.grads["w"].double(), exact.grads["w"], rtol=0.05, atol=0.5)
