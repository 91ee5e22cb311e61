"""A function of trees of tensors that is traced and compiled at its first call.

Axes: none; what is compiled holds for the shapes of that call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx

from metalearn.core._functorch import transforms_active
from metalearn.core.compilation.folder import (
    compiled_folder,
    keeping_compiled,
    remember_seconds,
    remembered_seconds,
)
from metalearn.core.compilation.forms import filled, form_of, same_form
from metalearn.core.compilation.products import with_wide_products
from metalearn.core.compilation.trace import LIMIT, Trace, traced
from metalearn.core.memory import is_out_of_memory
from metalearn.core.precision import network_type
from metalearn.core.tracing import is_traced
from metalearn.core.tree import (
    check_tensors,
    distances,
    flatten,
    leaves,
    tree_map,
)
from metalearn.errors import CompilationError, SettingError, check_whole
from metalearn.reprs import one_line
from metalearn.signatures import checked

__all__ = ["CompiledFunction", "Compiler", "check_agreement", "compiled"]

Compiler = Literal["inductor", "aot_eager"]
"""``inductor`` is torch's compiler, which writes C++ or Triton; ``aot_eager`` runs the traced graph
operation by operation, to see what of a difference is the tracing's."""

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-2, torch.bfloat16: 0.1}
"""Relative, of a leaf; in float32 one ReLU within rounding of zero may move a task by 1e-3, and
compiled code rounds to bfloat16 less often."""
_FLOOR = 1e-3
"""Of the whole result: below it, a leaf is rounding."""

_WITHIN: ContextVar[bool] = ContextVar("a part of what is compiled as a whole", default=False)

Signature = tuple[Any, ...]


@checked
def compiled(function: Callable[..., Any], *, compiler: Compiler = "inductor") -> CompiledFunction:
    """A function that gives what ``function`` gives, compiled at its first call.

    For what is called often with arguments of the same shapes and takes many small operations, such
    as the meta-gradient of a small network::

        settings = {"optimizer": sgd(0.01), "steps": 1}
        step = compiled(lambda params, tasks: meta_gradient(loss, params, tasks, **settings))
        for tasks in meta_batches:
            found = step(params, tasks)

    The first call runs ``function`` once, writes down each operation of torch that it takes,
    derivatives included, and compiles the graph of these, which takes seconds to minutes, less
    where the same graph was compiled before: code is kept under ``METALEARN_CACHE``, by default
    ``~/.cache/metalearn``, in a folder with mode 0700, as torch reads it with pickle. The result is
    held to that of ``function`` there and then. Later calls with the same trees, shapes,
    types and devices run the compiled code; others, under another precision too, and those inside
    transforms of ``torch.func``, run ``function`` as it is.

    Args:
        function: of trees of tensors, giving a tree of tensors. It depends on nothing else that
            changes: of tensors from elsewhere, such as buffers, values that are changed in place
            are seen; numbers, and what is printed, are those of the first call.
        compiler: see `Compiler`.

    Returns:
        `CompiledFunction`; what it gives has no graph of autograd.

    Raises:
        CompilationError: at the first call: the function reads values (``.item()``, an ``if``),
            draws random numbers, writes to its arguments or to tensors from elsewhere, or gives
            what is no tensor; no C++ compiler is there; or the compiled code does not agree with
            the function.
        StorageError: the folder of compiled code cannot be made, or is open to others.
    """
    return CompiledFunction(function, compiler=compiler)


