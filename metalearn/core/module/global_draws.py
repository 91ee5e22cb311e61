"""Which layer draws from torch's global random state, whatever other threads draw meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["layer_that_draws"]


def layer_that_draws(root: nn.Module, run: Callable[[], Any]) -> str | None:
    """The name of the innermost layer in which ``run`` draws from the global random state.

    None where it draws nothing: the state may still change meanwhile, since threads share it.
    """
    entered: list[str] = []
    with ExitStack() as handles:
        for name, layer in root.named_modules():
            before = layer.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
            after = layer.register_forward_hook(lambda *_: entered.pop() and None, always_call=True)
            handles.callback(before.remove)
            handles.callback(after.remove)
        seen = handles.enter_context(_Draws(entered))
        run()
    return seen.layers[0] if seen.layers else None


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the layer of each operation of this thread that changes the global random state.

    Only operations of random numbers are looked at: beside others, another thread may have drawn.
    """

    def __init__(self, entered: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[str] = []
        self._entered = entered

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded not in operation.tags:
            return operation(*args, **(kwargs or {}))
        state = torch.get_rng_state()
        found = operation(*args, **(kwargs or {}))
        if not torch.equal(state, torch.get_rng_state()):
            self.layers.append(self._entered[-1] if self._entered else "")
        return found
