"""Tangents J·v in forward and in reverse mode, and tests of what torch gives by one reverse pass.

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
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from metalearn.core.ops import PlainOperations, plain_operations_inside
from metalearn.core.ops.lean_gradient import is_differentiated
from metalearn.core.refusals import refusing
from metalearn.core.tree import flatten, unflatten
from metalearn.errors import SettingError

__all__ = [
    "DISAGREE",
    "Mode",
    "check_forward",
    "concrete",
    "differing",
    "forward",
    "guarded",
    "random_like",
    "refuse_forward",
    "reverse",
    "reverse_of",
    "vjp_of",
]

Mode = Literal["forward", "reverse"]

Leaves = list[Tensor]
Function = Callable[[Leaves], Any]

DISAGREE = (
    "{} mode disagrees with one reverse pass: torch has an operation of this function wrong there, "
    "or the function is not deterministic"
)
_OTHER = {
    "forward": "reverse",
    "reverse": "forward",
    "forward_over_reverse": "reverse_over_reverse",
    "reverse_over_reverse": "forward_over_reverse",
}
_WITHOUT = "mode={!r} would do if the operation has that one"


def forward(
    function: Function, inputs: Leaves, tangents: Leaves, mode: str = "forward"
) -> tuple[Any, Any]:
    """Outputs and J·v by forward mode, ``mode`` being the setting that asked for it.

    Raises:
        SettingError: an operation without forward mode.
    """
    with refusing("mode", mode, f"mode={_OTHER[mode]!r} would do", "forward"):
        outputs, products = torch.func.jvp(function, (inputs,), (tangents,))[:2]
    return outputs, products


def reverse(function: Function, inputs: Leaves, tangents: Leaves) -> tuple[Any, Any]:
    """Outputs and J·v as the gradient of ⟨Jᵀ·u, v⟩ with respect to u, in which it is linear.

    Raises:
        SettingError: an operation that can be differentiated backwards but once, or not at all.
    """
    outputs, pull = vjp_of(function, inputs)
    ys, spec = flatten(outputs)
    return outputs, unflatten(reverse_of(pull, ys, tangents), spec)


def reverse_of(pull: Callable[..., Leaves], ys: Leaves, tangents: Leaves) -> Leaves:
    """The same of the pull of `vjp_of` and the leaves of its outputs."""
    with refusing("mode", "reverse", _WITHOUT.format("forward"), "reverse"):
        push = torch.func.vjp(pull, [torch.zeros_like(y) for y in ys])[1]
        products: Leaves = push(tangents)[0]
        return products


def vjp_of(
    function: Function, inputs: Leaves, mode: str = "reverse"
) -> tuple[Any, Callable[[Sequence[Tensor]], Any]]:
    """Outputs, and the map of the cotangents of their leaves to those of the inputs.

    Raises:
        SettingError: an operation without reverse mode, here or from that map.
    """
    way_out = _WITHOUT.format(_OTHER[mode])
    with refusing("mode", mode, way_out, "reverse"):
        outputs, pull = torch.func.vjp(function, inputs)[:2]
    spec = flatten(outputs)[1]

    def back(cotangents: Sequence[Tensor]) -> Any:
        with refusing("mode", mode, way_out, "reverse"):
            return pull(unflatten(cotangents, spec))[0]

    return outputs, back


def check_forward(
    function: Function, inputs: Leaves, tangents: Leaves, products: Any, mode: str = "forward"
) -> None:
    """Refuse ``products`` J·v in forward mode that reverse mode does not confirm.

    Skipped inside transforms, where values cannot be read, and for functions without reverse mode.

    Raises:
        SettingError: ⟨u, J·v⟩ and ⟨Jᵀ·u, v⟩ differ.
    """
    if not concrete(inputs):
        return
    try:
        outputs, pull = vjp_of(function, inputs)
        along = random_like(flatten(outputs)[0])
        pulled = pull(along)
    except SettingError as error:
        if error.__cause__ is None:
            raise
        return
    pushed, one = _product(along, flatten(products)[0])
    back, two = _product(pulled, tangents)
    same = not (math.isfinite(pushed) or math.isfinite(back))
    if not same and not abs(pushed - back) <= _eps([*along, *inputs]) ** 0.4 * (one + two):
        sides = f"⟨u, J·v⟩ is {pushed:.6g} and ⟨Jᵀ·u, v⟩ is {back:.6g} for a random u"
        refuse_forward(sides, mode)


def refuse_forward(sides: str, mode: str) -> NoReturn:
    """Say that forward mode is wrong, with the two sides of the test."""
    other = f"mode={_OTHER[mode]!r} gives what autograd gives"
    raise SettingError("mode", mode, f"{DISAGREE.format('forward')}, {sides}; {other}")


def differing(
    found: Sequence[Sequence[Tensor]], pulled: Sequence[Tensor], along: Sequence[Tensor]
) -> str | bool:
    """Where a Jacobian does not have the product uᵀ·J of one reverse pass; False where it has.

    True says that neither is finite in some place, and that they agree elsewhere.

    Args:
        found: blocks ``[*y, *x]``, for every x a list over y.
        pulled: uᵀ·J by that pass, ``[*x]``.
        along: u, ``[*y]``.
    """
    products, sizes = [], []
    for blocks, right in zip(found, pulled):
        product, squares = torch.zeros_like(right), torch.zeros_like(right)
        for u, block in zip(along, blocks):
            rows = block.detach().reshape(u.numel(), *right.shape)
            product = product + torch.tensordot(u.reshape(-1), rows, 1)
            squares = squares + torch.linalg.vector_norm(rows, dim=0).square()
        products.append(product)
        sizes.append(squares.sqrt() + right.detach().abs())
    eps, finite = _eps([*along, *pulled]), True
    most = max((float(x.nan_to_num(0, 0).max()) for x in sizes if x.numel()), default=0.0)
    for product, right, size in zip(products, pulled, sizes):
        good, right = product.isfinite() & right.isfinite(), right.detach()
        far = (product - right).abs() > eps**0.4 * size + eps**0.6 * most
        off = torch.where(good, far, product.isfinite() ^ right.isfinite()).reshape(-1)
        if bool(off.any()):
            one, two = (float(x.reshape(-1)[off.int().argmax()]) for x in (product, right))
            return f"an element of uᵀ·J is {one:.6g} and {two:.6g} for a random u"
        finite = finite and bool(good.all())
    return not finite


def guarded(function: Function, inputs: Leaves) -> Function:
    """The function with plain arithmetic where torch's own operations are not to be trusted.

    See `metalearn.core.ops.plain_operations`. Fused norms have no right third derivatives, no right
    nested tangents, and some fail under vmap (torch 2.14): they are replaced where a transform or a
    derivative stands around this one, and where the function takes its own.
    """
    nested = torch._C._are_functorch_transforms_active() or is_differentiated(inputs)

    def run(values: Leaves) -> Any:
        with PlainOperations(-1) if nested else plain_operations_inside():
            return function(values)

    return run


def concrete(tensors: Sequence[Tensor]) -> bool:
    """Whether values can be read: not inside a transform of torch.func, nor in a compiled graph."""
    inside = torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()
    return not inside and not any(x.is_meta for x in tensors)


def random_like(leaves: Sequence[Tensor]) -> Leaves:
    """Normal entries from a generator of their own: the same for the same shapes."""
    generator = torch.Generator().manual_seed(2**31 - 1)
    return [
        torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x.device, x.dtype)
        for x in leaves
    ]


def _eps(tensors: Sequence[Tensor]) -> float:
    """Of the coarsest type. Two ways to one number may be eps^0.4 of its terms apart.

    That is 5e-7 in float64, 2e-3 in float32, 0.14 in bfloat16: some thousand times what one
    rounding leaves, and far below what a wrong rule does, which is of the order of 1.
    """
    return max(torch.finfo(x.dtype).eps for x in tensors)


def _product(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[float, float]:
    """⟨a, b⟩, and the root sum of squares of its terms, which sums of random signs are like."""
    total, squares = 0.0, 0.0
    for a, b in zip(one, other):
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        terms = a.detach().to(wide) * b.detach().to(wide)
        total, squares = total + float(terms.sum()), squares + float(terms.square().sum())
    return total, math.sqrt(squares)