class CompiledFunction:
    """What `compiled` gives.

    Args:
        function, compiler: see there.
        limit: operations that are traced, at most; each takes some 25 kB while it is.

    Attributes:
        function: as it was given.
        seconds: that compiling took; 0 before.
    """

    @checked
    def __init__(
        self,
        function: Callable[..., Any],
        *,
        compiler: Compiler = "inductor",
        limit: int = LIMIT,
    ) -> None:
        check_whole("limit", limit, 1)
        if compiler not in get_args(Compiler):
            accepted = f"one of {', '.join(get_args(Compiler))} is needed"
            raise SettingError("compiler", compiler, accepted)
        self.function, self.seconds, self._compiler = function, 0.0, compiler
        self._limit = limit
        self._trace: Trace | None = None
        self._form: Any = None
        self._signature: Signature = ()
        self._run: Callable[..., Any] | None = None

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return one_line(self, name, self._compiler)

    def __call__(self, *args: Any) -> Any:
        """What the function gives for these trees."""
        if transforms_active() or is_traced() or _WITHIN.get():
            return self.function(*args)
        if self._run is None:
            self.compile(*args)
        found = self.run(*args)
        return self.function(*args) if found is None else found

    def run(self, *args: Any) -> Any:
        """What the compiled code gives; None where it does not hold for such arguments."""
        if self._trace is None or self._run is None or transforms_active() or is_traced():
            return None
        if not self._holds(args):
            return None
        return filled(self._trace.outputs, self.run_leaves(leaves(args)))

    def run_leaves(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """The same of leaves, which are known to be those of arguments like its own."""
        assert self._trace is not None and self._run is not None
        with torch.no_grad():
            found: Sequence[Tensor] = self._run(*values, *self._trace.captured)
        return found

    def trace(self, *args: Any) -> Trace:
        """The graph for arguments like these, traced once.

        Raises:
            CompilationError: see `compiled`.
        """
        check_tensors(args, "args")
        values = leaves(args)
        if not values:
            raise SettingError("args", args, "a tensor is needed among them")
        known = self._trace
        if known is None or not self._holds(args):
            known = self._trace = traced(self.function, args, self._limit)
            self._form, self._signature = form_of(args), _signature([*values, *known.captured])
            self._run = None
        return known

    def expected_seconds(self, *args: Any) -> float | None:
        """How long compiling took the last time for the same graph; None where it is not known."""
        return remembered_seconds(compiled_folder()).get(self.digest(*args))

    def digest(self, *args: Any) -> str:
        """A name for the graph for arguments like these."""
        return self.trace(*args).digest(leaves(args))

    def compile(self, *args: Any, wanted: Any = None) -> None:
        """Compile for arguments like these, and hold the result to the function's.

        Args:
            args: the trees.
            wanted: what the function gives for them, where that is known; else it is called.

        Raises:
            CompilationError, StorageError: see `compiled`.
        """
        check_tensors(args, "args")
        if wanted is None:  # before it is traced, as functions may try out what they are given
            token = _WITHIN.set(True)
            try:
                wanted = self.function(*args)
            finally:
                _WITHIN.reset(token)
        if not leaves(wanted) or not all(isinstance(value, Tensor) for value in leaves(wanted)):
            raise CompilationError("it gives what is no tensor")
        wanted = tree_map(Tensor.detach, wanted)
        trace, values = self.trace(*args), [value.detach() for value in leaves(args)]
        given = [*values, *trace.captured]
        folder = compiled_folder() if self._compiler == "inductor" else None
        start = time.perf_counter()
        run = _compiled(with_wide_products(trace.graph), given, self._compiler, folder)
        self.seconds = time.perf_counter() - start
        check_agreement(filled(trace.outputs, run(*given)), wanted)
        self._run = run
        if folder is not None:
            remember_seconds(folder, self.digest(*args), self.seconds)

    def _holds(self, args: Any) -> bool:
        """Whether the trace is of arguments like these."""
        if self._trace is None or not same_form(args, self._form):
            return False
        return self._signature == _signature([*leaves(args), *self._trace.captured])


def _same_beside_rounding(found: Tensor, wanted: Tensor) -> bool:
    """Whether whole numbers are the same, and of others those that are not finite."""
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    tests = torch.isnan, torch.isposinf, torch.isneginf
    return all(torch.equal(test(found), test(wanted)) for test in tests)


def _compiled(
    graph: fx.GraphModule, given: Sequence[Tensor], compiler: Compiler, folder: Path | None
) -> Callable[..., Any]:
    """Code that has run once, as some of it is made then."""
    from torch._dynamo import lookup_backend  # which takes seconds to import

    try:
        with torch.no_grad(), nullcontext() if folder is None else keeping_compiled(folder):
            with _of_these_shapes(given):
                run: Callable[..., Any] = lookup_backend(compiler)(graph, list(given))
            run(*given)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise CompilationError(_reason(error)) from error
    return run


@contextmanager
def _of_these_shapes(given: Sequence[Tensor]) -> Iterator[None]:
    """A block in which compilers know these tensors, by shapes that are numbers.

    Where a compiler is not told of an environment for shapes, torch (2.14) passes by all that it
    keeps on the disk, without a word. Where it is, it takes each size for a symbol, unless it finds
    the tensor known in that environment: code for few samples would be taken for many.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    numbers = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)  # type: ignore[no-untyped-call]
    known = [numbers.from_tensor(value) for value in given]  # held, as the mode does not
    with tracing(TracingContext(numbers)):
        yield
    known.clear()


def _signature(values: Sequence[Tensor]) -> Signature:
    """What compiled code holds for: inputs, and what else changes what operations compute."""
    kinds = [(v.shape, v.stride(), v.dtype, v.device) for v in values]
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return kinds, autocast, network_type(), torch.are_deterministic_algorithms_enabled()


def check_agreement(found: Any, wanted: Any) -> None:
    """Refuse what is not the same to rounding, trees of tensors.

    Raises:
        CompilationError: the gap, relative to the leaf that differs most; NaN where they differ in
            whole numbers, or in what is not finite.
    """
    (one, form), (other, wanted_form) = flatten(found), flatten(wanted)
    kinds, wanted_kinds = ([(v.shape, v.dtype) for v in values] for values in (one, other))
    if form != wanted_form or kinds != wanted_kinds:
        raise CompilationError("compiled, it gives a tree of another form")
    dtypes = {value.dtype for value in other if value.is_floating_point()}
    low = network_type() or (torch.float64 if dtypes <= {torch.float64} else torch.float32)
    tolerance = _TOLERANCE.get(low, _TOLERANCE[torch.bfloat16])
    same = [_same_beside_rounding(a, b) for a, b in zip(one, other)]
    one, other = ([v.nan_to_num(0, 0, 0) for v in values] for values in (one, other))
    gap = max(distances(one, other, floor=_FLOOR).values(), default=0.0)
    if not gap <= tolerance or not math.isfinite(gap) or not all(same):
        gap = gap if all(same) else math.nan
        raise CompilationError(f"compiled, it differs from itself by {gap:.1g}")


def _reason(error: BaseException) -> str:
    """Why torch's compiler gave up."""
    text = str(error).strip()
    if "C++ compiler" in text or "CppCompileError" in type(error).__name__:
        return "torch finds no C++ compiler that works (g++ or clang++ is needed)"
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0][:160]}"
