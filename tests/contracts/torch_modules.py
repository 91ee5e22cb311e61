"""torch's own list of modules with inputs, through the entry points, against plain autograd.

Of each case every entry point gives a verdict: ``right``, ``refused`` (a `SettingError`), ``no
oracle`` (plain autograd has none, or the inputs are no batch), or what is wrong. Cases without
parameters or with keyword inputs are left out. ``python -m tests.contracts.torch_modules`` counts.
Axes: T = 2 tasks, N samples.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten

from metalearn import Ensemble
from metalearn.core import (
    clipped_gradient,
    functionalize,
    hvp,
    meta_gradient,
    per_sample_gradients,
    per_sample_norms,
    sgd,
)
from metalearn.errors import SettingError
from metalearn.types import TaskBatch
from tests.support.devices import DEVICE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a package that torch's tests would like to have
    from torch.testing._internal.common_modules import ModuleInfo, module_db

__all__ = ["ENTRIES", "INFOS", "Case", "cases_of", "verdict"]

Params = dict[str, Tensor]
INFOS: tuple[ModuleInfo, ...] = tuple(module_db)

_PER_MODULE = 4
_RATE = 0.1


@dataclass(frozen=True)
class Case:
    """A module of the list, made anew at will, and inputs of it."""

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]


def cases_of(info: ModuleInfo) -> Iterator[Case]:
    """The first cases of a kind of module that plain autograd can differentiate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its modules
        yield from list(_cases_of(info))


def _cases_of(info: ModuleInfo) -> Iterator[Case]:
    with _seeded():
        try:
            samples = info.module_inputs_func(
                info, device=DEVICE.type, dtype=torch.float64, requires_grad=False, training=True
            )
        except (NotImplementedError, RuntimeError):
            return
    found = 0
    for sample in samples:
        given = sample.forward_input
        if given is None or given.kwargs or not given.args or found == _PER_MODULE:
            continue
        if not all(isinstance(value, Tensor) for value in given.args):
            continue
        made = sample.constructor_input
        make = partial(_made, info.module_cls, made.args, made.kwargs)
        try:
            module = make()
            trained = [p for p in module.parameters() if not is_lazy(p)]
            with _seeded():
                loss = summed(module(*given.args))
        except (RuntimeError, TypeError, ValueError):
            continue
        if trained and loss.requires_grad:
            found += 1
            yield Case(f"{info.name}, {found}", make, tuple(given.args))


def _made(kind: type[nn.Module], args: Any, kwargs: Any) -> nn.Module:
    """The module in training mode, its parameters drawn from a seed."""
    with _seeded():
        module = kind(*args, **kwargs).double().to(DEVICE)
        with torch.no_grad():
            for value in module.parameters():
                if not is_lazy(value):
                    value.copy_(0.4 * torch.randn_like(value))
    return module


class _seeded:
    """torch's and Python's global random states set, and put back."""

    def __enter__(self) -> None:
        self._fork = torch.random.fork_rng(devices=[])
        self._python = random.getstate()
        self._fork.__enter__()
        torch.manual_seed(0)
        random.seed(0)

    def __exit__(self, *_: object) -> None:
        self._fork.__exit__(None, None, None)
        random.setstate(self._python)


def summed(outputs: Any) -> Tensor:
    """A loss of all outputs, weighed unequally."""
    values = [
        v for v in tree_flatten(outputs)[0] if isinstance(v, Tensor) and v.is_floating_point()
    ]
    terms = [
        (v * torch.arange(1, v.numel() + 1, dtype=v.dtype, device=v.device).view_as(v).sin()).sum()
        + 0.1 * v.square().sum()
        for v in values
    ]
    return torch.stack(terms).sum() / max(1, sum(v.numel() for v in values))


def jittered(x: Tensor, seed: int) -> Tensor:
    if not x.is_floating_point():
        return x
    generator = torch.Generator().manual_seed(7 + seed)
    return x + 0.1 * seed * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)


def start_of(module: nn.Module) -> Params:
    return {name: value.detach().requires_grad_() for name, value in module.named_parameters()}


def gradients(loss: Tensor, params: Params, **settings: Any) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(params.values()), allow_unused=True, **settings)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params.values(), found)]


def plain_loss(case: Case, params: Params, inputs: Any, mode: bool = True) -> Tensor:
    """On a network that is made for this call: nothing leaks from one into the next."""
    return summed(functional_call(case.make().train(mode), params, tuple(inputs)))


# --- entry points: what is found, and what is right -----------------------------------------------


def meta(engine: Any, case: Case) -> tuple[Callable[[], Any], Callable[[], list[Tensor]]]:
    """One inner step of gradient descent, by an engine."""
    parts = [
        tuple(torch.stack([jittered(x, i), jittered(x, i + 1)]) for x in case.inputs)
        for i in (1, 3)
    ]
    tasks = TaskBatch(*parts)

    def found() -> Any:
        apply, params, buffers = functionalize(case.make(), vectorize=engine != "loop")
        return meta_gradient(
            lambda p, batch: summed(apply(p, buffers, *batch)),
            params, tasks, optimizer=sgd(_RATE), steps=1, engine=engine,
        ).grads  # fmt: skip

    def right() -> list[Tensor]:
        params = start_of(case.make())
        total = torch.zeros((), dtype=torch.float64, device=DEVICE)
        for t in range(2):
            one, other = ([x[t] for x in part] for part in tasks)
            inner = gradients(plain_loss(case, params, one), params, create_graph=True)
            moved = {n: p - _RATE * g for (n, p), g in zip(params.items(), inner)}
            total = total + plain_loss(case, moved, other) / 2
        return gradients(total, params)

    return found, right


