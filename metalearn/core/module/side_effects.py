"""One trial of a forward pass on copies: what it changes, and whether the next would read that."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction, _EnableTorchFunction
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from metalearn.core.module.module_structure import attributes, comparable
from metalearn.core.module.norms import without_noting
from metalearn.core.module.private_copy import ModuleTemplate, PrivateCopy
from metalearn.core.ops import first_row, outside_transforms
from metalearn.errors import SettingError

__all__ = ["check_side_effects", "write_refusal"]


class _Outcome(NamedTuple):
    """What a forward pass gave and changed."""

    outputs: Any
    written: list[tuple[str, str, nn.Module, str]]
    """Name, table, layer and key of parameters and buffers whose values changed."""
    rebound: frozenset[str]
    attributes: dict[tuple[str, str], Any]


def check_side_effects(
    template: ModuleTemplate,
    given: Mapping[str, Tensor],
    args: Any,
    kwargs: Any,
    keeps_buffers: bool,
) -> None:
    """Note in ``template`` what a forward pass leaves behind, or refuse it.

    It runs on copies of one task's (sample's, member's) values, twice where something changed, and
    once more to see whether hooks are hung on tensors. A pass that fails is no trial: the call that
    follows says why.

    Raises:
        SettingError: parameters are written, or buffers that cannot be kept; attributes change
            from call to call; random numbers come from the global state; a layer is reached by a
            global variable.
    """
    with (
        outside_transforms(),
        without_noting(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        copied = template.copied()
        tensors = {name: _concrete(value) for name, value in given.items()}
        before = attributes(copied.root)
        with _inside(template):
            first = _run(copied, tensors, args, kwargs)
        template.reusable = False
        if first is None:
            return
        for _, table, layer, key in first.written:
            if table == "_parameters" or not keeps_buffers:
                raise write_refusal(copied.root, layer, key)
        template.rebound = first.rebound - {name for name, *_ in first.written}
        changed = _differing(before, first.attributes)
        if changed:
            template.changes = True
            second = _run(copied, tensors, args, kwargs)
            _check_repeats(copied.root, changed, first, second)
        template.hangs_hooks = _hangs_hooks(template, copied, tensors, args, kwargs)
        left = _differing(before, attributes(copied.root)) if copied.restored() else changed
        template.reusable = all(map(_is_hook, left))


def write_refusal(
    root: nn.Module, layer: nn.Module, key: str, reason: str = "which a pure function cannot keep"
) -> SettingError:
    """The refusal of a forward pass that writes a parameter or buffer ``key`` of ``layer``."""
    return SettingError(
        f"module[{_name(root, layer)}]",
        type(layer).__name__,
        f"its forward pass writes {key!r}, {reason}; put it in eval mode if it writes in training "
        "alone, else use a layer that keeps nothing",
    )


def _run(
    copied: PrivateCopy, tensors: Mapping[str, Tensor], args: Any, kwargs: Any
) -> _Outcome | None:
    """One forward pass on copies of all tensors; None where it fails."""
    given = {name: value.clone() for name, value in tensors.items()}
    args, kwargs = tree_map(_concrete, (tuple(args), dict(kwargs)))
    devices = {value.device for value in given.values() if value.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        state = torch.get_rng_state()
        try:
            outputs = copied.run(given, args, kwargs)
        except Exception:
            return None
        _refuse_new_layers(copied)
        if not torch.equal(state, torch.get_rng_state()):
            _refuse_draws(copied, tensors, args, kwargs)
    written, rebound = [], []
    for name, (layer, table, key, value) in copied.placed():
        if value is not given[name]:
            rebound.append(name)
        if comparable(value) != comparable(tensors[name]):
            written.append((name, table, layer, key))
    return _Outcome(outputs, written, frozenset(rebound), attributes(copied.root))


def _hangs_hooks(
    template: ModuleTemplate,
    copied: PrivateCopy,
    tensors: Mapping[str, Tensor],
    args: Any,
    kwargs: Any,
) -> bool:
    """Whether forward hangs hooks on tensors, which it can only where these need gradients."""
    given = {name: value.clone() for name, value in tensors.items()}
    for name, value in given.items():
        value.requires_grad_(value.is_floating_point() and not template.is_buffer(name))
    args, kwargs = tree_map(_concrete, (tuple(args), dict(kwargs)))
    seen = _Hooks()
    with suppress(Exception), _EnableTorchFunction(), seen:
        copied.run(given, args, kwargs)
    return seen.hung


class _Hooks(TorchFunctionMode):
    """Notes whether a hook is hung on a tensor."""

    hung = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.hung |= function is Tensor.register_hook
        with DisableTorchFunction():  # modes around this one are for tensors of transforms
            return function(*args, **(kwargs or {}))


@contextmanager
def _inside(template: ModuleTemplate) -> Iterator[None]:
    """Refuse, after the block, layers of the user's own module that were called in it."""
    called: list[nn.Module] = []
    thread = threading.get_ident()

    def note(layer: nn.Module, _: Any) -> None:
        if threading.get_ident() == thread and template.name_of(layer) is not None:
            called.append(layer)

    handle = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()
    for layer in called:
        if any(True for _ in layer.parameters()):
            raise SettingError(
                f"module[{template.name_of(layer)}]",
                type(layer).__name__,
                "forward reaches it by a global variable, so that it cannot have other parameters; "
                "reach it as an attribute of the module",
            )


