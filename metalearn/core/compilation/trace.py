"""What a function of tensors does to them, written down as a graph of plain operations.

The function is run once, on the arguments at hand, and each operation of torch that it takes is
noted: those of its derivatives, of vmap and of our own layers alike, as no Python of it is read.
What is no operation is done once, at tracing, and not again: settings, checks, what is printed.

Axes: none; a graph holds for the shapes that it was traced with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn.core.memory import is_out_of_memory
from metalearn.core.tree import TreeSpec, flatten, unflatten
from metalearn.core.vectorization import VectorizationError
from metalearn.errors import CompilationError, DataError, NonFiniteError, SettingError

__all__ = ["Trace", "traced"]


@dataclass(frozen=True)
class Trace:
    """A function as a graph."""

    graph: fx.GraphModule
    """From the leaves of the arguments, then those `captured`, to the leaves of the outputs."""
    captured: tuple[Tensor, ...]
    """What the function took from elsewhere, such as buffers; by reference, so that values that
    are changed in place are seen."""
    outputs: TreeSpec
    """The tree that the function gives."""

    @property
    def operations(self) -> int:
        """How many the graph has."""
        return sum(node.op == "call_function" for node in self.graph.graph.nodes)

    def digest(self, values: Sequence[Tensor]) -> str:
        """A name for the graph with inputs like these: hexadecimal digits."""
        shapes = [(list(v.shape), v.stride(), str(v.dtype), v.device.type) for v in values]
        text = "\n".join([torch.__version__, self.graph.code, repr(shapes)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def traced(function: Callable[..., Any], args: Sequence[Any]) -> Trace:
    """The graph of a function for arguments like these.

    Args:
        function: of trees of tensors, giving one; it depends on nothing else that changes.
        args: the trees.

    Raises:
        CompilationError: it reads values, as an if does; draws random numbers; writes to tensors
            from elsewhere; gives what is no tensor; or uses what cannot be traced.
    """
    values, spec = flatten(tuple(args))
    found: list[TreeSpec] = []

    def flat(*values: Tensor) -> list[Any]:
        leaves, tree = flatten(function(*unflatten(list(values), spec)))
        found.append(tree)
        return leaves

    # tensors of their own, so that the function's own hold on one of them is seen as that
    values = [value.detach() for value in values]
    versions = [value._version for value in values]
    try:
        with torch.enable_grad():
            graph = make_fx(flat)(*values)
    except (SettingError, DataError, NonFiniteError) as error:
        if not isinstance(error, VectorizationError):
            raise
        raise CompilationError(error.reason) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise CompilationError(_reason(error)) from error
    if [value._version for value in values] != versions:
        raise CompilationError("it writes to its arguments")
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.view.default:  # compiled, strides may be others
            node.target = torch.ops.aten.reshape.default
    _refuse_draws(graph)
    captured = _lifted(graph)
    graph.recompile()
    return Trace(graph, captured, found[-1])


def _lifted(graph: fx.GraphModule) -> tuple[Tensor, ...]:
    """Make inputs of what a graph holds, and give that; each of it once.

    Raises:
        CompilationError: it holds something else than tensors, or writes to them.
    """
    held: dict[int, tuple[Tensor, fx.Node]] = {}
    nodes = graph.graph.nodes
    written = {
        _origin(node) for user in nodes for node in user.all_input_nodes if _writes(user, node)
    }
    last = [node for node in nodes if node.op == "placeholder"][-1]
    for node in [node for node in nodes if node.op == "get_attr"]:
        value = getattr(graph, str(node.target), None)
        if not isinstance(value, Tensor):
            raise CompilationError("it has a part that is a graph of its own, as control flow is")
        if node in written:
            raise CompilationError("it writes to a tensor that is none of its arguments")
        if id(value) not in held:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"captured_{len(held)}")
            held[id(value)] = value, last
        node.replace_all_uses_with(held[id(value)][1])
        graph.graph.erase_node(node)
    return tuple(value for value, _ in held.values())


def _refuse_draws(graph: fx.GraphModule) -> None:
    """Random numbers of a compiled function are others than torch's own generators give."""
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise CompilationError(f"it draws random numbers ({_name(node.target)})")


def _writes(user: fx.Node, node: fx.Node) -> bool:
    """Whether an operation changes one of its arguments in place."""
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return False
    named = dict(zip((a.name for a in schema.arguments), user.args)) | dict(user.kwargs)
    return any(
        argument.alias_info is not None
        and argument.alias_info.is_write
        and named.get(argument.name) is node
        for argument in schema.arguments
    )


def _origin(node: fx.Node) -> fx.Node:
    """What a view is of, through other views."""
    while node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        returned = schema.returns[:1] if schema is not None else []
        if not returned or returned[0].alias_info is None or not node.all_input_nodes:
            break
        node = node.all_input_nodes[0]
    return node


def _name(target: Any) -> str:
    return str(target).removeprefix("aten.").split(".")[0]


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    if "data-dependent" in text or "get value out of a tracing tensor" in text:
        return "it reads the value of a tensor, by .item(), bool() or an if"
    line = (text.splitlines() or [type(error).__name__])[0]
    return line[:160]