def stacked(case: Case) -> tuple[Callable[[], Any], Callable[[], list[Tensor]]]:
    """Outputs of two members in evaluation mode."""
    members = [case.make().eval(), case.make().eval()]
    with torch.no_grad():
        for value in members[1].parameters():
            value.mul_(-0.5)

    def found() -> Any:
        with torch.no_grad():
            return Ensemble.from_modules(members).eval()(*case.inputs)

    def right() -> list[Tensor]:
        with torch.no_grad():
            rows = [tree_flatten(member(*case.inputs))[0] for member in members]
        return [torch.stack(values) for values in zip(*rows)]

    return found, right


def samples(what: str, case: Case) -> tuple[Callable[[], Any], Callable[[], list[Tensor]]]:
    """Gradients of single samples in evaluation mode, their norms, their clipped mean."""
    count = len(case.inputs[0]) if case.inputs[0].dim() else 0
    if count < 2 or any(x.dim() == 0 or len(x) != count for x in case.inputs):
        raise _NotThisOne

    def rows() -> list[Tensor]:
        params = start_of(case.make())
        singles = [
            gradients(plain_loss(case, params, [x[i : i + 1] for x in case.inputs], False), params)
            for i in range(count)
        ]
        return [torch.stack(values) for values in zip(*singles)]

    def norms(grads: list[Tensor]) -> Tensor:
        return torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()

    def limit() -> float:
        return float(norms(rows()).median()) + 1e-12

    def found() -> Any:
        apply, params, buffers = functionalize(case.make().eval())

        def loss(p: Any, batch: Any) -> Tensor:
            return summed(apply(p, buffers, *batch))

        if what == "gradients":
            return per_sample_gradients(loss, params, case.inputs)
        if what == "norms":
            return per_sample_norms(loss, params, case.inputs)
        return clipped_gradient(loss, params, case.inputs, max_norm=limit()).grads

    def right() -> list[Tensor]:
        grads = rows()
        if what == "gradients":
            return grads
        sizes = norms(grads)
        if what == "norms":
            return [sizes]
        factors = (limit() / sizes.clamp_min(1e-300)).clamp_max(1.0)
        return [(g * factors.view(-1, *(1,) * (g.dim() - 1))).mean(0) for g in grads]

    return found, right


def curved(case: Case) -> tuple[Callable[[], Any], Callable[[], list[Tensor]]]:
    """A Hessian's product with a vector, in evaluation mode."""
    generator = torch.Generator().manual_seed(5)
    vector = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p)
        for n, p in start_of(case.make()).items()
    }

    def found() -> Any:
        apply, params, buffers = functionalize(case.make().eval())
        return hvp(lambda p: summed(apply(p, buffers, *case.inputs)), params, vector)

    def right() -> list[Tensor]:
        params = start_of(case.make())
        first = gradients(plain_loss(case, params, case.inputs, False), params, create_graph=True)
        along = [(g * v).sum() for g, v in zip(first, vector.values()) if g.requires_grad]
        if not along:
            return [torch.zeros_like(p) for p in params.values()]
        return gradients(torch.stack(along).sum(), params)

    return found, right


ENTRIES: dict[str, Callable[[Case], tuple[Callable[[], Any], Callable[[], list[Tensor]]]]] = {
    **{f"meta_gradient, {engine}": partial(meta, engine) for engine in ("batched", "vmap", "loop")},
    "Ensemble": stacked,
    "per_sample_gradients": partial(samples, "gradients"),
    "per_sample_norms": partial(samples, "norms"),
    "clipped_gradient": partial(samples, "clipped"),
    "hvp": curved,
}


class _NotThisOne(Exception):
    """An entry point that the case has nothing for."""


def verdict(case: Case, entry: str) -> str:
    """``right``, ``refused``, ``no oracle``, or what is wrong."""
    with warnings.catch_warnings(), _seeded():
        warnings.simplefilter("ignore")  # torch's own, of its modules
        try:
            found, right = ENTRIES[entry](case)
            with sdpa_kernel(SDPBackend.MATH):  # the one that has second derivatives
                expected = right()
        except (_NotThisOne, RuntimeError, ValueError, NotImplementedError):
            return "no oracle"  # torch itself cannot, or a sample is no batch
        try:
            values = tree_flatten(found())[0]
        except SettingError as error:
            return "refused" if "\n" not in str(error) else f"raw: {error!r}"
        except Exception as error:
            return f"raw: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    for one, other in zip(values, expected):
        if not torch.allclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True):
            return f"wrong: by {float((one - other).abs().max()):.1e}"
    return "right" if len(values) == len(expected) else "wrong: other outputs"


def main() -> None:
    """Print the counts of every entry point."""
    counts: dict[str, dict[str, int]] = {entry: {} for entry in ENTRIES}
    number = 0
    for info in INFOS:
        for case in cases_of(info):
            number += 1
            for entry in ENTRIES:
                found = verdict(case, entry)
                kind = found.partition(":")[0]
                counts[entry][kind] = counts[entry].get(kind, 0) + 1
                if ":" in found:
                    print(f"{case.name}: {entry}: {found}")
    print(f"{number} cases")
    for entry, found_counts in counts.items():
        print(f"{entry:24s}", found_counts)


if __name__ == "__main__":
    main()
