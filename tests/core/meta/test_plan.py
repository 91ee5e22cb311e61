"""What is planned: the engine by trial, the method and the chunks by memory."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import InnerOptimizer, Plan, functionalize, meta_gradient, sgd
from metalearn.core import plan_meta_gradient as plan
from metalearn.core.memory import peak_memory
from metalearn.core.meta.engines import structural_engine
from metalearn.core.ops import layers
from metalearn.errors import SettingError
from metalearn.types import TaskBatch
from tests.support import oracles
from tests.support.oracles import Problem, assert_trees

CPU, TASKS, STEPS = torch.device("cpu"), 12, 4
PLENTY = 10**12


def pictures(tasks: int = TASKS) -> Problem:
    """Activations outweigh the parameters, so that chunks help."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.Softplus(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    return oracles.classification(oracles.draw(module), (1, 8, 8), tasks=tasks, samples=4)


def vectors() -> Problem:
    return oracles.classification(oracles.mlp(), (2,), tasks=3)


def plan_of(case: Problem, **changes: Any) -> Plan:
    settings = {"optimizer": sgd(0.3), "steps": STEPS, **changes}
    return plan(*case, **settings)


def run(case: Problem, found: Plan, **changes: Any) -> Any:
    settings = {"optimizer": sgd(0.3), "steps": STEPS, **changes}
    return meta_gradient(
        *case, engine=found.engine, method=found.method, chunk_size=found.chunk_size, **settings
    )


# --- the engine -------------------------------------------------------------------------------


def test_batched_where_layers_gain_from_it() -> None:
    assert plan_of(pictures()) == Plan("batched", "reverse", None, (), None)


def test_batched_where_parameters_are_few() -> None:
    assert plan_of(vectors()) == Plan("batched", "reverse", None, (), None)


def test_vmap_where_no_layer_gains_from_batched() -> None:
    wide = nn.Sequential(nn.Linear(2, 128), nn.Tanh(), nn.Linear(128, 128), nn.Linear(128, 2))
    found = plan_of(oracles.classification(oracles.draw(wide), (2,)))
    assert found.engine == "vmap"
    assert found.notes == ("no convolution or normalisation gains from batched",)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm, self.head = nn.GRUCell(2, 3), nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # torch's own cell
            state = self.cell(x, x.new_zeros(len(x), 3))
        y: Tensor = self.head(self.norm(state))
        return y


def test_vmap_where_batched_would_fall_back_to_a_loop(recwarn: pytest.WarningsRecorder) -> None:
    case = oracles.classification(oracles.draw(Recurrent()), (2,))
    found = plan_of(case)
    assert found.engine == "vmap" and not recwarn.list
    assert found.notes == ("batched runs aten::gru_cell for one task after another",)
    expected = oracles.maml(case, oracles.sgd_rule(0.3), STEPS)[0]
    assert_trees(run(case, found).grads, expected)


def test_a_warning_of_the_loss_is_passed_on() -> None:
    case = vectors()

    def loss(params: Any, batch: Any) -> Tensor:
        warnings.warn("a word from the loss", stacklevel=1)
        return case.loss_fn(params, batch)

    with pytest.warns(UserWarning, match="a word from the loss"):
        assert plan_of(case._replace(loss_fn=loss)).engine == "batched"


def clipped(lr: float) -> InnerOptimizer:
    """Descent along the gradient at norm 1: every element depends on all others."""

    def update(grads: Any, state: Any, params: Any) -> Any:
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        return [-lr * g / norm for g in grads], state

    return InnerOptimizer(lambda params: (), update)


def test_an_inner_optimiser_that_is_not_elementwise_needs_vmap() -> None:
    found = plan_of(vectors(), optimizer=clipped(0.1))
    assert (found.engine, found.method) == ("vmap", "reverse")
    assert found.notes == ("batched needs an inner optimiser that is marked elementwise",)
    actual, expected = (
        meta_gradient(*vectors(), optimizer=clipped(0.1), steps=2, engine=engine)
        for engine in (found.engine, "loop")
    )
    assert_trees(actual.grads, expected.grads)


def test_inside_a_transform_vmap_is_the_structural_choice() -> None:
    seen = []

    def inside(x: Tensor) -> Tensor:
        seen.append(structural_engine(sgd(0.1)))
        return x

    torch.func.vmap(inside)(torch.ones(2))
    assert seen == [("vmap", "batched works outside transforms of torch.func alone")]
    assert structural_engine(sgd(0.1)) == ("batched", "")


