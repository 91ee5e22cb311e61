"""Stacks of networks against the same networks apart."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metalearn import Ensemble
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Stack
from tests.support.member_networks import close, pictures, rows, same, small_conv, tied
from tests.support.oracles import generator

ENGINES = ("batched", "vmap", "loop")
engines = pytest.mark.parametrize("engine", ENGINES)


# --- members as they were -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: MLP((4,), 3, hidden=(5,), seed=seed),
        lambda seed: nn.Linear(4, 3),  # from the global generator
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)),
        partial(MLP, (4,), 3),  # takes the seed by name alone
    ],
)
def test_a_member_is_what_the_factory_makes_alone(make: Callable[..., nn.Module]) -> None:
    before = torch.get_rng_state()
    ensemble = Ensemble.from_factory(make, seeds=[3, 0, 11])
    assert torch.equal(torch.get_rng_state(), before)
    assert len(ensemble) == 3
    for member, seed in zip(ensemble.members(), (3, 0, 11)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                alone = make(seed)
            except TypeError:
                alone = make(seed=seed) if isinstance(make, partial) else make()
        assert type(member) is type(alone)
        same(member.state_dict(), alone.state_dict())
    first, second = (ensemble.member(i).state_dict() for i in (0, 1))
    assert any(not torch.equal(first[n], second[n]) for n in first)


@engines
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [small_conv, tied])
def test_outputs_and_running_statistics_are_those_of_single_networks(
    make: Callable[..., nn.Module], training: bool, engine: str
) -> None:
    alone = [make(seed).train(training) for seed in range(3)]
    ensemble = Ensemble.from_modules(alone).train(training)
    for step in range(3):
        x = pictures(step) if make is small_conv else rows(step)
        expected = torch.stack([network(x) for network in alone])
        close(ensemble(x, engine=engine), expected)
    for member, network in zip(ensemble.members(), alone):
        for name, value in network.state_dict().items():
            close(member.state_dict()[name], value, 1e-13)


def test_running_variances_survive_a_large_mean() -> None:
    """E[x²] − E[x]² would leave nothing of it in single precision."""
    alone = [nn.BatchNorm2d(2) for _ in range(2)]
    ensemble = Ensemble.from_modules(alone).train()
    x = 1000 + 0.1 * torch.randn(16, 2, 4, 4, generator=generator(0))
    for network in alone:
        network(x)
    ensemble(x)
    for member, network in zip(ensemble.members(), alone):
        close(member.state_dict()["running_var"], network.running_var, 1e-4)


@engines
def test_one_member_is_the_single_network(engine: str) -> None:
    alone = small_conv(4)
    ensemble = Ensemble.from_modules([alone])
    x = pictures()
    close(ensemble(x, engine=engine), alone(x)[None])
    for name, value in alone.state_dict().items():
        close(ensemble.member(0).state_dict()[name], value)


def test_members_may_be_permuted() -> None:
    networks = [small_conv(seed).eval() for seed in range(4)]
    order = [2, 0, 3, 1]
    ensemble = Ensemble.from_modules(networks).eval()
    permuted = Ensemble.from_modules([networks[i] for i in order]).eval()
    assert torch.equal(permuted(pictures()), ensemble(pictures())[order])


def test_convolutions_of_the_package_are_stacked() -> None:
    networks = [Conv4((1, 16, 16), 3, filters=4, seed=seed).double() for seed in range(2)]
    x = torch.randn(3, 1, 16, 16, generator=generator(1), dtype=torch.float64)
    for engine in ENGINES:
        close(
            Ensemble.from_modules(networks)(x, engine=engine),
            torch.stack([network(x) for network in networks]),
        )


# --- saved, copied, taken out ---------------------------------------------------------------------


def test_states_are_saved_and_loaded() -> None:
    ensemble = Ensemble.from_modules([tied(0), small_conv(0), tied(1)])
    other = Ensemble.from_modules([tied(5), small_conv(6), tied(7)])
    file = io.BytesIO()
    torch.save(ensemble.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    same(other.state_dict(), ensemble.state_dict())
    for one, two in zip(ensemble.members(), other.members()):
        same(one.state_dict(), two.state_dict())


def test_a_member_is_a_copy_that_loads_into_a_fresh_network() -> None:
    ensemble = Ensemble.from_modules([small_conv(seed) for seed in range(2)]).eval()
    member = ensemble.member(1)
    fresh = small_conv(9).eval()
    fresh.load_state_dict(member.state_dict())
    close(fresh(pictures()), ensemble(pictures())[1])
    before = ensemble(pictures())
    with torch.no_grad():
        for value in member.parameters():
            value.zero_()
    assert torch.equal(ensemble(pictures()), before)


def test_a_deep_copy_is_apart() -> None:
    ensemble = Ensemble.from_modules([tied(0), tied(1)])
    twin = copy.deepcopy(ensemble)
    before = ensemble(rows())
    assert torch.equal(twin(rows()), before)
    with torch.no_grad():
        for value in twin.parameters():
            value.add_(1)
    assert torch.equal(ensemble(rows()), before)
    assert not torch.equal(twin(rows()), before)


# --- inside further transforms --------------------------------------------------------------------


def test_inside_a_vmap_over_inputs() -> None:
    ensemble = Ensemble.from_modules([small_conv(seed) for seed in range(3)]).eval()
    x = torch.stack([pictures(seed) for seed in range(4)])
    close(vmap(ensemble)(x), torch.stack([ensemble(part) for part in x]))


def test_inside_a_vmap_over_perturbations_and_its_gradient() -> None:
    ensemble = Ensemble.from_modules([small_conv(s, tracks=False) for s in range(2)])
    params = {name: value.detach() for name, value in ensemble.named_parameters()}
    x, scales = pictures(), torch.tensor([0.0, 0.1, -0.2], dtype=torch.float64)

    def loss(params: dict[str, Tensor], scale: Tensor) -> Tensor:
        moved = {name: (1 + scale) * value for name, value in params.items()}
        return functional_call(ensemble, moved, (x,)).square().mean()

    grads = vmap(torch.func.grad(loss), in_dims=(None, 0))(params, scales)
    for row, scale in enumerate(scales):
        leaves = {n: v.clone().requires_grad_() for n, v in params.items()}
        value = loss(leaves, scale)
        # a bias before a norm has no part in the outputs
        expected = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        for grad, value in zip(grads.values(), expected):
            close(grad[row], value)


@engines
@pytest.mark.parametrize("tracks", [False, True])
def test_second_order_through_batch_norm(engine: str, tracks: bool) -> None:
    """Taken outside the member axis, where torch's own rule is wrong for some functions."""
    alone = [small_conv(seed, tracks=tracks).train() for seed in range(3)]
    ensemble = Ensemble.from_modules(alone).train()
    x, y = pictures(), torch.arange(5) % 3

    def twice(outputs: list[Tensor], params: list[Tensor]) -> list[Tensor]:
        loss = torch.stack([F.cross_entropy(logits, y) for logits in outputs]).sum()
        grads = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
        total = torch.stack([(g**2).sum() for g in grads]).sum()
        return list(torch.autograd.grad(total, params, materialize_grads=True))

    found = twice(list(ensemble(x, engine=engine)), list(ensemble.parameters()))
    expected = [
        torch.stack(parts)
        for parts in zip(*(twice([network(x)], list(network.parameters())) for network in alone))
    ]
    size = torch.stack([value.norm() for value in expected]).norm()
    error = torch.stack([(a - b).norm() for a, b in zip(found, expected)]).norm() / size
    assert error < 1e-10


def test_a_partial_class_takes_its_seed_by_name_alone() -> None:
    made = partial(nn.Linear, 3, out_features=2)
    assert [part.out_features for part in Ensemble.from_factory(made, [5, 6]).members()] == [2, 2]


def test_stacks_beside_networks_are_refused() -> None:
    one, other = MLP((3,), 2), MLP((3,), 2)
    with pytest.raises(SettingError, match="^stacks='MLP': networks alone, or stacks alone"):
        Ensemble([Stack([one]), other])
