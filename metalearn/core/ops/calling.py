"""What holds while a module is called, so that it gives the same in every engine."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from metalearn.core.ops.plain_operations import PlainOperations, wants_plain_operations
from metalearn.core.vectorization import VectorizationError, in_a_loop

__all__ = ["Calling"]


class Calling:
    """For calls of a module whose layers and hooks stay as they are.

    Layers that need them have `PlainOperations`. Inside transforms of torch.func, backward hooks,
    which those would pass over, are refused.
    """

    def __init__(self, module: nn.Module) -> None:
        self._plain = wants_plain_operations(module)
        named = [(name, type(layer).__name__, layer) for name, layer in module.named_modules()]
        self._first = named[0][:2]
        self._hooked = [
            (name, kind)
            for name, kind, layer in named
            if layer._backward_hooks or layer._backward_pre_hooks
        ]

    def __call__(self) -> AbstractContextManager[Any]:
        """Of one call.

        Raises:
            VectorizationError: backward hooks inside a transform, by the layer's name.
        """
        if not in_a_loop() and torch.is_grad_enabled():
            self._refuse_backward_hooks()
        return PlainOperations() if self._plain else nullcontext()

    def _refuse_backward_hooks(self) -> None:
        everywhere = torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks
        for name, kind in [self._first] if everywhere else self._hooked:
            raise VectorizationError(
                f"module[{name}]",
                kind,
                "transforms of torch.func pass over its backward hooks",
                "take them off, or take a plain loop (engine='loop', method='loop')",
            )
