"""Where the contracts are checked: on the processor, or on what ``METALEARN_TEST_DEVICE`` names.

It may be ``card``, which `tests.support.simulated_card` makes of the processor, or ``card32``: one
without float64. On a card of CUDA, torch is asked for its deterministic kernels, without which no
run comes again to the last bit; where it has none, it says so in an error.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import torch

from metalearn.core.tree import tree_map

__all__ = ["DEVICE", "on_device"]

_NAME = os.environ.get("METALEARN_TEST_DEVICE", "cpu")
if _NAME in ("card", "card32"):
    simulated = import_module("tests.support.simulated_card")
    if _NAME == "card32":
        simulated.refuse_float64()
    _NAME = "card"
DEVICE = torch.device(_NAME)
if DEVICE.type == "cuda":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def on_device(tree: Any) -> Any:
    """The same tensors there."""
    return tree_map(lambda value: value.to(DEVICE), tree)
