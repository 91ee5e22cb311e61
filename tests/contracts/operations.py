"""Torch's own list of operations, each inside a loss: what plain autograd gives, and our verdict.

Axes: N samples, T tasks, ``[*x]`` one input.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core import (
    clipped_gradient,
    ggn_vp,
    hvp,
    jacobian,
    jvp,
    meta_gradient,
    per_sample_gradients,
    per_sample_norms,
    sgd,
    vjp,
)
from metalearn.errors import SettingError
from metalearn.types import TaskBatch
from tests.support.devices import DEVICE, on_device
from tests.support.oracles import generator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what torch's own tests would like to have
    from torch.testing._internal.common_methods_invocations import op_db
setattr(torch.backends, "__allow_nonbracketed_mutation_flag", True)

ELEMENTS = 200  # of an input, and of the outputs of which a Jacobian is taken
LR = 0.1
WAY_OUT = ("mode='", "method='loop'", "engine='loop'", "in other operations")


class Case(NamedTuple):
    """An operation as a function of one tensor, the point, and random directions."""

    name: str
    function: Callable[[Tensor], Tensor]
    """All floating-point outputs as one vector."""
    x: Tensor
    v: Tensor
    """Like x."""
    u: Tensor
    """Like the outputs."""

    def scalar(self, x: Tensor) -> Tensor:
        """A smooth function of the outputs in which none can hide."""
        y = self.function(x)
        weights = torch.arange(1, len(y) + 1, dtype=y.dtype, device=y.device).cos()
        return ((y * weights).sum() + 0.1 * y.square().sum()) / len(y)


class Verdict(NamedTuple):
    """What an entry point made of a case."""

    entry: str
    case: str
    kind: str
    """``right``, ``refused``, ``raw`` or ``wrong``."""
    why: str


def cases(start: int = 0, step: int = 1) -> Iterator[Case]:
    """Two samples of every operation that plain autograd differentiates, deterministic ones."""
    for info in op_db[start::step]:
        if not info.supports_autograd or torch.float64 not in info.dtypes:
            continue
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            samples = list(info.sample_inputs(DEVICE.type, torch.float64, requires_grad=False))[:40]
            for number, sample in enumerate(samples[:: max(1, len(samples) // 2)][:2]):
                case = _case(info, sample, number)
                if case is not None:
                    yield case


def _case(info: Any, sample: Any, number: int) -> Case | None:
    given = sample.input
    if not isinstance(given, Tensor) or given.layout != torch.strided:
        return None
    if not given.is_floating_point() or not 0 < given.numel() <= ELEMENTS:
        return None
    if given.dtype != torch.float64 or "float64" not in str(info.dtypes):
        return None
    x = given.detach().clone()

    def function(x: Tensor) -> Tensor:
        found = torch.utils._pytree.tree_leaves(info.op(x, *sample.args, **sample.kwargs))
        kept = [y for y in found if isinstance(y, Tensor) and y.is_floating_point()]
        return torch.cat([y.reshape(-1) for y in kept])

    leaf = x.clone().requires_grad_()
    try:
        y, again = function(leaf), function(leaf)
        torch.autograd.grad(y.sum(), leaf)
    except (RuntimeError, ValueError):
        return None  # not an operation with a derivative in this argument
    if y.dtype != torch.float64 or not len(y) or len(y) > ELEMENTS:
        return None
    if not torch.equal(y.isnan(), again.isnan()):
        return None
    if not torch.equal(y.detach().nan_to_num(), again.detach().nan_to_num()):
        return None  # random
    name = f"{info.name}{'.' * bool(info.variant_test_name)}{info.variant_test_name} {number}"
    draw = partial(torch.randn, generator=generator(1), dtype=torch.float64)
    return Case(name, function, x, *on_device((draw(x.shape), draw(len(y)))))


# --- plain autograd --------------------------------------------------------------------------


def gradient(f: Callable[[Tensor], Tensor], x: Tensor, *, graph: bool = False) -> Tensor:
    x = x if graph else x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(f(x), x, create_graph=graph)
    return found


def rows(case: Case) -> Tensor:
    """The Jacobian, one backward pass for each output."""
    x = case.x.clone().requires_grad_()
    y = case.function(x)
    found = [
        torch.autograd.grad(one, x, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
        for one in y
    ]
    return torch.stack(found)


def hessian_product(case: Case) -> Tensor | None:
    """By two backward passes; None where central differences of one say something else."""
    x, eps = case.x.clone().requires_grad_(), 1e-6
    try:
        slope = gradient(case.scalar, x, graph=True)
        if not slope.requires_grad:
            exact = torch.zeros_like(x)
        else:
            (exact,) = torch.autograd.grad(
                (slope * case.v).sum(), x, allow_unused=True, materialize_grads=True
            )
    except RuntimeError:
        return None  # differentiable once
    ends = [gradient(case.scalar, case.x + sign * eps * case.v) for sign in (1, -1)]
    near = torch.allclose(exact, (ends[0] - ends[1]) / (2 * eps), rtol=1e-3, atol=1e-4)
    return exact.detach() if near else None


def one_step(case: Case, support: Tensor, query: Tensor) -> Tensor:
    """The gradient of a query loss after a step of gradient descent on a weight of ones."""
    w = torch.ones_like(case.x).requires_grad_()
    slope = gradient(lambda w: case.scalar(support * w), w, graph=True)
    loss = case.scalar(query * (w - LR * slope))
    return torch.autograd.grad(loss, w)[0]


# --- our entry points ------------------------------------------------------------------------

Runs = dict[str, tuple[Callable[[], Any], Tensor]]
"""By entry point: how it is called and what is right."""


def derivative_runs(case: Case) -> Runs:
    """Products, Jacobians and Hessian products in every mode."""
    f, x, v, u = case.function, case.x, case.v, case.u
    dense = rows(case)
    flat = dense.reshape(len(u), -1)
    pushed, back = flat @ v.reshape(-1), (u @ flat).view(x.shape)
    squares = (pushed @ flat).view(x.shape)
    half = lambda z: z.square().sum() / 2  # noqa: E731
    runs: Runs = {"vjp": (lambda: vjp(f, x, u)[1], back)}
    for mode in ("auto", "forward", "reverse"):
        runs[f"jacobian {mode}"] = (partial(jacobian(f, mode=mode), x), dense)  # type: ignore[arg-type]
    for mode in ("auto", "reverse", "forward"):
        runs[f"jvp {mode}"] = (lambda m=mode: jvp(f, x, v, mode=m)[1], pushed)  # type: ignore[misc]
        runs[f"ggn_vp {mode}"] = (partial(ggn_vp, f, half, x, v, mode=mode), squares)
    curved = hessian_product(case)
    if curved is not None:
        for second in ("auto", "reverse_over_reverse", "forward_over_reverse"):
            runs[f"hvp {second}"] = (partial(hvp, case.scalar, x, v, mode=second), curved)
    return runs


def sample_runs(case: Case) -> Runs:
    """Per-sample gradients, norms and clipped gradients of the operation on a weighted sample."""
    weight = torch.ones_like(case.x)
    batch = torch.stack([case.x * (1 + 0.01 * i) for i in range(3)])
    loss = lambda w, b: case.scalar(b[0] * w)  # noqa: E731
    exact = torch.stack(
        [gradient(lambda w, i=i: case.scalar(batch[i] * w), weight) for i in range(3)]
    )
    norms = exact.reshape(3, -1).norm(dim=1)
    bound = float(norms.median()) + 1e-9
    shares = (bound / norms.clamp_min(1e-300)).clamp_max(1).view(3, *[1] * case.x.dim())
    runs: Runs = {}
    for method in ("layers", "vmap", "loop"):
        given: Any = {"method": method}
        runs[f"per-sample {method}"] = (
            partial(per_sample_gradients, loss, weight, batch, **given), exact,
        )  # fmt: skip
        runs[f"norms {method}"] = (partial(per_sample_norms, loss, weight, batch, **given), norms)
        runs[f"clipped {method}"] = (
            lambda g=given: clipped_gradient(loss, weight, batch, max_norm=bound, **g).grads,
            (exact * shares).mean(0),
        )
    return runs


def meta_runs(case: Case) -> Runs:
    """The gradient through one step on each of two tasks, where second derivatives are right."""
    if hessian_product(case) is None:
        return {}
    weight, scales = torch.ones_like(case.x), (1, 1.01, 1.02)
    points = torch.stack([case.x * scale for scale in scales])
    tasks = TaskBatch(points[:2, None], points[1:, None])
    try:
        exact = torch.stack([one_step(case, points[t], points[t + 1]) for t in range(2)]).mean(0)
    except RuntimeError:
        return {}
    loss = lambda w, b: case.scalar(b[0] * w)  # noqa: E731
    take = partial(meta_gradient, loss, weight, tasks, optimizer=sgd(LR), steps=1)
    return {
        f"meta {engine}": (lambda e=engine: take(engine=e).grads, exact)  # type: ignore[misc]
        for engine in ("batched", "vmap", "loop")
    }


def verdicts(case: Case) -> Iterator[Verdict]:
    """Of every entry point that has something to be compared with."""
    for runs in (derivative_runs, sample_runs, meta_runs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for entry, (run, exact) in runs(case).items():
                if exact.isfinite().all():
                    yield Verdict(entry, case.name, *_verdict(run, exact))


def _verdict(run: Callable[[], Any], exact: Tensor) -> tuple[str, str]:
    try:
        found = run()
    except SettingError as error:
        told = any(way in str(error) for way in WAY_OUT)
        return "refused" if told else "raw", str(error)
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    if found.shape == exact.shape and torch.allclose(found, exact, rtol=1e-5, atol=1e-8):
        return "right", ""
    return "wrong", f"{found.detach().reshape(-1)[:3]} for {exact.reshape(-1)[:3]}"


def table(found: list[Verdict]) -> str:
    """Right, refused, raw and wrong by entry point, as Markdown."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in found:
        counts[verdict.entry][verdict.kind] += 1
    kinds = ("right", "refused", "raw", "wrong")
    lines = ["| entry point | " + " | ".join(kinds) + " |", "| --- |" + " --- |" * 4]
    for entry, count in counts.items():
        lines.append(f"| {entry} | " + " | ".join(str(count[kind]) for kind in kinds) + " |")
    return "\n".join(lines)
