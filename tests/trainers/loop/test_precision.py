"""Networks computed in bfloat16: of every trainer, with the error of the gradient said."""

from __future__ import annotations

import logging
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import Ensemble
from metalearn.core import functionalize
from metalearn.core.precision import network_type, networks_in
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Dropout, Recurrent, ResNet12, ViT
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import (
    MAML,
    BatchEnsembleTrainer,
    LoopSettings,
    MCDropoutTrainer,
    MetaTrainer,
)
from metalearn.trainers.loop.precision import relative_errors
from metalearn.trainers.members.rows import OneNetwork, StackedMembers
from tests.contracts.trainers import TRAINERS
from tests.support.builders import (
    assert_goes_on,
    assert_same,
    ensemble_trainer,
    linear,
    patterns,
    samples,
    signal_in_step,
)
from tests.support.diagnostic_cases import per_sample

KINDS = (
    "waves", "waves_first_order", "waves_learnt_members", "ensemble", "per_sample", "regression",
    "protonet", "mamlpp_members", "imaml", "cavia", "r2d2_members", "in_context",
)  # fmt: skip
SAID = re.compile(r"precision bfloat16: the gradient of batch (\d+) differs .* by ([\d.]+)%")
BF16: Any = {"precision": "bfloat16"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_says_its_error(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The one that is said is that of the first step, and no larger than eight bits explain."""
    narrow, wide = TRAINERS[kind](**BF16, steps=2, diagnostics=()), TRAINERS[kind](diagnostics=())
    one, other = narrow.gradient(0), wide.gradient(0)
    rows: Any = wide.loop.population.rows
    errors = relative_errors(rows, one.grads, other.grads)
    assert ((errors > 1e-5) & (errors < 0.1)).all()
    assert {grad.dtype for grad in one.grads.values()} == {torch.float32}
    with caplog.at_level(logging.INFO, logger="metalearn"):
        narrow.fit()
    (found,) = filter(None, (SAID.match(r.getMessage()) for r in caplog.records))
    assert float(found[2]) == pytest.approx(100 * float(errors.median()), abs=0.006)
    assert {p.dtype for p in narrow.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order", "implicit"])
def test_engines_and_methods_of_the_meta_gradient(engine: Any, method: Any) -> None:
    maml = MAML(inner_lr=0.05, inner_steps=2, engine=engine, method=method)
    tasks: Any = SinusoidTasks(shot=4, query=4)
    one, other = (
        MetaTrainer(MLP((1,), 1, hidden=(8,)), tasks, maml=maml, meta_batch=3, **settings).gradient(
            0
        )
        for settings in (BF16, {})
    )
    (error,) = relative_errors(OneNetwork(linear()), one.grads, other.grads).tolist()
    assert 1e-5 < error < 0.1


NETWORKS: dict[str, Any] = {
    "conv4": lambda: Conv4((1, 16, 16), 3, filters=4),
    "resnet12": lambda: ResNet12((1, 16, 16), 3, filters=(4, 4, 4, 4)),
    "vit": lambda: ViT((1, 16, 16), 3, patch=8, width=8, depth=1, heads=2),
    "gru": lambda: Recurrent((1, 16, 16), 3, hidden=6),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_backbones_are_as_if_they_were_cast(name: str) -> None:
    """Outputs and gradients of a call are those of a module in bfloat16, with a loss in float32."""
    draws = torch.Generator().manual_seed(0)
    x, y = torch.rand(6, 1, 16, 16, generator=draws), torch.arange(6) % 3
    apply, params, buffers = functionalize(NETWORKS[name](), vectorize=False)

    def loss(params: Any) -> Tensor:
        return nn.functional.cross_entropy(apply(params, buffers, x), y)

    with networks_in(torch.bfloat16):
        grads = torch.func.grad(loss)(params)
    module = NETWORKS[name]().to(torch.bfloat16)
    nn.functional.cross_entropy(module(x.bfloat16()).float(), y).backward()
    for parameter, value in module.named_parameters():
        assert value.grad is not None and grads[parameter].dtype == torch.float32
        torch.testing.assert_close(grads[parameter], value.grad.float(), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_backbones_have_meta_gradients(name: str) -> None:
    tasks: Any = FewShotTasks(patterns(side=16), way=3, shot=1, query=2)
    maml = MAML(inner_lr=0.1, inner_steps=1)
    found = MetaTrainer(NETWORKS[name](), tasks, maml=maml, meta_batch=2, **BF16).gradient(0)
    assert all(torch.isfinite(grad).all() for grad in found.grads.values())
    assert sum(float(grad.square().sum()) for grad in found.grads.values()) > 0


@pytest.mark.parametrize("method", ["layers", "vmap", "loop"])
def test_methods_of_per_sample_gradients(method: str) -> None:
    one, other = (per_sample(method=method, **settings).gradient(0) for settings in (BF16, {}))
    (error,) = relative_errors(OneNetwork(linear()), one.grads, other.grads).tolist()
    assert 1e-5 < error < 0.05


def normed(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
        return nn.Sequential(*layers)


@pytest.mark.parametrize("engine", ["batched", "loop"])
def test_running_statistics_follow(engine: str) -> None:
    found: list[dict[str, Tensor]] = []
    for settings in (BF16, {}):
        model = Ensemble.from_factory(normed, range(2))
        trainer = ensemble_trainer(model=model, data=samples(), engine=engine, steps=4, **settings)
        trainer.fit()
        found.append(dict(trainer.module.state_dict()))
    for name, value in found[0].items():
        if "running" in name:
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, found[1][name], rtol=0.05, atol=0.02)
            assert not torch.equal(value, found[1][name])
        if "num_batches" in name:
            assert value.tolist() == [4, 4]


@pytest.mark.parametrize("kind", [BatchEnsembleTrainer, MCDropoutTrainer])
def test_ensembles_of_one_network(kind: Any) -> None:
    def network(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), Dropout(0.2), nn.Linear(8, 3))

    model = Ensemble.from_factory(network, [0])
    quiet: Any = {"steps": 3, "batch_size": 8, "progress": False}
    trainer = kind(model, samples(), members=2, **quiet, **BF16)
    assert trainer.fit().step == 3


def test_buffers_of_infinity_stay() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("mask", torch.tensor([0.0, -float("inf"), 0.1]))

        def forward(self, x: Tensor) -> Tensor:
            masked: Tensor = self.layer(x) + self.mask
            return masked

    model = Ensemble.from_factory(lambda seed: Masked(), range(2))
    before = {name: value.clone() for name, value in model.named_buffers()}
    with networks_in(torch.bfloat16):
        model(torch.ones(2, 4))
    assert_same(dict(model.named_buffers()), before)


def test_validation_is_in_the_type_of_the_weights() -> None:
    narrow, wide = TRAINERS["ensemble"](**BF16), TRAINERS["ensemble"]()
    assert narrow.validate() == wide.validate()


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    assert_goes_on(lambda **given: TRAINERS["waves"](**BF16, **given), tmp_path)


def test_the_trial_leaves_buffers_as_they_are(tmp_path: Path) -> None:
    def make(**given: Any) -> Any:
        model = Ensemble.from_factory(normed, range(2))
        return ensemble_trainer(model=model, data=samples(), steps=4, **BF16, **given)

    whole, first, again = make(), make(folder=tmp_path), make(folder=tmp_path)
    whole.fit()
    signal_in_step(first, 1, signal.SIGTERM)
    first.fit()
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    assert_same(dict(again.module.state_dict()), dict(whole.module.state_dict()))


def test_a_call_in_a_type_casts_what_is_floating() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)
            self.seen: list[torch.dtype] = []

        def forward(self, tokens: Tensor, scale: Tensor) -> dict[str, Tensor]:
            out = self.head(self.table(tokens) * scale)
            return {"out": out, "same": out.dtype == torch.bfloat16, "tokens": tokens}  # type: ignore

    apply, params, buffers = functionalize(Lookup())
    given = torch.tensor([1, 2]), torch.ones(4)
    wide = apply(params, buffers, *given)
    with networks_in(torch.bfloat16):
        assert network_type() is torch.bfloat16
        narrow = apply(params, buffers, *given)
    assert network_type() is None
    assert (wide["same"], narrow["same"]) == (False, True)
    assert narrow["out"].dtype == torch.float32 and narrow["tokens"].dtype == torch.int64
    torch.testing.assert_close(narrow["out"], wide["out"], rtol=0.05, atol=0.02)


def test_errors_are_each_networks_own() -> None:
    model = Ensemble.from_factory(lambda seed: MLP((2,), 2, hidden=(3,), seed=seed), range(2))
    wanted = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    found = {
        n: g + torch.tensor([0.1, 0.2]).view(-1, *(1,) * (g.dim() - 1)) for n, g in wanted.items()
    }
    errors = relative_errors(StackedMembers(model), found, wanted)
    torch.testing.assert_close(
        errors, torch.tensor([0.1, 0.2], dtype=torch.float64), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("value", ["float16", "bf16", None, 16, "double"])
def test_types_that_are_not_known(value: Any) -> None:
    with pytest.raises(SettingError, match=r"^precision=.*: float32 or bfloat16 is needed$"):
        LoopSettings(precision=value)