class Cube(torch.autograd.Function):
    """The old style, with ``ctx`` in forward: torch.func refuses it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream * 3 * ctx.saved_tensors[0] ** 2


def branching(z: Tensor) -> Tensor:
    return z.tanh() if z.sum() > 0 else z**2


@pytest.mark.parametrize("function", [branching, Cube.apply], ids=["branch", "old_function"])
def test_a_loss_that_vmap_cannot_take_is_looped(function: Any) -> None:
    x = torch.randn(3, 4, 2, generator=oracles.generator(0), dtype=torch.float64)
    w = torch.tensor([0.5, -0.3], dtype=torch.float64)
    case = Problem(lambda p, b: function(b @ p["w"]).mean(), {"w": w}, TaskBatch(x, x + 1))
    found = plan_of(case)
    assert (found.engine, found.method, found.chunk_size) == ("loop", "reverse", None)
    assert len(found.notes) == 2
    for note, engine in zip(found.notes, ("batched", "vmap")):
        assert note.startswith(f"{engine} cannot take this loss (") and "\n" not in note
    expected = oracles.maml(case, oracles.sgd_rule(0.3), STEPS)[0]
    assert_trees(run(case, found).grads, expected)
    tight = plan_of(case, memory=PLENTY)
    assert (tight.engine, tight.method, tight.chunk_size) == ("loop", "reverse", None)
    assert tight.peak is not None and tight.notes == found.notes


@pytest.mark.parametrize("factor", [2.0, float("nan")])
@pytest.mark.parametrize("method", ["auto", "first_order"])
def test_a_batched_result_that_differs_is_not_used(
    method: Any, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = oracles.classification(oracles.conv(nn.Identity), (1, 4, 4))
    right = layers.conv2d
    monkeypatch.setattr(layers, "conv2d", lambda *given, **more: factor * right(*given, **more))
    found = plan_of(case, method=method)
    assert found.engine == "vmap" and len(found.notes) == 1
    assert found.notes[0].startswith("batched differs from a plain loop by ")
    assert found.notes[0].endswith(" on this loss")
    expected = oracles.maml(case, oracles.sgd_rule(0.3), STEPS, first_order=method != "auto")[0]
    assert_trees(run(case, found).grads, expected)


def test_a_vmapped_result_that_differs_is_not_used_either() -> None:
    """A hook on a tensor changes the first gradient alone under torch.func."""
    x = torch.randn(3, 4, 2, generator=oracles.generator(0), dtype=torch.float64)

    def loss(params: Any, batch: Any) -> Tensor:
        h = batch @ params["w"]
        h.register_hook(lambda g: -g)
        return h.tanh().square().mean()

    w = torch.tensor([0.5, -0.3], dtype=torch.float64)
    found = plan_of(Problem(loss, {"w": w}, TaskBatch(x, x + 1)))
    assert found.engine == "loop" and len(found.notes) == 2
    assert found.notes[0].startswith("batched cannot take this loss (")
    assert found.notes[1].startswith("vmap differs from a plain loop by ")


def test_an_engine_that_is_given_is_not_tried() -> None:
    def fails(params: Any, batch: Any) -> Tensor:
        raise AssertionError("not to be called")

    case = vectors()._replace(loss_fn=fails)
    for engine in ("batched", "vmap", "loop"):
        assert plan_of(case, engine=engine, method="mixed", chunk_size=2) == Plan(
            engine, "mixed", 2, (), None
        )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("out of memory at once"), "out of memory at once"),
        (MemoryError("none left"), "none left"),
        (SettingError("way", 0, "more is needed"), "^way=0: more is needed$"),
        (ZeroDivisionError("in every engine"), "in every engine"),
    ],
    ids=str,
)
def test_errors_that_another_engine_would_not_mend_pass(error: Exception, message: str) -> None:
    def fails(params: Any, batch: Any) -> Tensor:
        raise error

    with pytest.raises(type(error), match=message):
        plan_of(vectors()._replace(loss_fn=fails))


def test_what_meta_gradient_refuses_is_refused() -> None:
    for changes, message in (
        ({"frozen": "tail.*"}, r"^frozen='tail\.\*': a pattern that matches a parameter"),
        ({"method": "fomaml"}, r"^method='fomaml': one of auto, reverse"),
        ({"method": "implicit", "frozen": "*"}, r"^frozen='every parameter': method=implicit"),
    ):
        with pytest.raises(SettingError, match=message):
            plan_of(vectors(), **changes)


# --- memory -----------------------------------------------------------------------------------


def ladder(case: Problem, **changes: Any) -> list[tuple[int, Plan | None]]:
    """Plans for budgets that shrink by three tenths, down to the first that has none."""
    budget = whole(case, **changes)
    found: list[tuple[int, Plan | None]] = []
    while not found or found[-1][1] is not None:
        try:
            found.append((budget, plan_of(case, memory=budget, engine="batched", **changes)))
        except SettingError:
            found.append((budget, None))
        budget = int(budget * 0.7)
    return found


def whole(case: Problem, **changes: Any) -> int:
    """The bytes that all tasks at once are predicted to take."""
    peak = plan_of(case, memory=PLENTY, engine="batched", **changes).peak
    assert peak is not None and peak > 0
    return peak


def test_with_much_memory_all_tasks_are_taken_at_once() -> None:
    found = plan_of(pictures(), memory=PLENTY)
    assert (found.engine, found.method, found.chunk_size, found.notes) == (
        "batched", "reverse", None, (),
    )  # fmt: skip
    assert found.peak is not None
    exactly = plan_of(pictures(), memory=found.peak)
    assert exactly == found
    assert plan_of(pictures(), memory=found.peak - 1).chunk_size is not None


def test_less_memory_means_chunks_then_mixed_then_an_error() -> None:
    case = pictures()
    reference = run(case, Plan("batched", "reverse", None))
    found = ladder(case)
    assert found[-1][1] is None
    stages = []
    for budget, one in found[:-1]:
        assert one is not None and one.peak is not None and one.peak <= budget
        stages.append((one.method == "mixed", -(one.chunk_size or TASKS)))
    assert stages == sorted(stages)  # reverse before mixed, chunks that only shrink in each
    assert stages[0] == (False, -TASKS)
    reverse = [-size for mixed, size in stages if not mixed]
    mixed = [-size for mixed, size in stages if mixed]
    assert 4 <= min(reverse) < TASKS and 1 <= min(mixed) < min(reverse)
    distinct = {(p.method, p.chunk_size): (b, p) for b, p in found if p is not None}
    assert len(distinct) >= 4
    for budget, one in distinct.values():
        actual = run(case, one)
        assert_trees(actual.grads, reference.grads)
        torch.testing.assert_close(actual.query_losses, reference.query_losses)
        assert peak_memory(lambda one=one: run(case, one), CPU) <= budget
        if one.method == "mixed" or one.chunk_size:
            assert one.notes[0].startswith("reverse with all tasks would need ")


def test_too_little_memory_is_refused_with_what_is_needed() -> None:
    message = r"^memory='10 kB': at least .*B is needed, with method={} and chunk_size={}$"
    for changes, method, chunk in (
        ({}, "mixed", 1),
        ({"method": "reverse"}, "reverse", 1),
        ({"method": "first_order"}, "first_order", 1),
        ({"chunk_size": 3}, "mixed", 3),
    ):
        with pytest.raises(SettingError, match=message.format(method, chunk)):
            plan_of(pictures(), memory=10_000, engine="batched", **changes)


@pytest.mark.parametrize("method", ["reverse", "first_order", "mixed", "implicit"])
def test_a_method_that_is_given_is_kept(method: Any) -> None:
    case = pictures()
    budget = whole(case, method=method) // 2
    found = plan_of(case, method=method, memory=budget)
    assert found.method == method and found.chunk_size is not None
    assert 1 <= found.chunk_size < TASKS
    assert found.notes[0].startswith(f"{method} with all tasks would need ")
    assert peak_memory(lambda: run(case, found), CPU) <= budget


def test_a_chunk_size_that_is_given_is_kept() -> None:
    case = pictures()
    budget = whole(case)
    one = plan_of(case, chunk_size=1, memory=budget)
    assert (one.method, one.chunk_size, one.notes) == ("reverse", 1, ())
    tight = plan_of(case, chunk_size=8, memory=budget // 2, engine="batched")
    assert (tight.method, tight.chunk_size) == ("mixed", 8)
    wide = plan_of(case, chunk_size=99, memory=budget, engine="batched")
    assert (wide.method, wide.chunk_size, wide.peak) == ("reverse", 99, budget)


def test_a_prediction_for_more_tasks_than_are_given() -> None:
    many, few = pictures(), pictures(2)
    found = plan_of(few, memory=PLENTY, task_count=TASKS)
    assert found.peak == pytest.approx(plan_of(many, memory=PLENTY).peak, rel=0.02)
    single = plan_of(pictures(1), memory=PLENTY, task_count=TASKS)
    assert single.peak is not None and found.peak is not None and single.peak >= found.peak


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
def test_predictions_hold(engine: Any, method: Any) -> None:
    """Above what is measured, and within a factor that still tells plans apart."""
    case = pictures()
    found = plan_of(case, engine=engine, method=method, memory=PLENTY)
    measured = peak_memory(lambda: run(case, found), CPU)
    assert found.peak is not None and measured <= found.peak <= 2 * measured


# --- text -------------------------------------------------------------------------------------


def test_a_plan_is_one_line() -> None:
    assert str(Plan("batched", "reverse", None)) == (
        "meta-gradient: method reverse, engine batched, all tasks at once"
    )
    assert str(Plan("vmap", "mixed", 4, ("one reason", "another"), 1_234_000)) == (
        "meta-gradient: method mixed, engine vmap, 4 at a time, about 1.23 MB; one reason; another"
    )
    apply, params, buffers = functionalize(oracles.mlp())
    case = vectors()._replace(
        loss_fn=lambda p, b: apply(p, buffers, b[0]).mean() if b[0].sum() > 0 else p["0.bias"].sum()
    )
    text = str(plan_of(case._replace(params=params), memory=PLENTY))
    assert "\n" not in text and "method reverse, engine loop, all tasks at once, about" in text
