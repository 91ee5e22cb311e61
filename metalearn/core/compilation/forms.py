"""The forms of trees, by which trees like one are told and built faster than by torch's pytree.

A form is a tree with a tensor of nothing at each leaf; axes: none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from metalearn.core.tree import TreeSpec, flatten, is_row, row_of, unflatten

__all__ = ["filled", "form_of", "same_form"]

_NOTHING = torch.empty(0)


def form_of(tree: Any) -> Any:
    """The tree with a tensor of nothing at each leaf, for `same_form` and `filled`.

    Of nodes that pytree alone knows, whose classes may look at what they are given, it has specs.
    """
    if isinstance(tree, Tensor):
        return _NOTHING
    kind = type(tree)
    if kind is dict:
        return {key: form_of(value) for key, value in tree.items()}
    if is_row(kind):
        return row_of(kind, map(form_of, tree))
    return flatten(tree)[1]


def filled(form: Any, values: Iterable[Any]) -> Any:
    """A tree of a form with ``values`` as its leaves, as `unflatten`, which takes longer."""
    return _filled(form, iter(values))


def same_form(tree: Any, form: Any) -> bool:
    """Whether a tree of tensors has this form, by `form_of`."""
    if isinstance(form, TreeSpec):
        values, spec = flatten(tree)
        return spec == form and all(isinstance(value, Tensor) for value in values)
    kind = type(tree)
    if isinstance(tree, Tensor) or kind is not type(form):
        return isinstance(tree, Tensor) and isinstance(form, Tensor)
    if kind is dict:
        return list(tree) == list(form) and all(map(same_form, tree.values(), form.values()))
    return len(tree) == len(form) and all(map(same_form, tree, form))


def _filled(form: Any, rest: Iterator[Any]) -> Any:
    if isinstance(form, Tensor):
        return next(rest)
    kind = type(form)
    if kind is dict:
        return {key: _filled(value, rest) for key, value in form.items()}
    if isinstance(form, TreeSpec):
        return unflatten(list(islice(rest, form.num_leaves)), form)
    return row_of(kind, (_filled(value, rest) for value in form))
