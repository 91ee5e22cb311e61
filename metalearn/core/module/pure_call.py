"""A module's forward pass with given tensors, run on private copies of the module's structure.

What forward stores, assigns or mutates lands in a copy; the module itself is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn.core.module.call_context import refuse_hooks
from metalearn.core.module.private_copy import ModuleTemplate, PrivateCopy
from metalearn.core.module.side_effects import check_side_effects, write_refusal
from metalearn.core.precision import network_type, networks_in, to_type
from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError

__all__ = ["PureCall"]

_KEPT = 4  # templates: train, eval, and what else a user switches between


class PureCall:
    """``call(params, buffers, *args, **kwargs)``: a module with other tensors in its own's place.

    Calls follow the module as it is at the time: its mode, its hooks, its attributes. The first
    call in each mode is tried on copies of one task's values: a forward pass that changes something
    which the next would read is refused by the layer's name; what it merely leaves behind, such as
    a stored activation, is dropped. A copy serves one call at a time, so that calls may nest and
    run in threads.

    Args:
        module: read at each call.
        check: called with the module in each mode before its first call.
        needed: names that ``params`` and ``buffers`` have to have; a name in neither has the
            module's own tensor.
        keeps_buffers: whether buffers that forward writes are written into those that are given;
            else that is refused.
    """

    def __init__(
        self,
        module: nn.Module,
        check: Callable[[nn.Module], None] | None = None,
        *,
        needed: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset()),
        keeps_buffers: bool = False,
    ) -> None:
        self.module, self._check = module, check
        self._needed, self._keeps_buffers = needed, keeps_buffers
        self._templates: list[ModuleTemplate] = []

    def __getstate__(self) -> dict[str, Any]:
        """All but the copies, which are made anew."""
        return {**vars(self), "_templates": []}

    def __call__(self, params: Any, buffers: Any, *args: Any, **kwargs: Any) -> Any:
        """What the module gives for the other arguments.

        Raises:
            SettingError: names that are missing; a forward pass that cannot be a pure function, by
                the layer's name.
        """
        dtype = network_type()
        if dtype is not None:
            return self._in_type(dtype, params, buffers, args, kwargs)
        for setting, given, names in zip(("params", "buffers"), (params, buffers), self._needed):
            if type(given) is not dict and not isinstance(given, Mapping):
                kind = type(given).__name__
                raise SettingError(setting, kind, f"a dict with {sorted(names)} is needed")
            if not given.keys() >= names:
                raise SettingError(setting, sorted(given), f"{sorted(names)} are all needed")
        if torch.compiler.is_compiling():
            with sdpa_kernel(SDPBackend.MATH):
                return functional_call(self.module, {**buffers, **params}, args, kwargs)
        template = self._current()
        tensors = template.tensors(params, buffers)
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            check_tensors({**buffers, **params}, "params")
        if template.reusable is None:
            check_side_effects(template, tensors, args, kwargs, self._keeps_buffers)
        if template.hangs_hooks:
            refuse_hooks(self.module, "hooks on tensors")
        copied = template.borrow()
        try:
            before = template.versions(tensors, not self._keeps_buffers)
            outputs = copied.run(tensors, args, kwargs)
            after = template.versions(tensors, not self._keeps_buffers)
            if before != after:
                name = template.written(before, after)
                layer = copied.root.get_submodule(name.rpartition(".")[0])
                raise write_refusal(copied.root, layer, name.rpartition(".")[2] or "a tensor")
            self._keep_assigned(template, copied, tensors)
        finally:
            template.give_back(copied)
        if copied.changed and not template.changes:  # which the trial's inputs did not bring about
            template.changes = True
            check_side_effects(template, tensors, args, kwargs, self._keeps_buffers)
        return outputs

    def _in_type(
        self, dtype: torch.dtype, params: Any, buffers: Any, args: Any, kwargs: Any
    ) -> Any:
        """The call computed in a type, with outputs in that of the parameters; see `networks_in`.

        Of buffers that are written, the change is added to those that are given.
        """
        given = [value.dtype for value in params.values() if value.is_floating_point()]
        cast = to_type(dict(buffers), dtype)
        kept = dict(self.module.named_buffers()) if self._keeps_buffers else {}
        before = {n: v.clone() for n, v in cast.items() if n in kept and v is not buffers[n]}
        with networks_in(None):
            inputs = to_type(args, dtype), to_type(kwargs, dtype)
            outputs = self(to_type(dict(params), dtype), cast, *inputs[0], **inputs[1])
        for name, value in before.items():
            old, new = buffers[name], cast[name]
            moved = old + (new - value).to(old.dtype)
            old.copy_(torch.where(new == value, old, moved))  # infinite ones have no difference
        return to_type(outputs, given[0]) if given else outputs

    def _current(self) -> ModuleTemplate:
        """The module's structure as it is now."""
        for template in self._templates:
            if template.is_current():
                return template
        if self._check is not None:
            self._check(self.module)
        template = ModuleTemplate(self.module)
        self._templates = [template, *self._templates[: _KEPT - 1]]
        return template

    def _keep_assigned(
        self, template: ModuleTemplate, copied: PrivateCopy, given: Mapping[str, Tensor]
    ) -> None:
        """Keep buffers that forward has assigned, or refuse that."""
        for name, (layer, table, key, new) in copied.rebound(given):
            if name in template.rebound:
                continue
            kept = self._keeps_buffers and table == "_buffers" and isinstance(new, Tensor)
            if not kept or new.shape != given[name].shape:
                raise write_refusal(copied.root, layer, key)
            try:
                given[name].copy_(new.detach())
            except RuntimeError as error:
                reason = "which this engine cannot keep for each member"
                raise write_refusal(copied.root, layer, key, reason) from error
