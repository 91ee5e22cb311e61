"""An accelerator that is not there: torch's device ``card``, whose values lie in the memory of the
processor and whose operations the processor runs.

To torch and to the library it is a device as CUDA is: a tensor has to be moved there, what lies on
the processor does not mix with it (but for single numbers), a generator of the processor draws
nothing on it, and every transform, backward pass and optimiser finds its own kernels. So a tensor
that was made where the data is not is an error here as it would be on a card, and unlike torch's
fake tensors values are there, so that whole trainings run.

Once made, a process keeps it: import this module where nothing else is to be tested.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["NAME", "MixedDevices", "refuse_float64"]

NAME = "card"
_META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
_aten = torch.ops.aten
_memory: dict[int, torch.UntypedStorage] = {}
"""By the storage of tensors of the card: where their values are."""
_refuses_float64 = False
"""As Apple's MPS."""


class MixedDevices(RuntimeError):
    """An operation that a card would refuse."""


def refuse_float64() -> None:
    """Let the card know no float64 from here on, as Apple's MPS."""
    global _refuses_float64
    _refuses_float64 = True


def _values(tensor: Tensor) -> Tensor:
    """The same tensor on the processor, of the same memory."""
    if tensor.device.type != NAME:
        return tensor
    empty = torch.empty(0, dtype=tensor.dtype)
    place = tensor.storage_offset(), tensor.size(), tensor.stride()
    return empty.set_(_memory[tensor.untyped_storage()._cdata], *place)


def _on_card(values: Tensor, known: dict[int, Tensor]) -> Tensor:
    """A tensor of the card that has those values; ``known``, by their memory: others that have."""
    if _refuses_float64 and values.dtype == torch.float64:
        raise TypeError("the device does not know float64")
    storage = values.untyped_storage()
    key = storage._cdata, values.dtype
    if key not in known:
        made = torch._C._acc.create_empty_tensor((0,), values.dtype)  # type: ignore[attr-defined]
        own = made.untyped_storage()
        _memory[own._cdata] = storage
        weakref.finalize(own, _memory.pop, own._cdata)
        known[key] = made
    place = values.size(), values.stride(), values.storage_offset()
    found: Tensor = _aten.as_strided.default.redispatch(_META, known[key], *place)
    return found


class _Call:
    """The arguments of an operation of the card, on the processor."""

    def __init__(self, op: Any, args: Any, kwargs: Any) -> None:
        self.op = op if _takes(op, args) else op.overloadpacket
        self.known: dict[Any, Tensor] = {}
        self.given: list[tuple[Tensor, Tensor]] = []
        flat, spec = tree_flatten((args, kwargs))
        self.args, self.kwargs = tree_unflatten([self._moved(x) for x in flat], spec)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == NAME else value
        if isinstance(value, torch.Generator) and value.device.type != NAME:
            raise MixedDevices(f"{self.op}: a generator of {value.device} draws nothing on a card")
        if not isinstance(value, Tensor):
            return value
        if value.device.type != NAME:
            if value.dim():
                raise MixedDevices(f"{self.op}: a tensor on {value.device} beside those on a card")
            return value
        found = _values(value)
        self.known[found.untyped_storage()._cdata, value.dtype] = value
        self.given.append((value, found))
        return found

    def __call__(self) -> Any:
        flat, spec = tree_flatten(self.op(*self.args, **self.kwargs))
        for value, found in self.given:
            if value.size() != found.size():  # it was given to be filled
                place = found.storage_offset(), found.size(), found.stride()
                _set(value, value.untyped_storage(), *place)
        return tree_unflatten([self._back(x) for x in flat], spec)

    def _back(self, result: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        same = [value for value, found in self.given if found is result]
        return same[0] if same else _on_card(result, self.known)


def _takes(op: Any, args: Any) -> bool:
    """Whether the arguments are of its types: torch hands a number on that it has as a tensor."""
    wanted = op._schema.arguments
    return not any(
        isinstance(value, int | float | complex) and argument.type.kind() == "TensorType"
        for value, argument in zip(args, wanted)
    )


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    return _Call(op, args, kwargs)()


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _values(target).copy_(_values(source))
    return target


def _set(tensor: Tensor, storage: Any, offset: int, size: Any, stride: Any = ()) -> Tensor:
    found: Tensor = _aten.set_.source_Storage_storage_offset.redispatch(
        _META, tensor, storage, offset, size, stride
    )
    return found


def _copied(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    if storage.device.type != NAME:
        return _clone(storage)
    values = _clone(_memory[storage._cdata])
    whole = torch.empty(0, dtype=torch.uint8).set_(values)
    return _on_card(whole, {}).untyped_storage()


def _fetched(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    return _cpu(storage) if storage.device.type != NAME else _clone(_memory[storage._cdata])


def _convolution(*args: Any) -> Any:
    return _run(_aten.convolution.default, *args)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *args: Any) -> Any:
    return _run(_aten.convolution_backward.default, grad, x, weight, [0], *args)


class _Module:
    """What ``torch.card`` is to torch; it draws what the processor draws."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


def _functional(name: str) -> bool:
    """Whether torch has an operation make an empty result first, and fill it then."""
    base, _, overload = name.removeprefix("aten::").partition(".")
    return name.startswith("aten::") and not base.endswith("_") and not overload.endswith("out")


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
torch.accelerator.synchronize = lambda device=None: None  # its work is done at once
_clone = torch.UntypedStorage.clone
torch.UntypedStorage.clone = _copied  # type: ignore[method-assign]
_cpu = torch.UntypedStorage.cpu
torch.UntypedStorage.cpu = _fetched  # type: ignore[method-assign]
_everything = torch.library.Library("_", "IMPL")
_everything.fallback(_run, "PrivateUse1")
_own = torch.library.Library("aten", "IMPL")
for _name in torch._C._dispatch_get_registrations_for_dispatch_key(
    "CompositeExplicitAutogradNonFunctional"
):
    if _functional(_name):
        _base, _, _overload = _name.removeprefix("aten::").partition(".")
        _op = getattr(getattr(_aten, _base), _overload or "default")
        _own.impl(_name, partial(_run, _op), "PrivateUse1")
_own.impl("_copy_from", _copy_from, "PrivateUse1")
_own.impl("set_.source_Storage_storage_offset", _set, "PrivateUse1")
_own.impl("convolution_overrideable", _convolution, "PrivateUse1")
_own.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
_own.impl("_fused_sdp_choice", lambda *args, **kwargs: 0, "PrivateUse1")  # of products alone
