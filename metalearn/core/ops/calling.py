"""What holds while a module is called, so that it gives the same in every engine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from metalearn.core.ops.plain_operations import PlainOperations, wants_plain_operations
from metalearn.core.vectorization import VectorizationError, in_a_loop

__all__ = ["calling"]


@contextmanager
def calling(module: nn.Module) -> Iterator[None]:
    """For calls of a module: `PlainOperations` where it has such layers.

    Inside transforms of torch.func, compiled layers run as they were written, which transforms can
    follow, and backward hooks, which they would pass over, are refused.

    Raises:
        VectorizationError: backward hooks inside a transform, by the layer's name.
    """
    inside = not in_a_loop()
    if inside and torch.is_grad_enabled():
        _refuse_backward_hooks(module)
    eager = _eagerly() if inside and any(map(_is_compiled, module.modules())) else nullcontext()
    plain = PlainOperations() if wants_plain_operations(module) else nullcontext()
    with eager, plain:
        yield


def _refuse_backward_hooks(module: nn.Module) -> None:
    everywhere = torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks
    for name, layer in module.named_modules():
        if everywhere or layer._backward_hooks or layer._backward_pre_hooks:
            raise VectorizationError(
                f"module[{name}]",
                type(layer).__name__,
                "transforms of torch.func pass over its backward hooks",
                "take them off, or take a plain loop (engine='loop', method='loop')",
            )


def _is_compiled(layer: nn.Module) -> bool:
    compiler = sys.modules.get("torch._dynamo")  # slow to import, and needed for either kind
    if compiler is None:
        return False
    return isinstance(layer, compiler.OptimizedModule) or layer._compiled_call_impl is not None


_lock = threading.Lock()
_calls: list[Any] = []


@contextmanager
def _eagerly() -> Iterator[None]:
    """Let what torch.compile made run as it was written; the setting is the whole process'."""
    with _lock:  # the first of several threads sets it, the last one puts it back
        _calls.append(_calls[0] if _calls else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            stance = _calls.pop()
            if not _calls:
                stance.__exit__(None, None, None)
