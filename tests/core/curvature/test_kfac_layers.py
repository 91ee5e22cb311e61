"""Kronecker factors of every kind of layer that has them, against factors by loops.

Axes: N samples, G groups, S positions, O outputs and I inputs of a group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from metalearn.core import fisher_kfac, fisher_matrix, functionalize, register_layer_rule
from metalearn.core.samples.layer_rules import LayerCall
from metalearn.core.samples.outer_products import OuterProducts
from metalearn.core.samples.sample_gradients import FormedGradients
from metalearn.errors import SettingError
from tests.support.curvature_oracles import close, flat
from tests.support.oracles import draw, generator

N, C = 4, 3
RULE: dict[str, Any] = {"likelihood": "gaussian", "kind": "exact"}


class Product(nn.Module):
    """``x @ W``, or ``x @ Wᵀ``."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.weight, self.turned = nn.Parameter(torch.empty(4, 4)), turned

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.T if self.turned else self.weight)


def scaled_linear(x: Tensor, weight: Tensor) -> Tensor:
    return 3 * (x @ weight.T)


def _rule(x: Tensor, weight: Tensor) -> LayerCall:
    def gradients(dz: Tensor, x: Tensor) -> OuterProducts:
        return OuterProducts(3 * dz, x)

    return LayerCall(
        run=lambda weight: 3 * (x @ weight.T),
        inputs=(x,),
        parameters=(weight,),
        gradients=(gradients,),
    )


seen_linear = register_layer_rule(scaled_linear, _rule)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return seen_linear(x, self.weight)


class Packed(nn.Module):
    """A packed projection, as attention has it."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(6, 4))
        self.in_proj_bias = nn.Parameter(torch.empty(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.in_proj_weight, self.in_proj_bias)


class Around(nn.Module):
    """One layer, and a fixed head."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        size = layer(torch.zeros(1, *shape))[0].numel()
        self.head = nn.Linear(size, C).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.tanh(self.layer(x)).flatten(1))
        return outputs


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear over positions": (lambda: nn.Linear(4, 3, bias=False), (3, 4)),
    "Conv1D": (lambda: Conv1D(4, 4), (2, 4)),
    "Conv1D, wide": (lambda: Conv1D(5, 2), (2,)),
    "x @ W": (lambda: Product(False), (2, 4)),
    "x @ W.T": (lambda: Product(True), (4,)),
    "packed projection": (Packed, (3, 4)),
    "rule of one's own": (Own, (2, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2), (2, 5)),
    "conv1d, strided": (lambda: nn.Conv1d(2, 3, 2, stride=2, dilation=2, padding=1), (2, 6)),
    "conv1d, groups": (lambda: nn.Conv1d(4, 6, 2, groups=2), (4, 4)),
    "conv1d, same": (lambda: nn.Conv1d(2, 2, 3, padding="same", bias=False), (2, 4)),
    "conv2d, groups": (lambda: nn.Conv2d(4, 2, 2, groups=2, padding=1), (4, 3, 2)),
    "conv2d, depthwise": (lambda: nn.Conv2d(3, 3, 2, groups=3, bias=False), (3, 3, 3)),
    "conv2d, one place": (lambda: nn.Conv2d(4, 4, (2, 3), groups=2), (4, 2, 3)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), (1, 3, 4, 2)),
    "conv3d, groups": (lambda: nn.Conv3d(2, 4, 2, groups=2), (2, 2, 3, 2)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(2, 3, 2, stride=2, bias=False), (2, 3)),
    "transposed conv2d, groups": (
        lambda: nn.ConvTranspose2d(4, 2, 2, groups=2, padding=1, bias=False), (4, 2, 3),
    ),
}  # fmt: skip
every_layer = pytest.mark.parametrize("name", LAYERS)
every_sharing = pytest.mark.parametrize("sharing", ["expand", "reduce"])


