"""A model, its data and its likelihood: what all Fisher quantities are sums over.

Axes: N samples, C outputs, R columns of an output factor, P parameters, n samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from metalearn.core.autodiff.adjoint_tests import check_forward, random_like
from metalearn.core.autodiff.derivative_modes import (
    AnyMode,
    Mode,
    jvp_forward,
    sandwich_product,
    with_fallback,
    with_safe_operations,
)
from metalearn.core.autodiff.products import leaves_like
from metalearn.core.checks import check_pair
from metalearn.core.chunking import chunks, sample_count
from metalearn.core.curvature.likelihood import Likelihood
from metalearn.core.loss_checks import UnreachedError, check_reached, refuse_unreached
from metalearn.core.ops import DecomposedOperations
from metalearn.core.samples.gradients import one_gradient
from metalearn.core.samples.layer_io import Collected
from metalearn.core.samples.structure import collect_covered
from metalearn.core.targets import check_labels
from metalearn.core.tree import check_floating, flatten, leaves, tree_map, unflatten
from metalearn.core.vectorization import vectorizing
from metalearn.errors import SettingError, check_whole
from metalearn.types import Batch, Params

__all__ = ["FisherProblem", "OutputsFn", "check_fisher_targets", "check_outputs", "over_samples"]

OutputsFn = Callable[[Params, Any], Tensor]
"""Outputs ``[N, C]`` of a batch of inputs."""

_NO_LOOP = (
    "Fisher matrices have no plain loop; per_sample_gradients with method='loop' gives the "
    "gradients of which the empirical one is made"
)
_BUDGET = 2**28  # bytes of per-sample gradients in a chunk, where no chunk_size is given


@dataclass(frozen=True)
class FisherProblem:
    """A model, its data and drawn targets: what all Fisher quantities are computed from."""

    outputs_fn: OutputsFn
    params: Params
    inputs: Any
    targets: Tensor | None
    noise: Tensor
    likelihood: Likelihood
    outputs: int
    """C."""

    @staticmethod
    def of(
        outputs_fn: OutputsFn,
        params: Params,
        batch: Batch,
        likelihood: Likelihood,
        generator: torch.Generator | None,
    ) -> FisherProblem:
        """Check shapes and draw the noise of Monte Carlo targets."""
        check_floating(params, "params")
        inputs, targets = check_pair(batch)
        count = sample_count(inputs)
        one = check_outputs(outputs_fn(params, tree_map(lambda x: x[:1], inputs))).detach()
        check_fisher_targets(targets, (count, one.shape[1]), likelihood)
        targets = targets if likelihood.kind == "empirical" else None
        noise = likelihood.noise(count, one[0], generator)
        return FisherProblem(
            outputs_fn, params, inputs, targets, noise, likelihood, int(one.shape[1])
        )

    def mean(self, reduce: Callable[[Params], Any], chunk_size: int | None) -> Any:
        """1/N · Σ over chunks of ``reduce(gradients)``, gradients with leaves ``[n, R, ...]``."""
        total = None
        size = self._affordable() if chunk_size is None else chunk_size
        for chunk in self._chunks(size):
            with over_samples("outputs_fn", self.outputs_fn, self.params, self.inputs):
                grads = vmap(self._gradients)(*chunk)
            part = reduce(grads)
            total = part if total is None else tree_map(torch.add, total, part)
        return tree_map(lambda x: x / len(self.noise), total)

    def mean_collected(
        self,
        reduce: Callable[[Collected], Any],
        chunk_size: int | None,
        *,
        norms_alone: bool = False,
    ) -> Any:
        """1/N · Σ over chunks and rows r of ``reduce(what makes up the gradients J_nᵀ s_nr)``."""
        values, spec = flatten(self.params)

        def loss(values: list[Tensor], sample: Batch) -> Tensor:
            x, row = sample
            value: Tensor = (self._one(unflatten(values, spec), x) * row).sum()
            return value

        take = partial(collect_covered, self.outputs_fn, loss, values, norms_alone=norms_alone)
        total = None
        size = self._affordable() if chunk_size is None else chunk_size
        for inputs, targets, noise in self._chunks(size):
            with over_samples("outputs_fn", self.outputs_fn, self.params, self.inputs):
                rows = vmap(self._factor)(inputs, targets, noise)

                def of_row(row: Tensor, inputs: Any = inputs) -> Any:
                    return reduce(take((inputs, row)))

                part = _sum_over_rows(of_row, rows)
            total = part if total is None else tree_map(torch.add, total, part)
        return tree_map(lambda x: x / len(self.noise), total)

    def product(
        self, vector: Params, chunk_size: int | None = None, mode: AnyMode = "auto"
    ) -> Params:
        """F·v, J·v by ``mode``; ``"forward"`` is not tested."""
        along, total = leaves_like(vector, self.params, "vector"), None
        for inputs, targets, noise in self._in_chunks(chunk_size):
            function, values, spec = self._outputs(inputs)

            def output_metric(
                outputs: Any, pushed: Any, t: Any = targets, n: Any = noise
            ) -> list[Tensor]:
                check_reached(outputs, "outputs_fn")
                return [vmap(self.likelihood.metric)(outputs, t, n, pushed)]

            take = partial(self._product, function, values, along, output_metric, mode)
            with over_samples("outputs_fn", self.outputs_fn, self.params, self.inputs):
                part = unflatten(with_fallback(take, mode, "reverse"), spec)
            total = part if total is None else tree_map(torch.add, total, part)
        return tree_map(lambda x: x / len(self.noise), total)

    def _product(
        self, function: Any, values: Any, along: Any, output_metric: Any, asked: AnyMode, mode: Mode
    ) -> list[Tensor]:
        if mode == "forward" != asked:
            check_forward(function, values, along, jvp_forward(function, values, along)[1])
        return sandwich_product(function, values, along, output_metric, mode)

    def check_forward(self, chunk_size: int | None) -> None:
        """Refuse forward mode that reverse mode does not confirm, sample by sample."""
        for inputs, _, _ in self._in_chunks(chunk_size):
            function, values, _ = self._outputs(inputs)
            along = random_like(values)
            with over_samples("outputs_fn", self.outputs_fn, self.params, self.inputs):
                check_forward(function, values, along, jvp_forward(function, values, along)[1])

    def _gradients(self, x: Any, target: Tensor, noise: Tensor) -> Params:
        """The R gradients J_nᵀ s_nr of one sample, leaves ``[R, ...]``."""
        factor = self._factor(x, target, noise)
        along = grad(
            lambda params, s: check_reached((self._one(params, x) * s).sum(), "outputs_fn")
        )
        return vmap(along, in_dims=(None, 0))(self.params, factor)

    def _factor(self, x: Any, target: Tensor, noise: Tensor) -> Tensor:
        """Sᵀ of one sample, ``[R, C]``."""
        return self.likelihood.factor(self._one(self.params, x), target, noise)

    def _outputs(self, inputs: Any) -> tuple[Callable[[list[Tensor]], Tensor], list[Tensor], Any]:
        """Outputs ``[n, C]`` as a function of the leaves of the parameters; those; their tree."""
        values, spec = flatten(self.params)

        def function(values: list[Tensor]) -> Tensor:
            found: Tensor = vmap(self._one, in_dims=(None, 0))(unflatten(values, spec), inputs)
            return found

        return with_safe_operations(function, values), values, spec

    def _one(self, params: Params, x: Any) -> Tensor:
        with DecomposedOperations():
            return self.outputs_fn(params, tree_map(lambda leaf: leaf[None], x))[0]

    def _in_chunks(self, size: int | None) -> Iterator[Batch]:
        return self._chunks(len(self.noise) if size is None else size)

    def _chunks(self, size: int) -> Iterator[Batch]:
        check_whole("chunk_size", size, 1)
        targets = self.noise if self.targets is None else self.targets
        return chunks((self.inputs, targets, self.noise), size)

    def _affordable(self) -> int:
        size: int = sum(p.numel() * p.element_size() for p in leaves(self.params))
        return max(1, _BUDGET // max(1, size * self.likelihood.columns(self.outputs)))


def _sum_over_rows(of_row: Callable[[Tensor], Any], rows: Tensor) -> Any:
    """Σ_r ``of_row(rows[:, r])``; outputs without parameters are called what they are."""
    try:
        if rows.shape[1] == 1:  # no axis that the operations would have to carry
            return of_row(rows[:, 0])
        return tree_map(lambda x: x.sum(0), vmap(of_row, in_dims=1)(rows))
    except UnreachedError:
        refuse_unreached("outputs_fn")


def over_samples(
    setting: str, outputs_fn: OutputsFn, params: Params, inputs: Any
) -> AbstractContextManager[None]:
    """A block that takes outputs under a vmap over samples; its errors say what vmap cannot take.

    Args:
        setting: by which the user gave the function.
        outputs_fn: tried on one sample, differentiated once, after an error alone.
        params: of the outputs.
        inputs: of all samples.
    """

    def alone() -> None:
        def total(params: Params, inputs: Any) -> Tensor:
            return outputs_fn(params, inputs).sum()

        one_gradient(total, params, tree_map(lambda x: x[:1], inputs))

    name = getattr(outputs_fn, "__name__", type(outputs_fn).__name__)
    return vectorizing(setting, name, alone, _NO_LOOP)


def check_outputs(outputs: Any) -> Tensor:
    """Outputs of one sample, refused where they are not a floating-point tensor ``[1, C]``."""
    needed = "outputs [N, C] are needed, here for N = 1"
    if not isinstance(outputs, Tensor):
        raise SettingError("outputs_fn", type(outputs).__name__, needed)
    if not outputs.is_floating_point():
        raise SettingError("outputs_fn", outputs.dtype, f"{needed}, of a floating-point type")
    if outputs.dim() != 2 or len(outputs) != 1:
        raise SettingError("outputs_fn", tuple(outputs.shape), needed)
    return outputs


def check_fisher_targets(
    targets: Tensor | None, shape: tuple[int, int], likelihood: Likelihood
) -> None:
    """Refuse targets that are looked at and do not fit outputs of ``shape`` [N, C].

    Labels are in 0..C−1, or −100 for padding, which has a gradient of zero and counts in N. Their
    values are looked at on concrete tensors alone.
    """
    if likelihood.kind != "empirical":
        return
    wanted: tuple[int, ...] = (shape[0], likelihood.targets(shape[1]))
    if likelihood.name == "categorical":
        wanted = shape[:1]
    if not isinstance(targets, Tensor) or tuple(targets.shape) != wanted:
        got = tuple(targets.shape) if isinstance(targets, Tensor) else targets
        raise SettingError("targets", got, f"the shape {wanted} is needed for this likelihood")
    if likelihood.name == "categorical":
        check_labels(targets, shape[1])
