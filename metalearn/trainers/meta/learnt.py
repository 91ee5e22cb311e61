"""What a learner with an inner loop learns beside the weights: hyperparameters of its optimiser.

They are entries ``learnt.lr``, ``learnt.lr.<parameter>``, ``learnt.momentum``, … of the learner's
parameters, beside those of the network; an entry of M members is ``[M, ...]``.

Axes: M members, K inner steps of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.trainers.members.trained import LEARNT
from metalearn.trainers.meta.settings import MAML
from metalearn.types import Params

__all__ = ["LearntValues", "learnt_values"]


class LearntValues(nn.Module):
    """Hyperparameters of an inner optimiser as parameters of a module, under dotted names.

    Args:
        values: by hyperparameter, a tensor, or one for each parameter that adapts, by its name.
        vectors: names of parameters with one axis, whose step sizes ``[K]`` have to be told from
            those of their elements.
    """

    def __init__(self, values: Mapping[str, Any], vectors: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._vectors = vectors
        self._parameters_of = {n: list(v) for n, v in values.items() if isinstance(v, dict)}
        self._names = list(values)
        for name, value in values.items():
            if name not in self._parameters_of:
                _register(self, name, value)
                continue
            for parameter, rate in value.items():
                _register(self, f"{name}.{parameter}", rate)

    def entries(self) -> dict[str, Tensor]:
        """The values, without a graph, under the names that they have among the parameters."""
        return {f"{LEARNT}{name}": value.detach() for name, value in self.named_parameters()}

    def without(self, params: Params) -> dict[str, Tensor]:
        """The others of a learner's parameters: those of its network."""
        return {name: value for name, value in params.items() if not name.startswith(LEARNT)}

    def rates_of(self, names: Iterable[str]) -> list[str]:
        """The entries that are step sizes of these parameters of the network alone."""
        own = self._parameters_of.get("lr", [])
        return [f"{LEARNT}lr.{name}" for name in names if name in own]

    def tree(self, params: Params) -> Any:
        """Entries of a learner's parameters, of one network or of M, for an inner optimiser.

        They are a tree like `metalearn.core.InnerOptimizer.learnt`.
        """
        found = self.by_hyperparameter(params)
        return found["lr"] if self._names == ["lr"] else found

    def by_hyperparameter(self, params: Params) -> dict[str, Any]:
        """The same by name, also where there are step sizes alone."""
        found: dict[str, Any] = {}
        for name in self._names:
            if name not in self._parameters_of:
                found[name] = params[f"{LEARNT}{name}"]
                continue
            rates = {p: params[f"{LEARNT}{name}.{p}"] for p in self._parameters_of[name]}
            found[name] = {
                p: rate[..., None] if p in self._vectors else rate for p, rate in rates.items()
            }
        return found

    def gradients(self, tree: Any) -> dict[str, Tensor]:
        """The gradient of a `tree` as entries of a learner's gradient."""
        given = {"lr": tree} if self._names == ["lr"] else tree
        found: dict[str, Tensor] = {}
        for name in self._names:
            if name not in self._parameters_of:
                found[f"{LEARNT}{name}"] = given[name]
                continue
            for p, rate in given[name].items():
                found[f"{LEARNT}{name}.{p}"] = rate.squeeze(-1) if p in self._vectors else rate
        return found


def learnt_values(maml: MAML, adapting: Mapping[str, Tensor], count: int | None) -> LearntValues:
    """The values that settings have learnt, where they start.

    Args:
        maml: says what is learnt.
        adapting: parameters of one network that the inner loop changes.
        count: M; None for a single network.
    """
    numbers, first = maml.hyperparameters, next(iter(adapting.values()))
    steps = (maml.inner_steps,) if maml.lr_per in ("step", "parameter_and_step") else ()

    def start(name: str, like: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        lead = () if count is None else (count,)
        return torch.full((*lead, *shape), numbers[name], dtype=like.dtype, device=like.device)

    values: dict[str, Any] = {name: start(name, first) for name in maml.learnt_names}
    vectors: frozenset[str] = frozenset()
    if "lr" in values:
        values["lr"] = start("lr", first, steps)
        if maml.lr_per in ("parameter", "parameter_and_step"):
            values["lr"] = {name: start("lr", p, steps) for name, p in adapting.items()}
            vectors = frozenset(n for n, p in adapting.items() if steps and p.dim() == 1)
    return LearntValues(values, vectors)


def _register(module: nn.Module, dotted: str, value: Tensor) -> None:
    """Have a value as a parameter under a dotted name."""
    *path, last = dotted.split(".")
    for part in path:
        if part not in dict(module.named_children()):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, nn.Parameter(value))
