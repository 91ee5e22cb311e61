"""Functions of trees of tensors, traced and compiled by torch's own compiler."""

from metalearn.core.compilation.function import CompiledFunction, compiled
from metalearn.core.compilation.trace import CompilationError

__all__ = ["CompilationError", "CompiledFunction", "compiled"]
