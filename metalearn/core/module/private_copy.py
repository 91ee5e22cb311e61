"""Private copies of a module's structure, into which the tensors of one call are put."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.backends import cuda
from torch.nn.utils import parametrize

from metalearn.core.module.call_context import CallContext
from metalearn.core.module.copying import Copier, TensorSlot, named_tensors
from metalearn.core.ops import runs_over_tasks, task_operations_active, unwrap

__all__ = ["ModuleTemplate", "PrivateCopy", "Written", "attention_as_now"]

Written = tuple[nn.Module, str, str, Any]
"""Layer, table (``_parameters`` or ``_buffers``), key, and what stands there after a call."""


class ModuleTemplate:
    """A module as it stands, with places instead of its parameters and buffers.

    Attributes:
        reusable: whether a copy may serve again after a call; None until that was tried.
        changes: whether a trial has seen that attributes change in a call.
        hangs_hooks: whether forward hangs hooks on tensors, which transforms pass over.
        rebound: names of buffers that forward assigns anew without changing them.
    """

    def __init__(self, module: nn.Module) -> None:
        tensors = named_tensors(module)
        names = {id(value): name for name, value in tensors.items()}
        hidden: dict[int, Tensor] = {}

        def tensor(value: Tensor) -> Any:
            if id(value) in names:
                return TensorSlot(names[id(value)])
            return hidden.setdefault(id(value), value)

        copier = Copier(tensor)
        self._root: nn.Module = copier(module)
        self._live = _Snapshot(list(module.modules()), [held for held, _ in copier.containers])
        self._sources = _sources(module, tensors)
        self._names = {id(vars(layer)): name for name, layer in module.named_modules()}
        self._buffers = [name for name, _ in module.named_buffers() if name in tensors]
        self._hidden = [value for value in hidden.values() if not value.is_meta]
        self._free: list[PrivateCopy] = []
        self.reusable: bool | None = None
        self.changes = self.hangs_hooks = False
        self.rebound: frozenset[str] = frozenset()

    def is_current(self) -> bool:
        """Whether the module is still so: its attributes, modes, hooks and layers."""
        return self._live.holds()

    def name_of(self, layer: nn.Module) -> str | None:
        """The name of a layer of the module itself; None for any other, such as a copy's."""
        return self._names.get(id(vars(layer)))

    def tensors(self, params: Any, buffers: Any) -> dict[str, Tensor]:
        """A tensor for each place: of ``params``, of ``buffers``, or the module's own."""
        found: dict[str, Tensor] = {}
        for name, (table, key) in self._sources.items():
            if name in params:
                found[name] = params[name]
            else:
                found[name] = buffers[name] if name in buffers else table[key]
        return found

    def copied(self) -> PrivateCopy:
        """A copy for a trial, which shares nothing with the module that can be written to."""
        copier = Copier(lambda value: value.detach().clone(), deep=True)
        return PrivateCopy(copier(self._root), copier)

    def borrow(self) -> PrivateCopy:
        """A copy that no other call has; tensors that are no parameters or buffers are shared."""
        try:
            return self._free.pop()
        except IndexError:
            copier = Copier(lambda value: value)
            return PrivateCopy(copier(self._root), copier)

    def give_back(self, copied: PrivateCopy) -> None:
        """Keep a copy for the next call, if it can be as it was."""
        if copied.restored() and self.reusable:
            self._free.append(copied)

    def versions(self, given: Mapping[str, Tensor], buffers: bool) -> list[int]:
        """How often tensors were written to that forward has to leave alone."""
        watched = [given[name] for name in self._buffers] if buffers else []
        plain = [unwrap(value)[1] for value in (*watched, *self._hidden)]
        return [0 if value.is_inference() else value._version for value in plain]

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor of that name is a buffer."""
        return name in self._buffers

    def written(self, before: list[int], after: list[int]) -> str:
        """The name of the first buffer that `versions` tells apart; empty for another tensor."""
        place = next(i for i, pair in enumerate(zip(before, after)) if pair[0] != pair[1])
        hidden = len(before) - len(self._hidden)
        return self._buffers[place] if place < hidden else ""


class PrivateCopy:
    """One copy of a template, for one call at a time.

    Args:
        root: with places instead of parameters and buffers.
        copier: that made it.

    Attributes:
        layers: in the order of ``root.modules()``.
        changed: whether the last call had changed attributes, known once they are restored.
    """

    def __init__(self, root: nn.Module, copier: Copier) -> None:
        self.root, places = root, copier.places
        self._places = [(*where, place.name, place) for *where, place in places]
        self.layers = list(root.modules())
        self._state = _Snapshot(self.layers, [held for _, held in copier.containers])
        owners = {
            id(vars(layer)[table]): (layer, table)
            for layer in self.layers
            for table in ("_parameters", "_buffers")
        }
        self._tables = [
            (*owners[id(container)], container, key, place.name)
            for container, key, place in places
            if id(container) in owners
        ]
        self._call_context = CallContext(root)
        self._counts: list[int] = []
        self.changed = False

    def run(self, given: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
        """One forward pass."""
        self._counts = list(map(sys.getrefcount, self.layers))
        for container, key, name, _ in self._places:
            container[key] = given[name]
        runs = runs_over_tasks(self.root) if task_operations_active() else nullcontext()
        with math_attention(), self._call_context(), runs, _uncached():
            return self.root(*args, **kwargs)

    def rebound(self, given: Mapping[str, Tensor]) -> Iterator[tuple[str, Written]]:
        """Parameters and buffers that the pass has put something else in the place of."""
        for layer, table, container, key, name in self._tables:
            if container.get(key) is not given[name]:
                yield name, (layer, table, key, container.get(key))

    def placed(self) -> Iterator[tuple[str, Written]]:
        """What stands in the places of parameters and buffers after a call."""
        for layer, table, container, key, name in self._tables:
            yield name, (layer, table, key, container.get(key))

    def restored(self) -> bool:
        """Put everything back that the pass has assigned; whether that could be done.

        What still holds a layer, as activation checkpointing does until the backward pass, which
        runs the layer again, keeps the copy with the tensors of the call for itself.
        """
        if list(map(sys.getrefcount, self.layers)) != self._counts:
            return False
        for container, key, _, place in self._places:
            container[key] = place
        self.changed = not self._state.holds()
        return not self.changed or self._state.restored()


class _Snapshot:
    """The attributes of layers at one time, and what stood in containers and objects in them."""

    def __init__(self, layers: Sequence[nn.Module], containers: Sequence[Any]) -> None:
        self._live = [vars(layer) for layer in layers]
        self._then = [dict(live) for live in self._live]
        self._values = [value for then in self._then for value in then.values()]
        buffers = {id(layer._buffers) for layer in layers}
        tables = {id(live) for live in self._live}
        held = list({id(v): v for v in containers if id(v) not in tables}.values())
        self._sized = [*self._live, *held]
        self._sizes = list(map(len, self._sized))
        self._containers: list[Iterable[Any]] = [
            v.values() if isinstance(v, dict) else v for v in held if v and id(v) not in buffers
        ]
        self._contents = list(chain.from_iterable(self._containers))

    def holds(self) -> bool:
        """Whether everything is as it was; buffers may be others."""
        return (
            list(map(len, self._sized)) == self._sizes
            and self._same()
            and all(map(operator.is_, chain.from_iterable(self._containers), self._contents))
        )

    def restored(self) -> bool:
        """Put the attributes back; whether their containers hold what they held."""
        for live, then in zip(self._live, self._then):
            live.clear()
            live.update(then)
        return self.holds()

    def _same(self) -> bool:
        return all(map(operator.is_, chain.from_iterable(map(_VALUES, self._live)), self._values))


_VALUES = dict.values


def _sources(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, str]]:
    """Where each tensor stands in the module: table and key."""
    found = {}
    for prefix, layer in module.named_modules():
        for table in (layer._parameters, layer._buffers):
            for key in table:
                found[f"{prefix}.{key}" if prefix else key] = (table, key)
    return {name: found[name] for name in tensors}


class _Attention:
    """Attention by some of torch's backends, as ``sdpa_kernel``, which takes as long as a layer."""

    def __init__(self, wanted: Sequence[bool]) -> None:
        self._wanted = wanted

    def __enter__(self) -> None:
        self._before: list[Any] = [(enable, enabled()) for enable, enabled in _BACKENDS]
        for (enable, enabled), wanted in zip(self._before, self._wanted):
            if enabled != wanted:
                enable(wanted)

    def __exit__(self, *_: object) -> None:
        for (enable, enabled), wanted in zip(self._before, self._wanted):
            if enabled != wanted:
                enable(enabled)


def math_attention() -> AbstractContextManager[None]:
    """Attention by torch's MATH backend alone, the one that has second derivatives."""
    return _Attention((False, False, False, True))


def attention_as_now() -> AbstractContextManager[None]:
    """A block with the backends that are enabled where this is called."""
    return _Attention([enabled() for _, enabled in _BACKENDS])


_BACKENDS = tuple(
    (getattr(cuda, f"enable_{name}_sdp"), getattr(cuda, f"{name}_sdp_enabled"))
    for name in ("flash", "mem_efficient", "cudnn", "math")
)


@contextmanager
def _uncached() -> Iterator[None]:
    """Without torch's cache of parametrised weights, which would outlive the call's tensors."""
    enabled = parametrize._cache_enabled
    if not enabled:
        yield
        return
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        parametrize._cache_enabled = enabled
