"""GraNd and EL2N against loops over models and examples.

Axes: M models, N examples.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.attribution import el2n_scores, grand_scores
from metalearn.errors import SettingError
from tests.support.attribution_oracles import chosen, classifier, gradient_rows, others, samples

close = torch.testing.assert_close


@pytest.mark.parametrize("examples", [7, 1])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 2, "auto"])
def test_scores_are_means_over_models(examples: int, models: int, chunk_size: Any) -> None:
    known = classifier(1, examples)
    places = others(known.params, models)
    norms = [gradient_rows(known.loss_fn, p, known.examples).norm(dim=1) for p in places]
    found = grand_scores(known.loss_fn, places, known.examples, chunk_size=chunk_size)
    close(found, torch.stack(norms).mean(0))
    errors = []
    for params in places:
        for x, y in samples(known.examples):
            logits = known.outputs_fn(params, x)[0]
            chance = logits.exp() / logits.exp().sum()
            chance[y] -= 1
            errors.append(chance.square().sum().sqrt())
    found = el2n_scores(known.outputs_fn, places, known.examples, chunk_size=chunk_size)
    close(found, torch.stack(errors).view(models, examples).mean(0))


def test_el2n_is_the_norm_of_the_gradient_of_the_last_bias() -> None:
    known = classifier()
    given = [known.params]
    bias = grand_scores(known.loss_fn, given, known.examples, parameters="2.bias")
    close(bias, el2n_scores(known.outputs_fn, given, known.examples))
    mask = chosen(known.params, "2.")
    rows = gradient_rows(known.loss_fn, known.params, known.examples)[:, mask]
    layer = grand_scores(known.loss_fn, given, known.examples, parameters="2.*", method="loop")
    close(layer, rows.norm(dim=1))


def test_scores_of_narrow_types_are_float32() -> None:
    known = classifier()
    half = {n: p.bfloat16() for n, p in known.params.items()}
    batch = known.examples[0].bfloat16(), known.examples[1]
    assert el2n_scores(known.outputs_fn, [half], batch).dtype == torch.float32
    assert grand_scores(known.loss_fn, [half], batch).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "models=0: at least one is needed"),
        ({"models": {}}, "models={}: a list is needed"),
        ({"outputs_fn": lambda p, x: x[:, 0]}, r"outputs_fn=\(7,\): logits \[N, C\]"),
        ({"outputs_fn": lambda p, x: x[:2]}, r"labels=\(7,\): the shape \(2,\) is needed"),
        ({"examples": torch.ones(7, 4)}, r"examples='Tensor': a pair \(inputs, labels\)"),
        ({"examples": (torch.ones(7, 4).double(), torch.full((7,), 3))}, r"labels=3: a class in 0"),
        ({"examples": (torch.ones(7, 4).double(), torch.ones(7))}, "labels=.*class indices"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    known = classifier()
    given = {"outputs_fn": known.outputs_fn, "models": [known.params], "examples": known.examples}
    with pytest.raises(SettingError, match=message):
        el2n_scores(**{**given, **changes}, chunk_size=None)
