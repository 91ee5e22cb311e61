"""A meta-learner: a module, how it adapts, and how it is scored.

Axes: T tasks, K inner steps, N query samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import (
    Eager,
    Engine,
    MetaGradient,
    Method,
    Plan,
    along_adaptation,
    convert_norm,
    functionalize,
    inner_trajectory,
    meta_gradient,
)
from metalearn.core.checks import check_pair, check_samples, module_takes
from metalearn.core.chunking import sample_count
from metalearn.core.loss_checks import check_reached, outside_inference_mode, unused_parameters
from metalearn.core.memory import is_out_of_memory
from metalearn.core.meta.adapt import last_of
from metalearn.core.module.copying import copy_module
from metalearn.core.targets import (
    IGNORED,
    check_form,
    check_values,
    is_label,
    labels_of,
    mean_without_padding,
    not_padding,
)
from metalearn.core.tree import check_tensors, leaves, match_names, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.schema import Kind, choice, maybe, text, together, whole
from metalearn.signatures import checked
from metalearn.trainers.meta.inductive import beside_support, each_beside
from metalearn.trainers.meta.scores import TaskScores
from metalearn.trainers.meta.settings import MAML
from metalearn.trainers.nan_scores import hits
from metalearn.trainers.planning import keeps, planned, settle, what_fits
from metalearn.types import Batch, LossFn, Params, TaskBatch

__all__ = ["MetaLearner"]


class MetaLearner:
    """A module whose parameters are the starting point of adaptation.

    The learner shares the module's parameters: an optimiser that steps ``learner.module`` steps
    the learner.

    Args:
        module: maps inputs ``[N, ...]`` to logits ``[N, C]`` or values ``[N, outputs]``.
        maml: how it adapts.
        kind: ``"classification"`` (cross-entropy, accuracy) or ``"regression"`` (mean squared
            error).

    Raises:
        SettingError: a module with layers that cannot work, by name, or without parameters to
            learn; an unknown kind; a pattern in ``maml.frozen`` that matches no parameter.
    """

    @checked
    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
    ) -> None:
        if kind not in ("classification", "regression"):
            raise SettingError("kind", kind, "classification or regression is needed")
        self.maml = maml or MAML()
        self.kind = kind
        self.module = convert_norm(module, self.maml.norm) if self.maml.norm else module
        self._only_loop = ""
        self._classes: int | None = None
        self._read: set[str] = set()
        self.apply, self.params, self.buffers = self._functional()
        self.plan: Plan | None = None
        if not self.params:
            accepted = "a parameter to learn is needed (requires_grad=True)"
            raise SettingError("module", type(module).__name__, accepted)
        if all(match_names(self.params, self.maml.frozen, "maml.frozen")):
            accepted = "a pattern that leaves a parameter to adapt is needed"
            raise SettingError("maml.frozen", self.maml.frozen, accepted)
        self.optimizer = self.maml.optimizer()

    @checked
    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean loss of a batch ``(inputs, targets)`` at given parameters, a scalar.

        Targets of a classification are int64 class indices ``[N]`` or probabilities ``[N, C]``. An
        index of −100 is padding: the mean is over the others, and so are scores. (Where the module
        normalises with the batch at hand, padding inputs take part in its statistics.)

        Raises:
            SettingError: targets that do not fit the outputs.
        """
        inputs, targets = check_pair(batch)
        return self._criterion(self.apply(params, self.buffers, inputs), targets)

    @checked
    def unused_parameters(self, batch: Batch) -> list[str]:
        """Names of parameters that have no part in the loss of a batch (of the first member)."""
        return unused_parameters(self.loss, self._trial_params(), batch)

    def sample_loss(self, params: Params, batch: Batch) -> Tensor:
        """Loss of a batch of one sample; 0 for padding, of which `loss` has no mean."""
        inputs, targets = check_pair(batch)
        outputs = self.apply(params, self.buffers, inputs)
        if self.kind == "regression" or not is_label(targets):
            return self._criterion(outputs, targets)
        check_form(True, outputs.shape, targets)
        return F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")

    @checked
    def settle(
        self,
        tasks: TaskBatch,
        task_count: int,
        *,
        deterministic: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Plan:
        """Decide what ``maml`` leaves to ``"auto"``, by trials on ``tasks``; kept in ``plan``.

        Args:
            tasks: two are enough.
            task_count: T of the meta-gradients to come.
            deterministic: leave out of it what memory is free.
            check: called in every trial; what it raises ends them.

        Raises:
            SettingError: nothing fits ``maml.memory``.
        """
        check_whole("task_count", task_count, 1)
        self.check(tasks)

        def loss(params: Params, batch: Batch) -> Tensor:
            check()
            return self.loss(params, batch)

        plan = settle(
            self.maml,
            loss,
            self._trial_params(),
            tasks,
            task_count=task_count,
            settings=self.gradient_settings(),
            deterministic=deterministic,
        )
        if self._only_loop:
            plan = replace(plan, notes=(self._only_loop, *plan.notes))
        self.plan = plan
        return plan

    @checked
    def meta_gradient(self, tasks: TaskBatch) -> MetaGradient:
        """The meta-gradient at the module's parameters; see `gradient`."""
        return self.gradient(self.params, tasks, step=0)

    def gradient(self, params: Params, tasks: TaskBatch, *, step: int) -> MetaGradient:
        """The meta-gradient of step ``step``; see `metalearn.core.meta_gradient`.

        By ``plan`` where there is one (`settle`), else as ``maml`` says.

        Raises:
            SettingError: targets that do not fit; see `check`.
            MemoryError: it ran out; the message says what would fit.
        """
        self.check(tasks)
        settings = self.gradient_settings()
        try:
            with self._taken(tasks):
                return self._meta_gradient(params, tasks, settings)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        raise MemoryError(
            what_fits(
                self.maml, self.loss, self._trial_params(), tasks, plan=self.plan, settings=settings
            )
        )

    def check(self, tasks: TaskBatch) -> None:
        """Refuse class targets that are out of range, and sets of padding alone.

        Labels on another device than the CPU are read once, at the first call: the device is not
        waited for in every step. Shapes and types are looked at with every loss.

        Raises:
            SettingError: names the support or query set.
        """
        for name, batch in zip(("support", "query"), check_pair(tasks, "tasks", "support, query")):
            inputs, targets = check_pair(batch, name)
            check_tensors(targets, f"{name} targets")
            if self.kind == "regression" or not targets.numel():
                continue
            if self._classes is None:
                with torch.no_grad(), module_takes(f"{name} inputs", inputs):
                    outputs = self._as_it_is(tree_map(lambda x: x[0], inputs))
                self._classes = int(outputs.shape[-1])
            check_form(True, (len(targets[0]), self._classes), targets[0])
            if targets.device.type == "cpu" or name not in self._read:
                check_values(targets, self._classes, f"targets of the {name} set")
                self._read.add(name)

    @property
    def names(self) -> dict[str, str]:
        """By the name of a parameter, what it is called in the module."""
        return {name: name for name in self.params}

    def state(self) -> dict[str, Any]:
        """How gradients are taken: what a resumed training needs of it, plain."""
        if self.plan is None:
            return {}
        return {
            "engine": self.plan.engine,
            "method": self.plan.method,
            "chunk_size": self.plan.chunk_size,
            "memory": self.maml.memory,
            "device": leaves(self.params)[0].device.type,
        }

    def state_kinds(self) -> list[Kind]:
        """What `state` has to be in a checkpoint."""
        plan = {
            "engine": choice(*get_args(Engine)),
            "method": choice(*get_args(Method)),
            "chunk_size": maybe(whole(1)),
            "device": text,
        }
        return [together(plan)]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave, unless it was for another kind of device or other settings."""
        plan: dict[str, Any] = {k: state.get(k) for k in ("engine", "method", "chunk_size")}
        same_device = state.get("device") == leaves(self.params)[0].device.type
        given = {**plan, "memory": state.get("memory", self.maml.memory)}
        if same_device and keeps(given, **self._asked()):
            self.plan = Plan(**plan, notes=("as before the interruption",))

    def _asked(self) -> dict[str, Any]:
        """What the settings of now ask of a plan."""
        maml = self.maml
        asked = {"engine": maml.engine, "method": maml.wanted_method, "memory": maml.memory}
        return {**asked, "chunk_size": maml.chunk_size}

    @property
    def vectorized(self) -> bool:
        """Whether vmap takes the module."""
        return self.maml.engine != "loop" and not self._only_loop

    def outputs(self, inputs: Tensor) -> Tensor:
        """Outputs ``[N, ...]`` of the module as it is, before any adaptation."""
        with module_takes("inputs", inputs):
            return self._as_it_is(inputs)

    @outside_inference_mode
    @checked
    def adapt(
        self, support: Batch, *, steps: int | None = None, transductive: bool = False
    ) -> nn.Module:
        """A copy of the module, adapted to one support set ``(inputs [N, ...], targets [N])``.

        The copy is an ordinary module in evaluation mode with nothing of the learner in it: call
        it, save it, move it. It answers each query as `score` with ``inductive=True`` does. Where
        the module normalises with the statistics of the batch at hand, one query alone has none;
        then the copy is an `InductiveModule`, which carries the support inputs and predicts each
        query beside them.

        Args:
            support: the labelled examples.
            steps: inner steps; None takes ``maml.eval_steps``.
            transductive: the bare network in any case: queries that are asked together share their
                statistics, as in `score` without ``inductive``.

        Raises:
            SettingError: steps below 0, a loss that the module's parameters have no part in.
        """
        return self._adapted(
            copy_module(self.module), self.params, support, steps, transductive=transductive
        )

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
        nowhere. A task with a prediction that is NaN has an accuracy of NaN.

        Args:
            tasks: ``TaskBatch``, every leaf ``[T, N, ...]``.
            steps: K; None takes ``maml.eval_steps``.
            inductive: False shares normalisation statistics over a task's query set
                (transductive, what the MAML papers report); True predicts each query alone, in a
                batch with the support set and no other query (Nichol, Achiam and Schulman, "On
                First-Order Meta-Learning Algorithms", 2018, section 6.1).
            check: called before every prediction; what it raises ends the scoring.
        """
        self.check(tasks)
        with self._taken(tasks):
            losses, outputs = self._outputs(self.params, tasks, steps, inductive, check)
        if self.kind == "regression":
            return TaskScores(losses, None, outputs)
        predictions, targets = outputs.argmax(-1), tasks.query[1]
        right = hits(outputs, labels_of(targets)[:, None]).to(losses.dtype)
        return TaskScores(
            losses, mean_without_padding(right, not_padding(targets)[:, None]), predictions
        )

    def _adapted(
        self,
        module: nn.Module,
        start: Params,
        support: Batch,
        steps: int | None,
        *,
        transductive: bool,
    ) -> nn.Module:
        """The module with the parameters that adaptation from ``start`` gives."""
        check_pair(support, "support")
        check_samples(support, "support")
        sample_count(support[0])
        check_tensors(support[1], "support targets")
        alone = tree_map(lambda x: x[None], support)
        self.check(TaskBatch(alone, alone))
        points = inner_trajectory(
            self.inner_loss(start),
            start,
            support,
            optimizer=self.optimizer,
            steps=self._steps(steps),
            frozen=self.maml.frozen,
            calculus=Eager(),
        )
        with self._taken(TaskBatch(alone, alone)):
            params = last_of(points).params
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in params:  # else it is not trained, or there under its first name
                    parameter.copy_(params[name])
                parameter.grad = None
        module.eval()
        if transductive:
            return module
        return beside_support(module, support[0], vectorize=self.vectorized)

    @contextmanager
    def _taken(self, tasks: TaskBatch) -> Iterator[None]:
        """A block in which inputs that the module cannot take are refused by their set."""
        try:
            yield
        except Exception as error:
            if isinstance(error, SettingError) or is_out_of_memory(error):
                raise
            for name, (inputs, _) in zip(("support", "query"), tasks):
                with torch.no_grad(), module_takes(f"{name} inputs", inputs):
                    self._as_it_is(tree_map(lambda x: x[0], inputs))
            raise

    def _as_it_is(self, inputs: Any) -> Tensor:
        """Outputs of the module before any adaptation; of the first member."""
        found: Tensor = self.apply(self.params, self.buffers, inputs)
        return found

    def _functional(self) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """The module as a pure function, its parameters and buffers."""
        return functionalize(self.module, vectorize=self._vectorize())

    def _trial_params(self) -> Params:
        """Parameters of one learner, for trials."""
        return self.params

    def _meta_gradient(
        self, params: Params, tasks: TaskBatch, settings: Mapping[str, Any]
    ) -> MetaGradient:
        return meta_gradient(self.loss, params, tasks, **settings)

    def _outputs(
        self,
        params: Params,
        tasks: TaskBatch,
        steps: int | None,
        inductive: bool,
        check: Callable[[], None],
    ) -> tuple[Tensor, Tensor]:
        """Query losses ``[T, K+1]`` and outputs ``[T, K+1, N, ...]`` of one learner."""
        settings = self.gradient_settings()
        vectorize = settings["engine"] != "loop"

        def visit(params: Params, support: Batch, query: Batch) -> tuple[Tensor, Tensor]:
            beside = support[0] if inductive else None
            output = self._predict(params, query[0], beside, vectorize, check)
            return self._criterion(output, query[1]), output

        losses, outputs = along_adaptation(
            visit,
            self.inner_loss(params),
            params,
            tasks,
            optimizer=self.optimizer,
            steps=self._steps(steps),
            engine="vmap" if vectorize and inductive else settings["engine"],
            chunk_size=settings["chunk_size"],
            frozen=self.maml.frozen,
        )
        return losses, outputs

    def _vectorize(self) -> bool:
        """Whether tasks can be batched by vmap, as far as the layers tell."""
        if self.maml.engine == "auto":
            try:
                functionalize(self.module)
            except SettingError as error:
                functionalize(self.module, vectorize=False)  # or is refused altogether
                self._only_loop = str(error)
        return self.maml.engine != "loop" and not self._only_loop

    def gradient_settings(self) -> dict[str, Any]:
        """Keyword arguments of `metalearn.core.meta_gradient`, by ``plan`` where there is one."""
        return {
            "optimizer": self.optimizer,
            "steps": self.maml.inner_steps,
            "method": self.maml.wanted_method,
            "engine": "loop" if self._only_loop else self.maml.engine,
            "chunk_size": self.maml.chunk_size,
            "frozen": self.maml.frozen,
            "implicit": self.maml.implicit,
            **planned(self.plan),
        }

    def inner_loss(self, start: Params) -> LossFn:
        """What adaptation descends: the loss, and the implicit method's pull towards the start."""
        if self.maml.method != "implicit":
            return self.loss

        def pulled(params: Params, batch: Batch) -> Tensor:
            moved = torch.stack([((params[n] - p) ** 2).sum() for n, p in start.items()]).sum()
            loss = check_reached(self.loss(params, batch))  # which the pull would hide
            return loss + 0.5 * self.maml.regularization * moved

        return pulled

    def _predict(
        self,
        params: Params,
        inputs: Tensor,
        support: Tensor | None,
        vectorize: bool,
        check: Callable[[], None],
    ) -> Tensor:
        """Outputs for a query set, or, with a support set, for each query beside that alone."""

        def together(batch: Tensor) -> Tensor:
            check()
            outputs: Tensor = self.apply(params, self.buffers, batch)
            return outputs

        if support is None:
            return together(inputs)

        return each_beside(together, support, inputs, vectorize=vectorize)

    def _criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        check_form(self.kind == "classification", outputs.shape, targets)
        if self.kind == "classification":
            return F.cross_entropy(outputs, targets, ignore_index=IGNORED)
        return F.mse_loss(outputs, targets)

    def _steps(self, steps: int | None) -> int:
        count = self.maml.eval_steps if steps is None else steps
        check_whole("steps", count, 0)
        return count
