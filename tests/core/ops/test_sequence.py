"""Runs of layers in Sequentials: hooks, results that are pairs, refusals, and after use."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize, meta_gradient, sgd
from metalearn.core.ops import layers as operations
from metalearn.core.ops import runs_over_tasks, task_operations, task_operations_active
from metalearn.core.tree import leaves, tree_map
from metalearn.types import TaskBatch
from tests.support import oracles
from tests.support.layer_cases import PICTURE, STACKS, both, head, noise, norm


@pytest.mark.parametrize("where", ["0", "1", "2", "3", "3.0", ""])
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_hooks_on_layers_are_called(where: str, before: bool) -> None:
    """And what they give counts: the hook scales what it sees."""
    calls: list[type] = []

    def scaling(layer: nn.Module, *given: Any) -> Any:
        calls.append(type(layer))
        return (given[0][0] * 0.7,) if before else given[1] * 0.7

    layers = [nn.Conv2d(2, 3, 3), norm(3), nn.ReLU(), nn.Sequential(nn.Conv2d(3, 3, 2), nn.GELU())]
    module = oracles.draw(nn.Sequential(*layers, *head(3)))
    case = oracles.classification(module, PICTURE)
    plain = both(case)
    layer = module.get_submodule(where)
    register = layer.register_forward_pre_hook if before else layer.register_forward_hook
    handle = register(scaling)
    meta_gradient(*case, optimizer=sgd(0.1), steps=1, engine="batched")
    assert calls == [type(layer)] * 2  # one pass over all support sets, one over all query sets
    hooked = both(case)
    handle.remove()
    assert max(float((hooked[k] - plain[k]).abs().max()) for k in plain) > 1e-6


def test_a_pooling_that_gives_a_pair() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, return_indices=True))
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0].flatten(1))

    both(oracles.classification(oracles.draw(Net()), PICTURE))


REFUSED: dict[str, tuple[list[nn.Module], str]] = {
    "kernel_above_picture": ([nn.Conv2d(2, 3, (7, 3))], r"[Kk]ernel size"),
    "kernel_far_above_picture": ([nn.Conv2d(2, 3, 9)], r"size"),
    "channels": ([nn.Conv2d(3, 3, 3)], r"size|channels"),
    "channels_of_norm": ([nn.Conv2d(2, 3, 3), norm(1)], r"elements|size|channels"),
    "axes_of_norm": (
        [nn.Conv2d(2, 3, 3), nn.BatchNorm1d(3, track_running_stats=False)],
        r"expected 2D or 3D input",
    ),
    "one_value_a_channel": (
        [nn.Flatten(0), nn.Linear(180, 3), nn.Unflatten(0, (1, 3)),
         nn.BatchNorm1d(3, track_running_stats=False)],
        r"more than 1 value per channel",
    ),
    "one_value_a_group": (
        [nn.Flatten(0), nn.Linear(180, 4), nn.Unflatten(0, (1, 4)), nn.GroupNorm(4, 4)],
        r"more than 1 value per channel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_torch_refuses_is_refused(kind: str, engine: str) -> None:
    layers, message = REFUSED[kind]
    apply, params, buffers = functionalize(oracles.draw(nn.Sequential(*layers)))
    with pytest.raises((RuntimeError, ValueError), match=message):
        meta_gradient(
            lambda p, x: apply(p, buffers, x).sin().mean(), params,
            TaskBatch(*noise(2, 2, 3, *PICTURE)), optimizer=sgd(0.1), steps=1, engine=engine,
        )  # fmt: skip


def sequentials(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Sequential)]


def test_a_sequential_is_unchanged_outside_and_afterwards() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert task_operations_active()
            assert not any("forward" in vars(s) for s in sequentials(module))  # copies have it
            raise OSError("from inside")

    inner = nn.Sequential(norm(3), nn.ReLU())
    module = oracles.draw(nn.Sequential(nn.Conv2d(2, 3, 3), inner))
    x = noise(4, *PICTURE)
    expected = module(x)
    both(oracles.classification(nn.Sequential(module, *head(3)).double(), PICTURE))
    assert torch.equal(module(x), expected)
    module.append(Fails())
    with pytest.raises(OSError, match="from inside"):
        both(oracles.classification(module, PICTURE))
    assert not task_operations_active()
    assert len(sequentials(module)) == 2
    assert not any("forward" in vars(layer) for layer in sequentials(module))
    assert torch.equal(module[:2](x), expected)


def test_operations_without_a_task_axis_are_torchs_own() -> None:
    module, x = oracles.draw(nn.Sequential(*STACKS["residual"]())), noise(4, *PICTURE)
    expected = module(x)
    with task_operations():
        with task_operations():
            assert task_operations_active()
        assert task_operations_active()
        with runs_over_tasks(module), runs_over_tasks(module):
            assert torch.equal(module(x), expected)
        apply, params, buffers = functionalize(module)
        assert torch.equal(apply(params, buffers, x), expected)
    assert not task_operations_active()
    assert not any("forward" in vars(layer) for layer in sequentials(module))


def test_a_sequential_with_a_forward_of_its_own_keeps_it() -> None:
    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    module = nn.Sequential(Twice(nn.Conv2d(2, 2, 3, padding=1), norm(2), nn.ReLU()), *head(2))
    both(oracles.classification(oracles.draw(module), PICTURE))


IN_PLACE: dict[str, Callable[[bool], list[nn.Module]]] = {
    "leaky": lambda inplace: [nn.LeakyReLU(0.3, inplace)],
    "behind_flatten": lambda inplace: [nn.Flatten(2), nn.SiLU(inplace), nn.Unflatten(2, (6, 5))],
    "nested": lambda inplace: [nn.Sequential(nn.Identity(), nn.ELU(inplace=inplace))],
    "unknown": lambda inplace: [nn.Identity(), nn.Hardswish(inplace)],
}


@pytest.mark.parametrize("start", IN_PLACE)
@pytest.mark.parametrize("autocast", ["nowhere", "inside", "around"])
def test_layers_that_work_in_place_leave_the_data_alone(start: str, autocast: str) -> None:
    """And what follows is as of layers that do not, whether the engine takes them or torch."""
    found = {}
    for inplace in (False, True):
        module = nn.Sequential(*IN_PLACE[start](inplace), nn.Conv2d(2, 3, 3), norm(3), *head(3))
        case = oracles.classification(oracles.draw(module), (2, 6, 5))
        loss, params, tasks = case

        def within(params: Any, batch: Any, loss: Any = loss) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "inside"):
                return loss(params, batch)

        before = tree_map(Tensor.clone, tasks)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "around"):
            taken = meta_gradient(
                loss if autocast == "around" else within, params, tasks,
                optimizer=sgd(0.1), steps=2, engine="batched",
            )  # fmt: skip
        assert all(map(torch.equal, leaves(tasks), leaves(before)))
        found[inplace] = taken.grads
    oracles.assert_trees(found[True], found[False])


class Skip(nn.Module):
    """A block that starts in place, beside its input."""

    def __init__(self, *start: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.block = nn.Sequential(*start, nn.Conv2d(3, 3, 3, padding=1), norm(3))
        self.head = nn.Sequential(*head(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.block(x) + x)


@pytest.mark.parametrize(
    "start",
    [
        [nn.ReLU(inplace=True)],
        [nn.Identity(), nn.LeakyReLU(0.3, inplace=True)],
        [nn.Sequential(nn.Identity(), nn.ELU(inplace=True))],
    ],
    ids=["relu", "behind_identity", "nested"],
)
def test_a_block_that_starts_in_place_changes_what_its_caller_holds(start: Any) -> None:
    both(oracles.classification(oracles.draw(Skip(*start)), PICTURE))


class AddedToInput(nn.Module):
    """A residual block that writes its sum to what it was given, as torch allows behind a ReLU."""

    def __init__(self, *start: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.block = nn.Sequential(*start, nn.Conv2d(3, 3, 3, padding=1))
        self.head = nn.Sequential(*head(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x += self.block(x)
        return self.head(x)


@pytest.mark.parametrize("start", [[nn.ReLU()], [nn.Identity(), nn.ReLU()]], ids=["relu", "behind"])
def test_what_a_block_that_starts_with_a_relu_was_given_may_be_written_to(start: Any) -> None:
    both(oracles.classification(oracles.draw(AddedToInput(*start)), PICTURE))


@pytest.mark.parametrize(
    ("start", "joined"),
    [([], [False]), ([nn.Conv2d(2, 2, 3)], [False, True]), ([nn.Identity()], [False])],
    ids=["given", "made", "behind_identity"],
)
def test_a_relu_joins_the_convolution_behind_it_where_its_input_is_the_runs_own(
    start: list[nn.Module], joined: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given may be written to by others once the ReLU is taken."""
    seen: list[bool] = []
    real = operations.conv2d

    def watching(*given: Any, rectify: bool = False) -> Tensor:
        seen.append(rectify)
        return real(*given, rectify=rectify)

    monkeypatch.setattr(operations, "conv2d", watching)
    module = nn.Sequential(*start, nn.ReLU(), nn.Conv2d(2, 3, 3), *head(3))
    case = oracles.classification(oracles.draw(module), PICTURE)
    meta_gradient(*case, optimizer=sgd(0.1), steps=1, engine="batched")
    assert seen == joined * 2  # one pass over all support sets, one over all query sets


