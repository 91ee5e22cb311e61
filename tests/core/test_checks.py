"""Losses that have no gradient or are no scalar, and numbers out of range, are refused everywhere.

Axes: T tasks, M members, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from metalearn.core import (
    Implicit,
    adam,
    adapt,
    along_adaptation,
    clipped_gradient,
    consolidation_penalty,
    fisher_diagonal,
    fisher_matrix,
    fisher_trace,
    fisher_vp,
    gradient_mean,
    laplace_posterior,
    member_gradients,
    member_meta_gradient,
    meta_gradient,
    natural_gradient,
    per_sample_gradients,
    per_sample_norms,
    reduce_per_sample,
    sgd,
)
from metalearn.core.checks import check_number
from metalearn.core.loss_checks import check_reached
from metalearn.core.meta.every_task import task_meta_gradients
from metalearn.errors import SettingError
from metalearn.trainers import MAML
from metalearn.types import TaskBatch

DRAWS = torch.Generator().manual_seed(0)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=DRAWS)


PARAMS = {"a": noise(3, 2), "b": noise(2), "unused": noise(4)}
ROW = (noise(5, 3), noise(5, 2))
TASKS = TaskBatch((noise(2, 5, 3), noise(2, 5, 2)), (noise(2, 4, 3), noise(2, 4, 2)))
STACKED = {name: torch.stack([value, 2 * value]) for name, value in PARAMS.items()}


def errors(params: Any, batch: Any) -> Tensor:
    found: Tensor = (batch[0] @ params["a"] + params["b"] - batch[1]).square()
    return found


def mean_loss(params: Any, batch: Any) -> Tensor:
    return errors(params, batch).mean()


def _meta(engine: Any, method: Any) -> Callable[[Any], Any]:
    return lambda loss: (
        meta_gradient(
            loss, PARAMS, TASKS, optimizer=sgd(0.01), steps=2, engine=engine, method=method
        ).grads
    )


ENTRIES: dict[str, Callable[[Any], Any]] = {
    f"meta_gradient {engine} {method}": _meta(engine, method)
    for engine in ("batched", "vmap", "loop")
    for method in ("reverse", "mixed", "first_order", "implicit")
}
ENTRIES |= {
    f"along_adaptation {engine}": lambda loss, engine=engine: along_adaptation(
        lambda params, support, query: params,
        loss, PARAMS, TASKS, optimizer=sgd(0.01), steps=1, engine=engine,
    )
    for engine in ("batched", "vmap", "loop")
}  # fmt: skip
ENTRIES |= {
    f"member_meta_gradient {engine}": lambda loss, engine=engine: (
        member_meta_gradient(
            loss, STACKED, TASKS, optimizer=sgd(0.01), steps=1, engine=engine
        ).grads
    )
    for engine in ("batched", "vmap", "loop")
}
ENTRIES |= {
    f"task_meta_gradients {engine}": lambda loss, engine=engine: task_meta_gradients(
        loss, PARAMS, TASKS, optimizer=sgd(0.01), steps=1, engine=engine
    )
    for engine in ("batched", "vmap", "loop")
}
ENTRIES |= {
    f"member_gradients {engine}": lambda loss, engine=engine: (
        member_gradients(loss, STACKED, ROW, in_dims=None, engine=engine).grads
    )
    for engine in ("batched", "vmap", "loop")
}
ENTRIES["adapt"] = lambda loss: adapt(loss, PARAMS, ROW, optimizer=sgd(0.01), steps=1).params
for method in ("layers", "vmap", "loop"):
    ENTRIES |= {
        f"per_sample_gradients {method}": lambda loss, method=method: per_sample_gradients(
            loss, PARAMS, ROW, method=method
        ),
        f"per_sample_norms {method}": lambda loss, method=method: per_sample_norms(
            loss, PARAMS, ROW, method=method
        ),
        f"clipped_gradient {method}": lambda loss, method=method: (
            clipped_gradient(loss, PARAMS, ROW, max_norm=1.0, method=method).grads
        ),
        f"reduce_per_sample {method}": lambda loss, method=method: reduce_per_sample(
            loss, PARAMS, ROW, {"mean": gradient_mean()}, method=method
        ),
    }

entries = pytest.mark.parametrize("entry", ENTRIES)

UNREACHED: dict[str, Callable[[Any, Any], Tensor]] = {
    "ignored": lambda p, b: b[0].square().mean(),
    "constant": lambda p, b: b[0].new_ones(()),
    "detached": lambda p, b: mean_loss(p, b).detach(),
    "detached parameters": lambda p, b: mean_loss({n: v.detach() for n, v in p.items()}, b),
    "no_grad": torch.no_grad()(mean_loss),
}


@entries
@pytest.mark.parametrize("loss", UNREACHED)
def test_a_loss_without_parameters_is_refused(entry: str, loss: str) -> None:
    with pytest.raises(SettingError, match=r"^loss_fn='no parameter reached': a loss is needed"):
        ENTRIES[entry](UNREACHED[loss])


NO_SCALARS: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "per sample": (lambda p, b: errors(p, b).mean(1), r"\([145],\)"),
    "one element": (lambda p, b: errors(p, b).mean()[None], r"\(1,\)"),
    "matrix": (errors, r"\([145], 2\)"),
    "tuple": (lambda p, b: (mean_loss(p, b), b[0]), r"\(torch.float64, \("),
    "nothing": (lambda p, b: None, "'NoneType'"),
    "number": (lambda p, b: 1.0, "'float'"),
    "whole number": (lambda p, b: mean_loss(p, b).long(), "torch.int64"),
    "complex": (lambda p, b: mean_loss(p, b) * 1j, "torch.complex128"),
}


@entries
@pytest.mark.parametrize("loss", NO_SCALARS)
def test_a_loss_that_is_no_scalar_is_refused(entry: str, loss: str) -> None:
    function, shown = NO_SCALARS[loss]
    with pytest.raises(SettingError, match=rf"^loss_fn={shown}.*: a scalar is needed, a tensor"):
        ENTRIES[entry](function)


@entries
def test_a_single_unused_parameter_is_fine(entry: str) -> None:
    found = ENTRIES[entry](mean_loss)
    if isinstance(found, dict) and "unused" in found and "gradient" in entry:
        assert not found["unused"].any() and found["a"].any()


@entries
def test_inference_mode_gives_the_same_gradients(entry: str) -> None:
    expected = ENTRIES[entry](mean_loss)
    with torch.inference_mode():
        found = ENTRIES[entry](mean_loss)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_tensors_that_were_made_in_inference_mode() -> None:
    expected = adapt(mean_loss, PARAMS, ROW, optimizer=sgd(0.01), steps=1).params
    with torch.inference_mode():
        row = tuple(part.clone() for part in ROW)
        tasks = TaskBatch(*(tuple(part.clone() for part in rows) for rows in TASKS))
        found = adapt(mean_loss, PARAMS, row, optimizer=sgd(0.01), steps=1).params
        for engine in ("batched", "vmap", "loop"):
            grads = meta_gradient(
                mean_loss, PARAMS, tasks, optimizer=sgd(0.01), steps=2, engine=engine
            ).grads
            torch.testing.assert_close(grads, ENTRIES[f"meta_gradient {engine} reverse"](mean_loss))
    torch.testing.assert_close(found, expected)


def test_a_loss_of_frozen_parameters_alone_adapts_nothing() -> None:
    for engine in ("batched", "vmap", "loop"):
        with pytest.raises(SettingError, match=r"^loss_fn='no parameter reached'"):
            meta_gradient(
                mean_loss, PARAMS, TASKS, optimizer=sgd(0.01), steps=1, engine=engine,
                frozen=["a", "b"],
            )  # fmt: skip
    whole = meta_gradient(mean_loss, PARAMS, TASKS, optimizer=sgd(0.01), steps=1, frozen="*")
    plain = meta_gradient(mean_loss, PARAMS, TASKS, optimizer=sgd(0.01), steps=0)
    torch.testing.assert_close(whole.grads, plain.grads)


def test_the_check_inside_further_transforms() -> None:
    def adapted(params: Any) -> Tensor:
        return mean_loss(adapt(mean_loss, params, ROW, optimizer=sgd(0.01), steps=2).params, ROW)

    def constant(params: Any) -> Tensor:
        ignored = UNREACHED["detached"]
        return mean_loss(adapt(ignored, params, ROW, optimizer=sgd(0.01), steps=2).params, ROW)

    assert grad(adapted)(PARAMS)["a"].any()
    for run in (lambda: grad(constant)(PARAMS), lambda: vmap(grad(constant))(STACKED)):
        with pytest.raises(SettingError, match=r"^loss_fn='no parameter reached'"):
            run()


@pytest.mark.parametrize("levels", [1, 2])
def test_parameters_are_seen_to_be_reached_from_inside_a_vmap(levels: int) -> None:
    """As where autograd outside takes the gradients of several tasks at once."""
    inside = torch.ones(2, 2, 3, requires_grad=True)

    def loss(reached: bool, value: Tensor) -> Tensor:
        return check_reached((value if reached else value.detach()).sum())

    def mapped(reached: bool) -> Tensor:
        function: Callable[[Tensor], Tensor] = partial(loss, reached)
        for _ in range(levels):
            function = vmap(function)
        return function(inside)

    assert mapped(True).requires_grad
    with pytest.raises(SettingError, match=r"^loss_fn='no parameter reached'"):
        mapped(False)


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("function", [fisher_diagonal, fisher_matrix, fisher_trace, fisher_vp])
def test_fisher_matrices_of_outputs_without_parameters(function: Any, kind: str) -> None:
    extra = (PARAMS,) if function is fisher_vp else ()
    for outputs_fn in (lambda p, x: x, lambda p, x: (x @ p["a"]).detach()):
        row = (ROW[0], ROW[0] if outputs_fn(PARAMS, ROW[0]).shape[1] == 3 else ROW[1])
        with pytest.raises(SettingError, match=r"^outputs_fn='no parameter reached'"):
            function(outputs_fn, PARAMS, row, *extra, likelihood="gaussian", kind=kind)
    with pytest.raises(SettingError, match=r"^params=\{\}: a tree with at least one tensor"):
        function(lambda p, x: x, {}, ROW, *extra, likelihood="gaussian", kind="exact")


@entries
def test_parameters_are_needed(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PARAMS", "STACKED"):
        monkeypatch.setitem(globals(), name, {})
    with pytest.raises(SettingError, match=r"^(params=\{\}|members=\[\]): .* at least"):
        ENTRIES[entry](mean_loss)


NONE = (noise(2, 0, 3), noise(2, 0, 2))


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_sets_without_samples(engine: Any) -> None:
    def run(tasks: TaskBatch, steps: int) -> Any:
        return meta_gradient(
            mean_loss, PARAMS, tasks, optimizer=sgd(0.1), steps=steps, engine=engine
        )

    for name in ("support", "query"):
        tasks = TASKS._replace(**{name: NONE})
        with pytest.raises(SettingError, match=rf"^{name}=\[\(2, 0, 3\).*it needs samples"):
            run(tasks, 1)
    found = run(TaskBatch(NONE, TASKS.query), 0)  # which no step looks at
    torch.testing.assert_close(found.grads, run(TASKS, 0).grads)
    with pytest.raises(SettingError, match=r"^support=\[\(0, 3\)"):
        adapt(mean_loss, PARAMS, (ROW[0][:0], ROW[1][:0]), optimizer=sgd(0.1), steps=1)


@pytest.mark.parametrize("form", [float, torch.tensor])
@pytest.mark.parametrize(
    ("limits", "good", "bad", "message"),
    [
        ({"above": 0}, [1e-3, 7.0], [0.0, -1.0, math.nan, math.inf], "a finite number above 0"),
        ({"above": 0, "infinite": True}, [1.0, math.inf], [0.0, -math.inf, math.nan], "a number"),
        ({"least": 0}, [0.0, 2.0], [-1e-9, math.nan, math.inf], "a finite number of at least 0"),
        ({"least": 0, "below": 1}, [0.0, 0.9], [1.0, -0.1, math.nan, math.inf], r"in \[0, 1\)"),
        ({}, [0.0, -4.0], [math.nan, math.inf, -math.inf], "a finite number is needed"),
    ],
)  # fmt: skip
def test_numbers_and_tensors_are_checked_alike(
    limits: Any, good: list[float], bad: list[float], message: str, form: Any
) -> None:
    for value in good:
        check_number("x", form(value), **limits)
    for value in bad:
        with pytest.raises(SettingError, match=rf"^x=.*{message}"):
            check_number("x", form(value), **limits)


def test_tensors_of_numbers() -> None:
    check_number("x", torch.tensor([1.0, 2.0]), above=0, shape=[2])
    for value, shape, message in (
        (torch.tensor([1.0, -2.0]), [2], r"^x=-2.0: a finite number above 0"),
        (torch.ones(2), (), r"^x='a tensor \[2\]': a number or a tensor without axes"),
        (torch.ones(2), [3], r"^x='a tensor \[2\]': the shape \[3\]"),
        (torch.ones((), dtype=torch.complex64), (), "^x='torch.complex64': real numbers"),
        (torch.tensor(True), (), "^x='torch.bool': real numbers"),
        ("1", (), "^x='1': a finite number above 0"),
        (True, (), "^x=True: a finite number above 0"),
        (None, (), "^x=None: a finite number above 0"),
    ):
        with pytest.raises(SettingError, match=message):
            check_number("x", value, above=0, shape=shape)


def test_numbers_inside_transforms_are_taken_as_they_are() -> None:
    def inside(x: Tensor) -> Tensor:
        check_number("x", x, above=0)
        return x * 2

    assert torch.equal(vmap(inside)(torch.tensor([-1.0, 1.0])), torch.tensor([-2.0, 2.0]))
    assert grad(inside)(torch.tensor(-1.0)) == 2


def _classes() -> tuple[Any, Any]:
    weight = {"w": noise(3, 4), "c": noise(4)}
    batch = (noise(6, 3), torch.tensor([0, 1, 2, 3, 0, 1]))
    return weight, batch


def logits(params: Any, inputs: Tensor) -> Tensor:
    found: Tensor = inputs @ params["w"] + params["c"]
    return found


def _clip(max_norm: Any) -> Any:
    return clipped_gradient(mean_loss, PARAMS, ROW, max_norm=max_norm)


def _laplace(**settings: Any) -> Any:
    params, batch = _classes()
    given = {"likelihood": "gaussian", "prior_precision": 1.0} | settings
    return laplace_posterior(logits, params, batch, **given)


def _natural(damping: Any) -> Any:
    return natural_gradient({"w": noise(3)}, lambda v: v, damping=damping)


TAKERS: dict[str, tuple[Callable[[Any], Any], list[float], float]] = {
    "max_norm": (_clip, [-1.0, 0.0, math.nan], 1.0),
    "prior_precision": (lambda v: _laplace(prior_precision=v), [-1.0, 0.0, math.nan], 1.0),
    "variance": (lambda v: _laplace(variance=v), [-1.0, 0.0, math.nan, math.inf], 2.0),
    "damping": (_natural, [-1.0, math.nan, math.inf], 0.5),
    "strength": (
        lambda v: consolidation_penalty(PARAMS, PARAMS, PARAMS, strength=v), [-1.0, math.nan], 1.0),
    "lr": (sgd, [-1.0, 0.0, math.nan, math.inf], 0.1),
    "lr of adam": (adam, [-1.0, 0.0, math.nan, math.inf], 0.1),
    "momentum": (lambda v: sgd(0.1, momentum=v), [-0.1, 1.0, math.nan], 0.5),
    "weight_decay": (lambda v: sgd(0.1, weight_decay=v), [-0.1, math.nan], 0.5),
    "regularization": (
        lambda v: meta_gradient(
            mean_loss, PARAMS, TASKS, optimizer=sgd(0.1), steps=1, method="implicit",
            implicit=Implicit(v),
        ),
        [-1.0, 0.0, math.nan], 1.0),
}  # fmt: skip


@pytest.mark.parametrize("form", [float, lambda v: torch.tensor(v, dtype=torch.float64)])
@pytest.mark.parametrize("name", TAKERS)
def test_settings_refuse_numbers_and_tensors_alike(name: str, form: Any) -> None:
    take, bad, good = TAKERS[name]
    take(form(good))
    for value in bad:
        with pytest.raises(SettingError, match=rf"^{name.split()[0]}=.*a .*number"):
            take(form(value))


@pytest.mark.parametrize("name", [name for name in TAKERS if name != "max_norm"])
def test_settings_refuse_vectors_and_what_is_no_number(name: str) -> None:
    vector = torch.ones(7, 2) if name.startswith("lr") else torch.ones(7)  # rates may be [K]
    for value in (vector, "fast", None, [1.0, 2.0]):
        with pytest.raises(SettingError, match=rf"^{name.split()[0]}=.*(number|tree)"):
            TAKERS[name][0](value)


@pytest.mark.parametrize("method", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_norms_to_clip_by_of_each_sample(chunk_size: Any, method: Any) -> None:
    limits = torch.tensor([0.1, 0.2, 5.0, 0.3, 1e6], dtype=torch.float64)
    found = clipped_gradient(
        mean_loss, PARAMS, ROW, max_norm=limits, chunk_size=chunk_size, method=method
    )
    grads = per_sample_gradients(mean_loss, PARAMS, ROW)
    factors = (limits / per_sample_norms(mean_loss, PARAMS, ROW)).clamp(max=1)
    expected = {n: torch.einsum("n...,n->...", g, factors) / 5 for n, g in grads.items()}
    torch.testing.assert_close(found.grads, expected)
    for wrong in (limits[:3], limits[:, None]):
        with pytest.raises(SettingError, match=r"^max_norm='a tensor "):
            clipped_gradient(mean_loss, PARAMS, ROW, max_norm=wrong)


def test_trees_of_step_sizes_are_directions_too() -> None:
    rates = {name: torch.full_like(value, -0.1) for name, value in PARAMS.items()}
    meta_gradient(mean_loss, PARAMS, TASKS, optimizer=sgd(rates), steps=1)
    rates["a"] = torch.full_like(PARAMS["a"], math.nan)
    with pytest.raises(SettingError, match=r"^lr\[a\]=nan: a finite number is needed"):
        sgd(rates)


def test_a_learner_has_numbers_for_step_sizes() -> None:
    with pytest.raises(SettingError, match=r"^inner_lr='Tensor': .*learn=\[lr\] learns"):
        MAML(inner_lr=torch.tensor(0.1))  # type: ignore[arg-type]
    for value in (0, -1.0, math.nan, math.inf, True):
        with pytest.raises(SettingError, match="^inner_lr=.*: a finite number above 0"):
            MAML(inner_lr=value)
