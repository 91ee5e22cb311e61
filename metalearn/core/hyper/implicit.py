"""The gradient at a minimum of the inner loss, wherever the way there began.

Axes: R outer losses, P parameters that move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Pull, Values
from metalearn.core.autodiff.linear_solve import (
    add_multiple,
    conjugate_gradients,
    difference,
    euclidean_norm,
)
from metalearn.core.autodiff.products import check_mode
from metalearn.core.checks import check_number
from metalearn.core.hyper.results import HyperGradient, RunEnd, result_of
from metalearn.core.hyper.run import Run
from metalearn.core.hyper.unrolled import outer_gradient
from metalearn.core.meta.adapted_task import walk
from metalearn.core.meta.step_series import StepSeries
from metalearn.core.tree import tree_map
from metalearn.errors import check_whole
from metalearn.signatures import check_fields, known_fields
from metalearn.types import Batch

__all__ = ["ImplicitSolver", "implicit_gradient"]

Product = Callable[[Values], Values]


@known_fields
@dataclass(frozen=True)
class ImplicitSolver:
    """How (H + λI)·x = ∂L_out/∂θ is solved, H the Hessian of the inner loss at θ_K.

    Attributes:
        solver: ``"cg"``, conjugate gradients, of a positive definite matrix; ``"neumann"``, the
            series α·Σ_j (I − α·(H + λI))^j, which converges where 0 < α·(μ + λ) < 2 for every
            eigenvalue μ of H.
        iterations: of conjugate gradients, or terms of the series behind the first.
        damping: λ, at least 0. A decay of the optimiser is no part of the inner loss; one that is
            added to gradients, as that of `sgd`, belongs here.
        scale: α of the series.
        product: ``"exact"``, or ``"difference"``: H·v by gradients at θ_K ± ε·v, ε = ``spacing`` /
            ‖v‖, which needs no second derivative.
        spacing: of the difference.

    Sources: Lorraine, Vicol and Duvenaud, "Optimizing Millions of Hyperparameters by Implicit
    Differentiation", AISTATS 2020 (the series); Liu, Simonyan and Yang, "DARTS", ICLR 2019 (the
    difference).
    """

    solver: Literal["cg", "neumann"] = "cg"
    iterations: int = 20
    damping: float = 0.0
    scale: float = 0.1
    product: Literal["exact", "difference"] = "exact"
    spacing: float = 0.01
    batch: Batch = None
    """Of the inner loss whose minimum θ_K is; None takes the mean of the losses of all K batches,
    each of which every product then goes through."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_mode("solver", self.solver, ("cg", "neumann"))
        check_mode("product", self.product, ("exact", "difference"))
        check_whole("iterations", self.iterations, 1)
        check_number("damping", self.damping, least=0)
        check_number("scale", self.scale, above=0)
        check_number("spacing", self.spacing, above=0)


def implicit_gradient(run: Run, settings: ImplicitSolver) -> HyperGradient:
    """∂L_out/∂h − (∂²L_in/∂h∂θ)·x, by the implicit function theorem.

    It is that of the minimum's dependence on h, exact as far as θ_K is a minimum of the inner loss
    and x solves its system; the initial parameters and the optimiser have no part in a minimum.
    """
    values, state, losses = run.start, run.state, StepSeries()
    points = walk(run.loop, values, run.batches, run.steps, state=state)
    for values, state, _, loss in points:  # noqa: B007
        if loss is not None:
            losses.append(loss)
    end = [v.detach() for v in values]
    loss, outer_grads = outer_gradient(run, end)
    curved = _Curvature(run, end, settings, many=bool(loss.dim()))
    target = run.loop.adapting(outer_grads)

    def product(x: Values) -> Values:
        return [h + settings.damping * v for h, v in zip(run.loop.adapting(curved(x)), x)]

    solve = _neumann if settings.solver == "neumann" else _conjugate
    solution, residual = solve(product, target, loss, settings)
    grads = difference(outer_grads, curved(solution))
    grads = run.loop.merge(grads, [torch.zeros_like(v) for v in solution])
    learnt = run.loop.optimizer.learnt
    lead = loss.shape
    optimizer_grads = tree_map(lambda v: v.new_zeros((*lead, *v.shape)), learnt)
    diagnostics = {"residual": residual, "stationarity": curved.stationarity()}
    reached = RunEnd(end, state, loss, losses.stacked())
    return result_of(run, grads, optimizer_grads, reached, diagnostics)


