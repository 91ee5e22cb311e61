"""One line about an object: its class and its main sizes, for ``repr``, logs and error messages."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch import nn

__all__ = ["counted", "labelled_line", "network_in_words", "one_line", "samples_in_words"]


def one_line(thing: object, *parts: str) -> str:
    """``Class(part, part)``, without parts that are empty."""
    return f"{type(thing).__name__}({', '.join(part for part in parts if part)})"


def counted(count: int, what: str, many: str = "") -> str:
    """``1 class``, ``1,200 samples``."""
    return f"{count:,} {what if count == 1 else many or f'{what}s'}"


def network_in_words(module: nn.Module) -> str:
    """``Conv4, 111,936 parameters``; of what stands for several networks, how many it has."""
    size = sum(parameter.numel() for parameter in module.parameters())
    name = type(module).__name__
    if name == "Ensemble" and isinstance(module, Sized):
        name = f"{name} of {len(module)}"
    return f"{name}, {counted(size, 'parameter')}"


def samples_in_words(data: Any) -> str:
    """How many samples there are, of which shape, and how they are divided."""
    parts = ", ".join(f"{split} {len(rows):,}" for split, rows in data.splits.items())
    return f"{counted(len(data.inputs), 'sample')} {list(data.input_shape)}, {parts}"


def labelled_line(data: Any) -> str:
    """What has classes that splits divide: how many of each, and the shape of an input."""
    parts = ", ".join(f"{split} {len(classes):,}" for split, classes in data.splits.items())
    classes = counted(len(data.class_names), "class", "classes")
    shape = list(data.inputs.shape[1:])
    return one_line(data, classes, f"{counted(len(data.labels), 'sample')} {shape}", parts)
