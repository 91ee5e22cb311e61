"""The compiled functions as functions of tensors.

Axes: n pictures, [H, W, C] of a picture, N·K columns; [n, N, C] of what is normed, a group is the N
elements of one n and one channel.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from metalearn.core._functorch import is_functorch_wrapped_tensor, transforms_active
from metalearn.core.native.library import WITHOUT, library
from metalearn.core.tracing import is_followed

__all__ = [
    "Kernels",
    "NormTangent",
    "WindowNumbers",
    "has_kernels",
    "kernels_for",
    "window_numbers",
    "without_kernels",
]

_log = logging.getLogger(__name__)

_TYPES = {torch.float32: "float32", torch.float64: "float64"}
_PLAIN = (Tensor, nn.Parameter)
_GRAIN = 2**15
"""Numbers that are worth a second thread."""

_WANTED: ContextVar[bool] = ContextVar("whether kernels are taken where they can be", default=True)

WindowNumbers = ctypes.Array[ctypes.c_int64]


def kernels_for(*operands: Tensor | None) -> Kernels | None:
    """The functions for such tensors; None where torch's own operations are to be taken.

    Those are other devices and types than float32 and float64 on a processor, tensors of several
    types, or without memory of their own, what is traced or has a graph or a tangent, and machines
    on which nothing can be compiled.
    """
    if is_followed() or transforms_active():  # what is made there may have no memory
        return None
    tensors = [operand for operand in operands if operand is not None]
    dtype = tensors[0].dtype
    if dtype not in _TYPES or not _WANTED.get():
        return None
    graphs = torch.is_grad_enabled()
    if not all(_is_plain(tensor, dtype, graphs) for tensor in tensors):
        return None
    return _kernels(dtype)


def has_kernels(*operands: Tensor | None) -> bool:
    """Whether there are functions for such tensors where no graph is made, as in a `Function`."""
    with torch.no_grad():
        return kernels_for(*operands) is not None


def _is_plain(tensor: Tensor, dtype: torch.dtype, graphs: bool) -> bool:
    """Whether its values are those in its memory, and nobody follows what becomes of them."""
    return (
        type(tensor) in _PLAIN
        and tensor.dtype == dtype
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and torch._C._has_storage(tensor)
        and not (graphs and tensor.requires_grad)
        and not is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        and forward_ad.unpack_dual(tensor).tangent is None  # type: ignore[no-untyped-call]
    )


@contextmanager
def without_kernels() -> Iterator[None]:
    """A block in which torch's own operations are taken."""
    token = _WANTED.set(False)
    try:
        yield
    finally:
        _WANTED.reset(token)


