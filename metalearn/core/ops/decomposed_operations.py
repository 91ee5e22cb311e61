"""Operations in plain arithmetic where torch's own differ between the ways to run them.

- ``weight_norm``: torch's double backward is wrong on a CPU.
- ``embedding`` with ``padding_idx`` or ``scale_grad_by_freq``: which rows a gradient reaches is
  decided by a backward pass that knows neither the sample axis of vmap nor forward mode, and whose
  own derivative forgets the frequencies; here the output itself says it.
- ``embedding_bag``: torch's has neither a second derivative nor a batching rule.
- Recurrent cells inside transforms of torch.func: torch's add into the default state, which has no
  sample axis.
- ``one_hot`` of a known number of classes inside transforms: under a gradient inside vmap, torch
  reads the labels to check them, which it cannot there.
- Norms under autocast inside transforms: their backward passes mix types.

While a mode of torch's functions is in force, attention in evaluation mode does not take its
inference path, which has no derivatives in forward mode and other outputs at padded places.
Axes: S positions, D numbers of a row, B bags, n rows of a bag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from metalearn.core._functorch import maybe_current_level, transforms_active
from metalearn.core.ops.decomposed_norms import decomposed_norm

__all__ = [
    "DecomposedOperations",
    "decomposed_as_in_transforms",
    "decomposed_operation",
    "decomposed_operations_in_loss",
    "needs_decomposition",
]

_LAYERS = (
    nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.EmbeddingBag,
    RNNCellBase, _WeightNorm,
)  # fmt: skip


_AS_IN_TRANSFORMS: ContextVar[bool] = ContextVar("as in transforms", default=False)


class DecomposedOperations(TorchFunctionMode):
    """Answers the operations of this module; with ``norms``, `decomposed_norm` above it too."""

    def __init__(self, norms: int | None = None) -> None:
        super().__init__()
        self.norms = norms

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        answer = decomposed_operation(function, args, kwargs)
        if answer is None and self.norms is not None:
            answer = decomposed_norm(function, args, kwargs, self.norms)
        return function(*args, **kwargs) if answer is None else answer


def decomposed_operations_in_loss() -> DecomposedOperations:
    """For a loss that may take gradients of norms by itself; see `decomposed_norm`."""
    return DecomposedOperations(maybe_current_level() or 0)


def decomposed_operation(
    function: Any, args: Any, kwargs: Any, within: TorchFunctionMode | None = None
) -> Any:
    """What the function gives, in plain arithmetic; None where torch's own will do.

    Layers that the arithmetic calls in turn are offered to the mode ``within``.
    """
    plain = _DECOMPOSED.get(function)
    if plain is None:
        return None
    with within or nullcontext():
        return plain(*args, **kwargs)


@contextmanager
def decomposed_as_in_transforms() -> Iterator[None]:
    """A block in which what is decomposed inside transforms alone is decomposed outside too."""
    token = _AS_IN_TRANSFORMS.set(True)
    try:
        yield
    finally:
        _AS_IN_TRANSFORMS.reset(token)


def needs_decomposition(module: nn.Module) -> bool:
    """Whether a layer calls one of these operations, or has attention's inference path."""
    return any(map(_wants, module.modules()))