def problem(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[name]
    module = draw(Around(make(), shape))
    return module, torch.randn(N, *shape, generator=generator(5), dtype=torch.float64)


# --- factors by loops ---------------------------------------------------------------------------


def convolution_rows(layer: Any, x: Tensor, dz: Tensor) -> Iterator[tuple[list[Tensor], Any]]:
    """Of each position, windows and gradients of each group; the kernel visits one by one."""
    space = layer.kernel_size
    if layer.padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(layer.dilation, space)]
    else:
        padding = layer.padding
    x = F.pad(x, [side for pad in reversed(padding) for side in (pad, pad)])
    for place in itertools.product(*map(range, dz.shape[1:])):
        at = [
            [p * s + k * d for k in range(size)]
            for p, s, d, size in zip(place, layer.stride, layer.dilation, space)
        ]
        window = torch.stack(
            [x[(slice(None), *spot)] for spot in itertools.product(*at)], dim=1
        )  # [channels, size]
        parts = window.chunk(layer.groups)
        yield [part.flatten() for part in parts], dz[(slice(None), *place)].chunk(layer.groups)


def transposed_rows(layer: Any, x: Tensor, dz: Tensor) -> Iterator[tuple[Any, list[Tensor]]]:
    """Of each input position, the inputs, and what of the outputs' gradients it was spread to."""
    space = layer.kernel_size
    wide = F.pad(dz, [side for pad in reversed(layer.padding) for side in (pad, pad)])
    for place in itertools.product(*map(range, x.shape[1:])):
        at = [
            [p * s + k * d for k in range(size)]
            for p, s, d, size in zip(place, layer.stride, layer.dilation, space)
        ]
        window = torch.stack([wide[(slice(None), *spot)] for spot in itertools.product(*at)], dim=1)
        parts = window.chunk(layer.groups)
        yield x[(slice(None), *place)].chunk(layer.groups), [part.flatten() for part in parts]


