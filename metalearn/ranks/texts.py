"""Values that ranks tell each other, as texts: plain ones, and tensors among them.

Axes: none.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import torch
from torch import Tensor

__all__ = ["from_text", "to_text"]

_TENSOR = frozenset({"tensor", "type", "shape"})


def to_text(value: Any) -> bytes:
    """JSON, in which tensors stand as their bits.

    Raises:
        TypeError: what is neither plain nor a tensor.
    """
    return json.dumps(value, default=_coded).encode()


def from_text(text: bytes) -> Any:
    """What `to_text` was given; tuples become lists, tensors are on the processor."""
    return json.loads(text, object_hook=_decoded)


def _coded(value: Any) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        raise TypeError(f"a {type(value).__name__} is not told to other ranks")
    flat = value.detach().cpu().contiguous().reshape(-1)
    bits = flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)
    text = base64.b64encode(bits.numpy().tobytes()).decode()
    return {"tensor": text, "type": str(value.dtype), "shape": list(value.shape)}


def _decoded(found: dict[str, Any]) -> Any:
    if found.keys() != _TENSOR:
        return found
    kind = getattr(torch, found["type"].removeprefix("torch."))
    bits = bytearray(base64.b64decode(found["tensor"]))
    flat = torch.frombuffer(bits, dtype=kind) if bits else torch.empty(0, dtype=kind)
    return flat.reshape(found["shape"])
