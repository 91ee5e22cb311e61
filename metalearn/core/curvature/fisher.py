"""The Fisher information matrix of a model: diagonal, blocks, whole, products.

F = 1/N · Σ_n E_y[ g(x_n, y) g(x_n, y)ᵀ ], g = ∇_θ log p(y | f(θ, x_n)), with y

- ``kind="exact"``: from the model's predictive distribution, in closed form: the generalised
  Gauss–Newton matrix (GGN) of the mean negative log-likelihood;
- ``kind="monte_carlo"``: from the same, by ``samples`` draws for each x_n;
- ``kind="empirical"``: the target of the sample (not an estimate of the other two). A label of
  −100 is padding: its gradient is zero, and N counts all samples, as for the other kinds, which do
  not look at targets.

Likelihoods and their normalisers: ``"categorical"`` has −log p = cross-entropy, so the exact Fisher
is the GGN of ``cross_entropy`` with mean reduction. ``"gaussian"`` has −log p = ‖f − y‖²/(2σ²),
σ² = ``variance``: σ² = 1 gives the GGN of mean ½‖f − y‖² (sum over outputs), σ² = ½ that of mean
‖f − y‖², and σ² = C/2 that of ``mse_loss`` with mean reduction over samples and outputs.
``"heteroscedastic_gaussian"`` has that of `metalearn.core.curvature.gaussian.gaussian_nll`: outputs
are means and log-variances, and the exact Fisher is the mean over y of the squared score, no GGN.

``outputs_fn(params, inputs)`` gives ``[N, C]``; every sample is seen as a batch of one, so that
nothing can mix samples. A batch is ``(inputs, targets)``; targets may be None unless the kind is
empirical. Monte Carlo draws inside an outer vmap follow its ``randomness`` (``"same"`` or
``"different"``); all draws are made before the first chunk, so that chunks change nothing.

Axes: N samples, C outputs, R columns of an output factor, P parameters.
Sources: Martens, "New Insights and Perspectives on the Natural Gradient Method", JMLR 2020;
Kunstner, Balles and Hennig, "Limitations of the Empirical Fisher Approximation", NeurIPS 2019.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from metalearn.core.autodiff.derivative_modes import AnyMode
from metalearn.core.autodiff.products import check_mode
from metalearn.core.curvature.fisher_problem import FisherProblem, OutputsFn
from metalearn.core.curvature.likelihood import NOT_GIVEN, AnyLikelihood, FisherKind, Likelihood
from metalearn.core.samples.layer_io import Collected
from metalearn.core.tree import check_floating, flatten, leaves, tree_map, unflatten
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import Batch, Params

__all__ = [
    "effective_rank",
    "fisher_blocks",
    "fisher_diagonal",
    "fisher_matrix",
    "fisher_trace",
    "fisher_vp",
]


@checked
def fisher_diagonal(
    outputs_fn: OutputsFn,
    params: Params,
    batch: Batch,
    *,
    likelihood: AnyLikelihood,
    kind: FisherKind | None = None,
    generator: torch.Generator | None = None,
    samples: int = NOT_GIVEN,
    variance: float = NOT_GIVEN,
    chunk_size: int | None = None,
) -> Params:
    """The diagonal of F, 1/N · Σ_n Σ_r (J_nᵀ s_nr)², as a tree like ``params``.

    Args:
        outputs_fn: outputs ``[N, C]`` of parameters and inputs ``[N, ...]``.
        params: any tree.
        batch: ``(inputs, targets)``; targets ``[N]`` (categorical: class indices,
            or −100 for padding), ``[N, C]`` (gaussian) or ``[N, C/2]`` (heteroscedastic).
        likelihood: ``"categorical"``, ``"gaussian"`` or ``"heteroscedastic_gaussian"``, see the
            module for normalisers; or a `Likelihood`, which says kind, samples and variance too.
        kind: ``"exact"``, ``"monte_carlo"`` or ``"empirical"``.
        generator: of Monte Carlo draws.
        samples: Monte Carlo draws for each input, by default 1.
        variance: σ² of a gaussian likelihood, by default 1.
        chunk_size: samples whose gradients (R each) are held at once; by default as many as take
            256 MB.

    Raises:
        SettingError: an unknown likelihood or kind, keywords that contradict a `Likelihood`, no
            generator, outputs or targets of a wrong shape, numbers out of range.
    """
    rule = Likelihood.of(likelihood, kind, samples, variance)
    problem = FisherProblem.of(outputs_fn, params, batch, rule, generator)
    found = problem.mean_collected(Collected.sums_of_squares, chunk_size)
    return unflatten(found, flatten(params)[1])


@checked
def fisher_trace(
    outputs_fn: OutputsFn,
    params: Params,
    batch: Batch,
    *,
    likelihood: AnyLikelihood,
    kind: FisherKind | None = None,
    generator: torch.Generator | None = None,
    samples: int = NOT_GIVEN,
    variance: float = NOT_GIVEN,
    chunk_size: int | None = None,
) -> Tensor:
    """Tr F = 1/N · Σ_n Σ_r ‖J_nᵀ s_nr‖², a scalar; arguments as in `fisher_diagonal`."""
    rule = Likelihood.of(likelihood, kind, samples, variance)
    problem = FisherProblem.of(outputs_fn, params, batch, rule, generator)
    total: Tensor = problem.mean_collected(_sum_of_squared_norms, chunk_size, norms_alone=True)
    return total.to(leaves(params)[0].dtype)


def _sum_of_squared_norms(found: Collected) -> Tensor:
    return torch.stack([squares.sum() for squares in found.squared_norms()]).sum()


@checked
def fisher_matrix(
    outputs_fn: OutputsFn,
    params: Params,
    batch: Batch,
    *,
    likelihood: AnyLikelihood,
    kind: FisherKind | None = None,
    generator: torch.Generator | None = None,
    samples: int = NOT_GIVEN,
    variance: float = NOT_GIVEN,
    chunk_size: int | None = None,
) -> Tensor:
    """F whole, ``[P, P]`` in the order of `metalearn.core.tree.ravel`, for small models.

    Arguments as in `fisher_diagonal`.
    """
    rule = Likelihood.of(likelihood, kind, samples, variance)
    problem = FisherProblem.of(outputs_fn, params, batch, rule, generator)

    def gram(grads: Params) -> Tensor:
        rows = torch.cat([g.flatten(0, 1) for g in leaves(_with_axis(grads))], dim=1)
        return rows.mT @ rows

    matrix: Tensor = problem.mean(gram, chunk_size)
    return matrix


@checked
def fisher_blocks(
    outputs_fn: OutputsFn,
    params: Params,
    batch: Batch,
    *,
    likelihood: AnyLikelihood,
    kind: FisherKind | None = None,
    generator: torch.Generator | None = None,
    samples: int = NOT_GIVEN,
    variance: float = NOT_GIVEN,
    chunk_size: int | None = None,
) -> Params:
    """The diagonal blocks of F, one of each leaf with p elements: a tree of ``[p, p]``.

    Arguments as in `fisher_diagonal`.
    """
    rule = Likelihood.of(likelihood, kind, samples, variance)
    problem = FisherProblem.of(outputs_fn, params, batch, rule, generator)

    def gram(leaf: Tensor) -> Tensor:
        rows = leaf.flatten(0, 1)
        return rows.mT @ rows

    return problem.mean(lambda grads: tree_map(gram, _with_axis(grads)), chunk_size)


@checked
def fisher_vp(
    outputs_fn: OutputsFn,
    params: Params,
    batch: Batch,
    vector: Params,
    *,
    likelihood: AnyLikelihood,
    kind: FisherKind | None = None,
    generator: torch.Generator | None = None,
    samples: int = NOT_GIVEN,
    variance: float = NOT_GIVEN,
    chunk_size: int | None = None,
    mode: AnyMode = "auto",
) -> Params:
    """F·v = 1/N · Σ_n J_nᵀ S_n S_nᵀ J_n v for a tree v like ``params``; no gradient of a sample.

    Arguments as in `fisher_diagonal`; ``chunk_size`` bounds the samples of one pass (default: all).
    Every call with kind ``"monte_carlo"`` draws anew; `metalearn.core.fisher_operator`
    draws once. ``mode`` is that of J_n·v, as in `metalearn.core.jvp`.
    """
    rule = Likelihood.of(likelihood, kind, samples, variance)
    problem = FisherProblem.of(outputs_fn, params, batch, rule, generator)
    check_mode("mode", mode, get_args(AnyMode))
    if mode == "forward":
        problem.check_forward(chunk_size)
    return problem.product(vector, chunk_size, mode)


@checked
def effective_rank(matrix: Tensor) -> Tensor:
    """exp(−Σ_i q_i log q_i), q_i = λ_i / Σ λ, of a positive semi-definite matrix ``[P, P]``.

    Between 1 and P: the number of equal eigenvalues that would have the same entropy. Eigenvalues
    below zero (rounding) count as zero. Source: Roy and Vetterli, "The Effective Rank", 2007.
    """
    check_floating(matrix, "matrix")
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
        raise SettingError("matrix", tuple(matrix.shape), "a square matrix [P, P] is needed")
    values = torch.linalg.eigvalsh(matrix).clamp_min(0)
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def _with_axis(grads: Params) -> Params:
    """Leaves ``[n, R, p]`` at least, so that scalars count as vectors of one."""
    return tree_map(lambda g: g.reshape(*g.shape[:2], -1), grads)