def _wants(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Embedding):
        return layer.padding_idx is not None or layer.scale_grad_by_freq
    hooks = layer._forward_pre_hooks.values()
    return isinstance(layer, _LAYERS) or any(isinstance(hook, WeightNorm) for hook in hooks)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g·v/‖v‖, the norm over all axes but ``dim``, over all of them for −1."""
    axes = [axis for axis in range(v.dim()) if dim == -1 or axis != dim % v.dim()]
    norm = v.square().sum(axes, keepdim=dim != -1).sqrt()
    return v * (g / norm)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    if max_norm is not None or sparse or (padding_idx is None and not scale_grad_by_freq):
        return None
    if not (_transformed() or scale_grad_by_freq):
        return None  # torch has it right in reverse mode
    if padding_idx is not None and not -len(weight) <= padding_idx < len(weight):
        return None  # torch says what is wrong
    rows = F.embedding(input, weight)
    if scale_grad_by_freq:
        rows = _by_frequency(rows, input, len(weight))
    return rows if padding_idx is None else _padded(rows, input, padding_idx, len(weight))


def _by_frequency(rows: Tensor, input: Tensor, count: int) -> Tensor:
    """The same rows, their gradients divided by how often the index stands in the input."""
    flat = input.reshape(-1).long()
    counts = flat.new_zeros(count).scatter_add(0, flat, torch.ones_like(flat))
    share = 1 / counts.gather(0, flat).view(input.shape).to(rows.dtype)
    fixed = rows.detach()
    return fixed + share.unsqueeze(-1) * (rows - fixed)


def _padded(rows: Tensor, input: Tensor, padding_idx: int, count: int) -> Tensor:
    """The same rows; no gradient and no tangent goes through those of padding."""
    is_padding = (input == padding_idx % count).unsqueeze(-1)
    return torch.where(is_padding, rows.detach(), rows)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor | None:
    if input.dim() != 2 or offsets is not None or max_norm is not None or sparse:
        return None
    if mode not in ("sum", "mean", "max") or (per_sample_weights is not None and mode != "sum"):
        return None  # torch says what is wrong
    if per_sample_weights is not None and per_sample_weights.shape != input.shape:
        return None
    rows = F.embedding(input, weight)
    if scale_grad_by_freq:
        rows = _by_frequency(rows, input, len(weight))
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    return _bags(rows, _counted(input, padding_idx, len(weight)), mode)


def _counted(input: Tensor, padding_idx: int | None, count: int) -> Tensor:
    """``[B, n, 1]``: which rows of a bag are not padding."""
    if padding_idx is None:
        return torch.ones_like(input, dtype=torch.bool).unsqueeze(-1)
    return (input != padding_idx % count).unsqueeze(-1)


def _bags(rows: Tensor, counted: Tensor, mode: str) -> Tensor:
    """``[B, D]`` from ``[B, n, D]``; a bag without rows gives zeros."""
    if rows.shape[1] == 0:
        return rows.sum(1)
    if mode != "max":
        total = torch.where(counted, rows, 0).sum(1)
        return total if mode == "sum" else total / counted.sum(1).clamp_min(1).to(rows.dtype)
    top = torch.where(counted, rows, -torch.inf).max(1).values
    return torch.where(counted.any(1), top, 0)


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor | None:
    """As torch's under vmap alone, which does not check labels either."""
    if num_classes < 1 or not _transformed():
        return None
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()


def _cell(step: Callable[[Tensor, Tensor, Any], Any]) -> Callable[..., Any]:
    """A recurrent cell from ``step(W_i·x + b_i, W_h·h + b_h, state)``."""

    def cell(
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        if not _transformed():
            return None
        hidden = hx if isinstance(hx, Tensor) else hx[0]
        return step(F.linear(input, w_ih, b_ih), F.linear(hidden, w_hh, b_hh), hx)

    return cell


def _lstm(of_input: Tensor, of_hidden: Tensor, hx: Any) -> tuple[Tensor, Tensor]:
    enter, keep, new, show = (of_input + of_hidden).chunk(4, -1)
    memory = keep.sigmoid() * hx[1] + enter.sigmoid() * new.tanh()
    return show.sigmoid() * memory.tanh(), memory


def _gru(of_input: Tensor, of_hidden: Tensor, hx: Tensor) -> Tensor:
    gates, new = of_input.tensor_split([2 * hx.shape[-1]], -1)
    gates_of_hidden, new_of_hidden = of_hidden.tensor_split([2 * hx.shape[-1]], -1)
    reset, keep = (gates + gates_of_hidden).sigmoid().chunk(2, -1)
    new = (new + reset * new_of_hidden).tanh()
    return new + keep * (hx - new)


def _in_float(function: Callable[..., Tensor]) -> Callable[..., Tensor | None]:
    """The norm in float32, its casts outside of torch's operation."""

    def norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        kind = input.device.type
        if not (_transformed() and torch.is_autocast_enabled(kind)):
            return None
        if input.dtype == torch.float64:
            return None
        with torch.autocast(kind, enabled=False):
            wide = [_as_float(x) for x in args]
            return function(_as_float(input), *wide, **{k: _as_float(x) for k, x in kwargs.items()})

    return norm


def _as_float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _transformed() -> bool:
    return transforms_active() or _AS_IN_TRANSFORMS.get()


_DECOMPOSED: dict[Any, Callable[..., Any]] = {
    torch._nested_tensor_from_mask_left_aligned: lambda *_: False,  # asked by the inference path
    torch._weight_norm: _weight_norm,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.one_hot: _one_hot,
    torch.lstm_cell: _cell(_lstm),
    torch.gru_cell: _cell(_gru),
    torch.rnn_tanh_cell: _cell(lambda a, b, _: torch.tanh(a + b)),
    torch.rnn_relu_cell: _cell(lambda a, b, _: torch.relu(a + b)),
    F.batch_norm: _in_float(F.batch_norm),
    F.instance_norm: _in_float(F.instance_norm),
    F.layer_norm: _in_float(F.layer_norm),
    F.group_norm: _in_float(F.group_norm),
}
