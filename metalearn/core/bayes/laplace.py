"""The Laplace approximation on the last layer, with its full covariance.

The posterior of the last layer's parameters θ ``[P]`` is N(θ*, Λ⁻¹), Λ = N·F + prior·I, F the exact
Fisher matrix of the mean over N samples (the GGN); the model is linearised in θ, which for a linear
last layer is no approximation. θ* is meant to be a minimum of the summed negative log-likelihood
plus prior/2·‖θ‖².

Axes: N samples, C outputs, P parameters of the last layer, D draws.
Sources: Daxberger et al., "Laplace Redux", NeurIPS 2021; Kristiadi, Hein and Hennig, "Being
Bayesian, Even Just a Bit, Fixes Overconfidence in ReLU Networks", ICML 2020; MacKay, "The Evidence
Framework Applied to Classification Networks", 1992 (probit).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from metalearn.core.checks import call_given, check_number
from metalearn.core.chunking import sample_count
from metalearn.core.curvature.fisher import fisher_matrix
from metalearn.core.curvature.fisher_problem import OutputsFn, check_outputs
from metalearn.core.curvature.likelihood import NOT_GIVEN, AnyLikelihood, Likelihood
from metalearn.core.random_tensors import normal
from metalearn.core.tree import check_floating, match_names, ravel, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, Params

__all__ = [
    "Laplace",
    "laplace_posterior",
    "laplace_predictive",
    "laplace_probabilities",
    "last_layer",
]


class Laplace(NamedTuple):
    """A Gaussian over parameters, with mean ``params``; a pytree of tensors."""

    params: Params
    """θ*."""
    root: Tensor
    """Lower Cholesky factor of the precision Λ ``[P, P]``, in the order of ``ravel``."""

    def covariance(self) -> Tensor:
        """Λ⁻¹ ``[P, P]``."""
        return torch.cholesky_inverse(self.root)


@checked
def last_layer(
    apply: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    *,
    names: str | Sequence[str],
) -> tuple[OutputsFn, dict[str, Tensor]]:
    """Outputs as a function of the parameters that match ``names`` alone, and these parameters.

    Args:
        apply: as `metalearn.core.functionalize` gives.
        params: the same.
        buffers: the same.
        names: shell-style patterns, ``"head.*"``.

    Raises:
        SettingError: a pattern that matches no parameter.
    """
    hits = match_names(dict(params), names, "names")
    chosen = {n: p for (n, p), hit in zip(params.items(), hits) if hit}

    def outputs_fn(part: Params, inputs: Any) -> Tensor:
        return apply({**params, **part}, buffers, inputs)

    return outputs_fn, chosen


@checked
def laplace_posterior(
    outputs_fn: OutputsFn,
    params: Params,
    batch: Batch,
    *,
    likelihood: AnyLikelihood,
    prior_precision: float,
    variance: float = NOT_GIVEN,
    chunk_size: int | None = None,
) -> Laplace:
    """N(θ*, (N·F + prior·I)⁻¹).

    Args:
        outputs_fn: outputs ``[N, C]`` of the last layer's parameters and inputs (`last_layer`).
        params: θ*, of the last layer; P is squared in memory and cubed in time.
        batch: ``(inputs, targets)``, all of the training data; targets are not used.
        likelihood: by name, see `Likelihood`, or a `Likelihood` of kind ``"exact"``.
        prior_precision: above 0.
        variance: σ² of a gaussian likelihood, by default 1.
        chunk_size: as in `metalearn.core.fisher_diagonal`.

    Raises:
        SettingError: a number out of range; see `metalearn.core.fisher_diagonal`.
    """
    check_number("prior_precision", prior_precision, above=0, accepted="a number above 0 is needed")
    if isinstance(likelihood, Likelihood) and likelihood.kind != "exact":
        raise SettingError("likelihood", likelihood, "kind='exact' is needed for a posterior")
    rule = Likelihood.of(likelihood, "exact", NOT_GIVEN, variance)
    fisher = fisher_matrix(outputs_fn, params, batch, likelihood=rule, chunk_size=chunk_size)
    count = sample_count(batch[0])
    eye = torch.eye(len(fisher), dtype=fisher.dtype, device=fisher.device)
    return Laplace(params, torch.linalg.cholesky(count * fisher + prior_precision * eye))


@checked
def laplace_predictive(
    posterior: Laplace, outputs_fn: OutputsFn, inputs: Any
) -> tuple[Tensor, Tensor]:
    """Mean ``[N, C]`` and covariance J·Λ⁻¹·Jᵀ ``[N, C, C]`` of the outputs.

    For regression the predictive distribution of a target has ``variance``·I in addition.
    """
    check_floating(posterior.params, "posterior.params")
    sample_count(inputs)
    check_outputs(
        call_given(outputs_fn, "outputs_fn", posterior.params, tree_map(lambda x: x[:1], inputs))
    )
    flat, unravel = ravel(posterior.params)

    def one(x: Any) -> tuple[Tensor, Tensor]:
        def outputs(vector: Tensor) -> Tensor:
            return outputs_fn(unravel(vector), tree_map(lambda leaf: leaf[None], x))[0]

        rows = jacrev(outputs)(flat)
        half = torch.linalg.solve_triangular(posterior.root, rows.mT, upper=False)
        return outputs(flat), half.mT @ half

    found: tuple[Tensor, Tensor] = vmap(one)(inputs)
    return found


@checked
def laplace_probabilities(
    mean: Tensor,
    covariance: Tensor,
    *,
    method: Literal["probit", "monte_carlo"] = "probit",
    generator: torch.Generator | None = None,
    samples: int = 100,
) -> Tensor:
    """Class probabilities ``[N, C]`` under Gaussian logits.

    Args:
        mean: of the logits ``[N, C]``.
        covariance: ``[N, C, C]``.
        method: ``"probit"``, softmax(f_c / √(1 + π/8·Σ_cc)); or ``"monte_carlo"``, the mean of
            softmax over draws.
        generator: of the draws.
        samples: D, how many draws.

    Raises:
        SettingError: an unknown method, no generator, no samples.
    """
    check_floating(mean, "mean")
    check_floating(covariance, "covariance")
    if mean.dim() < 1 or covariance.shape != (*mean.shape, mean.shape[-1]):
        wanted = [*mean.shape, *mean.shape[-1:]]
        raise SettingError("covariance", tuple(covariance.shape), f"the shape {wanted} is needed")
    check_whole("samples", samples, 1)
    if method == "probit":
        spread = covariance.diagonal(dim1=-2, dim2=-1)
        return (mean / torch.sqrt(1 + math.pi / 8 * spread)).softmax(-1)
    if method != "monte_carlo":
        raise SettingError("method", method, "one of probit, monte_carlo is needed")
    if generator is None:
        raise SettingError("generator", None, "method='monte_carlo' needs a torch.Generator")
    values, vectors = torch.linalg.eigh(covariance)  # semi-definite where C is beyond P
    noise = normal((samples, *mean.shape), mean, generator)
    away: Tensor = (vectors @ (values.clamp_min(0).sqrt() * noise)[..., None])[..., 0]
    return (mean + away).softmax(-1).mean(0)
