"""What holds while a module is called, so that it gives the same in every engine."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from metalearn.core.ops.plain_operations import PlainOperations, wants_plain_operations
from metalearn.core.vectorization import VectorizationError, in_a_loop

__all__ = ["Calling", "refuse_hooks"]


class Calling:
    """For calls of a module whose layers and hooks stay as they are.

    Layers that need them have `PlainOperations`. Inside transforms of torch.func, backward hooks,
    which those would pass over, are refused.
    """

    def __init__(self, module: nn.Module) -> None:
        self._plain = wants_plain_operations(module)
        self._first = ("", module)
        self._hooked = [
            (name, layer)
            for name, layer in module.named_modules()
            if layer._backward_hooks or layer._backward_pre_hooks
        ]

    def __call__(self) -> AbstractContextManager[Any]:
        """Of one call.

        Raises:
            VectorizationError: backward hooks inside a transform, by the layer's name.
        """
        everywhere = torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks
        for name, layer in [self._first] if everywhere else self._hooked:
            refuse_hooks(layer, "its backward hooks", name)
        return PlainOperations() if self._plain else nullcontext()


def refuse_hooks(layer: nn.Module, hooks: str, name: str = "") -> None:
    """Refuse, where a transform of torch.func takes gradients, what it would pass over."""
    if in_a_loop() or not torch.is_grad_enabled():
        return
    raise VectorizationError(
        f"module[{name}]",
        type(layer).__name__,
        f"transforms of torch.func pass over {hooks}",
        "take them off, or take a plain loop (engine='loop', method='loop')",
    )
