"""Values that ranks tell each other: plain ones as JSON, and the bits of tensors after it.

Axes: none.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

__all__ = ["from_bytes", "to_bytes"]

_MARK = "\0tensor"
"""The one name of an object that stands for a tensor: type, shape, and where its bits are."""
_HEAD = 8
"""Bytes that say how long the JSON is."""


def to_bytes(value: Any) -> bytes:
    """The length of the JSON, the JSON, and the bits of all tensors.

    Raises:
        TypeError: what is neither plain nor a tensor.
    """
    bits: list[bytes] = []
    held = 0

    def coded(found: Any) -> dict[str, Any]:
        nonlocal held
        if not isinstance(found, Tensor):
            raise TypeError(f"a {type(found).__name__} is not told to other ranks")
        flat = found.detach().cpu().contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        bits.append(raw)
        held += len(raw)
        return {_MARK: [str(found.dtype), list(found.shape), held - len(raw), len(raw)]}

    text = json.dumps(value, default=coded).encode()
    return b"".join([len(text).to_bytes(_HEAD, "little"), text, *bits])


def from_bytes(known: bytes) -> Any:
    """What `to_bytes` was given; tuples become lists, tensors are on the processor."""
    begin = _HEAD + int.from_bytes(known[:_HEAD], "little")

    def decoded(found: dict[str, Any]) -> Any:
        if found.keys() != {_MARK}:
            return found
        name, shape, place, size = found[_MARK]
        kind = getattr(torch, name.removeprefix("torch."))
        if not size:
            return torch.empty(shape, dtype=kind)
        raw = bytearray(known[begin + place : begin + place + size])
        return torch.frombuffer(raw, dtype=kind).reshape(shape)

    return json.loads(known[_HEAD:begin], object_hook=decoded)
