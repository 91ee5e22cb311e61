"""What every meta-learning method meets, with an inner loop or without.

A method is written for one task and one network: `fit` to a support set, `predict` inputs, and the
gradient of a task's loss. Batching, scores, ensembles, records and diagnostics follow from that.

Axes: M members, T tasks, K inner steps, N samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from metalearn.core import Engine, MetaGradient, Plan
from metalearn.core.checks import module_takes
from metalearn.core.loss_checks import outside_inference_mode, unused_parameters
from metalearn.core.meta.every_task import task_loss_gradients
from metalearn.core.module.norms import Norm
from metalearn.core.tree import tree_map
from metalearn.errors import check_whole
from metalearn.schema import Kind as StateKind
from metalearn.signatures import checked
from metalearn.trainers.loop.pure_calls import as_it_is
from metalearn.trainers.meta.adapting import adapted
from metalearn.trainers.meta.criterion import Criterion, Kind
from metalearn.trainers.meta.learnt import learn_beside, learner_line
from metalearn.trainers.meta.method_checks import named_by_class, refused_inputs, states_of
from metalearn.trainers.meta.network import network_of, normalized
from metalearn.trainers.meta.normalization import moved_by_tasks
from metalearn.trainers.meta.plan_state import kept_plan, plan_kind, plan_state
from metalearn.trainers.meta.scores import TaskScores
from metalearn.trainers.meta.scoring import along_states, score_tasks
from metalearn.trainers.meta.state_module import StateModule
from metalearn.trainers.meta.task_losses import loss_gradient, plan_of_loss, query_loss
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["Learner"]


class Learner(ABC):
    """A module, or an `Ensemble`, that learns to adapt to tasks; it shares the module's parameters.

    A method gives `fit` and `predict`; `task_loss` where it descends another than the queries';
    what takes a gradient where that is no task's loss; by `learn` what is learnt beside a module.

    Args:
        module: one network, or an `Ensemble` whose members learn each by itself.
        kind: ``"classification"`` or ``"regression"``.
        norm: what to make of batch and instance norms; see `metalearn.trainers.MAML`.
        engine: how tasks are batched.
        chunk_size: tasks at a time; None takes a whole meta-batch.
        features: see the attribute.

    Attributes:
        module, params: what is trained; by name, with what is learnt beside; of M, ``[M, ...]``.
        plan: how gradients are taken, once that is decided; ``pure`` makes their pure calls.

    Raises:
        SettingError: a module that cannot work, by name, or without parameters to learn.
    """

    needs: ClassVar[Literal["logits", "features"]] = "logits"
    """What the network has to give: an output for each class (or value), or any vector."""
    features: int | None = None
    """How long a vector of features has to be; None takes what the network gives."""
    draws: ClassVar[Literal["tasks", "samples"]] = "tasks"
    """What a training step is made of."""
    inner_steps: int = 0
    """K in training."""
    eval_steps: int = 0
    """K in validation and test."""

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        kind: Kind = "classification",
        norm: Norm | None = None,
        engine: Engine = "auto",
        chunk_size: int | None = None,
        features: int | None = None,
    ) -> None:
        if chunk_size is not None:
            check_whole("chunk_size", chunk_size, 1)
        if features is not None:
            check_whole("features", features, 1)
            self.features = features
        self.criterion = Criterion(kind, None if self.needs == "features" else self._as_it_is)
        self.kind, self._engine, self.chunk_size, self.pure = kind, engine, chunk_size, as_it_is
        self.network = self.network_for(normalized(module, norm), engine)
        self.module, self.params = self.network.module, self.network.params
        self.buffers, self.apply = self.network.buffers, self.network.apply
        self.plan: Plan | None = None

    learn, __repr__ = learn_beside, learner_line
    moved_buffers = moved_by_tasks
    network_for = staticmethod(network_of)

    @abstractmethod
    def fit(self, params: Params, support: Batch, *, steps: int | None = None) -> Iterator[Any]:
        """States of one network after 0, 1, … K inner steps on one task's support set.

        A state is a tree of tensors that holds the parameters too. K = 0 without an inner loop.
        ``steps`` is K; None takes ``eval_steps``.
        """

    @abstractmethod
    def predict(self, state: Any, inputs: Tensor) -> Tensor:
        """Outputs ``[N, ...]`` for inputs of one task, in a state that `fit` gave."""

    def task_loss(self, params: Params, support: Batch, query: Batch) -> Tensor:
        """Mean loss of one task's queries after ``inner_steps`` steps, a scalar."""
        return query_loss(self, params, support, query)

    def gradient(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> MetaGradient:
        """The mean over T tasks of the gradient of a task's loss, of every network.

        ``params`` are those of all networks; ``step`` is for what changes over a training. The loss
        is `task_loss`, unless a method takes gradients of its own.
        """
        self.check_training(tasks)
        with self.refusing_inputs(tasks), named_by_class(self):
            return loss_gradient(self, params, tasks)

    def task_gradients(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> Params:
        """The gradient of each task's loss, of one network; leaves ``[T, ...]``."""
        self.check_training(tasks)
        with named_by_class(self):
            return task_loss_gradients(self.task_loss, params, tasks, engine=self.batching[0])

    def as_module(self, module: nn.Module, state: Any) -> nn.Module:
        """An ordinary module that predicts as a state does, of a copy of the network or without."""
        return StateModule(self.predict, state)

    @checked
    def prepare(
        self,
        tasks: TaskBatch,
        task_count: int,
        *,
        deterministic: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Plan:
        """Decide once how gradients of ``task_count`` tasks are taken, by trials; kept in ``plan``.

        Args:
            tasks: for the trials, two.
            task_count: T of the gradients to come.
            deterministic: leave out of it what memory is free.
            check: called in every trial; what it raises ends them.
        """
        self.check_training(tasks)
        engine, _ = self.batching
        how: Any = {"engine": engine, "chunk_size": self.chunk_size, "deterministic": deterministic}
        with named_by_class(self):
            self.plan = plan_of_loss(
                self.task_loss, self.network, tasks, task_count=task_count, check=check, **how
            )
        return self.plan

    @property
    def asked(self) -> Mapping[str, Any]:
        """What the settings of now ask of a plan of an earlier run; members share chunks."""
        asked: dict[str, Any] = {"engine": self._engine}
        return asked if self.network.count else {**asked, "chunk_size": self.chunk_size}

    def along(
        self,
        visit: Callable[[Any, Batch, Batch], Any],
        params: Params,
        tasks: TaskBatch,
        *,
        steps: int | None,
        alone: bool,
    ) -> Any:
        """``visit(state, support, query)`` of every task in every state; leaves ``[T, K+1, ...]``.

        ``visit`` is written for one task, ``params`` are of one network, ``steps`` is as of `fit`;
        ``alone`` says that ``visit`` has a vmap of its own.
        """
        engine, chunk = self.batching
        engine = "vmap" if alone and engine != "loop" else engine
        fit = partial(states_of, self, steps=self.count_steps(steps))
        return along_states(visit, fit, params, tasks, engine=engine, chunk_size=chunk)

    @property
    def batching(self) -> tuple[Engine, int | None]:
        """The engine, and how many tasks at a time."""
        if self.plan is not None:
            return self.plan.engine, self.plan.chunk_size
        return ("loop" if self.network.only_loop else self._engine), self.chunk_size

    @property
    def vectorized(self) -> bool:
        """Whether vmap takes the module."""
        return self._engine != "loop" and not self.network.only_loop

    @property
    def names(self) -> dict[str, str]:
        """By the name of a parameter, what it is called in the module."""
        return self.network.names

    @checked
    def meta_gradient(self, tasks: TaskBatch) -> MetaGradient:
        """The `gradient` at the module's parameters."""
        return self.gradient(self.params, tasks, step=0)

    def check(self, tasks: TaskBatch) -> None:
        """Refuse targets that do not fit, by their set; see `Criterion.check`."""
        self.criterion.check(tasks)

    def check_training(self, batches: TaskBatch) -> None:
        """The same of what a training step is made of, by default tasks."""
        self.check(batches)

    def unused_in(self, task: TaskBatch) -> list[str]:
        """Names of parameters without a part in the loss of one task (of the first member)."""
        self.check_training(tree_map(lambda value: value[None], task))
        with named_by_class(self):
            return unused_parameters(self.task_loss, self.network.rows()[0], *task)

    def outputs(self, inputs: Tensor) -> Tensor:
        """Outputs ``[N, ...]`` of the module before any adaptation."""
        with module_takes("inputs", inputs):
            return self._as_it_is(inputs)

    @outside_inference_mode
    @checked
    def adapt(
        self, support: Batch, *, steps: int | None = None, transductive: bool = False
    ) -> nn.Module:
        """A copy of the module, adapted to one support set ``(inputs [N, ...], targets [N])``.

        In evaluation mode; it answers each query as `score` with ``inductive=True`` does: one that
        normalises with the batch at hand is an `InductiveModule`, beside the support inputs.

        Args:
            support: the labelled examples.
            steps: inner steps; None takes those of validation.
            transductive: the bare network in any case: queries asked together share statistics.
        """
        return adapted(self, support, steps, transductive=transductive)

    @checked
    def score(
        self,
        tasks: TaskBatch,
        *,
        steps: int | None = None,
        inductive: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> TaskScores:
        """Adapt to each task and score its query set at every inner step 0..K.

        Of probabilities as targets the most probable class is the right one; padding (−100) counts
        nowhere. A task with a prediction that is NaN has an accuracy of NaN. Of an `Ensemble`, the
        scores are those of the mean prediction, and of each member.

        Args:
            tasks: ``TaskBatch``, every leaf ``[T, N, ...]``.
            steps: K; None takes those of validation.
            inductive: False shares normalisation statistics over a task's query set
                (transductive, as in the MAML papers); True predicts each alone, beside the support
                set (Nichol et al., 2018, section 6.1).
            check: called before every prediction; what it raises ends the scoring.
        """
        return score_tasks(self, tasks, steps=steps, inductive=inductive, check=check)

    def count_steps(self, steps: int | None) -> int:
        """K, a whole number of at least 0; None takes ``eval_steps``."""
        count = self.eval_steps if steps is None else steps
        check_whole("steps", count, 0)
        return count

    def state(self) -> dict[str, Any]:
        """How gradients are taken: what a resumed training needs of it, plain."""
        return plan_state(self.plan, self.asked, self.params)

    def state_kinds(self) -> list[StateKind]:
        """What `state` has to be in a checkpoint."""
        return [plan_kind()]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave, unless it was for another kind of device or other settings."""
        self.plan = kept_plan(state, self.asked, self.params) or self.plan

    def refusing_inputs(self, tasks: TaskBatch) -> AbstractContextManager[None]:
        """A block in which inputs that the module cannot take are refused by their set."""
        return refused_inputs(self._as_it_is, tasks)

    def _as_it_is(self, inputs: Any) -> Tensor:
        """Outputs of the module before any adaptation; of the first member."""
        found: Tensor = self.apply(self.network.rows()[0], self.buffers, inputs)
        return found