def _conjugate(
    product: Product, target: Values, like: Tensor, settings: ImplicitSolver
) -> tuple[Values, Tensor]:
    return conjugate_gradients(product, target, like, settings.iterations)


def _neumann(
    product: Product, target: Values, like: Tensor, settings: ImplicitSolver
) -> tuple[Values, Tensor]:
    """The series, and its relative residual."""
    term = total = target
    for _ in range(settings.iterations):
        term = [t - settings.scale * p for t, p in zip(term, product(term))]
        total = [a + b for a, b in zip(total, term)]
    solution = [settings.scale * t for t in total]
    error = euclidean_norm(difference(product(solution), target), like)
    tiny = torch.finfo(like.dtype).tiny
    return solution, error / euclidean_norm(target, like).clamp_min(tiny)


class _Curvature:
    """Products of the transposed Jacobian of the inner gradient at θ_K with vectors.

    Args:
        run: whose inner loss it is.
        end: θ_K and all other leaves.
        settings: which batch, and how.
        many: whether vectors have R in front.
    """

    def __init__(self, run: Run, end: Values, settings: ImplicitSolver, *, many: bool) -> None:
        self.run, self.end, self.settings, self.many = run, end, settings, many
        one = settings.batch is not None or run.steps == 1
        self._only = self._pull(next(self._batches())) if one and self._exact else None

    @property
    def _exact(self) -> bool:
        return self.settings.product == "exact"

    def __call__(self, x: Values) -> Values:
        """Of every leaf: of those that move H·x, of others (∂²L_in/∂ψ∂θ)·x."""
        if not self._exact:
            return self._by_difference(x)
        if self._only is not None:
            return self._only(x)
        return self._mean(lambda batch: self._pull(batch)(x))

    def stationarity(self) -> Tensor:
        """‖∇L_in(θ_K)‖ / ‖∇L_in(θ_0)‖."""
        loop = self.run.loop

        def norm(values: Values) -> Tensor:
            found = self._mean(lambda batch: loop.slope(values, batch, differentiable=False)[0])
            return euclidean_norm(found, found[0].new_zeros(()))

        start = norm(self.run.start)
        return norm(self.end) / start.clamp_min(torch.finfo(start.dtype).tiny)

    def _pull(self, batch: Batch) -> Pull:
        backend = self.run.loop.backend
        take = backend.pull_many if self.many else backend.pull
        return take(lambda values: self.run.loop.slope(values, batch)[0], self.end)

    def _by_difference(self, x: Values) -> Values:
        if not self.many:
            return self._one_difference(x)
        rows = [self._one_difference([v[r] for v in x]) for r in range(len(x[0]))]
        return [torch.stack(leaf) for leaf in zip(*rows)]

    def _one_difference(self, x: Values) -> Values:
        loop, like = self.run.loop, x[0].new_zeros(())
        norm = euclidean_norm(x, like).clamp_min(torch.finfo(like.dtype).tiny)
        ends = [
            self._slopes(loop.merge(self.end, add_multiple(loop.adapting(self.end), step, x)))
            for step in (self.settings.spacing / norm, -self.settings.spacing / norm)
        ]
        factor = norm / (2 * self.settings.spacing)
        return [factor * (a - b) for a, b in zip(*ends)]

    def _slopes(self, values: Values) -> Values:
        """∇L_in of all leaves."""
        loop = self.run.loop

        def of(batch: Batch) -> Values:
            take = loop.backend.gradient
            return take(lambda v: loop.loss(v, batch), values, differentiable=False)[0]

        return self._mean(of)

    def _mean(self, of: Callable[[Batch], Values]) -> Values:
        """Over the batches whose loss is at its minimum."""
        total, count = None, 0
        for batch in self._batches():
            found = of(batch)
            total = found if total is None else [a + b for a, b in zip(total, found)]
            count += 1
        assert total is not None
        return [t / count for t in total]

    def _batches(self) -> Iterator[Batch]:
        if self.settings.batch is not None:
            yield self.settings.batch
            return
        for k in range(self.run.steps):
            yield self.run.loop.batch(self.run.batches, k)
