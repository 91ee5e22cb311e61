"""Scores of examples by dattri and traker, as their documentation shows; ``[R, N]``.

Axes: N examples, R targets.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from metalearn.benchmarks.runs.attribution_methods import CG_ITERATIONS
from metalearn.benchmarks.runs.attribution_problem import AttributionProblem

__all__ = ["dattri_influence", "dattri_kronecker", "dattri_tracin", "dattri_trak", "traker"]

Run = Callable[[], Tensor]
_AT_ONCE = 4


def dattri_influence(problem: AttributionProblem) -> Run:
    """``IFAttributorCG`` on the damped Hessian, few targets at once: 20 took 5.4 GB."""
    how: Any = {"max_iter": CG_ITERATIONS, "regularization": problem.damping}
    return _dattri(problem, "IFAttributorCG", [problem.trained], at_once=_AT_ONCE, **how)


def dattri_kronecker(problem: AttributionProblem) -> Run:
    """``IFAttributorEKFAC``."""
    return _dattri(problem, "IFAttributorEKFAC", [problem.trained], damping=problem.damping)


def dattri_tracin(problem: AttributionProblem) -> Run:
    """``TracInAttributor``, with whole gradients in place of its projections."""
    states, rates = problem.states
    how: Any = {"weight_list": torch.tensor(rates), "normalized_grad": False}
    return _dattri(problem, "TracInAttributor", states, whole=True, **how)


def dattri_trak(problem: AttributionProblem) -> Run:
    """``TRAKAttributor`` of margins."""
    loss = _loss(problem.network)

    def chance(params: Any, batch: Any) -> Tensor:
        return torch.exp(-loss(params, batch))

    how: Any = {"projector_kwargs": {"proj_dim": problem.projection, "device": "cpu"}}
    return _dattri(
        problem, "TRAKAttributor", [problem.trained], margin=True,
        correct_probability_func=chance, **how,
    )  # fmt: skip


def traker(problem: AttributionProblem) -> Run:
    """``TRAKer`` on a CPU, for which it has its ``BasicProjector``; its features go to a disk."""
    library: Any = importlib.import_module("trak")
    x, y = problem.data.part("train")
    at, labels = problem.samples
    state = {name: p.clone() for name, p in problem.trained.items()}
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "use_half_precision": False}

    def scores() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            made = library.TRAKer(
                model=problem.network.eval(), task="image_classification", save_dir=folder,
                train_set_size=len(x), device="cpu", proj_dim=problem.projection, **quiet,
            )  # fmt: skip
            made.load_checkpoint(state, model_id=0)
            made.featurize(batch=(x, y), num_samples=len(x))
            made.finalize_features()
            made.start_scoring_checkpoint("targets", state, model_id=0, num_targets=len(at))
            made.score(batch=(at, labels), num_samples=len(at))
            found = torch.from_numpy(made.finalize_scores("targets").copy())
        return found.T

    return scores


def _dattri(
    problem: AttributionProblem,
    kind: str,
    states: Sequence[dict[str, Tensor]],
    *,
    margin: bool = False,
    whole: bool = False,
    at_once: int | None = None,
    **how: Any,
) -> Run:
    """An attributor of dattri, made and asked anew at every run; all examples are one batch."""
    algorithms: Any = importlib.import_module(f"dattri.algorithm.{_MODULES[kind]}")
    tasks: Any = importlib.import_module("dattri.task")
    examples, targets = _loader(problem.data.part("train")), _loader(problem.samples, at_once)
    network = problem.network
    loss = _margin(network) if margin else _loss(network)

    def scores() -> Tensor:
        checkpoints = [{name: p.clone() for name, p in state.items()} for state in states]
        task = tasks.AttributionTask(loss_func=loss, model=network, checkpoints=checkpoints)
        attributor = getattr(algorithms, kind)(task=task, **how)
        if whole:
            attributor.projector_kwargs = None
        if kind != "TracInAttributor":
            attributor.cache(examples)
        given = {} if kind == "TRAKAttributor" else {"train_dataloader": examples}
        found: Tensor = attributor.attribute(**given, test_dataloader=targets)
        return found.T.detach()

    return scores


_MODULES = {
    "IFAttributorCG": "influence_function",
    "IFAttributorEKFAC": "influence_function",
    "TracInAttributor": "tracin",
    "TRAKAttributor": "trak",
}


def _loader(samples: tuple[Tensor, Tensor], at_once: int | None = None) -> Any:
    size = at_once or len(samples[1])
    return DataLoader(TensorDataset(*samples), batch_size=size, shuffle=False)


def _batched(batch: Any) -> tuple[Tensor, Tensor]:
    """A batch, or the one sample that a vmap leaves of it."""
    x, y = batch
    return (x, y) if x.dim() == 4 else (x[None], y[None])


def _loss(network: nn.Module) -> Callable[..., Tensor]:
    def loss(params: Any, batch: Any) -> Tensor:
        x, y = _batched(batch)
        return nn.functional.cross_entropy(functional_call(network, params, (x,)), y)

    return loss


def _margin(network: nn.Module) -> Callable[..., Tensor]:
    """log(p / (1 − p)) of the class."""

    def margin(params: Any, batch: Any) -> Tensor:
        x, y = _batched(batch)
        logits: Tensor = functional_call(network, params, (x,))
        own = logits.gather(1, y[:, None])[:, 0]
        others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
        return (own - others).sum()

    return margin
