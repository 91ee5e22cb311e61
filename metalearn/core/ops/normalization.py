"""Normalisation by the moments of groups, with an optional leaky ReLU, in closed form.

y = act(γ·(z − m)·r + β), m the mean and r = (var + eps)^(−1/2) of a group, var with divisor N, γ
constant within a group. Torch's own batch, layer and instance norms cannot be relied on here: their
second derivatives are wrong where they are taken outside a vmap (pytorch/functorch#534), slow
elsewhere, and their third ones are wrong (pytorch/pytorch#186256). Second derivatives of these are
exact, third ones are refused.
Axes: ``[..., N, C]``, a group is the N elements along ``dim``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import leaky_relu_

from metalearn.core.native import Kernels, NormTangent, kernels_for
from metalearn.core.ops.over_tasks import typed_as_forward

__all__ = ["normalize"]

_OF_ELEMENTS = ("u", "dy", "y", "centred")
"""Of a `NormTangent`, what has a number for each element; the others have one for each group."""
_NARROW = 8
"""Groups that lie side by side, below which the compiled passes are not worth it."""


def normalize(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    dim: int,
    eps: float,
    leak: float = 1.0,
) -> Tensor:
    """act(γ·(z − m)·r + β) over groups along ``dim``.

    Args:
        z: any shape.
        gamma: broadcasts to z and is constant along ``dim``; None is 1.
        beta: as gamma, and of its shape; None is 0.
        dim: the axis over which the moments are taken.
        eps: added to the variance.
        leak: act is this times what is below 0, at least 0: 1 is nothing, 0 a ReLU.

    Raises:
        ValueError: ``leak`` is below 0, which y would not show.
    """
    if leak < 0:
        raise ValueError(f"a slope of at least 0 is needed below 0, not {leak}")
    y: Tensor = _Normalize.apply(z, gamma, beta, dim, eps, leak)[0]
    return y


def _act_(y: Tensor, leak: float) -> Tensor:
    """Leak times what is below 0, in place."""
    if leak == 1:
        return y
    return y.relu_() if leak == 0 else leaky_relu_(y, leak)


def _act_backward(dy: Tensor, y: Tensor, leak: float) -> Tensor:
    """Cotangents, times the leak where results are not above 0; NaN is open to a ReLU alone."""
    if leak == 0:
        g: Tensor = torch.ops.aten.threshold_backward(dy, y, 0)
    else:
        g = torch.ops.aten.leaky_relu_backward(dy, y, leak, True)  # True: of results
    return g


class _Normalize(Function):
    """``(z, γ, β) → (y, z − m, r)``, r without derivatives.

    The centred input comes out as well so that `_NormalizeBackward` can send cotangents to it:
    those have mean zero over a group, so they are cotangents of z too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        dim: int,
        eps: float,
        leak: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        passes = _passes(dim, z, gamma, beta)
        if passes is None:
            centred = z - z.mean(dim, keepdim=True)
            r = (centred * centred).mean(dim, keepdim=True).add_(eps).rsqrt_()
            slope = r if gamma is None else r * gamma
            y = centred * slope if beta is None else torch.addcmul(beta, centred, slope)
            y = _act_(y, leak)
        else:
            y, centred, r = passes.norm(z, gamma, beta, eps, leak)
        ctx.dim, ctx.leak = dim, leak
        ctx.mark_non_differentiable(r)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gamma, None if leak == 1 else y, centred, r)
        return y, centred, r

    @staticmethod
    @typed_as_forward
    def backward(
        ctx: Any, dy: Tensor | None, dcentred: Tensor | None, _: Any
    ) -> tuple[Tensor | None, ...]:
        gamma, y, centred, r = ctx.saved_tensors
        if dcentred is not None:
            _refuse_third()
        dz, dgamma, dbeta = dcentred, None, None
        if dy is not None:
            dy = dy.contiguous() if dy.stride() != centred.stride() else dy
            given = (dy, centred, gamma, r, None if y is None else y.detach())
            dz, dgamma, dbeta = _NormalizeBackward.apply(*given, ctx.dim, ctx.leak)[:3]
            if dcentred is not None:
                dz = dcentred.add_(dz)  # ours alone: made by _NormalizeBackward for this call
        has_gamma, has_beta = ctx.needs_input_grad[1:3]
        return dz, dgamma if has_gamma else None, dbeta if has_beta else None, None, None, None


