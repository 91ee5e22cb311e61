"""What is refused of a learner's methods, by the name of its class.

The checks are of types, shapes and numbers of states: they read no values and hold inside every
transform of ``torch.func``.

Axes: K inner steps, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from metalearn.core import MetaGradient
from metalearn.core.checks import call_given, module_takes
from metalearn.core.memory import is_out_of_memory
from metalearn.core.targets import is_label
from metalearn.core.tree import leaves, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.trainers.meta.absent_classes import among_present
from metalearn.trainers.meta.criterion import Criterion, Kind
from metalearn.trainers.meta.network import LearnerNetwork
from metalearn.types import Batch, Params, TaskBatch

__all__ = [
    "CheckedLearner",
    "check_gradient",
    "check_methods",
    "check_module",
    "check_outputs",
    "check_task_gradients",
    "made_of_features",
    "named_by_class",
    "of_task",
    "predicted",
    "refused_inputs",
    "states_of",
]


class CheckedLearner(Protocol):
    """What checks of methods ask of a learner."""

    kind: Kind
    needs: ClassVar[Literal["logits", "features"]]
    criterion: Criterion
    network: LearnerNetwork
    inner_steps: int
    eval_steps: int

    @property
    def names(self) -> Mapping[str, str]:
        """By the name of a parameter, what it is called in the module."""

    def fit(self, params: Params, support: Batch, *, steps: int | None = None) -> Iterator[Any]:
        """States after each inner step."""

    def predict(self, state: Any, inputs: Tensor) -> Tensor:
        """Outputs in a state."""

    def refusing_inputs(self, tasks: TaskBatch) -> AbstractContextManager[None]:
        """A block in which inputs that do not fit are refused."""


def states_of(learner: CheckedLearner, params: Params, support: Batch, steps: int) -> Iterator[Any]:
    """The states of `Learner.fit` after 0 … K inner steps.

    Args:
        learner: whose they are.
        params: of one network.
        support: of one task.
        steps: K.

    Raises:
        SettingError: what gives no states, one without a tensor, not K + 1 of them.
    """
    setting, count = _name(learner, "fit"), 0
    found = call_given(learner.fit, setting, params, support, steps=steps)
    if not isinstance(found, Iterable) or isinstance(found, Tensor | dict):
        accepted = "it has to yield a state after 0, 1, … inner steps"
        raise SettingError(setting, type(found).__name__, accepted)
    for state in found:
        if not any(isinstance(leaf, Tensor) for leaf in leaves(state)):
            accepted = "a state has to be a tree of tensors that holds the parameters too"
            raise SettingError(setting, type(state).__name__, accepted)
        count += 1
        if count > steps + 1:
            break
        yield state
    if count != steps + 1:
        shown = f"{count} states" if count <= steps else f"more than {steps + 1} states"
        accepted = f"{steps + 1} are needed, one after each of 0 … {steps} inner steps"
        if not steps:
            accepted = (
                "one is needed for no inner steps (more where inner_steps, eval_steps say so)"
            )
        raise SettingError(setting, shown, accepted)


def predicted(learner: CheckedLearner, state: Any, inputs: Any) -> Any:
    """What `Learner.predict` gives, refused where it does not take a state and inputs."""
    return call_given(learner.predict, _name(learner, "predict"), state, inputs)


def check_outputs(learner: CheckedLearner, outputs: Any, targets: Any) -> None:
    """Refuse what `Learner.predict` gave for the inputs of ``targets`` where it does not fit.

    Args:
        learner: whose method it is; of those that are here, outputs are as the module gives them,
            of which the criterion speaks.
        outputs: of one task.
        targets: of the same samples.

    Raises:
        SettingError: no tensor, or one of another shape.
    """
    if str(getattr(type(learner).predict, "__module__", "")).startswith("metalearn."):
        return
    classes = learner.criterion.classes
    wanted: list[int | str] = list(targets.shape)
    if learner.kind == "classification" and is_label(targets):
        wanted = [len(targets), classes or "C"]
    got = list(outputs.shape) if isinstance(outputs, Tensor) else None
    fits = got is not None and len(got) == len(wanted)
    if not fits or any(w not in (g, "C") for g, w in zip(got or (), wanted)):
        shown = type(outputs).__name__ if got is None else got
        accepted = f"a tensor {wanted} is needed for these tasks".replace("'", "")
        raise SettingError(_name(learner, "predict"), shown, accepted)


def of_task(learner: CheckedLearner, outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs of queries, among the classes of a support set's targets.

    The head of a network has an output for every class; one that features make, for those that
    are there.
    """
    return among_present(outputs, targets) if made_of_features(learner) else outputs


def made_of_features(learner: CheckedLearner) -> bool:
    """Whether features make the head of a learner of classes."""
    return learner.needs == "features" and learner.kind == "classification"


def check_methods(learner: CheckedLearner, tasks: TaskBatch) -> None:
    """Fit and predict the first of T tasks, of the first network, for what can be refused of it."""
    for setting in ("inner_steps", "eval_steps"):
        check_whole(_name(learner, setting), getattr(learner, setting), 0)
    support, query = tree_map(lambda value: value[0], tasks)
    row = learner.network.rows()[0]
    with learner.refusing_inputs(tasks):
        for state in states_of(learner, row, support, learner.inner_steps):
            check_outputs(learner, predicted(learner, state, query[0]), query[1])


def check_gradient(learner: CheckedLearner, found: Any) -> MetaGradient:
    """What `Learner.gradient` gave, refused where it is no `MetaGradient` of all parameters."""
    accepted = "a MetaGradient of all parameters is needed"
    if not isinstance(found, MetaGradient):
        raise SettingError(_name(learner, "gradient"), type(found).__name__, accepted)
    if found.grads.keys() != learner.names.keys():
        raise SettingError(_name(learner, "gradient"), list(found.grads), accepted)
    return found


def check_task_gradients(learner: CheckedLearner, found: Any) -> dict[str, Tensor]:
    """What `Learner.task_gradients` gave, refused where it is not of all parameters."""
    if not isinstance(found, dict) or found.keys() != learner.names.keys():
        shown = list(found) if isinstance(found, dict) else type(found).__name__
        accepted = "a mapping with the gradients of all parameters is needed"
        raise SettingError(_name(learner, "task_gradients"), shown, accepted)
    return found


def check_module(learner: Any, found: Any) -> nn.Module:
    """What `Learner.as_module` gave, refused where it is no module."""
    if not isinstance(found, nn.Module):
        raise SettingError(_name(learner, "as_module"), type(found).__name__, "a module is needed")
    return found


@contextmanager
def refused_inputs(outputs: Callable[[Any], Any], tasks: TaskBatch) -> Iterator[None]:
    """A block in which inputs that a module cannot take are refused by their set.

    Args:
        outputs: of the module, of one task's inputs.
        tasks: T.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SettingError) or is_out_of_memory(error):
            raise
        for name, (inputs, _) in zip(("support", "query"), tasks):
            with torch.no_grad(), module_takes(f"{name} inputs", inputs):
                outputs(tree_map(lambda x: x[0], inputs))
        raise


@contextmanager
def named_by_class(learner: CheckedLearner) -> Iterator[None]:
    """A block that differentiates a task's loss, which is refused by the name of its class."""
    try:
        yield
    except SettingError as error:
        if error.setting not in ("task_loss", "loss_fn"):
            raise
        raise type(error)(_name(learner, "task_loss"), error.value, error.accepted) from error


def _name(learner: Any, method: str) -> str:
    return f"{type(learner).__name__}.{method}"
