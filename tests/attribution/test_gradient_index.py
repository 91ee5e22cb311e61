"""A stored index of projected gradients: what it answers, what it resumes, what it refuses.

Axes: R targets, N examples, k numbers of a projection.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.attribution import (
    GradientIndex,
    build_gradient_index,
    gradient_similarity,
    load_gradient_index,
)
from metalearn.attribution.gradient_passes import GradientPasses
from metalearn.attribution.projections import gradient_projections
from metalearn.errors import DataError, NonFiniteError, SettingError
from tests.support.attribution_oracles import Trained, classifier, gradient_rows, others
from tests.support.damage import FILES, REPLACEMENTS, entries, replaced, saved, without

close = torch.testing.assert_close
HARMLESS = ("doubled", "a bit at")  # may hit bytes that no reader looks at


def build(folder: Path, known: Trained | None = None, **settings: Any) -> GradientIndex:
    known = known or classifier()
    given = {"size": 6, "seed": 1, "rows_per_file": 3, **settings}
    return build_gradient_index(folder, known.loss_fn, known.params, known.examples, **given)


def load(folder: Path, known: Trained | None = None, **settings: Any) -> GradientIndex:
    known = known or classifier()
    return load_gradient_index(folder, known.loss_fn, known.params, **settings)


def projected(known: Trained, batch: Any, kind: Any = "signs") -> Tensor:
    """A loop's gradients, projected."""
    init, update, finish = gradient_projections(kind, 6, 1)
    rows = gradient_rows(known.loss_fn, known.params, batch)
    parts, start = {}, 0
    for name, p in known.params.items():
        parts[name] = rows[:, start : start + p.numel()].reshape(len(rows), *p.shape)
        start += p.numel()
    return finish(update(init(known.params), parts))


@pytest.mark.parametrize("kind", ["signs", "sketch"])
@pytest.mark.parametrize("rows_per_file", [1, 3, 7, 100])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_queries_are_those_of_a_loop(
    kind: Any, rows_per_file: int, chunk_size: Any, tmp_path: Path
) -> None:
    known = classifier()
    settings: Any = {"projection": kind, "rows_per_file": rows_per_file, "chunk_size": chunk_size}
    built = build(tmp_path / "index", known, **settings)
    left, right = projected(known, known.targets, kind), projected(known, known.examples, kind)
    fisher = sum(torch.outer(s, s) for s in right) / 7 + 0.1 * torch.eye(6, dtype=torch.float64)
    cosines = [[torch.cosine_similarity(a, b, dim=0) for b in right] for a in left]
    for index in (built, load(tmp_path / "index", known, chunk_size=chunk_size)):
        close(index.rows, right)
        close(index.query(known.targets), left @ right.mT)
        close(index.query(known.targets, metric="cosine"), torch.tensor(cosines))
        found = index.query(known.targets, metric="influence", damping=0.1)
        close(found, left @ torch.linalg.inv(fisher) @ right.mT / 7)
        one = tuple(x[:1] for x in known.targets)
        close(index.query(one), left[:1] @ right.mT)


def test_many_numbers_tell_the_products_of_gradients(tmp_path: Path) -> None:
    known = classifier(3, 1)
    found = build(tmp_path, known, size=20_000).query(known.targets)
    exact = gradient_similarity(
        known.loss_fn, known.params, known.targets, known.examples, metric="dot"
    )
    norms = [
        gradient_rows(known.loss_fn, known.params, b).norm(dim=1)
        for b in (known.targets, known.examples)
    ]
    assert ((found - exact).abs() < 0.05 * torch.outer(*norms)).all()


def test_chosen_parameters_are_kept_with_the_index(tmp_path: Path) -> None:
    known = classifier()
    for patterns in ("2.*", ["2.weight", "2.bias"]):
        folder = tmp_path / str(len(patterns))
        rows = build(folder, known, parameters=patterns).rows
        index = load(folder, known)
        close(index.rows, rows)
        assert list(index.passes.params) == ["2.weight", "2.bias"]


