"""Kronecker factors: where they are exact, the trace of the corrected ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import fisher_kfac, fisher_matrix, tree
from metalearn.errors import SettingError
from tests.support.curvature_oracles import (
    close,
    convolutional,
    data,
    flat,
    matrix_of,
    member,
    model,
    perceptron,
    stacked,
)
from tests.support.oracles import draw, generator

FORMS = [
    {"sharing": sharing, "corrected": corrected}
    for sharing in ("expand", "reduce")
    for corrected in (False, True)
]


class Sequences(nn.Module):
    """Linear layers over [N, S, 3], mean over S, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x)).mean(1))


PROBLEMS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "perceptron": (perceptron, (3,)),
    "convolutional": (convolutional, (1, 5, 5)),
    "sequences": (lambda: draw(Sequences()), (4, 3)),
}


def blocks_of(matrix: Tensor, params: dict[str, Tensor]) -> Tensor:
    """The matrix with zeros between layers."""
    names = [n.rpartition(".")[0] for n, p in params.items() for _ in range(p.numel())]
    same = torch.tensor([[a == b for b in names] for a in names])
    return torch.where(same, matrix, 0)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_exact_for_a_linear_layer_and_one_sample(likelihood: Any, corrected: bool) -> None:
    module = draw(nn.Linear(3, 4))
    outputs_fn, params = model(module)
    batch = data(1, (3,), 4, likelihood)
    rule = {"likelihood": likelihood, "kind": "exact"}
    expected = fisher_matrix(outputs_fn, params, batch, **rule)
    close(fisher_kfac(module, params, batch, corrected=corrected, **rule).dense(params), expected)


def test_exact_blocks_for_a_deep_linear_network_with_gaussian_likelihood() -> None:
    module = draw(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False), nn.Linear(2, 3)))
    outputs_fn, params = model(module)
    batch = data(7, (3,), 3, "gaussian")
    rule = {"likelihood": "gaussian", "kind": "exact"}
    expected = blocks_of(fisher_matrix(outputs_fn, params, batch, **rule), params)
    for form in FORMS:
        close(fisher_kfac(module, params, batch, **rule, **form).dense(params), expected)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def test_reduce_is_exact_for_a_shared_linear_layer_that_is_averaged() -> None:
    module = draw(Pooled())  # Eschenhagen et al., proposition 2
    outputs_fn, params = model(module)
    batch = data(5, (4, 3), 3, "gaussian")
    rule = {"likelihood": "gaussian", "kind": "exact"}
    expected = fisher_matrix(outputs_fn, params, batch, **rule)
    close(fisher_kfac(module, params, batch, sharing="reduce", **rule).dense(params), expected)
    expand = fisher_kfac(module, params, batch, sharing="expand", **rule).dense(params)
    assert (expand - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("kind", ["exact", "empirical", "monte_carlo"])
def test_corrected_trace_is_that_of_the_fisher_and_the_fit_is_better(
    problem: str, kind: Any
) -> None:
    make, shape = PROBLEMS[problem]
    module = make()
    outputs_fn, params = model(module)
    batch = data(6, shape, 3, "categorical")
    rule = {"likelihood": "categorical", "kind": kind}
    expected = fisher_matrix(outputs_fn, params, batch, generator=generator(1), **rule)
    gaps = []
    for corrected in (False, True):
        kfac = fisher_kfac(
            module, params, batch, corrected=corrected, generator=generator(1), **rule
        )
        gaps.append((kfac.dense(params) - blocks_of(expected, params)).norm())
        close(kfac.trace(), kfac.dense(params).trace())
    close(kfac.trace(), expected.trace())
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_samples_so_many_times(problem: str, kind: Any, form: Any) -> None:
    make, shape = PROBLEMS[problem]
    module = make()
    _, params = model(module)
    batch, times = data(24, shape, 3, "categorical"), torch.arange(24) % 4
    again = tree.tree_map(lambda x: x.repeat_interleave(times, 0), batch)
    rule = {"likelihood": "categorical", "kind": kind, **form}
    # Zeros stand more than once among the eigenvalues of reduced patches; their basis may be any.
    free = problem == "convolutional" and form == {"sharing": "reduce", "corrected": True}
    expected, share = fisher_kfac(module, params, again, **rule), times.sum() / len(times)
    for size in (None, 7):
        weighted = fisher_kfac(
            module, params, batch, weights=times.double(), chunk_size=size, **rule
        )
        close(weighted.trace(), expected.trace() * share)
        if not free:
            close(weighted.dense(params), expected.dense(params) * share)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("form", FORMS)
def test_products_inverse_and_chunks(form: Any) -> None:
    module = convolutional()
    _, params = model(module)
    batch = data(5, (1, 5, 5), 3, "categorical")
    rule = {"likelihood": "categorical", "kind": "exact", **form}
    kfac = fisher_kfac(module, params, batch, **rule)
    dense = kfac.dense(params)
    close(matrix_of(kfac.product, params), dense)
    close(dense, dense.mT)
    assert torch.linalg.eigvalsh(dense).min() > -1e-10
    vector = {n: torch.randn(p.shape, generator=generator(2)).double() for n, p in params.items()}
    solved = kfac.inverse_product(vector, damping=0.1)
    close((dense + 0.1 * torch.eye(len(dense)).double()) @ flat(solved), flat(vector), 1e-8)
    chunked = fisher_kfac(module, params, batch, chunk_size=2, **rule)
    close(chunked.trace(), kfac.trace())
    if not form["corrected"]:
        close(chunked.dense(params), dense, 1e-8)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("problem", "kind"), [("perceptron", "monte_carlo"), ("convolutional", "exact")]
)
def test_inside_an_outer_vmap(problem: str, kind: Any, form: Any) -> None:
    make, shape = PROBLEMS[problem]
    module = make()
    trees = [model(make(seed=s))[1] for s in range(3)]
    batches = [data(4, shape, 3, "categorical", seed) for seed in range(2)]
    x, y = (torch.stack(parts) for parts in zip(*batches))

    def numbers(params: Any, x: Tensor, y: Tensor) -> Any:
        kfac = fisher_kfac(
            module, params, (x, y), likelihood="categorical", kind=kind, generator=generator(2),
            chunk_size=3, **form,
        )  # fmt: skip
        inverse = kfac.inverse_product(params, damping=0.1)
        return (kfac.trace(), inverse if not form["corrected"] else kfac.trace())

    over_tasks = torch.vmap(numbers, in_dims=(None, 0, 0), randomness="same")
    stack = torch.vmap(over_tasks, in_dims=(0, None, None), randomness="same")(stacked(trees), x, y)
    for m, params in enumerate(trees):
        for t in range(2):
            alone = numbers(params, x[t], y[t])
            pairs = zip(tree.leaves(member(member(stack, m), t)), tree.leaves(alone))
            for one, expected in pairs:
                close(one, expected, 1e-7)


