"""Tests of derivatives by one reverse pass.

Torch's forward mode is missing for some operations and silently wrong for a few: a padding row of
an embedding moves, ``no_grad`` does not stop it, ``scatter_reduce`` with products, ``max_unpool``
and ``cholesky_inverse`` have wrong rules; and reverse passes that are batched by vmap are wrong for
``cdist`` (torch 2.14). The measure here is what plain autograd gives: one reverse pass alone, of a
random cotangent u, for ⟨u, J·v⟩ = ⟨Jᵀ·u, v⟩ or for uᵀ·J.
Axes: ``[*y]`` a leaf of the outputs, ``[*x]`` a leaf of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.derivative_modes import (
    OTHER_MODE,
    Leaves,
    LeavesFunction,
    is_missing,
    outputs_and_vjp,
)
from metalearn.core.tracing import is_traced
from metalearn.core.tree import flatten, leaves
from metalearn.errors import SettingError

__all__ = [
    "DISAGREE",
    "check_forward",
    "coarsest_eps",
    "eps_of",
    "is_concrete",
    "mismatch",
    "random_like",
    "refuse_forward",
    "term_sums",
    "within_rounding",
]

DISAGREE = (
    "{} mode disagrees with one reverse pass: torch has an operation of this function wrong there, "
    "or the function is not deterministic"
)


def check_forward(
    function: LeavesFunction, inputs: Leaves, tangents: Leaves, products: Any, mode: str = "forward"
) -> None:
    """Refuse ``products`` J·v in forward mode that reverse mode does not confirm.

    Skipped inside transforms, where values cannot be read, and for functions without reverse mode.

    Raises:
        SettingError: ⟨u, J·v⟩ and ⟨Jᵀ·u, v⟩ differ.
    """
    if not is_concrete(inputs):
        return
    try:
        along = random_like(flatten(products)[0])
        back = outputs_and_vjp(function, inputs, along)[1]
    except SettingError as error:
        if not is_missing(error):
            raise
        return
    pushed, one = term_sums(along, flatten(products)[0])
    confirmed, two = term_sums(back, tangents)
    finite = math.isfinite(pushed) or math.isfinite(confirmed)
    run = partial(function, inputs)
    if finite and not within_rounding(pushed, confirmed, one + two, [*along, *inputs], run):
        sides = f"⟨u, J·v⟩ is {pushed:.6g} and ⟨Jᵀ·u, v⟩ is {confirmed:.6g} for a random u"
        refuse_forward(sides, mode)


def refuse_forward(sides: str, mode: str) -> NoReturn:
    """Say that forward mode is wrong, with the two sides of the test."""
    other = f"mode={OTHER_MODE[mode]!r} gives what autograd gives"
    raise SettingError("mode", mode, f"{DISAGREE.format('forward')}, {sides}; {other}")


def mismatch(
    found: Sequence[Sequence[Tensor]],
    vjp: Sequence[Tensor],
    along: Sequence[Tensor],
    eps: float,
) -> str | bool:
    """Where a Jacobian does not have the product uᵀ·J of one reverse pass; False where it has.

    True says that neither is finite in some place, and that they agree elsewhere.

    Args:
        found: blocks ``[*y, *x]``, for every x a list over y.
        vjp: uᵀ·J by that pass, ``[*x]``.
        along: u, ``[*y]``.
        eps: of the coarsest type; see `within_rounding`.
    """
    products, sizes = [], []
    for blocks, right in zip(found, vjp):
        product, squares = torch.zeros_like(right), torch.zeros_like(right)
        for u, block in zip(along, blocks):
            rows = block.detach().reshape(u.numel(), *right.shape)
            product = product + torch.tensordot(u.reshape(-1), rows, 1)
            squares = squares + torch.linalg.vector_norm(rows, dim=0).square()
        products.append(product)
        sizes.append(squares.sqrt() + right.detach().abs())
    finite = True
    most = max((float(x.nan_to_num(0, 0).max()) for x in sizes if x.numel()), default=0.0)
    for product, right, size in zip(products, vjp, sizes):
        good, right = product.isfinite() & right.isfinite(), right.detach()
        far = (product - right).abs() > eps**0.4 * size + eps**0.6 * most
        off = torch.where(good, far, product.isfinite() ^ right.isfinite()).reshape(-1)
        if bool(off.any()):
            one, two = (float(x.reshape(-1)[off.int().argmax()]) for x in (product, right))
            return f"an element of uᵀ·J is {one:.6g} and {two:.6g} for a random u"
        finite = finite and bool(good.all())
    return not finite


def is_concrete(tensors: Sequence[Tensor]) -> bool:
    """Whether values can be read: not inside a transform of torch.func, nor in a compiled graph."""
    inside = transforms_active() or is_traced()
    return not inside and not any(x.is_meta for x in tensors)


def random_like(like: Sequence[Tensor]) -> Leaves:
    """Normal entries from a generator of their own: the same for the same shapes."""
    generator = torch.Generator().manual_seed(2**31 - 1)
    return [
        torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x.device, x.dtype)
        for x in like
    ]


def term_sums(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[float, float]:
    """⟨a, b⟩, and the root sum of squares of its terms, which sums of random signs are like."""
    total, squares = 0.0, 0.0
    for a, b in zip(one, other):
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        terms = a.detach().to(wide) * b.detach().to(wide)
        total, squares = total + float(terms.sum()), squares + float(terms.square().sum())
    return total, math.sqrt(squares)


def within_rounding(
    one: float, two: float, size: float, tensors: Sequence[Tensor], run: Callable[[], Any]
) -> bool:
    """Whether two ways to a sum of terms of that size agree, in the coarsest type of the tensors.

    They may be eps^0.4 of it apart: 5e-7 in float64, 2e-3 in float32, 0.14 in bfloat16. That is
    some thousand times what one rounding leaves, and far below what a wrong rule does, which is of
    the order of 1. Where they do not, ``run`` is looked at for a coarser type inside (autocast).
    """
    gap = abs(one - two)
    return bool(gap <= eps_of(tensors) ** 0.4 * size or gap <= coarsest_eps(run) ** 0.4 * size)


def coarsest_eps(run: Callable[[], Any]) -> float:
    """The largest eps of a type that any operation of ``run`` gives."""
    seen = [0.0]
    with _Types(seen):
        run()
    return max(seen)


class _Types(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, seen: list[float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        given = [x for x in leaves(found) if isinstance(x, Tensor) and x.is_floating_point()]
        self.seen.extend([eps_of(given)] if given else [])
        return found


def eps_of(tensors: Sequence[Tensor]) -> float:
    """Of their coarsest type."""
    return float(max(torch.finfo(x.dtype).eps for x in tensors))