def read(folder: Path) -> Any:
    """The rows of an index; None where they are refused."""
    try:
        return load(folder).rows
    except DataError:
        return None


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples are projected at a time, from here on."""
    sizes: list[int] = []
    original = GradientPasses.reduced

    def reduced(self: GradientPasses, batch: Any, reduction: Any) -> Any:
        sizes.append(len(batch[1]))
        return original(self, batch, reduction)

    monkeypatch.setattr(GradientPasses, "reduced", reduced)
    return sizes


@pytest.mark.parametrize("name", FILES)
def test_what_is_whole_is_kept_and_what_is_not_is_made_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, part = build(tmp_path).rows, tmp_path / "rows-000001.pt"
    part.write_bytes(FILES[name](part.read_bytes()))
    if name.startswith(HARMLESS) and read(tmp_path) is not None:
        assert torch.equal(read(tmp_path), rows)  # no value was hit
    else:
        with pytest.raises(DataError, match=part.name) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
    sizes = counted(monkeypatch)
    assert torch.equal(build(tmp_path).rows, rows)
    assert sizes in ([], [3])
    assert torch.equal(load(tmp_path).rows, rows)


def test_a_build_that_was_broken_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = classifier()
    calls: list[int] = []

    def failing(params: Any, batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return known.loss_fn(params, batch)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, known._replace(loss_fn=failing), chunk_size=None)
    assert (tmp_path / "index.json").exists()
    assert not (tmp_path / "rows-000002.pt").exists()
    with pytest.raises(DataError, match="is missing; build_gradient_index goes on with it"):
        load(tmp_path)
    present = len(list(tmp_path.glob("rows-*.pt")))
    assert present > 0
    sizes = counted(monkeypatch)
    resumed = build(tmp_path, known)
    assert len(sizes) == 3 - present
    assert torch.equal(resumed.rows, build(tmp_path / "anew", known).rows)


def test_it_belongs_to_its_parameters_and_keeps_its_own(tmp_path: Path) -> None:
    known = classifier()
    params = {n: p.clone() for n, p in known.params.items()}
    index = build(tmp_path, known._replace(params=params))
    before = index.query(known.targets)
    params["0.weight"].add_(1.0)
    assert torch.equal(index.query(known.targets), before)
    for other in (
        params,
        {n: p.float() for n, p in known.params.items()},
        {n: known.params[n] for n in list(known.params)[1:]},
        *others(known.params, 1),
    ):
        with pytest.raises(DataError, match="this index is of other parameters than those given"):
            load(tmp_path, known._replace(params=other))
    shuffled = dict(reversed(known.params.items()))
    assert load(tmp_path, known._replace(params=shuffled)).rows.shape == (7, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 5}, "size is 6 there and 5 here"),
        ({"seed": 2}, "seed is 1 there and 2 here"),
        ({"projection": "sketch"}, "projection is 'signs' there and 'sketch' here"),
        ({"rows_per_file": 4}, "rows_per_file is 3 there and 4 here"),
        ({"parameters": "2.*"}, r"parameters is None there and \['2.\*'\] here"),
        ({"known": classifier(seed=1)}, "params_sha256 is '"),
        ({"known": classifier(examples=6)}, "examples is 7 there and 6 here"),
        (
            {"known": classifier()._replace(examples=classifier(seed=3).examples)},
            "examples_sha256 is '",
        ),
    ],
)
def test_another_index_is_not_overwritten(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    build(tmp_path)
    with pytest.raises(DataError, match=f"this folder has another index .{message}"):
        build(tmp_path, **changes)
    assert load(tmp_path).rows.shape == (7, 6)


STATE = {"header": "text", "number": 1, "rows": torch.zeros(3, 6, dtype=torch.float64)}


@pytest.mark.parametrize("path", list(entries(STATE)), ids=str)
@pytest.mark.parametrize("value", REPLACEMENTS)
def test_every_entry_of_a_file_is_looked_at(path: Any, value: str, tmp_path: Path) -> None:
    build(tmp_path)
    part = tmp_path / "rows-000001.pt"
    state = torch.load(part, weights_only=True)
    part.write_bytes(saved(replaced(state, path, REPLACEMENTS[value])))
    with pytest.raises(DataError, match=r"rows-000001\.pt: this file "):
        load(tmp_path)
    part.write_bytes(saved(without(state, path)))
    with pytest.raises(DataError, match=r"rows-000001\.pt: this file "):
        load(tmp_path)


def test_rows_of_another_place_or_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    build(tmp_path)
    first, part = tmp_path / "rows-000000.pt", tmp_path / "rows-000001.pt"
    state = torch.load(part, weights_only=True)
    part.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match="this file is a part of another index"):
        load(tmp_path)
    state["rows"][0, 0] = torch.nan
    part.write_bytes(saved(state))
    with pytest.raises(DataError, match=r"this file has no rows \[3, 6\]"):
        load(tmp_path)


HEADER = ("version", "examples", "size", "seed", "projection", "parameters", "rows_per_file")


@pytest.mark.parametrize("name", [*HEADER, "params_sha256", "examples_sha256"])
@pytest.mark.parametrize("value", [None, -1, 0, 1.5, 2**80, "text", [3], {}, True])
def test_every_entry_of_the_header_is_looked_at(name: str, value: Any, tmp_path: Path) -> None:
    build(tmp_path)
    path = tmp_path / "index.json"
    header = json.loads(path.read_text())
    assert set(header) == {*HEADER, "params_sha256", "examples_sha256"}
    path.write_text(json.dumps({**header, name: value}))
    same = header[name] == value and type(header[name]) is type(value)
    if same:
        return
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    del header[name]
    path.write_text(json.dumps(header))
    with pytest.raises(DataError, match="this is no header of an index"):
        load(tmp_path)


def test_what_else_stands_in_a_header_is_passed_over(tmp_path: Path) -> None:
    rows = build(tmp_path).rows
    header = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**header, "comment": "of last week"}))
    assert torch.equal(load(tmp_path).rows, rows)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_header_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "index.json").write_bytes(content)
    for function in (load, build):
        with pytest.raises(DataError, match="this is no header of an index") as caught:
            function(tmp_path)
        assert "\n" not in str(caught.value)


def test_what_is_missing_or_cannot_be_indexed_is_one_sentence(tmp_path: Path) -> None:
    known = classifier()
    with pytest.raises(DataError, match=r"there is no index of gradients \(no index.json\)"):
        load(tmp_path / "nowhere")
    wrong = known.examples[0].clone()
    wrong[4] = torch.inf
    with pytest.raises(NonFiniteError, match="the gradient of example 4 is infinite or NaN"):
        build(tmp_path, known._replace(examples=(wrong, known.examples[1])))
    index = build(tmp_path / "index", known)
    for settings, message in (
        ({"metric": "l2"}, "metric='l2': one of dot, cosine, influence"),
        ({"metric": "influence"}, "damping=None: a number above 0 is needed"),
        ({"metric": "influence", "damping": 0.0}, "damping=0.0: a number above 0 is needed"),
        ({"damping": 1.0}, "damping=1.0: it goes with metric='influence' alone"),
    ):
        with pytest.raises(SettingError, match=message):
            index.query(known.targets, **settings)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="targets={}: the same number of samples"):
        index.query(())
    for settings, message in (
        ({"size": 0}, "size=0: a whole number of at least 1"),
        ({"seed": 0.5}, "seed=0.5: a whole number in 0"),
        ({"rows_per_file": 0}, "rows_per_file=0: a whole number of at least 1"),
        ({"projection": "dense"}, "projection='dense': one of signs, sketch"),
    ):
        with pytest.raises(SettingError, match=message):
            build(tmp_path / "other", known, **settings)
    assert not (tmp_path / "other").exists()
