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
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.core.ops import PlainOperations, plain_operations_inside
from metalearn.core.ops.lean_gradient import Level, differentiating, is_differentiated
from metalearn.core.refusals import refusing
from metalearn.core.tree import flatten, leaves, unflatten
from metalearn.errors import SettingError

__all__ = [
    "DISAGREE",
    "AnyMode",
    "Mode",
    "bent",
    "check_forward",
    "coarsest",
    "concrete",
    "curved",
    "differing",
    "either",
    "eps_of",
    "forward",
    "guarded",
    "lacks",
    "near",
    "pulled",
    "random_like",
    "refuse_forward",
    "reverse",
    "term_sums",
    "vjp_of",
]

Mode = Literal["forward", "reverse"]
AnyMode = Literal["forward", "reverse", "auto"]

R = TypeVar("R")
Leaves = list[Tensor]
Function = Callable[[Leaves], Any]
Cotangents = Sequence[Tensor] | Callable[[Any], Sequence[Tensor]]
Bend = Callable[[Any, Any], Sequence[Tensor]]

DISAGREE = (
    "{} mode disagrees with one reverse pass: torch has an operation of this function wrong there, "
    "or the function is not deterministic"
)
_UNTAKEN = "transforms of torch.func take no such operation; write it in other operations"
_OTHER = {
    "forward": "reverse",
    "reverse": "forward",
    "forward_over_reverse": "reverse_over_reverse",
    "reverse_over_reverse": "forward_over_reverse",
}


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


def either(run: Callable[[Any], R], mode: str, first: str) -> R:
    """``run(mode)``; for ``"auto"`` the ``first`` mode, or the other one where torch lacks that."""
    if mode != "auto":
        return run(mode)
    try:
        return run(first)
    except SettingError as error:
        if not lacks(error):
            raise
        try:
            return run(_OTHER[first])
        except SettingError as second:
            raise error if lacks(second) else second from error.__cause__


def lacks(error: SettingError) -> bool:
    """Whether it says that torch lacks a derivative of the mode."""
    return error.setting == "mode" and error.__cause__ is not None


def reverse(function: Function, inputs: Leaves, tangents: Leaves) -> tuple[Any, Any]:
    """Outputs and J·v as the gradient of ⟨Jᵀ·u, v⟩ with respect to u, in which it is linear.

    Raises:
        SettingError: an operation that can be differentiated backwards but once, or not at all.
    """
    with _backwards("reverse"), differentiating() as level:
        inside = level.enter(inputs)
        ys, spec = flatten(function(inside))
        products = _pushed(level, ys, inside, tangents)
        return unflatten(level.leave(ys), spec), unflatten(level.leave(products), spec)


def pulled(function: Function, inputs: Leaves, cotangents: Cotangents) -> tuple[Any, Leaves]:
    """Outputs and Jᵀ·u; ``cotangents`` are u, or a function of the outputs that gives them.

    Raises:
        SettingError: an operation without reverse mode.
    """
    with _backwards("reverse"), differentiating() as level:
        inside = level.enter(inputs)
        outputs = function(inside)
        ys, spec = flatten(outputs)
        along = cotangents(outputs) if callable(cotangents) else cotangents
        found = level.pull(ys, inside, along)
        return unflatten(level.leave(ys), spec), level.leave(found)


def curved(function: Function, inputs: Leaves, tangents: Leaves, mode: str = "reverse") -> Leaves:
    """∇²f·v of a scalar function: the cotangent of the inputs for v as that of the gradient.

    Raises:
        SettingError: an operation that can be differentiated backwards but once, or not at all.
    """
    with _backwards(mode), differentiating() as level:
        inside = level.enter(inputs)
        value = function(inside)
        slope = level.pull([value], inside, [torch.ones_like(value)])
        return level.leave(level.pull(slope, inside, tangents))


def bent(function: Function, inputs: Leaves, tangents: Leaves, bend: Bend, mode: Mode) -> Leaves:
    """Jᵀ·B(y, J·v) for the outputs y and ``bend`` B, which takes trees and gives leaves.

    Forward mode is not tested.

    Raises:
        SettingError: an operation without the derivatives of the mode.
    """
    products = None if mode == "reverse" else forward(function, inputs, tangents)[1]
    with _backwards("reverse"), differentiating() as level:
        inside = level.enter(inputs)
        outputs = function(inside)
        ys, spec = flatten(outputs)
        if products is None:
            products = unflatten(_pushed(level, ys, inside, tangents), spec)
        return level.leave(level.pull(ys, inside, bend(outputs, products)))