class _NormalizeBackward(Function):
    """``(dy, z − m, γ) → (dz, dγ, dβ)``.

    With g = dy·act′ and a = r·γ:
    dz = a·g − a·Σg/N − a·r²·Σ(g·(z−m))/N·(z−m), dγ = r·Σ(g·(z−m)), dβ = Σg.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        centred: Tensor,
        gamma: Tensor | None,
        r: Tensor,
        y: Tensor | None,
        dim: int,
        leak: float,
    ) -> tuple[Tensor, ...]:
        passes = _passes(dim, centred, gamma, r, dy, y)
        if passes is None:
            g = dy if y is None else _act_backward(dy, y, leak)
            count = centred.shape[dim]
            a = r if gamma is None else r * gamma
            s1, s2 = g.sum(dim, keepdim=True), (g * centred).sum(dim, keepdim=True)
            dz = torch.addcmul((a * s1).div_(-count), centred, (a * r * r * s2).div_(-count))
            dz.addcmul_(g, a)
        else:
            dz, s1, s2 = passes.backward(dy, y, centred, gamma, r, leak)
        dgamma, dbeta = s2 * r, s1
        if gamma is not None:  # gamma may be shared by several groups
            dgamma, dbeta = (d.sum_to_size(gamma.shape) for d in (dgamma, dbeta))
        sums = torch.stack([s1, s2])  # a copy: an output must not be another one as well
        ctx.dim, ctx.leak = dim, leak
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, centred, gamma, r, y, sums)
        return dz, dgamma, dbeta, sums

    @staticmethod
    @typed_as_forward
    def backward(
        ctx: Any, u: Tensor | None, ugamma: Tensor | None, ubeta: Tensor | None, _: Any
    ) -> tuple[Tensor | None, ...]:
        """The tangent along (u, uγ, uβ): the Hessian of the layer is symmetric."""
        _refuse_third()
        dy, centred, gamma, r, y, (s1, s2) = ctx.saved_tensors
        small = (gamma, r, s1, s2, ugamma, ubeta)
        passes = _passes(ctx.dim, centred, *small, dy, y, u)
        at = NormTangent(u, ugamma, ubeta, dy, y, centred, gamma, r, s1, s2, ctx.leak)
        second = _second_by_torch(at, ctx.dim) if passes is None else passes.second(at)
        gdy, gz, ggamma = second
        own = None if gamma is None else ggamma.sum_to_size(gamma.shape)
        return gdy, gz, own, None, None, None, None


def _second_by_torch(at: NormTangent, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of dy and z, and of γ before the sum over groups that share it."""
    u, ugamma, ubeta, dy, y, centred, gamma, r, s1, s2, leak = at
    count = centred.shape[dim]
    g = dy if y is None else _act_backward(dy, y, leak)
    a = r if gamma is None else r * gamma
    r2 = r * r
    if u is None:
        u = torch.zeros_like(centred)
    tangent = u - u.mean(dim, keepdim=True)
    r_ = (tangent * centred).sum(dim, keepdim=True).mul_(r2 * r).div_(-count)
    a_ = r_ if gamma is None else r_ * gamma
    if ugamma is not None:
        a_ = torch.addcmul(a_, r, ugamma)
    work = tangent * a if ubeta is None else torch.addcmul(ubeta, tangent, a)
    gdy = work.addcmul_(centred, a_)
    if y is not None:
        gdy = _act_backward(gdy, y, leak)
    s2_ = (g * tangent).sum(dim, keepdim=True)
    c0 = (a_ * s1).div_(-count)
    c1 = (a * r2 * s2).div_(-count)
    c1_ = (a_ * r2 * s2 + 2 * a * r * r_ * s2 + a * r2 * s2_).div_(-count)
    gz = torch.addcmul(c0, centred, c1_).addcmul_(tangent, c1).addcmul_(g, a_)
    return gdy, gz, s2_ * r + s2 * r_


def _passes(dim: int, whole: Tensor, *others: Tensor | None) -> _Passes | None:
    """The compiled passes for such tensors, where they are worth it."""
    dim %= whole.dim()
    if math.prod(whole.shape[dim + 1 :]) < _NARROW or not whole.numel():
        return None
    if not all(other is None or _fits(other.shape, whole.shape) for other in others):
        return None  # some of what is there makes the result larger
    kernels = kernels_for(whole, *others)
    return None if kernels is None else _Passes(kernels, whole.shape, dim)


def _fits(shape: torch.Size, whole: torch.Size) -> bool:
    """Whether it broadcasts to the whole."""
    pairs = zip(reversed(shape), reversed(whole))
    return len(shape) <= len(whole) and all(own in (1, other) for own, other in pairs)


class _Passes:
    """Kernels of `metalearn.core.native` for tensors of one shape, normed along one axis."""

    def __init__(self, kernels: Kernels, shape: torch.Size, dim: int) -> None:
        self._kernels, self._dim = kernels, dim
        self._groups = (*shape[:dim], 1, *shape[dim + 1 :])

    def norm(
        self, z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, leak: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Y, z − m and r."""
        given = _whole(z), self._each(gamma), self._each(beta)
        return self._kernels.norm(*given, eps=eps, dim=self._dim, leak=leak)

    def backward(
        self,
        dy: Tensor,
        y: Tensor | None,
        centred: Tensor,
        gamma: Tensor | None,
        r: Tensor,
        leak: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Dz, Σg and Σ(g·(z − m))."""
        given = (*map(_whole, (dy, y, centred)), *map(self._each, (gamma, r)))
        return self._kernels.norm_backward(*given, dim=self._dim, leak=leak)

    def second(self, at: NormTangent) -> tuple[Tensor, Tensor, Tensor]:
        """As `_second_by_torch`."""
        laid = {
            name: _whole(value) if name in _OF_ELEMENTS else self._each(value)
            for name, value in at._asdict().items()
            if name != "leak"
        }
        return self._kernels.norm_second(NormTangent(**laid, leak=at.leak), dim=self._dim)

    def _each(self, tensor: Tensor | None) -> Any:
        """A number for each group, contiguous."""
        return None if tensor is None else tensor.expand(self._groups).contiguous()


def _whole(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def _refuse_third() -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError("third derivatives of a task-batched normalisation")