class Scaled(nn.Module):
    """A weight that is divided by the norms of its rows, which a view shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Sequential(*head(3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        rows = weight.view(3, -1).norm(dim=1).view(3, 1, 1, 1)
        return self.head(torch.conv2d(x, weight / rows, self.conv.bias))


@pytest.mark.parametrize("autocast", [False, True])
def test_weights_may_be_viewed(autocast: bool) -> None:
    """Under autocast too, where the engine leaves layers to torch; of float64 it changes none."""
    loss, params, tasks = oracles.classification(oracles.draw(Scaled()), PICTURE)

    def within(params: Any, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return loss(params, batch)

    both(oracles.Problem(within, params, tasks))


def test_adaptive_pooling_of_too_few_axes_is_refused_as_by_torch() -> None:
    loss = lambda params, batch: F.adaptive_avg_pool2d(batch[0] * params["w"], (1, 1)).mean()  # noqa: E731
    half = noise(2, 4, 5), noise(2, 4)
    for engine in ("loop", "batched"):
        with pytest.raises(ValueError, match="should be at least 3"):
            meta_gradient(
                loss, {"w": noise(5)}, TaskBatch(half, half),
                optimizer=sgd(0.1), steps=1, engine=engine,
            )  # fmt: skip


@pytest.mark.parametrize("where", ["0", "2", "3.0"])
def test_a_forward_that_was_replaced_on_one_layer_is_called(where: str) -> None:
    layers = [nn.Conv2d(2, 3, 3), norm(3), nn.Sequential(nn.Conv2d(3, 3, 2), nn.Tanh())]
    layers += [nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh())]
    module = oracles.draw(nn.Sequential(*layers, *head(3)))
    case = oracles.classification(module, PICTURE)
    plain = both(case)
    layer = module.get_submodule(where)
    own = type(layer).forward
    layer.forward = lambda x: own(layer, x).sin()  # type: ignore[method-assign]
    replaced = both(case)
    assert max(float((replaced[k] - plain[k]).abs().max()) for k in plain) > 1e-6
    assert "forward" in vars(layer)


@pytest.mark.parametrize("layer", [norm(2), nn.Conv2d(2, 2, 1)], ids=["norm", "conv"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_weight_that_stands_among_the_buffers_counts(layer: Any, name: str) -> None:
    layer = copy.deepcopy(layer)
    value = torch.full_like(getattr(layer, name), 1.7)
    delattr(layer, name)
    layer.register_buffer(name, value)
    both(oracles.classification(oracles.draw(nn.Sequential(layer, norm(2), *head(2))), PICTURE))
