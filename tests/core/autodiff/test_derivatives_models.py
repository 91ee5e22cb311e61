"""Second derivatives through norms for stacks of members, and derivatives of a small BERT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import (
    functionalize,
    ggn_vp,
    hessian,
    hvp,
    jacobian,
    jacobian_mode,
    jvp,
    per_sample_gradients,
    vjp,
)
from tests.support.curvature_oracles import member, stacked
from tests.support.derivative_oracles import (
    assembled,
    dense_hessian,
    dense_jacobian,
    like,
    matches,
    noise,
    vector,
)
from tests.support.oracles import draw

MODES: Any = ["forward", "reverse"]
SECOND: Any = ["forward_over_reverse", "reverse_over_reverse"]
cross_entropy = nn.functional.cross_entropy


def along(tree: Any, seed: int = 20) -> Any:
    return like(tree, noise(len(vector(tree)), seed=seed))


class Convolutional(nn.Module):
    """A norm between two layers, and one weight that is used twice."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 2, 2), norm()
        self.second = nn.Conv2d(2, 2, 2, padding=1, bias=False)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.norm(self.first(x)))
        z = torch.tanh(self.norm(self.second(self.second(z))))
        return self.head(z.mean((-2, -1)))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "batch": lambda: nn.BatchNorm2d(2, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm2d(2, affine=True),
    "group": lambda: nn.GroupNorm(2, 2),
}


@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives_through_norms_alone_and_for_a_stack_of_members(norm: str) -> None:
    nets = [functionalize(draw(Convolutional(NORMS[norm]), seed)) for seed in (0, 1)]
    (apply, params, buffers), x, y = nets[0], noise(3, 1, 3, 3), torch.arange(3) % 2
    outputs = lambda p: apply(p, buffers, x)  # noqa: E731
    loss = lambda p: cross_entropy(outputs(p), y)  # noqa: E731
    stack, v = stacked([net[1] for net in nets]), along(params)
    dense = torch.stack([dense_hessian(loss, net[1]) for net in nets])
    for mode in MODES:
        for chunk in (None, 7):
            take = hessian(loss, as_matrix=True, mode=mode, chunk_size=chunk)
            matches(take(params), dense[0], 1e-9)
            matches(torch.vmap(take)(stack), dense, 1e-9)
        each = torch.vmap(hessian(outputs, as_matrix=True, mode=mode))(stack)
        entry = lambda p: outputs(p)[2, 1]  # noqa: E731
        matches(each[1, 2, 1], dense_hessian(entry, nets[1][1]), 1e-9)
    for second in SECOND:
        products = torch.vmap(lambda p, second=second: hvp(loss, p, v, mode=second))(stack)
        for m, matrix in enumerate(dense):
            matches(vector(member(products, m)), matrix @ vector(v), 1e-9)


def bert(layers: int = 1, seed: int = 0) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=6, num_labels=3,
    )  # fmt: skip
    with torch.random.fork_rng():
        model = transformers.BertForSequenceClassification(config)
    return draw(model, seed).eval()


def sentences() -> dict[str, Tensor]:
    """Three of six words; the last words of two are padding, and left out of attention."""
    ids = (torch.arange(18).reshape(3, 6) * 7 + 1) % 30
    mask = torch.ones(3, 6).long()
    mask[1, 4:] = mask[2, 2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([2, 0, 1])}


def bert_functions(layers: int = 1) -> tuple[Any, Any, dict[str, Tensor], nn.Module]:
    """Loss and logits by keyword inputs, parameters apart from the module, and the module."""
    module = bert(layers)
    apply, params, buffers = functionalize(module)
    loss = lambda p, **words: apply(p, buffers, **words).loss  # noqa: E731
    logits = lambda p, **words: apply(p, buffers, **words).logits  # noqa: E731
    return loss, logits, {name: value.clone() for name, value in params.items()}, module


