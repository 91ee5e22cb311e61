"""What is refused of arguments: functions, batches, devices, inputs of a module, numbers.

Numbers given as tensors are read, where nothing wraps them; inside a transform they are taken as
they are. The other checks but `check_range` are of types and shapes and wait for no device.
"""

from __future__ import annotations

import dis
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from metalearn.core._functorch import is_functorch_wrapped_tensor
from metalearn.core.float64 import widest
from metalearn.core.memory import is_out_of_memory
from metalearn.core.tracing import is_traced
from metalearn.core.tree import leaves, tree_map
from metalearn.errors import SettingError

__all__ = [
    "as_device",
    "call_given",
    "check_number",
    "check_pair",
    "check_range",
    "check_samples",
    "check_weights",
    "module_takes",
]

R = TypeVar("R")
_TORCH = str(Path(torch.__file__).parent)


def call_given(function: Callable[..., R], setting: str, *args: Any, **kwargs: Any) -> R:
    """What a function that was handed over gives; refused where it does not take the arguments.

    Errors from inside of it surface as they are.
    """
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise
        wanted = f"a function that takes {len(args)} such argument{'s' * (len(args) > 1)}"
        raise SettingError(setting, function, f"{wanted} is needed ({error})") from error


def check_pair(
    batch: Any, setting: str = "batch", what: str = "inputs, targets"
) -> tuple[Any, Any]:
    """Inputs and targets of a batch, refused where it is no pair of them."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        shown = (
            f"{type(batch).__name__} of {len(batch)}"
            if isinstance(batch, tuple | list)
            else (type(batch).__name__)
        )
        raise SettingError(setting, shown, f"a pair ({what}) is needed")
    return batch[0], batch[1]


def as_device(device: Any, setting: str = "device") -> torch.device:
    """A device by its name, refused where there is none of that name here."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        line = (str(error).splitlines() or [""])[0][:120]
        accepted = f"a device of this machine is needed, such as cpu or cuda:0 ({line})"
        raise SettingError(setting, device, accepted) from error
    return found


def check_range(setting: str, indices: Tensor, count: int) -> None:
    """Refuse indices outside of 0..count−1; reads values."""
    least, largest = (int(end) for end in indices.aminmax())
    if least < 0 or largest >= count:
        wrong = least if least < 0 else largest
        raise SettingError(setting, wrong, f"indices in 0..{count - 1} are needed")


@contextmanager
def module_takes(setting: str, inputs: Any) -> Iterator[None]:
    """A block that calls a module; what torch says against the inputs is said of them by name.

    What the module itself raises surfaces as it is.
    """
    try:
        yield
    except (RuntimeError, IndexError, TypeError, AttributeError) as error:
        if isinstance(error, SettingError) or is_out_of_memory(error) or not _of_torch(error):
            raise
        line = (str(error).splitlines() or [type(error).__name__])[0][:160]
        accepted = f"inputs that the module takes are needed ({line})"
        raise SettingError(setting, tree_map(_described, inputs), accepted) from error


def check_samples(tree: Any, setting: str) -> None:
    """Refuse a set without samples, whose mean loss would be NaN: all leaves are empty."""
    found = [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]
    if found and not any(leaf.numel() for leaf in found):
        raise SettingError(setting, [tuple(leaf.shape) for leaf in found], "it needs samples")


def check_weights(weights: Tensor, count: int) -> None:
    """Refuse a tensor other than ``[count]``, finite numbers of at least 0, not all of them 0."""
    check_number("weights", weights, least=0, below=math.inf, shape=(count,))
    accepted = "at least one weight above 0 is needed"
    check_number("weights", weights.sum(), above=0, accepted=accepted)


def check_number(
    setting: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    shape: Sequence[int] | None = (),
    infinite: bool = False,
    accepted: str = "",
) -> None:
    """Refuse what is no number in the range, given as a number or as a tensor of numbers.

    Args:
        setting: its name.
        value: a number, or a tensor of ``shape`` whose elements all have to be in the range.
        above: the number is larger.
        least: the number is no smaller.
        below: the number is smaller.
        shape: of a tensor; None takes any.
        infinite: whether infinity will do where ``below`` allows it.
        accepted: what the error says would be accepted, in place of the range.

    Raises:
        SettingError: names the setting and the range.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise SettingError(setting, str(value.dtype), "real numbers are needed")
        if shape is not None and tuple(value.shape) != tuple(shape):
            wanted = f"the shape {list(shape)}" if shape else "a number or a tensor without axes"
            raise SettingError(setting, f"a tensor {list(value.shape)}", f"{wanted} is needed")
        if is_functorch_wrapped_tensor(value) or value.is_meta or is_traced():
            return
        numbers = widest(value.detach()).flatten()
        good = (numbers > above) & (numbers >= least)
        good &= (numbers < below) | (infinite & (numbers == math.inf) & (below == math.inf))
        if bool(good.all()):
            return
        value = float(numbers[~good][0])
    elif isinstance(value, int | float) and not isinstance(value, bool):
        beyond = infinite and value == below == math.inf
        if value > above and value >= least and (value < below or beyond):
            if isinstance(value, int) and abs(value) >= 2**63:
                raise SettingError(setting, value, "a number of at most 64 bits is needed")
            return
    raise SettingError(setting, value, accepted or _range(above, least, below, infinite))


def _of_torch(error: Exception) -> bool:
    """Whether torch raised it: in a file of its own, or beneath Python without a ``raise``."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None:
        return False
    code = innermost.tb_frame.f_code
    if code.co_filename.startswith(_TORCH):
        return True
    by_hand = code.co_code[innermost.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return not by_hand and not isinstance(error, AttributeError)


def _described(leaf: Any) -> Any:
    return f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__


def _range(above: float, least: float, below: float, infinite: bool) -> str:
    if below < math.inf:
        low = f"[{least:g}" if least > -math.inf else f"({above:g}"
        return f"a number in {low}, {below:g}) is needed"
    kind = "a number" if infinite else "a finite number"
    if least > -math.inf:
        return f"{kind} of at least {least:g} is needed"
    return f"{kind} above {above:g} is needed" if above > -math.inf else f"{kind} is needed"
