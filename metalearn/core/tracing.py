"""Whether operations are being written down, so that the values of tensors cannot be read."""

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["is_followed", "is_traced"]


def is_traced() -> bool:
    """Whether torch's compiler, or `metalearn.core.compilation`, follows what is computed."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def is_followed() -> bool:
    """Whether what is written past torch's operations would be missed.

    As `is_traced`, and where ``torch.jit`` traces, or tensors that are made are without memory.
    """
    fake = torch._C._TorchDispatchModeKey.FAKE
    return is_traced() or torch._C._is_tracing() or torch._C._get_dispatch_mode(fake) is not None