def rows_of(layer: Any, x: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
    """``[G, S, I (+1)]`` and ``[G, S, O]`` of one sample without a sample axis."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        pairs = list(transposed_rows(layer, x, dz))
    elif isinstance(layer, nn.modules.conv._ConvNd):
        pairs = list(convolution_rows(layer, x, dz))
    else:
        scale = 3 if isinstance(layer, Own) else 1
        spots = zip(x.reshape(-1, x.shape[-1]), dz.reshape(-1, dz.shape[-1]))
        pairs = [([one], [scale * back]) for one, back in spots]
    inputs = torch.stack([torch.stack(list(a)) for a, _ in pairs], 1)
    back = torch.stack([torch.stack(list(g)) for _, g in pairs], 1)
    bias = getattr(layer, "bias", getattr(layer, "in_proj_bias", None))
    if bias is not None:
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], -1)
    return inputs, back


def factors_by_loops(module: Any, x: Tensor, sharing: str) -> tuple[Tensor, Tensor]:
    """A ``[G, I, I]`` and B ``[G, O, O]`` of the gaussian likelihood: columns are the outputs."""
    a, b = 0, 0
    for sample in x:
        kept: list[Tensor] = []
        handle = module.layer.register_forward_hook(lambda *call, kept=kept: kept.append(call[-1]))
        outputs = module(sample[None])[0]
        handle.remove()
        for column, output in enumerate(outputs):
            (dz,) = torch.autograd.grad(output, kept[0], retain_graph=True)
            inputs, back = rows_of(module.layer, sample, dz[0])
            if sharing == "reduce":
                inputs, back = inputs.mean(1, keepdim=True), back.sum(1, keepdim=True)
            b = b + back.mT @ back / N
            if column == 0:
                a = a + inputs.mT @ inputs / (N * inputs.shape[1])
    return a, b  # type: ignore[return-value]


def order(module: Any, params: dict[str, Tensor]) -> Tensor:
    """Where the numbers of ``[G, O, I (+1)]`` stand in the parameters, one after another."""
    places, start = {}, 0
    for name, value in params.items():
        places[name] = torch.arange(start, start + value.numel()).view(value.shape)
        start += value.numel()
    (weight,) = [places[name] for name in places if name.endswith("weight")]
    biases = [places[name] for name in places if name.endswith("bias")]
    layer = module.layer
    groups = getattr(layer, "groups", 1)
    matrix = weight.flatten(1).reshape(groups, len(weight) // groups, -1)
    first = (Conv1D, nn.modules.conv._ConvTransposeNd)
    if isinstance(layer, first) or (isinstance(layer, Product) and not layer.turned):
        matrix = matrix.mT
    for bias in biases:
        matrix = torch.cat([matrix, bias.view(groups, -1, 1)], -1)
    return matrix


def dense_by_loops(module: Any, x: Tensor, params: dict[str, Tensor], sharing: str) -> Tensor:
    a, b = factors_by_loops(module, x, sharing)
    found = torch.zeros(len(flat(params)), len(flat(params)), dtype=torch.float64)
    for group, matrix in enumerate(order(module, params)):
        at = matrix.flatten()
        found[at[:, None], at] = torch.kron(b[group], a[group])
    return found


@every_layer
@every_sharing
def test_factors_are_those_of_loops(name: str, sharing: Any) -> None:
    module, x = problem(name)
    _, params, _ = functionalize(module)
    found = fisher_kfac(module, params, (x, None), sharing=sharing, **RULE)
    wanted = dense_by_loops(module, x, params, sharing)
    close(found.dense(params), wanted)
    vector = {n: torch.randn(p.shape, generator=generator(2)).double() for n, p in params.items()}
    close(flat(found.product(vector)), wanted @ flat(vector))
    solved = found.inverse_product(vector, damping=0.1)
    close((wanted + 0.1 * torch.eye(len(wanted)).double()) @ flat(solved), flat(vector), 1e-8)
    chunked = fisher_kfac(module, params, (x, None), sharing=sharing, chunk_size=3, **RULE)
    close(chunked.dense(params), wanted)


@every_layer
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_corrected_eigenvalues_have_the_trace_of_the_exact_matrix(name: str, kind: Any) -> None:
    module, x = problem(name)
    apply, params, buffers = functionalize(module)
    rule = {"likelihood": "categorical", "kind": kind}
    batch = (x, torch.arange(N).remainder(C))
    wanted = fisher_matrix(lambda p, z: apply(p, buffers, z), params, batch, **rule)
    found = fisher_kfac(module, params, batch, corrected=True, **rule)
    close(found.trace(), wanted.trace())
    close(found.trace(), found.dense(params).trace())


@pytest.mark.parametrize("name", ["linear", "Conv1D, wide", "x @ W.T", "conv2d, one place"])
def test_a_sample_without_sharing_has_the_exact_blocks(name: str) -> None:
    module, x = problem(name)
    apply, params, buffers = functionalize(module)
    one = (x[:1], None)
    exact = fisher_matrix(lambda p, z: apply(p, buffers, z), params, one, **RULE)
    wanted = torch.zeros_like(exact)
    for matrix in order(module, params):
        at = matrix.flatten()
        wanted[at[:, None], at] = exact[at[:, None], at]
    close(fisher_kfac(module, params, one, **RULE).dense(params), wanted)


@pytest.mark.parametrize("name", ["conv1d, groups", "Conv1D", "transposed conv2d, groups"])
@pytest.mark.parametrize("corrected", [False, True])
def test_inside_an_outer_vmap(name: str, corrected: bool) -> None:
    module, x = problem(name)
    _, params, _ = functionalize(module)
    both = {n: torch.stack([p, 2 * p]) for n, p in params.items()}

    def pulled(params: Any) -> Any:
        found = fisher_kfac(module, params, (x, None), corrected=corrected, **RULE)
        return found.inverse_product(params, damping=0.5), found.trace()

    together = torch.vmap(pulled)(both)
    for m in range(2):
        alone = pulled({n: p[m] for n, p in both.items()})
        close(flat({n: p[m] for n, p in together[0].items()}), flat(alone[0]), 1e-7)
        close(together[1][m], alone[1])


def test_a_network_of_several_kinds_has_a_block_for_each() -> None:
    module = draw(
        nn.Sequential(nn.Conv1d(2, 4, 2), nn.Tanh(), nn.Conv1d(4, 4, 2, groups=2), nn.Flatten(),
                      Conv1D(4, 8), nn.Tanh(), nn.Linear(4, C))
    )  # fmt: skip
    apply, params, buffers = functionalize(module)
    x = torch.randn(N, 2, 4, generator=generator(3), dtype=torch.float64)
    found = fisher_kfac(module, params, (x, None), corrected=True, **RULE)
    assert list(found.blocks) == ["0", "2", "4", "6"]
    wanted = fisher_matrix(lambda p, z: apply(p, buffers, z), params, (x, None), **RULE)
    close(found.trace(), wanted.trace())


def test_projections_of_attention_have_blocks() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.attention(x, x, x, need_weights=False)[0].mean(1)
            return outputs

    module = draw(Attends())
    apply, params, buffers = functionalize(module)
    x = torch.randn(N, 3, 4, generator=generator(3), dtype=torch.float64)
    found = fisher_kfac(module, params, (x, None), corrected=True, **RULE)
    assert list(found.blocks) == ["attention.in_proj", "attention.out_proj"]
    wanted = fisher_matrix(lambda p, z: apply(p, buffers, z), params, (x, None), **RULE)
    close(found.trace(), wanted.trace())


# --- what is refused ----------------------------------------------------------------------------


class Half(nn.Module):
    """A weight of which rows are used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:3])