def _pushed(level: Level, ys: Leaves, inputs: Leaves, tangents: Leaves) -> Leaves:
    along = level.ones(ys)  # at 0 the backward pass of logcumsumexp has no derivative (torch 2.14)
    return level.pull(level.pull(ys, inputs, along), along, tangents)


def _backwards(mode: str) -> AbstractContextManager[None]:
    other = _OTHER[mode]
    return refusing("mode", mode, f"mode={other!r} would do if the operation has that", "reverse")


def vjp_of(function: Function, inputs: Leaves) -> tuple[Any, Callable[[Sequence[Tensor]], Any]]:
    """Outputs, and the map of the cotangents of their leaves to those of the inputs.

    The map may be called often, and under vmap. For functions that take derivatives themselves
    `pulled` is the safer way.

    Raises:
        SettingError: an operation without reverse mode, here or from that map.
    """
    with _backwards("reverse"):
        outputs, pull = torch.func.vjp(function, inputs)[:2]
    spec = flatten(outputs)[1]

    def back(cotangents: Sequence[Tensor]) -> Any:
        with _backwards("reverse"):
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
        along = random_like(flatten(products)[0])
        back = pulled(function, inputs, along)[1]
    except SettingError as error:
        if not lacks(error):
            raise
        return
    pushed, one = term_sums(along, flatten(products)[0])
    confirmed, two = term_sums(back, tangents)
    finite = math.isfinite(pushed) or math.isfinite(confirmed)
    run = partial(function, inputs)
    if finite and not near(pushed, confirmed, one + two, [*along, *inputs], run):
        sides = f"⟨u, J·v⟩ is {pushed:.6g} and ⟨Jᵀ·u, v⟩ is {confirmed:.6g} for a random u"
        refuse_forward(sides, mode)


def refuse_forward(sides: str, mode: str) -> NoReturn:
    """Say that forward mode is wrong, with the two sides of the test."""
    other = f"mode={_OTHER[mode]!r} gives what autograd gives"
    raise SettingError("mode", mode, f"{DISAGREE.format('forward')}, {sides}; {other}")


def differing(
    found: Sequence[Sequence[Tensor]],
    pulled: Sequence[Tensor],
    along: Sequence[Tensor],
    eps: float,
) -> str | bool:
    """Where a Jacobian does not have the product uᵀ·J of one reverse pass; False where it has.

    True says that neither is finite in some place, and that they agree elsewhere.

    Args:
        found: blocks ``[*y, *x]``, for every x a list over y.
        pulled: uᵀ·J by that pass, ``[*x]``.
        along: u, ``[*y]``.
        eps: of the coarsest type; see `near`.
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
    finite = True
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

    outermost = not torch._C._are_functorch_transforms_active()

    def run(values: Leaves) -> Any:
        with PlainOperations(-1) if nested else plain_operations_inside():
            return function(values)

    def told(values: Leaves) -> Any:
        with refusing("f", "an operation", _UNTAKEN, "level"):
            return run(values)

    return told if outermost else run  # around a loss, its own entry point says what would do


def concrete(tensors: Sequence[Tensor]) -> bool:
    """Whether values can be read: not inside a transform of torch.func, nor in a compiled graph."""
    inside = torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()
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


def near(
    one: float, two: float, size: float, tensors: Sequence[Tensor], run: Callable[[], Any]
) -> bool:
    """Whether two ways to a sum of terms of that size agree, in the coarsest type of the tensors.

    They may be eps^0.4 of it apart: 5e-7 in float64, 2e-3 in float32, 0.14 in bfloat16. That is
    some thousand times what one rounding leaves, and far below what a wrong rule does, which is of
    the order of 1. Where they do not, ``run`` is looked at for a coarser type inside (autocast).
    """
    gap = abs(one - two)
    return bool(gap <= eps_of(tensors) ** 0.4 * size or gap <= coarsest(run) ** 0.4 * size)


def coarsest(run: Callable[[], Any]) -> float:
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