def gradient_of(module: nn.Module, params: Any, words: Any) -> Tensor:
    """By .backward() of the module itself."""
    module.zero_grad()
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(params[name])
    module(**words).loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in module.parameters()])  # type: ignore[union-attr]


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_and_hessian_products_of_bert(layers: int) -> None:
    loss, _, params, module = bert_functions(layers)
    words, v, width = sentences(), along(params), 1e-5
    matches(vector(jacobian(loss)(params, **words)), gradient_of(module, params, words), 1e-10)
    forward, reverse = (vector(hvp(loss, params, v, mode=mode, **words)) for mode in SECOND)
    matches(forward, reverse, 1e-9)
    ends = [
        gradient_of(module, like(params, vector(params) + sign * width * vector(v)), words)
        for sign in (1, -1)
    ]
    matches(reverse, (ends[0] - ends[1]) / (2 * width), 1e-6)


def test_first_derivatives_and_gauss_newton_products_of_bert() -> None:
    _, logits, params, _ = bert_functions()
    words = sentences()
    labels = words.pop("labels")
    head = {"classifier.bias": params["classifier.bias"]}
    of_bias = lambda part, **words: logits({**params, **part}, **words)  # noqa: E731
    assert jacobian_mode(of_bias, (head,), **words) == "forward"
    eye = torch.eye(3).double().repeat(3, 1, 1)
    for mode in MODES:
        matches(jacobian(of_bias, mode=mode)(head, **words)["classifier.bias"], eye)

    dense, v, u = dense_jacobian(logits, params, **words), along(params), noise(3, 3)
    found, product = jvp(logits, params, v, **words)
    matches(found, logits(params, **words))
    matches(vector(product), dense @ vector(v), 1e-10)
    matches(vector(vjp(logits, params, u, **words)[1]), dense.mT @ vector(u), 1e-10)
    matches(assembled(jacobian(logits, chunk_size=4)(params, **words), found, params), dense, 1e-10)
    curvature = [torch.diag(p) - torch.outer(p, p) for p in found.softmax(1)]
    ggn = ggn_vp(logits, lambda z: cross_entropy(z, labels), params, v, **words)
    expected = dense.mT @ torch.block_diag(*curvature) @ dense @ vector(v) / 3
    matches(vector(ggn), expected, 1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_a_hessian_of_the_head_of_bert(mode: Any) -> None:
    loss, _, params, _ = bert_functions()
    head = {name: params[name] for name in ("bert.pooler.dense.bias", "classifier.bias")}
    of_head = lambda part: loss({**params, **part}, **sentences())  # noqa: E731
    found = hessian(of_head, as_matrix=True, mode=mode)(head)
    matches(found, dense_hessian(of_head, head), 1e-9)
    matches(found, found.mT, 1e-10)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", ["layers", "vmap"])
def test_per_sample_gradients_of_bert_are_those_of_a_loop(method: Any, masked: bool) -> None:
    """Under vmap a mask is given for pairs of words: transformers reads the values of others."""
    loss, _, params, module = bert_functions()
    words = sentences()
    mask = words.pop("attention_mask")
    pairs = {"attention_mask": mask[:, None, None].expand(3, 1, 6, 6).bool()} if masked else {}
    take = partial(per_sample_gradients, method=method)
    found = take(lambda p, batch: loss(p, **batch), params, {**words, **pairs})
    for n in range(3):
        one = {name: value[n : n + 1] for name, value in words.items()}
        one |= {"attention_mask": mask[n : n + 1]} if masked else {}
        matches(vector(member(found, n)), gradient_of(module, params, one), 1e-10)


def test_a_stack_of_berts_at_once() -> None:
    loss, logits, _, _ = bert_functions()
    trees, words = [functionalize(bert(seed=s))[1] for s in range(2)], sentences()
    v = along(trees[0])

    def products(p: Any) -> Any:
        bias = lambda b: logits({**p, "classifier.bias": b}, **words)  # noqa: E731
        return [
            *(vector(hvp(loss, p, v, mode=mode, **words)) for mode in SECOND),
            jvp(logits, p, v, **words)[1],
            jacobian(bias)(p["classifier.bias"]),
        ]

    stack = torch.vmap(products)(stacked(trees))
    for m, params in enumerate(trees):
        for one, expected in zip(stack, products(params)):
            matches(one[m], expected, 1e-9)
