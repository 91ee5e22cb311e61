"""What is learnt beside the parameters, against loops that are unrolled by hand, in float64."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import (
    InnerOptimizer,
    adam,
    adamw,
    adapt,
    along_adaptation,
    meta_gradient,
    plan_meta_gradient,
    sgd,
    stack,
    task_meta_gradients,
    unstack,
)
from metalearn.core.meta.members import member_meta_gradient
from metalearn.core.tree import leaves, tree_map
from metalearn.errors import SettingError
from tests.support import hyper_oracles, oracles
from tests.support.oracles import Problem, assert_trees
from tests.support.sampled import sampled

STEPS = 3
ENGINES = ["batched", "vmap", "loop"]
METHODS = ["reverse", "mixed", "first_order"]
engines = pytest.mark.parametrize("engine", ENGINES)
methods = pytest.mark.parametrize("method", METHODS)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


Values = dict[str, Any]
Make = Callable[[Any, Values], InnerOptimizer]
Oracle = Callable[[hyper_oracles.Rate, Values], hyper_oracles.Update]


def _adam(make: Callable[..., InnerOptimizer]) -> Make:
    def made(lr: Any, v: Values) -> InnerOptimizer:
        rest = {name: value for name, value in v.items() if not name.startswith("beta")}
        return make(lr, betas=(v["beta1"], v["beta2"]), **rest)

    return made


KINDS: dict[str, tuple[Make, Oracle, dict[str, float]]] = {
    "sgd": (lambda lr, v: sgd(lr), lambda rate, v: hyper_oracles.sgd(rate), {}),
    "momentum": (
        lambda lr, v: sgd(lr, **v),
        lambda rate, v: hyper_oracles.sgd(rate, **v),
        {"momentum": 0.7, "weight_decay": 0.1},
    ),
    "nesterov": (
        lambda lr, v: sgd(lr, nesterov=True, **v),
        lambda rate, v: hyper_oracles.sgd(rate, nesterov=True, **v),
        {"momentum": 0.7, "weight_decay": 0.1},
    ),
    "adam": (
        _adam(adam),
        lambda rate, v: hyper_oracles.adam(rate, **v),
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "eps_root": 1e-3, "weight_decay": 0.1},
    ),
    "adamw": (
        _adam(adamw),
        lambda rate, v: hyper_oracles.adam(rate, decoupled=True, **v),
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "eps_root": 1e-3, "weight_decay": 0.1},
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)
RATES = ("scalar", "steps", "leaves", "elements", "leaves and steps", "elements and steps")
rates = pytest.mark.parametrize("shape", RATES)


def problem(tasks: int = 3) -> Problem:
    return oracles.classification(oracles.mlp(), (2,), tasks=tasks)


def rates_of(shape: str, params: Any, seed: int = 4, steps: int = STEPS) -> Any:
    """Step sizes, all different."""
    source = oracles.generator(seed)
    front = (steps,) if "steps" in shape else ()

    def some(*size: int) -> Tensor:
        return 0.05 + 0.2 * torch.rand(size, generator=source, dtype=torch.float64)

    if shape in ("scalar", "steps"):
        return some(*front)
    return {n: some(*front, *(p.shape if "elements" in shape else ())) for n, p in params.items()}


def rate_by_hand(shape: str, lr: Any) -> hyper_oracles.Rate:
    def rate(name: str, k: int) -> Any:
        one = lr[name] if isinstance(lr, dict) else lr
        return one[k] if "steps" in shape else one

    return rate


def fresh(tree: Any) -> Any:
    return tree_map(lambda x: x.detach().clone().requires_grad_(), tree)


def expected(
    case: Problem, kind: str, shape: str, lr: Any, values: Values, steps: int = STEPS,
    **settings: Any,
) -> tuple[hyper_oracles.Unrolled, Any]:  # fmt: skip
    """By hand; gradients of what is learnt in a tree like ``optimizer.learnt``."""
    lr, values = fresh(lr), {n: fresh(v) for n, v in values.items()}
    learnt = [*leaves(lr), *values.values()]
    update = KINDS[kind][1](rate_by_hand(shape, lr), values)
    found = hyper_oracles.unrolled(case, update, steps, learnt, **settings)
    return found, {"lr": found.learnt[: len(leaves(lr))], **dict(
        zip(values, found.learnt[len(leaves(lr)) :])
    )}  # fmt: skip


def assert_close(actual: list[Any], wanted: list[Any], tolerance: float = 1e-9) -> None:
    largest = max(float(w.abs().max()) for w in wanted)
    assert len(actual) == len(wanted) and largest > 1e-4
    for a, w in zip(actual, wanted):
        assert a.shape == w.shape and not a.requires_grad
        torch.testing.assert_close(a, w, rtol=tolerance, atol=tolerance * largest)


def learnt_of(found: Any, names: list[str]) -> list[Tensor]:
    """Leaves of gradients, the rates first."""
    if not names:
        return leaves(found)
    return [*leaves(found["lr"]), *(found[name] for name in names)]


@kinds
@methods
@engines
def test_everything_learnt_at_once(engine: str, method: str, kind: str) -> None:
    case, lr = problem(), number(0.2)
    values = {name: number(value) for name, value in KINDS[kind][2].items()}
    optimizer = KINDS[kind][0](lr, values)
    result = meta_gradient(*case, optimizer=optimizer, steps=STEPS, method=method, engine=engine)
    wanted, learnt = expected(case, kind, "scalar", lr, values, first_order=method == "first_order")
    assert_trees(result.grads, wanted.grads, 1e-9)
    torch.testing.assert_close(result.query_losses, wanted.query_losses)
    assert_close(learnt_of(result.optimizer_grads, list(values)), leaves(learnt))
    if values:
        assert list(result.optimizer_grads) == list(optimizer.learnt)
        assert set(result.optimizer_grads) == {"lr", *values}


@sampled(2, kind=["momentum", "adamw"], engine=ENGINES, method=METHODS, shape=RATES)
def test_step_sizes_of_every_shape(kind: str, engine: str, method: str, shape: str) -> None:
    case = problem()
    lr = rates_of(shape, case.params)
    values = {name: number(value) for name, value in KINDS[kind][2].items()}
    optimizer = KINDS[kind][0](lr, values)
    result = meta_gradient(
        *case, optimizer=optimizer, steps=STEPS, method=method, engine=engine, chunk_size=2
    )
    wanted, learnt = expected(case, kind, shape, lr, values, first_order=method == "first_order")
    assert_trees(result.grads, wanted.grads, 1e-9)
    assert_close(learnt_of(result.optimizer_grads, list(values)), leaves(learnt))


@kinds
@engines
def test_one_number_learnt_among_others(engine: str, kind: str) -> None:
    case, numbers = problem(), KINDS[kind][2]
    for name in numbers:
        values: Values = {**numbers, name: number(numbers[name])}
        optimizer = KINDS[kind][0](0.2, values)
        assert list(optimizer.learnt) == [name]
        found = meta_gradient(*case, optimizer=optimizer, steps=2, engine=engine)
        every = {n: number(v) for n, v in numbers.items()}
        wanted, learnt = expected(case, kind, "scalar", number(0.2), every, steps=2)
        assert_trees(found.grads, wanted.grads, 1e-9)
        torch.testing.assert_close(found.optimizer_grads[name], learnt[name], rtol=1e-8, atol=1e-12)


@sampled(
    2,
    shape=["scalar", "elements and steps"],
    engine=["auto", *ENGINES],
    method=METHODS,
    kind=list(KINDS),
)
def test_members_with_values_of_their_own(shape: str, engine: str, method: str, kind: str) -> None:
    case = problem(tasks=2)
    members = [
        {n: v.detach() for n, v in oracles.mlp(seed).named_parameters()} for seed in range(3)
    ]
    lrs = [rates_of(shape, case.params, seed=seed, steps=2) for seed in range(3)]
    numbers = KINDS[kind][2]
    each = [{n: number(v * (0.7 + 0.1 * m)) for n, v in numbers.items()} for m in range(3)]
    optimizers = [KINDS[kind][0](lr, values) for lr, values in zip(lrs, each)]
    found = member_meta_gradient(
        case.loss_fn, stack(members), case.tasks, optimizer=optimizers[0], steps=2, method=method,
        engine=engine, chunk_size=1, learnt=stack([o.learnt for o in optimizers]),
    )  # fmt: skip
    rows = unstack(found.optimizer_grads)
    for m, params in enumerate(members):
        wanted, learnt = expected(
            case._replace(params=params), kind, shape, lrs[m], each[m], steps=2,
            first_order=method == "first_order",
        )  # fmt: skip
        assert_trees(unstack(found.grads)[m], wanted.grads, 1e-9)
        torch.testing.assert_close(found.query_losses[m], wanted.query_losses)
        assert_close(learnt_of(rows[m], list(numbers)), leaves(learnt))


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_members_values_that_require_gradients_are_constants(engine: str) -> None:
    case, rate = problem(tasks=2), torch.nn.Parameter(number(0.2))
    members = stack([case.params, case.params])
    settings: dict[str, Any] = {"steps": 2, "engine": engine}
    wanted = member_meta_gradient(
        case.loss_fn, members, case.tasks, optimizer=sgd(number(0.2)), **settings
    )
    for own in (None, torch.nn.Parameter(torch.full((2,), 0.2).double())):
        found = member_meta_gradient(
            case.loss_fn, members, case.tasks, optimizer=sgd(rate), learnt=own, **settings
        )
        assert not found.optimizer_grads.requires_grad and not found.loss.requires_grad
        torch.testing.assert_close(found.optimizer_grads, wanted.optimizer_grads, rtol=1e-6, atol=0)


def test_members_in_float32_keep_it() -> None:
    case = problem(tasks=2)
    single = tree_map(lambda x: x.float() if x.is_floating_point() else x, case.tasks)
    params = {n: torch.stack([v.detach().float()] * 2) for n, v in case.params.items()}
    found = member_meta_gradient(
        case.loss_fn, params, single, optimizer=sgd(number(0.1), momentum=number(0.5)), steps=2,
        engine="batched",
    )  # fmt: skip
    assert all(grad.dtype == torch.float32 for grad in found.grads.values())
    assert all(grad.dtype == torch.float64 for grad in leaves(found.optimizer_grads))


@engines
@methods
def test_convolutions_with_all_that_is_learnt(method: str, engine: str) -> None:
    case = oracles.classification(oracles.conv(), (1, 4, 4), tasks=3)
    lr = rates_of("elements and steps", case.params)
    values = {"momentum": number(0.7), "weight_decay": number(0.1)}
    result = meta_gradient(
        *case, optimizer=sgd(lr, nesterov=True, **values), steps=STEPS, method=method,
        engine=engine,
    )  # fmt: skip
    wanted, learnt = expected(
        case, "nesterov", "elements and steps", lr, values, first_order=method == "first_order"
    )
    assert_trees(result.grads, wanted.grads, 1e-9)
    assert_close(learnt_of(result.optimizer_grads, list(values)), leaves(learnt))


@engines
@methods
def test_frozen_parameters_have_no_step_size(method: str, engine: str) -> None:
    case = problem()
    fixed = [name for name in case.params if name.startswith("0.")]
    lr = rates_of("leaves and steps", {n: p for n, p in case.params.items() if n not in fixed})
    result = meta_gradient(
        *case, optimizer=sgd(lr, momentum=number(0.5)), steps=STEPS, method=method, engine=engine,
        frozen="0.*",
    )  # fmt: skip
    wanted, learnt = expected(
        case, "momentum", "leaves and steps", lr,
        {"momentum": number(0.5), "weight_decay": number(0.0)},
        first_order=method == "first_order", frozen=fixed,
    )  # fmt: skip
    assert_trees(result.grads, wanted.grads, 1e-9)
    assert_close(
        learnt_of(result.optimizer_grads, ["momentum"]), [*learnt["lr"], learnt["momentum"]]
    )


@engines
@methods
@pytest.mark.parametrize(("steps", "frozen"), [(0, None), (2, "*")])
def test_where_nothing_moves_there_are_zeros(
    steps: int, frozen: str | None, method: str, engine: str
) -> None:
    case, lr = problem(), number(0.1)
    optimizer = sgd(lr, momentum=number(0.5))
    result = meta_gradient(
        *case, optimizer=optimizer, steps=steps, method=method, engine=engine, frozen=frozen
    )
    assert result.optimizer_grads == {"lr": number(0.0), "momentum": number(0.0)}
    assert_trees(result.grads, oracles.maml(case, oracles.sgd_rule(0.1), 0)[0])


@kinds
def test_trajectories_are_those_of_torch(kind: str) -> None:
    """Of numbers, of scalar tensors and of a schedule, which torch gets as a new rate each step."""
    case, numbers = problem(), KINDS[kind][2]
    support, _ = oracles.task_list(case.tasks)[0]
    schedule = [0.3, 0.1, 0.2, 0.05]
    settings: dict[str, Any] = {k: v for k, v in numbers.items() if k in ("momentum", "eps")}
    settings["weight_decay"] = numbers.get("weight_decay", 0.0)
    if "beta1" in numbers:
        settings["betas"] = numbers["beta1"], numbers["beta2"]
    if kind == "nesterov":
        settings["nesterov"] = True
    torchs = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}.get(kind, torch.optim.SGD)
    params = {n: v.detach().clone().requires_grad_() for n, v in case.params.items()}
    optimizer = torchs(list(params.values()), lr=schedule[0], **settings)
    for rate in schedule:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        case.loss_fn(params, support).backward()
        optimizer.step()
    wanted = {n: v.detach() for n, v in params.items()}
    tiny = {"eps_root": 1e-30} if "beta1" in numbers else {}
    for values in (
        numbers | tiny,
        {n: number(v) for n, v in (numbers | tiny).items()},
    ):
        pair = KINDS[kind][0](torch.tensor(schedule, dtype=torch.float64), values)
        found = adapt(case.loss_fn, case.params, support, optimizer=pair, steps=4)
        assert_trees(found.params, wanted, 1e-11)


def test_the_last_step_size_holds_beyond_the_schedule() -> None:
    case = problem()
    support, _ = oracles.task_list(case.tasks)[0]
    short, long = (torch.tensor(v).double() for v in ([0.3, 0.1], [0.3, 0.1, 0.1, 0.1]))
    found = adapt(case.loss_fn, case.params, support, optimizer=sgd(short), steps=4)
    other = adapt(case.loss_fn, case.params, support, optimizer=sgd(long), steps=4)
    assert_trees(found.params, other.params, 0.0)
    losses = along_adaptation(
        lambda p, s, q: case.loss_fn(p, s), *case, optimizer=sgd(short), steps=4
    )
    torch.testing.assert_close(losses[0, :-1], other.losses)


def test_vectors_whose_parameters_are_vectors_too() -> None:
    """Of K elements each: the rates of the elements; beside a matrix, those of the steps."""
    theta, target = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
    rate = torch.tensor([0.1, 0.3]).double()

    def loss(params: Any, batch: Tensor) -> Tensor:
        return 0.5 * sum((p - batch).square().sum() for p in params.values())

    moved = theta - target
    alone = adapt(loss, {"b": theta}, target, optimizer=sgd({"b": rate}), steps=2).params["b"]
    torch.testing.assert_close(alone, target + (1 - rate) ** 2 * moved)
    both = {"w": theta.expand(2, 2).clone(), "b": theta}
    found = adapt(loss, both, target, optimizer=sgd({"w": rate, "b": rate}), steps=2).params
    torch.testing.assert_close(found["b"], target + (0.9 * 0.7) * moved)
    torch.testing.assert_close(found["w"], (target + (0.9 * 0.7) * moved).expand(2, 2))


def test_learnt_values_may_be_replaced() -> None:
    case = problem()
    values = {"momentum": number(0.5), "weight_decay": number(0.1)}
    first = sgd(number(0.1), **values)
    other = {"lr": number(0.2), "momentum": number(0.7), "weight_decay": number(0.0)}
    rebuilt = first.with_learnt(other)
    assert rebuilt.learnt == other and rebuilt.elementwise
    direct = sgd(number(0.2), momentum=number(0.7), weight_decay=number(0.0))
    found, wanted = (
        meta_gradient(*case, optimizer=optimizer, steps=2) for optimizer in (rebuilt, direct)
    )
    assert_trees(found.grads, wanted.grads, 0.0)
    with pytest.raises(SettingError, match=r"^learnt=.*a dict of lr, momentum, weight_decay is"):
        first.with_learnt({"lr": number(0.2)})


@engines
def test_inside_vmap_over_hyperparameters(engine: str) -> None:
    case = problem(tasks=2)
    grid = torch.tensor([0.1, 0.5, 0.8]).double()

    def grads(momentum: Tensor) -> Any:
        optimizer = sgd(number(0.2), momentum=momentum)
        return meta_gradient(*case, optimizer=optimizer, steps=2).optimizer_grads

    found = torch.func.vmap(grads)(grid)
    for m, momentum in enumerate(grid):
        alone = meta_gradient(
            *case, optimizer=sgd(number(0.2), momentum=momentum), steps=2, engine=engine
        ).optimizer_grads
        for name in ("lr", "momentum"):
            torch.testing.assert_close(found[name][m], alone[name])


def test_whole_steps_compile() -> None:
    schedule, decay = torch.tensor([0.1, 0.2]).double(), number(0.5)
    params = {"w": torch.ones(3, 2).double(), "b": torch.ones(2).double()}
    optimizer = sgd(schedule, momentum=decay, nesterov=True, weight_decay=decay)

    def end(learnt: Any, values: Any) -> Tensor:
        pair = optimizer.with_learnt(learnt)
        state = pair.init(values)
        for _ in range(2):
            grads = {name: value**2 for name, value in values.items()}
            values, state = pair.step(grads, state, values)
        return torch.stack([value.sum() for value in values.values()]).sum()

    gradient = torch.func.grad(end, argnums=(0, 1))
    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    found, wanted = (g(optimizer.learnt, params) for g in (compiled, gradient))
    for a, b in zip(leaves(found), leaves(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@engines
@methods
def test_parameters_of_torch_are_left_as_they_are(method: str, engine: str) -> None:
    """Values that require gradients: results have no graph, and ``.grad`` stays empty."""
    case = problem()
    values = [torch.nn.Parameter(number(v)) for v in (0.2, 0.5)]
    settings: dict[str, Any] = {"steps": 2, "engine": engine}
    optimizer = sgd(values[0], momentum=values[1])
    found = meta_gradient(*case, optimizer=optimizer, method=method, **settings)
    constant = sgd(number(0.2), momentum=number(0.5))
    wanted = meta_gradient(*case, optimizer=constant, method=method, **settings)
    assert_trees(found.optimizer_grads, wanted.optimizer_grads, 0.0)
    seen: list[bool] = []

    def visit(params: Any, support: Any, query: Any) -> Tensor:
        seen.append(any(value.requires_grad for value in params.values()))
        return case.loss_fn(params, query)

    losses = along_adaptation(visit, *case, optimizer=optimizer, **settings)
    assert not losses.requires_grad and seen and not any(seen)
    assert all(value.grad is None and value.requires_grad for value in values)


@engines
@methods
def test_what_is_made_in_inference_mode(method: str, engine: str) -> None:
    case = problem()
    wanted = meta_gradient(
        *case, optimizer=sgd(number(0.2), momentum=number(0.5)), steps=2, method=method
    ).optimizer_grads
    with torch.inference_mode():
        optimizer = sgd(number(0.2), momentum=number(0.5))
        found = meta_gradient(*case, optimizer=optimizer, steps=2, method=method, engine=engine)
    for name in ("lr", "momentum"):
        torch.testing.assert_close(found.optimizer_grads[name], wanted[name])


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sgd, adam, adamw])
@pytest.mark.parametrize(
    ("lr", "message"),
    [
        (torch.ones(2, 2), "lr=[2, 2]: a number, a scalar tensor or one with a value for each"),
        (torch.ones(0), "lr=[0]: a number, a scalar tensor or one with a value for each inner"),
        (torch.tensor([0.1, -0.1]), "lr=-0.10000000149011612: a finite number of at least 0"),
        (torch.tensor([0.1, float("nan")]), "lr=nan: a finite number of at least 0"),
        ([0.1, 0.2], "lr=[0.1, 0.2]: a number, a scalar tensor or a tree of tensors"),
    ],
)
def test_step_sizes_are_refused(make: Any, lr: Any, message: str) -> None:
    with pytest.raises(SettingError, match="^" + re.escape(message)):
        make(lr)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (sgd, {"momentum": number(1.0)}, "momentum=1.0: a number in [0, 1) is needed"),
        (sgd, {"momentum": torch.ones(2)}, "momentum='a tensor [2]': a number or a tensor with"),
        (sgd, {"weight_decay": number(-1)}, "weight_decay=-1.0: a number of at least 0"),
        (sgd, {"nesterov": True}, "nesterov=True: a momentum above 0 is needed with it"),
        (adam, {"betas": (number(1.0), 0.9)}, "betas[0]=1.0: a number in [0, 1) is needed"),
        (adam, {"eps": number(-1.0)}, "eps=-1.0: a number of at least 0"),
        (adam, {"eps_root": number(0.0)}, "eps_root=0.0: a number above 0"),
        (adam, {"weight_decay": -0.1}, "weight_decay=-0.1: a number of at least 0"),
        (adamw, {"weight_decay": number(-0.1)}, "weight_decay=-0.1: a number of at least 0"),
        (adamw, {"betas": (0.9, 1.5)}, "betas[1]=1.5: a number in [0, 1) is needed"),
    ],
)
def test_values_out_of_range_are_refused(make: Any, settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match="^" + re.escape(message)):
        make(0.1, **settings)


HYPERPARAMETERS: list[tuple[Any, str, Callable[[Any], dict[str, Any]]]] = [
    *[(make, "lr", lambda v: {"lr": v}) for make in (sgd, adam, adamw)],
    *[(make, "weight_decay", lambda v: {"weight_decay": v}) for make in (sgd, adam, adamw)],
    (sgd, "momentum", lambda v: {"momentum": v}),
    *[
        (make, name, change)
        for make in (adam, adamw)
        for name, change in {
            "betas[0]": lambda v: {"betas": (v, 0.9)},
            "betas[1]": lambda v: {"betas": (0.9, v)},
            "eps": lambda v: {"eps": v},
            "eps_root": lambda v: {"eps_root": v},
        }.items()
    ],
]


@pytest.mark.parametrize(("make", "name", "settings"), HYPERPARAMETERS)
@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_tensors_that_cannot_be_learnt_are_refused(
    make: Any, name: str, settings: Any, kind: torch.dtype
) -> None:
    given = {"lr": 0.1, **settings(torch.tensor(0 if "bet" in name else 1, dtype=kind))}
    with pytest.raises(SettingError, match="^" + re.escape(f"{name}={kind}: a floating-point")):
        make(**given)


@pytest.mark.parametrize("make", [sgd, adam, adamw])
def test_rates_that_cannot_be_learnt_are_refused(make: Any) -> None:
    with pytest.raises(SettingError, match=r"^lr=torch\.int64: a floating-point tensor is needed"):
        make(torch.tensor([1, 2]))
    rates = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int32)}
    with pytest.raises(SettingError, match=r"^lr\[b\]=torch\.int32: a floating-point tensor is"):
        make(rates)
    case = problem()
    members, whole = stack([case.params] * 2), torch.tensor([1, 1])
    for call in (
        lambda: make(number(0.1)).with_learnt(torch.tensor(1)),
        lambda: make(number(0.1), weight_decay=number(0.1)).with_learnt(
            {"lr": number(0.1), "weight_decay": torch.tensor(1)}
        ),
        lambda: member_meta_gradient(
            case.loss_fn, members, case.tasks, optimizer=make(number(0.1)), steps=1, learnt=whole
        ),
    ):
        with pytest.raises(SettingError, match=r"^learnt.*=torch\.int64: a floating-point tensor"):
            call()


@pytest.mark.parametrize("call", [meta_gradient, task_meta_gradients, plan_meta_gradient])
@pytest.mark.parametrize("shape", [r for r in RATES if "steps" in r])
def test_a_schedule_for_another_number_of_steps_is_refused(shape: str, call: Any) -> None:
    case = problem()
    optimizer = sgd(rates_of(shape, case.params, steps=4))
    with pytest.raises(SettingError, match="^lr='4 values': 3 are needed, one for each inner step"):
        call(*case, optimizer=optimizer, steps=3)
    members = stack([case.params] * 2)
    with pytest.raises(SettingError, match="^lr='4 values': 3 are needed, one for each inner step"):
        member_meta_gradient(case.loss_fn, members, case.tasks, optimizer=optimizer, steps=3)


def test_a_step_size_of_another_shape_is_refused() -> None:
    case = problem()
    lr = {name: torch.full_like(p, 0.1) for name, p in case.params.items()}
    lr["0.weight"] = torch.ones(4, 5).double()
    message = r"^lr\[0\.weight\]=\[4, 5\]: a scalar, a value for each inner step, or the shape \[3,"
    with pytest.raises(SettingError, match=message):
        meta_gradient(*case, optimizer=sgd(lr), steps=1)


@engines
def test_the_implicit_method_learns_nothing(engine: str) -> None:
    case = problem()
    for optimizer in (
        sgd(number(0.1)),
        sgd(0.1, momentum=number(0.5)),
        adam(0.1, eps=number(1e-8)),
        sgd(0.1, weight_decay=number(0.1)),
    ):
        with pytest.raises(SettingError, match="^optimizer=.*method=implicit needs an inner opt"):
            meta_gradient(*case, optimizer=optimizer, steps=1, method="implicit", engine=engine)
    with pytest.raises(SettingError, match=r"^weight_decay=0\.01: method=implicit needs 0"):
        meta_gradient(*case, optimizer=adamw(0.1), steps=1, method="implicit", engine=engine)


@engines
def test_members_values_have_the_members_in_front(engine: str) -> None:
    case, members = problem(), stack([problem().params] * 2)
    for learnt, message in (
        (torch.ones(3).double(), r"^learnt=\(3,\): the shape \(2,\) is needed"),
        ({"lr": torch.ones(2)}, r"^learnt=\['lr'\]: a tree with \[''\] is needed"),
        (0.1, r"^learnt='float': a torch\.Tensor is needed"),
    ):
        with pytest.raises(SettingError, match=message):
            member_meta_gradient(
                case.loss_fn, members, case.tasks, optimizer=sgd(number(0.1)), steps=1,
                engine=engine, learnt=learnt,
            )  # fmt: skip
