"""The user's module is as it was after any call; what cannot be pure is refused by name."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from metalearn.core import (
    clipped_gradient,
    functionalize,
    hvp,
    meta_gradient,
    per_sample_gradients,
    per_sample_norms,
    sgd,
)
from metalearn.core.module.copying import copy_module
from metalearn.core.module.module_structure import attributes
from metalearn.errors import SettingError
from metalearn.types import TaskBatch
from tests.support import leaky_networks, oracles
from tests.support.leaky_networks import PLAIN, REFUSED, RIGHT, Centre, Keeps, Net, Twice

ENGINES = ("batched", "vmap", "loop")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(seed), dtype=torch.float64)


def tasks() -> TaskBatch:
    return TaskBatch(
        (drawn(2, 4, 3), drawn(2, 4, 2, seed=1)), (drawn(2, 4, 3, seed=2), drawn(2, 4, 2, seed=3))
    )


class Unchanged:
    """Asserts that a module is as it was: objects, values, attributes and modes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.values = {name: value.detach().clone() for name, value in self.tensors.items()}
        self.attributes = attributes(module)

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        now = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        assert now.keys() == self.tensors.keys()
        for name, value in now.items():
            assert value is self.tensors[name], name
            assert torch.equal(value, self.values[name]), name
        assert records_apart(attributes(self.module)) == records_apart(self.attributes)


