"""Kronecker-factored Fisher matrices of modules made of linear and convolution layers.

A layer with weight W ``[O, I]`` (a convolution's kernel flattened to I = channels·size; the
transpose of what ``x @ W`` takes) and bias b sees inputs a ``[S, I]`` of one sample, S shared
positions (1 for a plain linear layer), and sends back g_r ``[S, O]`` for column r of the output
factor of `curvature.likelihood`. With a 1 appended to a where there is a bias, the sample's
gradients of (W, b) are G_r = Σ_s g_rs·a_sᵀ, and its Fisher block 1/N Σ_n Σ_r vec(G)·vec(G)ᵀ is
approximated by the Kronecker product B ⊗ A:

- expand: A = 1/(N·S) Σ_n Σ_s a·aᵀ, B = 1/N Σ_n Σ_r Σ_s g·gᵀ;
- reduce: A = 1/N Σ_n ā·āᵀ with ā the mean over s, B = 1/N Σ_n Σ_r ĝ·ĝᵀ with ĝ the sum over s.

Without sharing (S = 1) they are the same. With ``corrected=True`` (EKFAC) the eigenvalues in the
basis of B ⊗ A are those that fit best, E = 1/N Σ_n Σ_r (Q_Bᵀ·G_r·Q_A)² element by element; then the
trace is that of the exact block. Blocks between layers are zero; each group of a convolution with
groups is as a layer of its own.

With weights w on the samples, whose mean loss is 1/N Σ w_n·ℓ_n, each sum over n is weighted, and
that of A is divided by Σ w_n in place of N.

Every axis of a layer's input but its last is one of positions, as a single sample has them; where
the module keeps its samples (first, second, folded into others) does not matter. Factors of
parameters with fewer than 32 bits are float32.

Axes: N samples, R columns, S positions, O outputs and I inputs of a layer (with groups: of one of
G, whose axis stands in front of the factors'), P parameters.
Sources: Martens and Grosse, ICML 2015; Grosse and Martens, ICML 2016 (convolutions); George et al.,
"Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis", NeurIPS 2018;
Eschenhagen et al., "Kronecker-Factored Approximate Curvature for Modern Neural Network
Architectures", NeurIPS 2023 (expand, reduce).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial, reduce
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from metalearn.core.checks import check_number, check_pair, check_weights
from metalearn.core.chunking import sample_count
from metalearn.core.curvature.fisher_problem import check_fisher_targets, check_outputs
from metalearn.core.curvature.likelihood import NOT_GIVEN, AnyLikelihood, FisherKind, Likelihood
from metalearn.core.curvature.probes import Layers, ProbedModule, layer_parameters
from metalearn.core.tree import check_floating, ravel, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch

__all__ = ["KroneckerBlock", "KroneckerFisher", "Sharing", "TransposedBlock", "fisher_kfac"]

Sharing = Literal["expand", "reduce"]


class KroneckerBlock(NamedTuple):
    """One layer: (Q_B ⊗ Q_A)·diag(E)·(Q_B ⊗ Q_A)ᵀ over its weight with the bias as last column."""

    input_basis: Tensor
    """Q_A ``[I (+1), I (+1)]``, orthonormal columns; with groups ``[G, …]``, as the others."""
    gradient_basis: Tensor
    """Q_B ``[O, O]``."""
    eigenvalues: Tensor
    """E ``[O, I (+1)]``: the outer product of those of B and A, or the corrected ones."""

    def times(self, matrix: Tensor, factors: Tensor) -> Tensor:
        """The block with ``factors`` for E, times a matrix ``[O, I (+1)]``."""
        wide = matrix.to(self.input_basis.dtype)
        rotated = self.gradient_basis.mT @ wide @ self.input_basis
        product = self.gradient_basis @ (factors * rotated) @ self.input_basis.mT
        return product.to(matrix.dtype)

    def matrix_of(self, weight: Tensor) -> Tensor:
        """A weight as the matrix ``[O, I]``, of G groups ``[G, O, I]``."""
        return _grouped(weight, self.eigenvalues)

    def weight_of(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix_of`, but for the weight's shape."""
        return matrix


class TransposedBlock(NamedTuple):
    """The same of a weight whose rows belong to inputs, as those of ``x @ W``."""

    input_basis: Tensor
    gradient_basis: Tensor
    eigenvalues: Tensor

    def times(self, matrix: Tensor, factors: Tensor) -> Tensor:
        """See `KroneckerBlock`."""
        return KroneckerBlock(*self).times(matrix, factors)

    def matrix_of(self, weight: Tensor) -> Tensor:
        """See `KroneckerBlock`."""
        return _grouped(weight, self.eigenvalues).mT

    def weight_of(self, matrix: Tensor) -> Tensor:
        """See `KroneckerBlock`."""
        return matrix.mT


