"""TracIn against loops over checkpoints, targets and examples, and what a step does.

Axes: R targets, N examples.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.attribution import tracin_scores, tracin_self_influence
from metalearn.core.samples.outer_products import OuterProducts
from metalearn.core.vectorization import VectorizationError
from metalearn.errors import SettingError
from tests.support.attribution_oracles import Trained, chosen, classifier, gradient_rows, others
from tests.support.networks import CASES, case

RATES = [0.1, 0.03, 0.5]
close = torch.testing.assert_close


def by_loops(known: Trained, checkpoints: list[Any], rates: list[float], mask: Any = ...) -> Tensor:
    total: Any = 0.0
    for params, rate in zip(checkpoints, rates):
        left = gradient_rows(known.loss_fn, params, known.targets)[:, mask]
        right = gradient_rows(known.loss_fn, params, known.examples)[:, mask]
        total = total + rate * torch.stack([torch.stack([a @ b for b in right]) for a in left])
    return total


@pytest.mark.parametrize("shape", [(3, 7), (1, 7), (3, 1), (1, 1)])
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 100, "auto"])
def test_the_sum_over_checkpoints_is_that_of_loops(shape: tuple[int, int], chunk_size: Any) -> None:
    known = classifier(*shape)
    checkpoints = others(known.params, 3)
    found = tracin_scores(
        known.loss_fn, checkpoints, known.targets, known.examples,
        learning_rates=RATES, chunk_size=chunk_size,
    )  # fmt: skip
    assert found.shape == shape
    close(found, by_loops(known, checkpoints, RATES), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("parameters", ["2.*", ["2.*"], ["2.weight", "2.bias"]])
def test_chosen_parameters_and_every_method(method: Any, parameters: Any) -> None:
    known = classifier()
    found = tracin_scores(
        known.loss_fn, [known.params], known.targets, known.examples,
        learning_rates=[1.0], parameters=parameters, method=method,
    )  # fmt: skip
    close(found, by_loops(known, [known.params], [1.0], chosen(known.params, "2.")))


@pytest.mark.parametrize("name", list(CASES))
def test_networks_of_many_kinds(name: str) -> None:
    loss_fn, params, batch, _ = case(name)
    rows = gradient_rows(loss_fn, params, batch)
    found = tracin_scores(loss_fn, [params], batch, batch, learning_rates=[2.0], chunk_size=3)
    close(found, 2 * rows @ rows.mT)
    own = tracin_self_influence(loss_fn, [params], batch, learning_rates=[2.0])
    close(own, found.diagonal())


def test_it_is_what_a_small_step_on_one_example_does_to_a_loss() -> None:
    known = classifier()
    rate = 1e-6
    found = tracin_scores(
        known.loss_fn, [known.params], known.targets, known.examples, learning_rates=[rate]
    )
    for i in range(len(known.examples[1])):
        one = tuple(x[i : i + 1] for x in known.examples)
        grads = torch.func.grad(known.loss_fn)(known.params, one)
        moved = {n: p - rate * grads[n] for n, p in known.params.items()}
        for r in range(len(known.targets[1])):
            target = tuple(x[r : r + 1] for x in known.targets)
            fall = known.loss_fn(known.params, target) - known.loss_fn(moved, target)
            close(found[r, i] / rate, fall / rate, rtol=1e-3, atol=1e-4)


def test_self_influence_sums_squared_norms_over_checkpoints() -> None:
    known = classifier()
    checkpoints = others(known.params, 3)
    expected = sum(
        rate * gradient_rows(known.loss_fn, params, known.examples)[:, :].square().sum(1)
        for params, rate in zip(checkpoints, RATES)
    )
    found = tracin_self_influence(
        known.loss_fn, checkpoints, known.examples, learning_rates=RATES, chunk_size=2
    )
    close(found, expected)


def test_a_parameter_without_a_part_adds_nothing() -> None:
    known = classifier()
    wider = {**known.params, "spare": torch.ones(2, 3, dtype=torch.float64)}
    settings: Any = {"learning_rates": [1.0]}
    batches = known.targets, known.examples
    found = tracin_scores(known.loss_fn, [wider], *batches, **settings)
    close(found, tracin_scores(known.loss_fn, [known.params], *batches, **settings))
    with pytest.raises(SettingError, match="no parameter reached"):
        tracin_scores(known.loss_fn, [wider], *batches, parameters="spare", **settings)


def test_parameters_that_want_gradients_leave_no_graph() -> None:
    known = classifier()
    params = {n: p.clone().requires_grad_() for n, p in known.params.items()}
    found = tracin_scores(
        known.loss_fn, [params], known.targets, known.examples, learning_rates=[1.0]
    )
    assert not found.requires_grad


def test_members_are_scored_under_vmap() -> None:
    known = classifier()
    models = others(known.params, 2)
    stacked = {n: torch.stack([m[n] for m in models]) for n in known.params}

    def score(params: Any, **settings: Any) -> Tensor:
        return tracin_scores(
            known.loss_fn, [params], known.targets, known.examples,
            learning_rates=[1.0], chunk_size=2,
        )  # fmt: skip

    close(torch.func.vmap(score)(stacked), torch.stack([score(model) for model in models]))


def test_what_vmap_cannot_take_is_looped_over() -> None:
    known = classifier()

    def loss_fn(params: Any, batch: Any) -> Tensor:
        logits = known.outputs_fn(params, batch[0])
        return F.cross_entropy(logits, batch[1]) * (1.0 if float(logits.detach().sum()) < 9 else 2)

    batches = known.targets, known.examples
    with pytest.raises(VectorizationError, match="method='loop' can"):
        tracin_scores(loss_fn, [known.params], *batches, learning_rates=[1.0])
    found = tracin_scores(loss_fn, [known.params], *batches, learning_rates=[1.0], method="loop")
    close(found, by_loops(known._replace(loss_fn=loss_fn), [known.params], [1.0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": []}, "checkpoints=0: at least one is needed"),
        ({"checkpoints": None}, "checkpoints=None: a list is needed"),
        ({"learning_rates": [1.0, 2.0]}, "learning_rates=2: one for each of 1 checkpoints"),
        ({"learning_rates": [-1.0]}, r"learning_rates\[0\]=-1.0: "),
        ({"targets": ()}, "targets={}: the same number of samples"),
        ({"examples": (torch.ones(3, 4), torch.zeros(2))}, "examples={.*}: the same number"),
        ({"parameters": "head.*"}, r"parameters='head.\*': a pattern that matches a parameter"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
        ({"method": "hooks"}, "method='hooks': one of layers, vmap, loop"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    known = classifier()
    given = {
        "loss_fn": known.loss_fn,
        "checkpoints": [known.params],
        "targets": known.targets,
        "examples": known.examples,
        "learning_rates": [1.0],
    }
    with pytest.raises(SettingError, match=message):
        tracin_scores(**{**given, **changes})


def test_products_with_wide_matrices_do_not_form_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = nn.Sequential(nn.Linear(4, 30, bias=False), nn.Tanh(), nn.Linear(30, 30, bias=False))
    known = classifier(module=wide)
    formed = OuterProducts.formed

    def of_few(self: OuterProducts) -> Tensor:  # a trial of three samples may form theirs
        return formed(self) if self.count <= 3 else pytest.fail("they were formed")

    monkeypatch.setattr(OuterProducts, "formed", of_few)
    found = tracin_scores(
        known.loss_fn, [known.params], known.targets, known.examples,
        learning_rates=[1.0], parameters="2.*",
    )  # fmt: skip
    monkeypatch.undo()
    close(found, by_loops(known, [known.params], [1.0], chosen(known.params, "2.")))