@pytest.mark.parametrize("corrected", [False, True])
def test_monte_carlo_factors_approach_the_exact_ones(corrected: bool) -> None:
    module = perceptron()
    _, params = model(module)
    batch = data(4, (3,), 3, "categorical")
    rule: Any = {"likelihood": "categorical", "corrected": corrected}
    exact = fisher_kfac(module, params, batch, kind="exact", **rule).dense(params)
    gaps = []
    for samples in (20, 2000):
        rule |= {"samples": samples, "generator": generator(0)}
        drawn = fisher_kfac(module, params, batch, kind="monte_carlo", **rule).dense(params)
        gaps.append(float((drawn - exact).norm() / exact.norm()))
    assert gaps[1] < 0.1 and gaps[1] < gaps[0] / 3


def test_frozen_layers_are_left_out_and_a_module_may_be_one_layer() -> None:
    module = perceptron()
    for value in module[0].parameters():
        value.requires_grad_(False)
    outputs_fn, params = model(module)
    batch = data(4, (3,), 3, "categorical")
    rule = {"likelihood": "categorical", "kind": "exact"}
    kfac = fisher_kfac(module, params, batch, corrected=True, **rule)
    assert list(kfac.blocks) == ["2"]
    close(kfac.trace(), fisher_matrix(outputs_fn, params, batch, **rule).trace())
    assert not module[2]._forward_hooks


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class Idle(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    return module


def bias_alone() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 3))
    module[0].weight.requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)),
         r"module\[1\]='LayerNorm': only matrix products and convolutions have Kronecker factors"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False).eval(),
                               nn.BatchNorm1d(3, track_running_stats=False)),
         r"module\[2\]='BatchNorm1d': it mixes samples; use convert_norm"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.PReLU()),
         r"module\[1\]='PReLU': only matrix products and conv.*freeze the parameters of others"),
        (Bare, r"module\[\]='Bare': only matrix products and convolutions"),
        (Twice, r"module\[layer\]='called twice': a layer that is used once is needed"),
        (Idle, r"module\[layer\]='never called': freeze what is not used"),
        (tied, r"module\[1\]='Linear': tied weights have no factors of their own"),
        (bias_alone, r"module\[0\]='bias alone': freeze the bias as well"),
        (nn.Tanh, "module='Tanh': no layer has parameters to take"),
    ],
)  # fmt: skip
def test_what_has_no_kronecker_factors_is_refused_by_name(make: Any, message: str) -> None:
    module = make().double()
    _, params = model(module)
    batch = data(4, (3,), 3, "categorical")
    with pytest.raises(SettingError, match=message):
        fisher_kfac(module, params, batch, likelihood="categorical", kind="exact")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sharing": "sum"}, "sharing='sum': one of expand, reduce is needed"),
        ({"kind": "monte_carlo"}, "generator=None: kind='monte_carlo' needs a torch.Generator"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1 is needed"),
        ({"params": {}}, r"params=\[\]: a tree with .* is needed"),
        ({"weights": torch.ones(3)}, r"weights='a tensor \[3\]': the shape \[4\] is needed"),
        ({"weights": torch.zeros(4)}, "weights=0.0: at least one weight above 0 is needed"),
        ({"weights": torch.full((4,), torch.inf)}, "weights=inf: "),
    ],
)
def test_bad_settings_get_one_sentence(change: Any, message: str) -> None:
    module = perceptron()
    batch = data(4, (3,), 3, "categorical")
    rule: Any = {
        "params": model(module)[1], "likelihood": "categorical", "kind": "exact", **change
    }  # fmt: skip
    with pytest.raises(SettingError, match=message):
        fisher_kfac(module, rule.pop("params"), batch, **rule)


def test_damping_is_above_zero() -> None:
    module = perceptron()
    _, params = model(module)
    kfac = fisher_kfac(
        module, params, data(4, (3,), 3, "categorical"), likelihood="categorical", kind="exact"
    )
    with pytest.raises(SettingError, match=r"damping=0.0: a number above 0 is needed"):
        kfac.inverse_product(params, damping=0.0)
