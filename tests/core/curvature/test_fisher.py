"""Fisher matrices against loops of .backward(), closed forms and other libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import (
    effective_rank,
    fisher_blocks,
    fisher_diagonal,
    fisher_matrix,
    fisher_trace,
    fisher_vp,
    ggn_vp,
    tree,
)
from metalearn.errors import SettingError
from tests.support.curvature_oracles import (
    close,
    data,
    empirical_fisher,
    exact_fisher,
    flat,
    matrix_of,
    member,
    model,
    perceptron,
    stacked,
)
from tests.support.oracles import conv, draw, generator

CASES = [
    ("categorical", "exact", 1.0),
    ("categorical", "empirical", 1.0),
    ("gaussian", "exact", 1.0),
    ("gaussian", "exact", 0.3),
    ("gaussian", "empirical", 0.3),
]


def setting(likelihood: str, count: int = 5, seed: int = 0) -> Any:
    outputs_fn, params = model(perceptron(seed=seed))
    return outputs_fn, params, data(count, (3,), 3, likelihood, seed)


def oracle(case: tuple[str, str, float], outputs_fn: Any, params: Any, batch: Any) -> Tensor:
    likelihood, kind, variance = case
    if kind == "exact":
        return exact_fisher(outputs_fn, params, batch[0], likelihood, variance)
    return empirical_fisher(outputs_fn, params, *batch, likelihood, variance)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 7])
@pytest.mark.parametrize("case", CASES)
def test_all_forms_equal_the_matrix_built_by_backward(case: Any, chunk_size: Any) -> None:
    outputs_fn, params, batch = setting(case[0])
    expected = oracle(case, outputs_fn, params, batch)
    rule = {
        "likelihood": case[0], "kind": case[1], "variance": case[2], "chunk_size": chunk_size
    }  # fmt: skip
    close(fisher_matrix(outputs_fn, params, batch, **rule), expected)
    close(flat(fisher_diagonal(outputs_fn, params, batch, **rule)), expected.diag())
    close(fisher_trace(outputs_fn, params, batch, **rule), expected.trace())
    product = matrix_of(lambda v: fisher_vp(outputs_fn, params, batch, v, **rule), params)
    close(product, expected)
    start = 0
    for name, block in fisher_blocks(outputs_fn, params, batch, **rule).items():
        stop = start + params[name].numel()
        close(block, expected[start:stop, start:stop])
        start = stop


def test_trees_with_scalars_and_tuples_and_inputs_of_any_form() -> None:
    params = (torch.tensor(0.7, dtype=torch.float64), [torch.tensor([1.0, -2.0]).double()])
    inputs = {"a": torch.randn(4, 2, generator=generator(0), dtype=torch.float64)}

    def outputs_fn(params: Any, inputs: Any) -> Tensor:
        return (params[0] * inputs["a"] * params[1][0]).sum(1, keepdim=True)

    rule = {"likelihood": "gaussian", "kind": "exact"}
    x = inputs["a"]
    rows = torch.cat([x @ params[1][0][:, None], params[0] * x], dim=1)  # closed form of J
    expected = rows.mT @ rows / 4
    close(fisher_matrix(outputs_fn, params, (inputs, None), **rule), expected)
    diagonal = fisher_diagonal(outputs_fn, params, (inputs, None), **rule)
    assert isinstance(diagonal, tuple) and diagonal[0].shape == ()
    close(tree.ravel(diagonal)[0], expected.diag())
    blocks = fisher_blocks(outputs_fn, params, (inputs, None), **rule)
    assert blocks[0].shape == (1, 1) and blocks[1][0].shape == (2, 2)


def test_logistic_and_linear_regression_in_closed_form() -> None:
    x = torch.randn(6, 3, generator=generator(1), dtype=torch.float64)
    w = torch.randn(3, generator=generator(2), dtype=torch.float64)
    p = torch.sigmoid(x @ w)
    logits = lambda w, x: torch.stack([torch.zeros(len(x)).to(x), x @ w], dim=1)  # noqa: E731
    actual = fisher_matrix(logits, w, (x, None), likelihood="categorical", kind="exact")
    close(actual, x.mT @ (x * (p * (1 - p))[:, None]) / 6)
    means = lambda w, x: (x @ w)[:, None]  # noqa: E731
    actual = fisher_matrix(means, w, (x, None), likelihood="gaussian", kind="exact", variance=2.0)
    close(actual, x.mT @ x / (6 * 2.0))


@pytest.mark.parametrize(
    ("loss", "likelihood", "variance"),
    [
        (nn.functional.cross_entropy, "categorical", 1.0),
        (nn.functional.mse_loss, "gaussian", 3 / 2),  # mean over C = 3 outputs: σ² = C/2
        (lambda f, y: (f - y).square().sum(1).mean(), "gaussian", 0.5),
        (lambda f, y: 0.5 * (f - y).square().sum(1).mean(), "gaussian", 1.0),
    ],
)
def test_the_exact_fisher_is_the_ggn_of_these_losses(
    loss: Any, likelihood: Any, variance: float
) -> None:
    outputs_fn, params, batch = setting(likelihood)
    v = {n: torch.randn(p.shape, generator=generator(3)).double() for n, p in params.items()}
    expected = ggn_vp(lambda p: outputs_fn(p, batch[0]), lambda f: loss(f, batch[1]), params, v)
    actual = fisher_vp(
        outputs_fn, params, batch, v, likelihood=likelihood, kind="exact", variance=variance
    )
    close(flat(actual), flat(expected))
    rule = {"likelihood": likelihood, "kind": "empirical", "variance": variance}
    rows = torch.stack([
        flat(torch.func.grad(lambda p, x=x, y=y: loss(outputs_fn(p, x[None]), y[None]))(params))
        for x, y in zip(*batch)
    ])  # fmt: skip
    close(fisher_matrix(outputs_fn, params, batch, **rule), rows.mT @ rows / 5)


@pytest.mark.parametrize(("likelihood", "variance"), [("categorical", 1.0), ("gaussian", 0.5)])
def test_monte_carlo_approaches_exact_at_the_rate_of_its_standard_error(
    likelihood: Any, variance: float
) -> None:
    outputs_fn, params, batch = setting(likelihood, count=4)
    rule = {"likelihood": likelihood, "variance": variance}
    exact = fisher_matrix(outputs_fn, params, batch, kind="exact", **rule)
    gaps = []
    for samples in (50, 5000):
        draws = torch.stack([
            fisher_matrix(outputs_fn, params, batch, kind="monte_carlo", samples=samples // 10,
                          generator=generator(seed), **rule)
            for seed in range(10)
        ])  # fmt: skip
        mean, error = draws.mean(0), draws.std(0) / 10**0.5
        assert ((mean - exact).abs() <= 6 * error + 1e-12).all()
        gaps.append(float((mean - exact).norm() / exact.norm()))
    assert gaps[1] < gaps[0] / 3  # a hundred times the draws: ten times closer, on the average


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_monte_carlo_draws_do_not_depend_on_chunks_and_are_shared_by_all_forms(
    likelihood: Any,
) -> None:
    outputs_fn, params, batch = setting(likelihood, count=7)

    def rule(chunk_size: int | None) -> dict[str, Any]:
        return {"likelihood": likelihood, "kind": "monte_carlo", "samples": 3,
                "generator": generator(4), "chunk_size": chunk_size}  # fmt: skip

    whole = fisher_matrix(outputs_fn, params, (batch[0], None), **rule(None))
    assert torch.linalg.matrix_rank(whole) <= 21
    for chunk_size in (1, 3):
        close(fisher_matrix(outputs_fn, params, batch, **rule(chunk_size)), whole)
        close(flat(fisher_diagonal(outputs_fn, params, batch, **rule(chunk_size))), whole.diag())
    v = {n: torch.ones_like(p) for n, p in params.items()}
    close(flat(fisher_vp(outputs_fn, params, batch, v, **rule(2))), whole @ flat(v))


def test_monte_carlo_targets_have_the_predictive_frequencies() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    chances = logits.softmax(-1)
    outputs_fn = lambda params, x: params[None].expand(len(x), -1)  # noqa: E731
    x = torch.zeros(1, 1, dtype=torch.float64)
    samples = 20000
    actual = fisher_matrix(
        outputs_fn, logits, (x, None), likelihood="categorical", kind="monte_carlo",
        generator=generator(0), samples=samples,
    )  # fmt: skip
    # F = diag(q) − q·pᵀ − p·qᵀ + p·pᵀ for drawn frequencies q
    frequencies = (actual.diag() - chances**2) / (1 - 2 * chances)
    error = (chances * (1 - chances) / samples).sqrt()
    assert ((frequencies - chances).abs() < 5 * error).all()


def test_samples_are_seen_alone_even_through_batch_statistics() -> None:
    outputs_fn, params = model(conv())
    batch = data(3, (1, 4, 4), 2, "categorical")
    expected = exact_fisher(outputs_fn, params, batch[0], "categorical")
    rule = {"likelihood": "categorical", "kind": "exact"}
    close(fisher_matrix(outputs_fn, params, batch, **rule), expected)
    product = matrix_of(lambda v: fisher_vp(outputs_fn, params, batch, v, **rule), params)
    close(product, expected)


@pytest.mark.parametrize("kind", ["exact", "empirical", "monte_carlo"])
def test_inside_an_outer_vmap_over_members_and_tasks(kind: Any) -> None:
    trees = [model(perceptron(seed=s))[1] for s in range(3)]
    outputs_fn, _ = model(perceptron())
    batches = [data(4, (3,), 3, "categorical", seed) for seed in range(2)]
    x, y = (torch.stack(parts) for parts in zip(*batches))
    vector = {n: torch.ones_like(p) for n, p in trees[0].items()}

    def everything(params: Any, x: Tensor, y: Tensor, source: Any = None) -> Any:
        rule = {"likelihood": "categorical", "kind": kind, "chunk_size": 3}
        fresh = lambda: generator(9)  # noqa: E731
        return (
            fisher_diagonal(outputs_fn, params, (x, y), generator=fresh(), **rule),
            fisher_matrix(outputs_fn, params, (x, y), generator=fresh(), **rule),
            fisher_blocks(outputs_fn, params, (x, y), generator=fresh(), **rule),
            fisher_vp(outputs_fn, params, (x, y), vector, generator=fresh(), **rule),
            fisher_trace(outputs_fn, params, (x, y), generator=fresh(), **rule),
        )

    over_tasks = torch.vmap(everything, in_dims=(None, 0, 0), randomness="same")
    stack = torch.vmap(over_tasks, in_dims=(0, None, None), randomness="same")(stacked(trees), x, y)
    for m, params in enumerate(trees):
        for t in range(2):
            alone = everything(params, x[t], y[t])
            for one, expected in zip(
                tree.leaves(member(member(stack, m), t)), tree.leaves(alone), strict=True
            ):
                close(one, expected)


def test_members_may_draw_different_targets() -> None:
    outputs_fn, params, batch = setting("categorical")
    stack = stacked([params, params])
    rule = {"likelihood": "categorical", "kind": "monte_carlo", "generator": generator(0)}
    one, other = torch.vmap(
        lambda p: fisher_trace(outputs_fn, p, batch, **rule), randomness="different"
    )(stack)
    assert one != other


def test_effective_rank() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    close(effective_rank(eye), torch.tensor(4.0).double())
    close(effective_rank(torch.diag(eye[0])), torch.tensor(1.0).double())
    close(effective_rank(torch.stack([eye * 3, torch.diag(eye[1])])[0]), torch.tensor(4.0).double())
    half = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]).double())
    ranks = torch.vmap(effective_rank)(torch.stack([eye, half]))
    close(ranks, torch.tensor([4.0, 2.0]).double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"likelihood": "poisson"}, "likelihood='poisson': one of categorical, gaussian"),
        ({"kind": "true"}, "kind='true': one of exact, monte_carlo, empirical is needed"),
        ({"kind": "monte_carlo"}, "generator=None: kind='monte_carlo' needs a torch.Generator"),
        ({"samples": 2}, "samples=2: only kind='monte_carlo' draws targets"),
        ({"kind": "monte_carlo", "samples": 0}, "samples=0: a whole number of at least 1"),
        ({"variance": 2.0}, "variance=2.0: only a gaussian likelihood has one"),
        ({"likelihood": "gaussian", "variance": 0.0}, "variance=0.0: a number above 0 is needed"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1 is needed"),
        ({"kind": "empirical", "batch": (torch.zeros(5, 3).double(), None)},
         r"targets=None: the shape \(5,\) is needed for this likelihood"),
        ({"kind": "empirical", "likelihood": "gaussian"},
         r"targets=\(5,\): the shape \(5, 3\) is needed for this likelihood"),
        ({"batch": (torch.zeros(0, 3).double(), None)},
         "the same number of samples, at least 1, is needed"),
        ({"outputs_fn": lambda p, x: x.sum(1)},
         r"outputs_fn=\(1,\): outputs \[N, C\] are needed"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(change: Any, message: str) -> None:
    outputs_fn, params, batch = setting("categorical")
    rule = {"likelihood": "categorical", "kind": "exact", **change}
    outputs_fn, batch = rule.pop("outputs_fn", outputs_fn), rule.pop("batch", batch)
    with pytest.raises(SettingError, match=message):
        fisher_diagonal(outputs_fn, params, batch, **rule)


def test_a_vector_of_another_shape_is_refused() -> None:
    outputs_fn, params, batch = setting("categorical")
    rule = {"likelihood": "categorical", "kind": "exact"}
    wrong = {**params, "0.bias": torch.zeros(2).double()}
    with pytest.raises(SettingError, match=r"vector\[0.bias\]=\(2,\): the shape \(4,\)"):
        fisher_vp(outputs_fn, params, batch, wrong, **rule)


def test_frozen_modules_in_float32_stay_float32() -> None:
    outputs_fn, params = model(draw(nn.Linear(3, 2)).float())
    batch = (torch.ones(2, 3), None)
    diagonal = fisher_diagonal(
        outputs_fn, params, batch, likelihood="categorical", kind="monte_carlo",
        generator=generator(0),
    )  # fmt: skip
    assert {leaf.dtype for leaf in diagonal.values()} == {torch.float32}