def window_numbers(numbers: Sequence[int]) -> WindowNumbers:
    """How a window slides over pictures, `metalearn.core.ops.windows.Window.numbers`."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


class NormTangent(NamedTuple):
    """Where the backward pass of a norm is differentiated, and along which cotangents."""

    u: Tensor | None
    """Of dz."""
    ugamma: Tensor | None
    """Of dγ."""
    ubeta: Tensor | None
    """Of dβ."""
    dy: Tensor
    y: Tensor | None
    """Which is above 0 where a leaky ReLU is open, or NaN where nothing leaks; None without one."""
    centred: Tensor
    """z − m."""
    gamma: Tensor | None
    r: Tensor
    s1: Tensor
    """Σg, g being dy, and leak·dy where it is closed."""
    s2: Tensor
    """Σ(g·(z − m))."""
    leak: float
    """The slope of the leaky ReLU where it is closed; 0 of a ReLU."""


class Kernels:
    """The functions for one type of numbers, of tensors for which `kernels_for` gave them.

    Raises:
        RuntimeError: a tensor of another type, or one that is not contiguous, is negated or has no
            memory, which would be misread.
    Building it, AttributeError: the library lacks a function.
    """

    def __init__(self, functions: ctypes.CDLL, dtype: torch.dtype) -> None:
        self._functions, self._dtype = functions, dtype
        self._to_columns = self._function("to_columns", 3, "qp")
        self._add_up = self._function("add_up", 3, "qp")
        self._norm = self._function("norm", 6, "qqqdd")
        self._norm_backward = self._function("norm_backward", 8, "qqqd")
        self._norm_second = self._function("norm_second", 13, "qqqd")
        self._pool = self._function("pool", 3, "qqqqqqi")
        self._pool_take = self._function("pool_take", 3, "qqqqqq")
        self._pool_back = self._function("pool_back", 3, "qqqqqq")

    def to_columns(
        self, pictures: Tensor, gate: Tensor | None, columns: Tensor, numbers: WindowNumbers
    ) -> None:
        """Write windows of pictures, where the gate is above 0, to contiguous columns."""
        count = math.prod(pictures.shape[:-3])
        given = self._at(pictures, gate, columns)
        self._to_columns(*given, count, numbers, _threads(columns))

    def add_up(
        self, columns: Tensor, gate: Tensor | None, pictures: Tensor, numbers: WindowNumbers
    ) -> None:
        """The transpose: write to contiguous pictures."""
        count = math.prod(pictures.shape[:-3])
        given = self._at(columns, gate, pictures)
        self._add_up(*given, count, numbers, _threads(columns))

    def norm(
        self,
        z: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        *,
        eps: float,
        dim: int,
        leak: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Y, z − m and r of contiguous z; gamma, beta and r have 1 in the place of ``dim``.

        y below 0 is multiplied by ``leak``.
        """
        y, centred, r = torch.empty_like(z), torch.empty_like(z), _groups(z, dim)
        given = self._at(z, gamma, beta, y, centred, r)
        self._norm(*given, *_sizes(z, dim), eps, leak, _threads(z))
        return y, centred, r

    def norm_backward(
        self,
        dy: Tensor,
        y: Tensor | None,
        centred: Tensor,
        gamma: Tensor | None,
        r: Tensor,
        *,
        dim: int,
        leak: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Dz, Σg and Σ(g·(z − m)), of groups.

        g is dy where y is above 0, else leak·dy; where nothing leaks it is dy of a NaN too.
        """
        _check_gate(y, leak)
        dz, s1, s2 = torch.empty_like(centred), torch.empty_like(r), torch.empty_like(r)
        given = self._at(dy, y, centred, gamma, r, dz, s1, s2)
        self._norm_backward(*given, *_sizes(centred, dim), leak, _threads(centred))
        return dz, s1, s2

    def norm_second(self, at: NormTangent, *, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """The cotangents of dy, z and, of groups, γ."""
        _check_gate(at.y, at.leak)
        like, r = at.centred, at.r
        gdy, gz, ggamma = torch.empty_like(like), torch.empty_like(like), torch.empty_like(r)
        given = self._at(*at[:-1], gdy, gz, ggamma)
        self._norm_second(*given, *_sizes(like, dim), at.leak, _threads(like))
        return gdy, gz, ggamma

    def pool(
        self, z: Tensor, size: tuple[int, int], y: Tensor, codes: Tensor, *, rectify: bool
    ) -> None:
        """Write the largest of each window of contiguous z ``[n, H, W, C]``, or of max(0, z).

        Windows of that size, at most 255 places, lie side by side. The codes, bytes, of
        ``[n, H', W', C]`` as y is, are the largest's place in its window, 255 where a ReLU gave 0.
        """
        given = (*self._at(z, y), *self._at(codes, dtype=torch.uint8))
        self._pool(*given, *z.shape, *size, int(rectify), _threads(z))

    def pool_take(self, z: Tensor, size: tuple[int, int], codes: Tensor, y: Tensor) -> None:
        """Write to y what z has where the codes of `pool` point, 0 where that gave 0."""
        (at,) = self._at(codes, dtype=torch.uint8)
        where, to = self._at(z, y)
        self._pool_take(where, at, to, *z.shape, *size, _threads(z))

    def pool_back(self, dy: Tensor, size: tuple[int, int], codes: Tensor, dz: Tensor) -> None:
        """The transpose of `pool_take`: write to ``dz [n, H, W, C]``, 0 elsewhere."""
        (at,) = self._at(codes, dtype=torch.uint8)
        where, to = self._at(dy, dz)
        self._pool_back(where, at, to, *dz.shape, *size, _threads(dz))

    def _at(self, *tensors: Tensor | None, dtype: torch.dtype | None = None) -> list[int | None]:
        """Where they have their values."""
        wanted = dtype or self._dtype
        for tensor in tensors:
            if tensor is None:
                continue
            kind = type(tensor)
            if not (tensor.dtype == wanted and tensor.is_contiguous() and kind in _PLAIN):
                given = f"{tensor.dtype} in a {kind.__name__}"
                raise RuntimeError(f"contiguous {wanted} is needed, not {given}")
            if tensor.is_neg() or (tensor.numel() and not tensor.data_ptr()):
                raise RuntimeError("a tensor with memory of its own is needed")
        return [None if tensor is None else tensor.data_ptr() for tensor in tensors]

    def _function(self, name: str, tensors: int, rest: str) -> Callable[..., None]:
        """A function of tensors, of others by letters of `struct`, and of a number of threads."""
        kinds: dict[str, Any] = {
            "p": ctypes.POINTER(ctypes.c_int64),
            "q": ctypes.c_int64,
            "d": ctypes.c_double,
            "i": ctypes.c_int,
        }
        function = getattr(self._functions, f"{name}_{_TYPES[self._dtype]}")
        function.argtypes = [ctypes.c_void_p] * tensors + [kinds[kind] for kind in rest + "i"]
        function.restype = None
        found: Callable[..., None] = function
        return found


@cache
def _kernels(dtype: torch.dtype) -> Kernels | None:
    functions = library()
    try:
        return None if functions is None else Kernels(functions, dtype)
    except AttributeError as error:  # of a compiler that hides, or leaves out
        _log.info(WITHOUT, error)
        return None


def _check_gate(y: Tensor | None, leak: float) -> None:
    if (y is None) != (leak == 1):
        raise RuntimeError(f"y is needed where something is behind a norm, leak is {leak}")


def _sizes(z: Tensor, dim: int) -> tuple[int, int, int]:
    """The sizes n, N and C of a contiguous tensor seen as ``[n, N, C]``."""
    return math.prod(z.shape[:dim]), z.shape[dim], math.prod(z.shape[dim + 1 :])


def _groups(z: Tensor, dim: int) -> Tensor:
    """Room for a number for each group."""
    return z.new_empty(*z.shape[:dim], 1, *z.shape[dim + 1 :])


def _threads(tensor: Tensor) -> int:
    return torch.get_num_threads() if tensor.numel() >= _GRAIN else 1
