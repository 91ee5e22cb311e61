"""Whether operations are being written down, so that the values of tensors cannot be read."""

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["is_traced"]


def is_traced() -> bool:
    """Whether torch's compiler, or `metalearn.core.compilation`, follows what is computed."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None
