"""What holds while a module is called, so that it gives the same in every engine."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from metalearn.core.ops.decomposed_operations import DecomposedOperations, needs_decomposition
from metalearn.core.vectorization import VectorizationError, no_transform_active

__all__ = ["CallContext", "refuse_hooks"]


class CallContext:
    """For calls of a module whose layers and hooks stay as they are.

    Layers that need them have `DecomposedOperations`. Inside transforms of torch.func, backward
    hooks, which those would pass over, are refused.
    """

    def __init__(self, module: nn.Module) -> None:
        self._decomposes = needs_decomposition(module)
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
        return DecomposedOperations() if self._decomposes else nullcontext()


def refuse_hooks(layer: nn.Module, hooks: str, name: str = "") -> None:
    """Refuse, where a transform of torch.func takes gradients, what it would pass over."""
    if no_transform_active() or not torch.is_grad_enabled():
        return
    raise VectorizationError(
        f"module[{name}]",
        type(layer).__name__,
        f"transforms of torch.func pass over {hooks}",
        "take them off, or take a plain loop (engine='loop', method='loop')",
    )
