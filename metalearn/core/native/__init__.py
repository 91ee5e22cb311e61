"""Passes over memory that take torch several, as functions of C++ that are compiled once.

They are optional: what uses them has a way of torch's own, which other devices, other types of
numbers and machines without a compiler take.
"""

from metalearn.core.native.kernels import (
    Kernels,
    NormTangent,
    WindowNumbers,
    has_kernels,
    kernels_for,
    window_numbers,
    without_kernels,
)

__all__ = [
    "Kernels",
    "NormTangent",
    "WindowNumbers",
    "has_kernels",
    "kernels_for",
    "window_numbers",
    "without_kernels",
]
