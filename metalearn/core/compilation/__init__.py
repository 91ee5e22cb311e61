"""Functions of trees of tensors, traced and compiled by torch's own compiler."""

from metalearn.core.compilation.function import (
    CompiledFunction,
    Compiler,
    check_agreement,
    compiled,
)

__all__ = ["CompiledFunction", "Compiler", "check_agreement", "compiled"]