def _check_repeats(
    root: nn.Module, changed: list[tuple[str, str]], first: _Outcome, second: _Outcome | None
) -> None:
    """Refuse what the next call would read: another output, or another change."""
    again = changed if second is None else _differing(first.attributes, second.attributes)
    again = [place for place in again if not _is_hook(place)]
    if not again and second is not None and comparable(first.outputs) == comparable(second.outputs):
        return
    layer, name = (again or changed)[0]
    raise SettingError(
        f"module[{layer}]",
        type(root.get_submodule(layer)).__name__,
        f"its forward pass changes {name!r} from call to call, which a pure function cannot keep; "
        "make it an input, or set it anew in each call",
    )


def _is_hook(place: tuple[str, str]) -> bool:
    """Hooks may record outside of the module, as long as the outputs are the same."""
    return place[1].endswith("_hooks")


def _refuse_new_layers(copied: PrivateCopy) -> None:
    """Refuse a forward pass that makes layers with parameters, which would not be trained."""
    for name, layer in copied.root.named_modules():
        if layer not in copied.layers and any(True for _ in layer.parameters()):
            raise SettingError(
                f"module[{name}]",
                type(layer).__name__,
                "it is made in the forward pass; run one batch through the module first",
            )


def _refuse_draws(
    copied: PrivateCopy, tensors: Mapping[str, Tensor], args: Any, kwargs: Any
) -> NoReturn:
    """Refuse the innermost layer that draws from torch's global random state."""
    found: list[str] = []
    states: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(lambda *_: states.update({name: torch.get_rng_state()}))
        layer.register_forward_hook(
            lambda *_: (
                found.append(name)
                if name in states and not torch.equal(states[name], torch.get_rng_state())
                else None
            )
        )

    for name, layer in copied.root.named_modules():
        watch(name, layer)
    copied.run({n: t.clone() for n, t in tensors.items()}, args, kwargs)
    name = found[0] if found else ""
    raise SettingError(
        f"module[{name}]",
        type(copied.root.get_submodule(name)).__name__,
        "its forward pass draws from the global random state; use eval mode if it draws in "
        "training alone, or metalearn.models.Dropout",
    )


def _concrete(value: Any) -> Any:
    """A tensor of one task, without a graph and apart from others; anything else as it is."""
    return first_row(value).detach().clone() if isinstance(value, Tensor) else value


def _differing(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> list[tuple[str, str]]:
    keys = [*one, *(key for key in other if key not in one)]
    return [key for key in keys if (key in one) != (key in other) or one[key] != other[key]]


def _name(root: nn.Module, layer: nn.Module) -> str:
    return next((name for name, found in root.named_modules() if found is layer), "")
