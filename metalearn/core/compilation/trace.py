"""What a function of tensors does to them, written down as a graph of plain operations.

The function is run once, on the arguments at hand, and each operation of torch that it takes is
noted: those of its derivatives, of vmap and of our own layers alike, as no Python of it is read.
What is no operation is done once, at tracing, and not again: settings, checks, what is printed.

Axes: none; a graph holds for the shapes that it was traced with.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn.core.compilation.forms import form_of
from metalearn.core.compilation.watch import READS, watched
from metalearn.core.memory import is_out_of_memory, synchronize
from metalearn.core.tree import flatten, leaves, unflatten
from metalearn.core.vectorization import VectorizationError
from metalearn.errors import CompilationError, DataError, NonFiniteError, SettingError

__all__ = ["LIMIT", "Trace", "traced"]

LIMIT = 50_000
"""Operations, by default."""
_TIMES, _SHORT = 5, 0.01
"""What takes fewer seconds is timed so often, as other programs disturb it most."""


@dataclass(frozen=True)
class Trace:
    """A function as a graph."""

    graph: fx.GraphModule
    """From the leaves of the arguments, then those `captured`, to the leaves of the outputs."""
    captured: tuple[Tensor, ...]
    """What the function took from elsewhere, such as buffers; by reference, so that values that
    are changed in place are seen."""
    outputs: Any
    """The form of the tree that the function gives."""

    @property
    def operations(self) -> int:
        """How many the graph has."""
        return sum(node.op == "call_function" for node in self.graph.graph.nodes)

    def seconds(self, args: Sequence[Any]) -> float:
        """How long it takes operation by operation, not the first time; of short ones the least."""
        given = [*(value.detach() for value in flatten(tuple(args))[0]), *self.captured]
        device = given[0].device
        least = math.inf
        with torch.no_grad():
            self.graph(*given)
            synchronize(device)
            for _ in range(_TIMES):
                start = time.perf_counter()
                self.graph(*given)
                synchronize(device)
                least = min(least, time.perf_counter() - start)
                if least > _SHORT:
                    break
        return least

    def digest(self, values: Sequence[Tensor]) -> str:
        """A name for the graph with inputs like these: hexadecimal digits."""
        shapes = [(list(v.shape), v.stride(), str(v.dtype), v.device.type) for v in values]
        text = "\n".join([torch.__version__, self.graph.code, repr(shapes)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def traced(function: Callable[..., Any], args: Sequence[Any], limit: int = LIMIT) -> Trace:
    """The graph of a function for arguments like these.

    Args:
        function: of trees of tensors, giving one; it depends on nothing else that changes.
        args: the trees.
        limit: operations of torch, at most: one takes some 25 kB while it is traced.

    Raises:
        CompilationError: see `watched`; or it gives what is no tensor, or cannot be traced.
    """
    values, spec = flatten(tuple(args))
    found: list[Any] = []

    def flat(*values: Tensor) -> list[Any]:
        tree = function(*unflatten(list(values), spec))
        found.append(form_of(tree))
        return leaves(tree)

    # tensors of their own, so that the function's own hold on one of them is seen as that
    values = [value.detach() for value in values]
    try:
        with torch.enable_grad(), watched(limit):
            graph = make_fx(flat)(*values)
    except CompilationError:
        raise
    except (SettingError, DataError, NonFiniteError) as error:
        if not isinstance(error, VectorizationError):
            raise
        if isinstance(error.__cause__, CompilationError):
            raise error.__cause__ from None
        raise CompilationError(error.reason) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise CompilationError(_reason(error)) from error
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.view.default:  # compiled, strides may be others
            node.target = torch.ops.aten.reshape.default
    captured = _lifted(graph)
    graph.recompile()
    return Trace(graph, captured, found[-1])


def _lifted(graph: fx.GraphModule) -> tuple[Tensor, ...]:
    """Make inputs of what a graph holds, and give that; each of it once.

    Raises:
        CompilationError: it holds something else than tensors.
    """
    held: dict[int, tuple[Tensor, fx.Node]] = {}
    nodes = graph.graph.nodes
    last = [node for node in nodes if node.op == "placeholder"][-1]
    for node in [node for node in nodes if node.op == "get_attr"]:
        value = getattr(graph, str(node.target), None)
        if not isinstance(value, Tensor):
            raise CompilationError("it has a part that is a graph of its own, as control flow is")
        if id(value) not in held:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"captured_{len(held)}")
            held[id(value)] = value, last
        node.replace_all_uses_with(held[id(value)][1])
        graph.graph.erase_node(node)
    return tuple(value for value, _ in held.values())


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    if "data-dependent" in text or "get value out of a tracing tensor" in text:
        return READS
    line = (text.splitlines() or [type(error).__name__])[0]
    return line[:160]