class Summed(Product):
    """A weight that no operation with a rule is given."""

    def __init__(self) -> None:
        super().__init__(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,io->no", x, 1 * self.weight)


class Added(Product):
    def __init__(self) -> None:
        super().__init__(False)
        self.bias = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


def bias_of_own(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, 2 * bias)


def _of_own(x: Tensor, weight: Tensor, bias: Tensor) -> LayerCall:
    return LayerCall(
        run=lambda weight, bias: F.linear(x, weight, 2 * bias),
        inputs=(x,),
        parameters=(weight, bias),
        gradients=(OuterProducts, lambda dz, x: FormedGradients(2 * dz)),
    )


biased = register_layer_rule(bias_of_own, _of_own)


class OwnBias(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return biased(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: nn.ConvTranspose1d(2, 3, 2), (2, 3),
         r"module\[layer\]='called by conv_transpose1d with a bias': only matrix products"),
        (lambda: nn.GroupNorm(1, 2), (2, 3), r"module\[layer\]='GroupNorm': only matrix products"),
        (Half, (4,), r"module\[layer\]='called by linear': a layer that is used once is needed"),
        (Added, (4,), r"module\[layer\]='called without its bias': a layer that is used once"),
        (lambda: OwnBias(4, 3), (4,), r"module\[layer\]='called by bias_of_own with a bias': only"),
        (Summed, (4,), r"module\[layer\]='never called': freeze what is not used"),
    ],
)  # fmt: skip
def test_what_has_no_factors_is_refused_by_name(
    make: Any, shape: tuple[int, ...], message: str
) -> None:
    module = draw(Around(make(), shape))
    _, params, _ = functionalize(module)
    x = torch.randn(N, *shape, generator=generator(5), dtype=torch.float64)
    with pytest.raises(SettingError, match=message):
        fisher_kfac(module, params, (x, None), **RULE)


@pytest.mark.parametrize("name", ["linear", "Conv1D", "conv1d, groups", "conv3d, groups"])
@pytest.mark.parametrize("change", ["longer", "shorter", "wider", "no bias", "no elements"])
def test_a_vector_of_another_layer_is_refused(name: str, change: str) -> None:
    module, x = problem(name)
    _, params, _ = functionalize(module)
    found = fisher_kfac(module, params, (x, None), **RULE)
    vector, key = dict(params), next(n for n in params if n.endswith("weight"))
    rows, columns = vector[key].shape[:2]
    vector[key] = {
        "longer": lambda: vector[key].new_ones(rows + 1, *vector[key].shape[1:]),
        "shorter": lambda: vector[key][: rows - 1],
        "wider": lambda: vector[key].new_ones(rows, columns + 1, *vector[key].shape[2:]),
        "no bias": lambda: vector[key],
        "no elements": lambda: vector[key][:0],
    }[change]()
    if change == "no bias":
        del vector["layer.bias"]
    for call in (found.product, lambda v: found.inverse_product(v, damping=0.1)):
        with pytest.raises(SettingError, match="^vector="):
            call(vector)


def test_a_bias_that_is_frozen_is_a_constant() -> None:
    module, x = problem("linear")
    assert isinstance(module, Around) and isinstance(module.layer, nn.Linear)
    module.layer.bias.requires_grad_(False)
    apply, params, buffers = functionalize(module)
    wanted = fisher_matrix(lambda p, z: apply(p, buffers, z), params, (x, None), **RULE)
    close(fisher_kfac(module, params, (x, None), corrected=True, **RULE).trace(), wanted.trace())