def records_apart(found: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """Without hooks, which may record outside of the module."""
    return {place: value for place, value in found.items() if place[1] != "_forward_hooks"}


def plain_meta_gradient(make: Callable[[], nn.Module], batch: TaskBatch) -> list[Tensor]:
    """One inner step of 0.1 by ordinary autograd, on a network that is made anew for each call."""
    start = {n: p.detach().requires_grad_() for n, p in make().named_parameters()}
    total = torch.zeros((), dtype=torch.float64)
    for t in range(2):

        def loss(params: dict[str, Tensor], part: tuple[Tensor, Tensor], t: int = t) -> Tensor:
            outputs: Tensor = functional_call(make(), params, (part[0][t],))
            return (outputs - part[1][t]).square().mean()

        grads = torch.autograd.grad(
            loss(start, batch.support), list(start.values()), create_graph=True, allow_unused=True
        )
        moved = {n: p if g is None else p - 0.1 * g for (n, p), g in zip(start.items(), grads)}
        total = total + loss(moved, batch.query) / 2
    found = torch.autograd.grad(total, list(start.values()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(start.values(), found)]


def loss_of(net: nn.Module) -> tuple[Any, Any]:
    apply, params, buffers = functionalize(net)
    return lambda p, b: (apply(p, buffers, b[0]) - b[1]).square().mean(), params


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", RIGHT)
def test_meta_gradients_are_right_and_leave_the_module_alone(kind: str, engine: Any) -> None:
    net = RIGHT[kind]()
    expected = plain_meta_gradient(PLAIN[kind], tasks())
    with Unchanged(net):
        loss, params = loss_of(net)
        for _ in range(2):
            found = meta_gradient(
                loss, params, tasks(), optimizer=sgd(0.1), steps=1, engine=engine
            ).grads
            for name, value in zip(params, expected):
                torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(net(drawn(4, 3)), RIGHT[kind]()(drawn(4, 3)))


@pytest.mark.parametrize("kind", RIGHT)
def test_per_sample_functions_and_curvature_leave_the_module_alone(kind: str) -> None:
    net, batch = RIGHT[kind](), (drawn(4, 3), drawn(4, 2, seed=1))
    values = {n: p.detach().requires_grad_() for n, p in PLAIN[kind]().named_parameters()}
    rows = []
    for x, y in zip(*batch):
        outputs: Any = functional_call(PLAIN[kind](), values, (x[None],))
        grads = torch.autograd.grad(
            (outputs - y).square().mean(), list(values.values()), materialize_grads=True
        )
        rows.append(torch.cat([g.flatten() for g in grads]))
    exact = torch.stack(rows)
    with Unchanged(net):
        loss, params = loss_of(net)
        grads = per_sample_gradients(loss, params, batch)
        flat = torch.cat([grads[name].flatten(1) for name in values], 1)
        norms = per_sample_norms(loss, params, batch)
        mean = clipped_gradient(loss, params, batch, max_norm=1e9).grads
        hvp(lambda p: loss(p, batch), params, params)
    torch.testing.assert_close(flat, exact)
    torch.testing.assert_close(norms, exact.norm(dim=1))
    torch.testing.assert_close(torch.cat([mean[n].flatten() for n in values]), exact.mean(0))


@pytest.mark.parametrize("engine", [*ENGINES, "plain"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_next_call_would_read_is_refused_by_name(kind: str, engine: Any) -> None:
    make, message = REFUSED[kind]
    net, state = make(), torch.get_rng_state()
    with Unchanged(net):
        loss, params = loss_of(net)
        with pytest.raises(SettingError, match=message) as caught:
            if engine == "plain":
                loss(params, (drawn(4, 3), drawn(4, 2)))
            meta_gradient(loss, params, tasks(), optimizer=sgd(0.1), steps=1, engine=engine)
        assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("where", ["plainly", "under vmap", "under grad"])
def test_a_call_that_raises_leaves_the_module_alone(where: str) -> None:
    class Fails(Twice):
        def forward(self, x: Tensor) -> Any:
            self.features = self.inner(x)
            self.inner.weight = nn.Parameter(self.head.weight)
            raise ValueError("in the middle")

    net = Fails()
    with Unchanged(net):
        apply, params, buffers = functionalize(net)

        def call(x: Tensor) -> Any:
            return apply(params, buffers, x).sum()

        run = {
            "plainly": call,
            "under vmap": torch.func.vmap(call),
            "under grad": torch.func.grad(call),
        }[where]
        for _ in range(2):
            with pytest.raises(ValueError, match="in the middle"):
                run(drawn(4, 3))


def test_later_modes_hooks_and_attributes_are_followed_and_checked() -> None:
    net = Centre().eval()
    apply, params, buffers = functionalize(net)
    x = drawn(4, 3)
    torch.testing.assert_close(apply(params, buffers, x), net(x))
    net.train()
    with pytest.raises(SettingError, match=r"^module\[\]='Centre': its forward pass writes 'mean'"):
        apply(params, buffers, x)
    net.eval()
    handle = net.inner.register_forward_hook(lambda layer, given, output: 2 * output)
    torch.testing.assert_close(apply(params, buffers, x), net(x))
    handle.remove()
    net.head = nn.Linear(3, 2, dtype=torch.float64)  # its weights are not in the tree
    own = {name: value.detach() for name, value in net.named_parameters()}
    torch.testing.assert_close(apply(own, buffers, x), net(x))
    drops = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).eval()
    apply, params, buffers = functionalize(drops)
    drops.train()
    with pytest.raises(SettingError, match=r"^module\[1\]='Dropout'"):
        apply(params, buffers, torch.ones(1, 3))


@pytest.mark.parametrize("kind", [k for k in RIGHT if k != "caches"])
def test_a_copy_serves_again(kind: str) -> None:
    """Only what forward leaves in containers makes the next call copy anew."""
    apply, params, buffers = functionalize(RIGHT[kind]())
    layers = []
    for _ in range(2):
        apply(params, buffers, drawn(4, 3))
        (template,) = apply._templates
        layers.append(template.borrow())
        template.give_back(layers[-1])
    assert layers[0] is layers[1]


def test_a_hook_records_calls_and_no_trials() -> None:
    net, calls = Net(), []
    net.inner.register_forward_hook(lambda layer, x, y: calls.append(y.shape))
    apply, params, buffers = functionalize(net)
    for _ in range(3):
        apply(params, buffers, drawn(4, 3))
    assert calls == [(4, 3)] * 3


def test_a_cache_of_parametrised_weights_is_not_taken_from_other_parameters() -> None:
    net = leaky_networks.doubled()
    apply, params, buffers = functionalize(net)
    other, x = {name: value + 1 for name, value in params.items()}, drawn(4, 3)
    first, second = apply(params, buffers, x), apply(other, buffers, x)
    with parametrize.cached():
        torch.testing.assert_close(apply(params, buffers, x), first)
        torch.testing.assert_close(apply(other, buffers, x), second)
    assert not torch.allclose(first, second)


def test_activation_checkpointing_runs_layers_again_with_the_tensors_of_the_call() -> None:
    """The backward pass comes when the call is over; torch's functional_call has other weights."""

    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Any:
            inner = torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)
            return self.head(torch.tanh(inner))

    found = []
    for make in (Net, Checkpointed):
        apply, params, buffers = functionalize(make())
        moved = {n: (2 * p).requires_grad_() for n, p in params.items()}
        x = drawn(4, 3).requires_grad_()
        found.append(torch.autograd.grad(apply(moved, buffers, x).square().sum(), x)[0])
    torch.testing.assert_close(found[1], found[0])


def test_calls_may_nest_and_run_in_threads() -> None:
    net = Keeps()
    apply, params, buffers = functionalize(net)
    inputs = [drawn(4, 3, seed=i) for i in range(8)]
    expected = [net(x).detach() for x in inputs]
    found: dict[int, Tensor] = {}

    def work(i: int) -> None:
        for _ in range(20):
            found[i] = apply(params, buffers, inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, value in enumerate(expected):
        torch.testing.assert_close(found[i], value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Embedding(5, 3, max_norm=1.0), r"max_norm=1 rewrites the weight.*=None"),
        (lambda: nn.EmbeddingBag(5, 3, max_norm=0.5), r"max_norm=0.5 rewrites the weight"),
        (lambda: torch.jit.script(nn.Linear(3, 2)), "TorchScript.*use the Python module"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_layers_that_cannot_work_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        functionalize(nn.Sequential(make()))


@pytest.mark.parametrize("kind", [k for k in RIGHT if k != "what cannot be copied"])
def test_copies_compute_the_same_and_share_nothing(kind: str) -> None:
    net = RIGHT[kind]()
    net(drawn(4, 3))  # leaves computed tensors behind
    twin = copy_module(net)
    expected = net(drawn(4, 3)).detach().clone()
    torch.testing.assert_close(twin(drawn(4, 3)), expected)
    with torch.no_grad():
        for value in twin.parameters():
            value.zero_()
    torch.testing.assert_close(net(drawn(4, 3)), expected)
    assert not torch.allclose(twin(drawn(4, 3)), expected)
    assert len(list(twin.parameters())) == len(list(net.parameters()))


def test_a_copy_after_transforms_can_be_copied_again() -> None:
    net = Keeps()
    loss, params = loss_of(net)
    meta_gradient(loss, params, tasks(), optimizer=sgd(0.1), steps=1, engine="batched")
    copy.deepcopy(net)(drawn(4, 3))


class _Fresh:
    """What holds a list, of which it shows another each time, as objects with caches do."""

    def __init__(self) -> None:
        self.cache = [torch.ones(2)]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "cache": []}


class _Holding(nn.Module):
    """Holds several of them, and makes one in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.held = nn.Linear(2, 2), [_Fresh() for _ in range(20)]

    def forward(self, inputs: Tensor) -> Tensor:
        self.held[3].cache = [torch.ones(3)] * 5
        outputs: Tensor = self.layer(inputs)
        return outputs


def test_what_objects_show_anew_each_time_has_no_identity() -> None:
    _, *others = attributes(_Holding())["", "held"][1]
    assert all(kind is _Fresh and "met before" not in str(parts) for kind, parts in others)
    apply, params, buffers = functionalize(module := _Holding())
    for _ in range(3):
        torch.testing.assert_close(
            apply(params, buffers, torch.ones(1, 2)), module(torch.ones(1, 2))
        )
