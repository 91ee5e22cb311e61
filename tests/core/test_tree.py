"""Arithmetic and names over parameter trees."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from itertools import product
from operator import is_
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metalearn.core import tree
from metalearn.core.compilation import forms
from metalearn.errors import SettingError


class Layer(NamedTuple):
    weight: Tensor
    bias: Tensor


def nested() -> dict[str, Any]:
    return {
        "net": [Layer(torch.tensor([1.0, 2.0]), torch.tensor(3.0)), torch.tensor([[4.0]])],
        "pair": (torch.tensor(5.0), {"deep": torch.tensor([6.0])}),
    }


NAMES = ["net.0.weight", "net.0.bias", "net.1", "pair.0", "pair.1.deep"]


def test_names_are_dotted_paths_in_the_order_of_the_leaves() -> None:
    names = tree.leaf_names(nested())
    assert names == NAMES
    values = [value.flatten().tolist() for value in tree.leaves(nested())]
    assert values == [[1.0, 2.0], [3.0], [4.0], [5.0], [6.0]]


def test_unflatten_undoes_flatten() -> None:
    values, spec = tree.flatten(nested())
    back = tree.unflatten(values, spec)
    assert isinstance(back["net"][0], Layer) and isinstance(back["pair"], tuple)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(back), tree.leaves(nested())))


def test_arithmetic_leaf_by_leaf() -> None:
    total = tree.add_scaled(nested(), nested(), torch.tensor(2.0))
    assert total["net"][0].weight.tolist() == [3.0, 6.0]
    assert total["pair"][1]["deep"].tolist() == [18.0]
    assert tree.scale(nested(), -1)["pair"][0] == -5
    doubled = tree.tree_map(lambda a, b: a * b, nested(), nested())
    assert [float(leaf.sum()) for leaf in tree.leaves(doubled)] == [5.0, 9.0, 16.0, 25.0, 36.0]


def test_dicts_in_another_order_are_matched_by_key() -> None:
    one = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    other = {"b": torch.tensor(20.0), "a": torch.tensor(10.0)}
    assert tree.add_scaled(one, other, 1.0) == {"a": torch.tensor(11.0), "b": torch.tensor(22.0)}


def test_flat_lists_and_dicts_are_mapped_like_any_tree() -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert tree.tree_map(lambda a, b: a * b, [one, two], [3.0, two]) == [3.0, 4.0]
    assert tree.tree_map(lambda a, b: a * b, {"a": two}, {"a": 3.0}) == {"a": 6.0}
    assert tree.tree_map(torch.neg, []) == [] and tree.tree_map(torch.neg, {}) == {}
    for values, others in ([[one, two], [one]], [{"a": one}, {"b": one}], [[one], (one,)]):
        with pytest.raises(ValueError, match="expected|mismatch"):
            tree.tree_map(torch.add, values, others)


class Pair(NamedTuple):
    first: Any
    second: Any


A, B, C = (torch.tensor(float(number)) for number in range(3))
TREES = [
    A,
    [],
    {},
    (A, B),
    [A, [B, {"x": C}]],
    {"b": A, "a": (B, C)},
    Pair(A, {"x": B}),
    OrderedDict(b=A, a=[B]),
    defaultdict(list, a=[A]),
    {"a": OrderedDict(b=A), "c": Pair(B, None)},
    [None, 2.0, nn.Parameter(A)],
    torch.return_types.max((A, B)),
]


@pytest.mark.parametrize("one", TREES, ids=lambda t: type(t).__name__)
def test_trees_are_taken_apart_as_by_torch(one: Any) -> None:
    values, spec = pytree.tree_flatten(one)
    assert all(map(is_, tree.leaves(one), values)) and len(tree.leaves(one)) == len(values)
    numbered = iter(range(len(values)))
    names = {id(value): next(numbered) for value in values}
    found, wanted = (
        m(lambda x, y: (names[id(x)], x is y), one, one) for m in (tree.tree_map, pytree.tree_map)
    )
    assert found == wanted and type(found) is type(wanted)
    again = forms.filled(forms.form_of(one), values)
    assert pytree.tree_flatten(again)[1] == spec
    assert all(map(is_, tree.leaves(again), values))


def test_forms_are_the_same_where_torchs_are() -> None:
    tensors = [one for one in TREES if all(isinstance(v, Tensor) for v in tree.leaves(one))]
    tensors += [{"a": (B, C), "b": A}, {"b": A, "a": [B, C]}, (A, B, C), ((A, B),), Pair(A, B)]
    for one, other in product(tensors, tensors):
        same = pytree.tree_flatten(one)[1] == pytree.tree_flatten(other)[1]
        assert forms.same_form(other, forms.form_of(one)) == same
    assert not forms.same_form(OrderedDict(a=1.0), forms.form_of(OrderedDict(a=A)))


def test_inner_products_norms_and_vectors() -> None:
    assert tree.dot(nested(), nested()) == 1 + 4 + 9 + 16 + 25 + 36
    assert tree.norm({"a": torch.tensor([3.0]), "b": torch.tensor(4.0)}) == 5
    vector, unravel = tree.ravel(nested())
    assert vector.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    back = unravel(2 * vector)
    assert isinstance(back["net"][0], Layer) and back["net"][1].tolist() == [[8.0]]
    rows = torch.vmap(unravel)(torch.stack([vector, -vector]))
    assert rows["pair"][0].tolist() == [5.0, -5.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_is_finite(bad: float) -> None:
    assert tree.is_finite(nested())
    assert not tree.is_finite({**nested(), "more": torch.tensor([0.0, bad])})


@pytest.mark.parametrize(
    ("patterns", "hits"),
    [
        (None, []),
        ([], []),
        ("*", NAMES),
        ("net.*", NAMES[:3]),
        ("*.bias", NAMES[1:2]),
        (["pair.0", "net.?"], ["net.1", "pair.0"]),
        ("pair.1.deep", ["pair.1.deep"]),
    ],
)
def test_match_names(patterns: Any, hits: list[str]) -> None:
    found = tree.match_names(nested(), patterns, "frozen")
    assert [name for name, hit in zip(NAMES, found) if hit] == hits


@pytest.mark.parametrize("patterns", ["nett.*", ["net.*", "nett.*"], "NET.*"])
def test_a_pattern_that_matches_nothing_is_named(patterns: Any) -> None:
    with pytest.raises(SettingError, match=r"frozen='(nett|NET)\.\*'.*net\.0\.weight"):
        tree.match_names(nested(), patterns, "frozen")


def test_works_inside_vmap() -> None:
    stacked = {"a": torch.tensor([[3.0, 4.0], [6.0, 8.0]])}
    norms = torch.func.vmap(lambda p: tree.leaves(tree.scale(p, 2.0))[0].norm())(stacked)
    assert norms.tolist() == [10.0, 20.0]
