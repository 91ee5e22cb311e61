"""Normalisation by the moments of groups, with an optional ReLU, in closed form.

y = act(γ·(z − m)·r + β), m the mean and r = (var + eps)^(−1/2) of a group, var with divisor N, γ
constant within a group. Torch's own batch, layer and instance norms cannot be relied on here: their
second derivatives are wrong where they are taken outside a vmap (pytorch/functorch#534), slow
elsewhere, and their third ones are wrong (pytorch/pytorch#186256). Second derivatives of these are
exact, third ones are refused.
Axes: ``[..., N, C]``, a group is the N elements along ``dim``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["normalize"]

_mask = torch.ops.aten.threshold_backward


def normalize(
    z: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    dim: int,
    eps: float,
    relu: bool = False,
) -> Tensor:
    """act(γ·(z − m)·r + β) over groups along ``dim``.

    Args:
        z: any shape.
        gamma: broadcasts to z and is constant along ``dim``; None is 1.
        beta: as gamma; None is 0.
        dim: the axis over which the moments are taken.
        eps: added to the variance.
        relu: whether act is max(0, ·) or nothing.
    """
    y: Tensor = _Normalize.apply(z, gamma, beta, dim, eps, relu)[0]
    return y


class _Normalize(Function):
    """``(z, γ, β) → (y, z − m)``.

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
        relu: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred = z - z.mean(dim, keepdim=True)
        r = (centred * centred).mean(dim, keepdim=True).add_(eps).rsqrt_()
        slope = r if gamma is None else r * gamma
        y = centred * slope if beta is None else torch.addcmul(beta, centred, slope)
        y = y.relu_() if relu else y
        ctx.dim = dim
        ctx.mark_non_differentiable(r)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gamma, y if relu else None, centred, r)
        return y, centred, r

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dcentred: Tensor | None, _: Any
    ) -> tuple[Tensor | None, ...]:
        gamma, y, centred, r = ctx.saved_tensors
        if dcentred is not None:
            _refuse_third()
        dz, dgamma, dbeta = dcentred, None, None
        if dy is not None:
            dy = dy.contiguous() if dy.stride() != centred.stride() else dy
            given = (dy, centred, gamma, r, None if y is None else y.detach(), ctx.dim)
            dz, dgamma, dbeta = _NormalizeBackward.apply(*given)[:3]
            if dcentred is not None:
                dz = dcentred.add_(dz)  # ours alone: made by _NormalizeBackward for this call
        has_gamma, has_beta = ctx.needs_input_grad[1:3]
        return dz, dgamma if has_gamma else None, dbeta if has_beta else None, None, None, None


class _NormalizeBackward(Function):
    """``(dy, z − m, γ) → (dz, dγ, dβ)``.

    With g = dy where act passes and a = r·γ:
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
    ) -> tuple[Tensor, ...]:
        g = dy if y is None else _mask(dy, y, 0)
        count = centred.shape[dim]
        a = r if gamma is None else r * gamma
        s1, s2 = g.sum(dim, keepdim=True), (g * centred).sum(dim, keepdim=True)
        dz = torch.addcmul((a * s1).div_(-count), centred, (a * r * r * s2).div_(-count))
        dgamma, dbeta = s2 * r, s1
        if gamma is not None:  # gamma may be shared by several groups
            dgamma, dbeta = (d.sum_to_size(gamma.shape) for d in (dgamma, dbeta))
        sums = torch.stack([s1, s2])  # a copy: an output must not be another one as well
        ctx.dim = dim
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, centred, gamma, r, y, sums)
        return dz.addcmul_(g, a), dgamma, dbeta, sums

    @staticmethod
    def backward(
        ctx: Any, u: Tensor | None, ugamma: Tensor | None, ubeta: Tensor | None, _: Any
    ) -> tuple[Tensor | None, ...]:
        """The tangent along (u, uγ, uβ): the Hessian of the layer is symmetric."""
        _refuse_third()
        dy, centred, gamma, r, y, (s1, s2) = ctx.saved_tensors
        dim, count = ctx.dim, centred.shape[ctx.dim]
        g = dy if y is None else _mask(dy, y, 0)
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
            gdy = _mask(gdy, y, 0)
        s2_ = (g * tangent).sum(dim, keepdim=True)
        c0 = (a_ * s1).div_(-count)
        c1 = (a * r2 * s2).div_(-count)
        c1_ = (a_ * r2 * s2 + 2 * a * r * r_ * s2 + a * r2 * s2_).div_(-count)
        gz = torch.addcmul(c0, centred, c1_).addcmul_(tangent, c1).addcmul_(g, a_)
        ggamma = None if gamma is None else (s2_ * r + s2 * r_).sum_to_size(gamma.shape)
        return gdy, gz, ggamma, None, None, None


def _refuse_third() -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError("third derivatives of a task-batched normalisation")
