"""Operators over batches against matrices built by .backward(); the order of transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import fisher_operator, ggn_operator, hessian_operator, tree
from metalearn.errors import SettingError
from tests.support.curvature_oracles import (
    close,
    data,
    exact_fisher,
    flat,
    hessian,
    jacobians,
    matrix_of,
    member,
    model,
    perceptron,
    stacked,
)
from tests.support.oracles import conv, draw, generator

cross_entropy = nn.functional.cross_entropy


def batches() -> list[tuple[Tensor, Tensor]]:
    return [data(5, (3,), 3, "categorical"), data(2, (3,), 3, "categorical", seed=1)]


def whole() -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*batches()))


@pytest.mark.parametrize("mode", ["forward_over_reverse", "reverse_over_reverse"])
def test_the_hessian_of_all_batches(mode: Any) -> None:
    outputs_fn, params = model(perceptron())
    x, y = whole()
    expected = hessian(lambda p: cross_entropy(outputs_fn(p, x), y), params)
    loss_fn = lambda p, batch: cross_entropy(outputs_fn(p, batch[0]), batch[1])  # noqa: E731
    close(matrix_of(hessian_operator(loss_fn, params, batches(), mode=mode), params), expected)


@pytest.mark.parametrize("loss", [cross_entropy, nn.functional.mse_loss])
def test_the_ggn_of_all_batches(loss: Any) -> None:
    outputs_fn, params = model(perceptron())
    parts = [(x, y if loss is cross_entropy else torch.cos(x)) for x, y in batches()]
    x, _ = whole()
    outputs = outputs_fn(params, x)
    if loss is cross_entropy:
        p = outputs.softmax(1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    else:
        curvature = torch.eye(3).double().expand(7, 3, 3) * 2 / 3
    rows = jacobians(outputs_fn, params, x)
    expected = (rows.mT @ curvature @ rows).mean(0)
    close(matrix_of(ggn_operator(outputs_fn, loss, params, parts), params), expected)


def test_the_fisher_of_all_batches_and_monte_carlo_targets_are_drawn_once() -> None:
    outputs_fn, params = model(perceptron())
    x, _ = whole()
    rule = {"likelihood": "categorical", "chunk_size": 3}
    exact = fisher_operator(outputs_fn, params, batches(), kind="exact", **rule)
    close(matrix_of(exact, params), exact_fisher(outputs_fn, params, x, "categorical"))
    drawn = fisher_operator(
        outputs_fn, params, batches(), kind="monte_carlo", generator=generator(0), **rule
    )
    vector = {name: torch.ones_like(value) for name, value in params.items()}
    assert torch.equal(flat(drawn(vector)), flat(drawn(vector)))
    close(matrix_of(drawn, params), matrix_of(drawn, params).mT)


def test_every_operator_inside_an_outer_vmap_over_members_and_tasks() -> None:
    outputs_fn, _ = model(perceptron())
    trees = [model(perceptron(seed=s))[1] for s in range(3)]
    sets = [data(4, (3,), 3, "categorical", seed) for seed in range(2)]
    x, y = (torch.stack(parts) for parts in zip(*sets))
    vector = {name: torch.sin(value) for name, value in trees[0].items()}
    loss_fn = lambda p, batch: cross_entropy(outputs_fn(p, batch[0]), batch[1])  # noqa: E731

    def products(params: Any, x: Tensor, y: Tensor) -> Any:
        parts = [(x[:3], y[:3]), (x[3:], y[3:])]
        rule: Any = {"likelihood": "categorical", "generator": generator(5)}
        operators = [
            hessian_operator(loss_fn, params, parts),
            ggn_operator(outputs_fn, cross_entropy, params, parts),
            *(fisher_operator(outputs_fn, params, parts, kind=kind, **rule)
              for kind in ("exact", "empirical", "monte_carlo")),
        ]  # fmt: skip
        return [operator(vector) for operator in operators]

    over_tasks = torch.vmap(products, in_dims=(None, 0, 0), randomness="same")
    stack = torch.vmap(over_tasks, in_dims=(0, None, None), randomness="same")(stacked(trees), x, y)
    for m, params in enumerate(trees):
        for t in range(2):
            found = tree.leaves(member(member(stack, m), t))
            for one, expected in zip(found, tree.leaves(products(params, x[t], y[t]))):
                close(one, expected)


NORMS = {
    "batch": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "group": lambda c: nn.GroupNorm(1, c),
}


@pytest.mark.parametrize("mode", ["forward_over_reverse", "reverse_over_reverse"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_stack_of_members_with_normalisation(norm: str, mode: Any) -> None:
    """vmap(jvp(grad)) and vmap(grad(grad)) equal loops; float64 shows what float32 would hide."""
    outputs_fn, _ = model(conv(NORMS[norm]))
    trees = [model(conv(NORMS[norm], seed=s))[1] for s in range(2)]
    x, y = data(4, (1, 4, 4), 2, "categorical")
    vector = {name: torch.sin(3 * value) for name, value in trees[0].items()}

    def product(params: Any) -> Any:
        loss_fn = lambda p, batch: cross_entropy(outputs_fn(p, batch[0]), batch[1])  # noqa: E731
        return hessian_operator(loss_fn, params, [(x, y)], mode=mode)(vector)

    stack = torch.vmap(product)(stacked(trees))
    for m, params in enumerate(trees):
        expected = hessian(lambda p: cross_entropy(outputs_fn(p, x), y), params) @ flat(vector)
        close(flat(member(stack, m)), expected, 1e-9)
        close(flat(product(params)), expected, 1e-9)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_vmap_between_the_two_derivatives_is_the_order_to_avoid(norm: str) -> None:
    """The negative control: jvp(vmap(grad)) is silently wrong, jvp(grad(vmap)) is not."""
    outputs_fn, _ = model(conv(NORMS[norm]))
    trees = [model(conv(NORMS[norm], seed=s))[1] for s in range(2)]
    x, y = data(4, (1, 4, 4), 2, "categorical")
    stack = stacked(trees)
    vector = {name: torch.sin(3 * value) for name, value in stack.items()}
    loss = lambda p: cross_entropy(outputs_fn(p, x), y)  # noqa: E731
    expected = hessian(loss, trees[1]) @ flat(member(vector, 1))

    def along(gradient: Any) -> Tensor:
        return flat(member(torch.func.jvp(gradient, (stack,), (vector,))[1], 1))

    outside = along(torch.func.grad(lambda stack: torch.vmap(loss)(stack).sum()))
    close(outside, expected, 1e-9)
    between = along(torch.vmap(torch.func.grad(loss)))
    assert (between - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ((torch.zeros(2, 3), torch.zeros(2)), r"batches='tuple': a list of batches is needed"),
        ([], r"batches='list': a list of batches is needed"),
        (iter([]), r"batches=<list_iterator .*>: a list is needed"),
    ],
)
def test_batches_are_a_list(bad: Any, sentence: str) -> None:
    outputs_fn, params = model(draw(nn.Linear(3, 2)))
    rule: Any = {"likelihood": "categorical", "kind": "exact"}
    for make in (
        lambda: hessian_operator(lambda p, b: outputs_fn(p, b[0]).sum(), params, bad),
        lambda: ggn_operator(outputs_fn, cross_entropy, params, bad),
        lambda: fisher_operator(outputs_fn, params, bad, **rule),
    ):
        with pytest.raises(SettingError, match=f"^{sentence}$"):
            make()


@pytest.mark.parametrize("mode", ["auto", "reverse_over_reverse", "forward_over_reverse"])
@pytest.mark.parametrize("kind", ["detached", "ignores them"])
def test_a_loss_or_outputs_that_no_parameter_reaches_are_refused(kind: str, mode: Any) -> None:
    outputs_fn, params = model(draw(nn.Linear(3, 2)))
    batch = torch.ones(4, 3).double(), torch.zeros(4, dtype=torch.int64)

    def constant(params: Any, inputs: Tensor) -> Tensor:
        return outputs_fn(params, inputs).detach() if kind == "detached" else inputs[:, :2]

    first: Any = {"auto": "auto", "reverse_over_reverse": "reverse"}.get(mode, "forward")
    with pytest.raises(SettingError, match="outputs_fn='no parameter reached'"):
        ggn_operator(constant, cross_entropy, params, [batch], mode=first)(params)
    with pytest.raises(SettingError, match="loss_fn='no parameter reached'"):
        hessian_operator(
            lambda p, b: cross_entropy(constant(p, b[0]), b[1]), params, [batch], mode=mode
        )(params)