class KroneckerFisher(NamedTuple):
    """A block for each layer; trees are dicts of parameters by name, as `functionalize` gives.

    A pytree of tensors: it goes into and comes out of vmap.
    """

    blocks: dict[str, KroneckerBlock | TransposedBlock]

    @checked
    def product(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """F·v."""
        return self._apply(vector, lambda eigenvalues: eigenvalues)

    @checked
    def inverse_product(
        self, vector: Mapping[str, Tensor], *, damping: float | Tensor
    ) -> dict[str, Tensor]:
        """(F + damping·I)⁻¹·v, exactly, by the eigenvalues; damping above 0."""
        check_number("damping", damping, above=0, accepted="a number above 0 is needed")
        return self._apply(vector, lambda eigenvalues: 1 / (eigenvalues.clamp_min(0) + damping))

    def trace(self) -> Tensor:
        """Tr F, a scalar."""
        return torch.stack([block.eigenvalues.sum() for block in self.blocks.values()]).sum()

    def dense(self, like: Mapping[str, Tensor]) -> Tensor:
        """F whole, ``[P, P]`` in the order of ``ravel(like)``; for tests and small models."""
        flat, unravel = ravel(dict(like))
        eye = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
        return torch.vmap(lambda row: ravel(self.product(unravel(row)))[0])(eye)

    def _apply(
        self, vector: Mapping[str, Tensor], factors: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        check_floating(dict(vector), "vector")
        check_floating(self.blocks, "fisher")
        parts: dict[str, Tensor] = {}
        for name, block in self.blocks.items():
            _check_sizes(name, block)
            names = layer_parameters(name, vector)
            if names is None or vector[names.weight].dim() < 2 or not vector[names.weight].numel():
                needed = f"{name}.weight".lstrip(".")
                raise SettingError("vector", list(vector), f"{needed} is needed, a matrix")
            weight, bias = vector[names.weight], vector.get(names.bias or "")
            sizes = tuple(block.eigenvalues.shape)
            matrix = block.matrix_of(weight) if len(weight) % math.prod(sizes[:-2]) == 0 else weight
            if bias is not None and bias.numel() == math.prod(matrix.shape[:-1]):
                matrix = torch.cat([matrix, bias.reshape(*matrix.shape[:-1], 1)], dim=-1)
            if matrix.shape != sizes:
                accepted = f"weight and bias of layer {name!r} are needed, {sizes} together"
                raise SettingError("vector", list(vector), accepted)
            result = block.times(matrix, factors(block.eigenvalues))
            if names.bias is not None:
                parts[names.bias] = result[..., -1].flatten()
                result = result[..., :-1]
            parts[names.weight] = block.weight_of(result).reshape(weight.shape)
        for name in vector:
            if name not in parts:
                raise SettingError("vector", name, f"parameters of {list(self.blocks)} are needed")
        return {name: parts[name] for name in vector}


@checked
def fisher_kfac(
    module: nn.Module,
    params: Mapping[str, Tensor],
    batch: Batch,
    *,
    likelihood: AnyLikelihood,
    kind: FisherKind | None = None,
    sharing: Sharing = "expand",
    corrected: bool = False,
    buffers: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    samples: int = NOT_GIVEN,
    variance: float = NOT_GIVEN,
    weights: Tensor | None = None,
    chunk_size: int | None = None,
) -> KroneckerFisher:
    """The Kronecker-factored Fisher matrix of a module with outputs ``[N, C]``.

    Args:
        module: of products with a matrix (``nn.Linear``, Conv1D of transformers, attention) and of
            convolutions (with groups; transposed ones without a bias), each used once; other
            parameters have to be frozen to be left out. Samples must not mix.
        params: as `metalearn.core.functionalize` gives, of this module.
        batch: ``(inputs, targets)``; targets may be None unless the kind is empirical.
        likelihood: as for `metalearn.core.fisher_diagonal`, with the same normalisers.
        kind: the same.
        sharing: how positions that share weights are treated; see the module.
        corrected: whether eigenvalues are corrected (EKFAC), in a second pass.
        buffers: by default those of the module.
        generator: of Monte Carlo draws.
        samples: Monte Carlo draws for each input, by default 1.
        variance: σ² of a gaussian likelihood, by default 1.
        weights: w ``[N]`` on the samples, at least 0 and not all of them 0; by default 1 for each.
        chunk_size: samples of one pass; by default all.

    Raises:
        SettingError: a layer that cannot be taken, by name; other values that cannot work.
    """
    if sharing not in get_args(Sharing):
        raise SettingError("sharing", sharing, f"one of {', '.join(get_args(Sharing))} is needed")
    rule = Likelihood.of(likelihood, kind, samples, variance)
    probed = ProbedModule(module, params, buffers)
    check_floating(dict(params), "params")
    inputs, targets = check_pair(batch)
    count = sample_count(inputs)
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1)
    one = check_outputs(probed.outputs(tree_map(lambda x: x[:1], inputs)))
    check_fisher_targets(targets, (count, one.shape[-1]), rule)
    noise = rule.noise(count, one[0], generator)
    shares, total = _shares(weights, one.new_ones(count))
    data = (inputs, targets if rule.kind == "empirical" else noise, noise, shares)
    passes, power = partial(probed.passes, data, rule, chunk_size), 0 if weights is None else 1 / 2
    factors = _sum(lambda n, a, g: _factors(a, g, sharing), passes(power))
    first = probed.inputs_first
    blocks = {n: _eigen(a / total, b / count, first[n]) for n, (a, b) in factors.items()}
    if corrected:
        squares = _sum(lambda n, a, g: _squares(a, g, blocks[n]), passes(power / 2))
        blocks = {n: b._replace(eigenvalues=squares[n] / count) for n, b in blocks.items()}
    return KroneckerFisher(blocks)


def _shares(weights: Tensor | None, ones: Tensor) -> tuple[Tensor, Tensor | int]:
    """Weights ``[N]``, and their sum."""
    if weights is None:
        return ones, len(ones)
    check_weights(weights, len(ones))
    weights = weights.detach().to(ones)
    return weights, weights.sum()


def _factors(a: Tensor, g: Tensor, sharing: Sharing) -> tuple[Tensor, Tensor]:
    """N·A and N·B of a layer from its inputs ``[N, S, I]`` and gradients ``[R, N, S, O]``."""
    if a.dim() == 4:  # a group for each entry of the second axis
        return torch.vmap(partial(_factors, sharing=sharing), in_dims=(1, 2))(a, g)
    if sharing == "reduce":
        a, g = a.mean(1, keepdim=True), g.sum(2, keepdim=True)
    rows, back = a.flatten(0, 1), g.flatten(0, 2)
    return rows.mT @ rows / a.shape[1], back.mT @ back


def _eigen(a: Tensor, b: Tensor, inputs_first: bool) -> KroneckerBlock | TransposedBlock:
    inputs, gradients = torch.linalg.eigh(a), torch.linalg.eigh(b)
    outer = gradients.eigenvalues[..., None] * inputs.eigenvalues[..., None, :]
    kind: Any = TransposedBlock if inputs_first else KroneckerBlock
    block: KroneckerBlock | TransposedBlock = kind(
        inputs.eigenvectors, gradients.eigenvectors, outer
    )
    return block


def _squares(a: Tensor, g: Tensor, block: KroneckerBlock | TransposedBlock) -> Tensor:
    """Σ_n Σ_r (Q_Bᵀ·G_r·Q_A)² of a layer, ``[O, I]``."""
    if a.dim() == 4:
        return torch.vmap(_squares, in_dims=(1, 2, 0))(a, g, block)
    a, g = a @ block.input_basis, g @ block.gradient_basis
    if a.shape[1] == 1:  # the square of a product of two numbers: no gradient of a sample is held
        return g.square().sum(0)[:, 0].mT @ a.square()[:, 0]
    return (g.mT @ a).square().sum((0, 1))


def _check_sizes(name: str, block: KroneckerBlock | TransposedBlock) -> None:
    sizes = tuple(block.eigenvalues.shape)
    if len(sizes) < 2:
        raise SettingError(f"fisher[{name}]", sizes, "eigenvalues [O, I] are needed")
    *groups, outputs, inputs = sizes
    wanted = ((*groups, inputs, inputs), (*groups, outputs, outputs))
    got = tuple(block.input_basis.shape), tuple(block.gradient_basis.shape)
    if got != wanted:
        raise SettingError(f"fisher[{name}]", got, f"bases {wanted} are needed for its eigenvalues")


def _sum(function: Callable[..., Any], parts: Iterator[Layers]) -> dict[str, Any]:
    """Over parts, of what a function of name, inputs and gradients gives for each layer."""
    found = ({n: function(n, *rows) for n, rows in part.items()} for part in parts)
    return reduce(partial(tree_map, torch.add), found)


def _grouped(weight: Tensor, eigenvalues: Tensor) -> Tensor:
    """A weight as one matrix, or as one for each group that the eigenvalues have."""
    return weight.flatten(1).reshape(*eigenvalues.shape[:-2], -1, weight[0].numel())
