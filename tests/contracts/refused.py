"""Mistakes that must be refused, each with the sentence it gets, and right neighbours of them.

A row is the name of a call, what is changed in it, and what the sentence says of the argument, its
value and what would be accepted. A function as a change is applied to the right value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import core
from metalearn.core.tree import tree_map
from metalearn.types import TaskBatch
from tests.contracts.calls import problem
from tests.support.small_data import blobs

__all__ = ["ACCEPTED", "REFUSED", "Changed"]


class Changed:
    """A change of the value of a working call."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change


Row = tuple[str, dict[str, Any], str]


def leaf(name: str, change: Callable[[Tensor], Any]) -> Changed:
    return Changed(lambda tree: {**tree, name: change(tree[name])})


def all_leaves(change: Callable[[Tensor], Any]) -> Changed:
    return Changed(lambda tree: tree_map(change, tree))


def without(name: str) -> Changed:
    return Changed(lambda tree: {key: value for key, value in tree.items() if key != name})


def made(value: Callable[[], Any]) -> Changed:
    return Changed(lambda _: value())


META = all_leaves(lambda x: x.to("meta"))
SPARSE = all_leaves(lambda x: x.to_sparse())
COMPLEX = all_leaves(lambda x: x.to(torch.complex64))
WHOLE = all_leaves(lambda x: x.long())
NUMPY = all_leaves(lambda x: x.numpy())
FLOAT = "a floating-point tensor is needed"
DENSE = "a dense tensor with values is needed"
LENGTHS = "the same number of samples, at least 1, is needed"
SCALAR = "a scalar is needed, a tensor without axes"


KNOWN = problem()


def tuple_loss(params: Any, batch: Any) -> Any:
    return KNOWN["loss_fn"](params, batch), 1.0


def whole_loss(params: Any, batch: Any) -> Any:
    return torch.tensor(3)


def vector_loss(params: Any, batch: Any) -> Any:
    return KNOWN["outputs_fn"](params, batch[0]).sum(-1)


def detached_loss(params: Any, batch: Any) -> Any:
    return KNOWN["loss_fn"](params, batch).detach()


def frozen_network() -> nn.Module:
    return nn.Linear(1, 1).requires_grad_(False)


LOSSES: list[Row] = [
    (call, {"loss_fn": loss}, f"loss_fn={value}")
    for call in (
        "core.adapt",
        "core.along_adaptation",
        "core.clipped_gradient",
        "core.inner_trajectory",
        "core.member_gradients",
        "core.meta_gradient",
        "core.per_sample_gradients",
        "core.per_sample_norms",
        "core.plan_meta_gradient",
        "core.task_meta_gradients",
    )
    for loss, value in (
        (None, "None: a function of 2 arguments is needed"),
        (tuple_loss, rf".*: {SCALAR}"),
        (whole_loss, ".*torch.int64.*: a scalar is needed.* floating-point type"),
        (vector_loss, rf".*: {SCALAR}"),
        (detached_loss, ".*no parameter reached.*: a loss is needed that is computed from"),
    )
    if not (loss is None and call == "core.member_gradients")
]

TREES: list[Row] = [
    (call, {"params": change}, fragment)
    for call in (
        "core.adapt",
        "core.fisher_diagonal",
        "core.fisher_kfac",
        "core.hessian_operator",
        "core.laplace_posterior",
        "core.meta_gradient",
        "core.per_sample_gradients",
    )
    for change, fragment in (
        (META, rf"params\[0.weight\]='a meta tensor': {DENSE}"),
        (SPARSE, rf"params\[0.weight\]='torch.sparse_coo': {DENSE}"),
        (COMPLEX, rf"params\[0.weight\]=torch.complex64: {FLOAT}"),
        (WHOLE, rf"params\[0.weight\]=torch.int64: {FLOAT}"),
        (NUMPY, r"params\[0.weight\]='ndarray': a (floating-point tensor|torch.Tensor) is needed"),
        (leaf("2.bias", lambda x: None), r"params\[2.bias\]='NoneType': a .* is needed"),
    )
]

CORE: list[Row] = [
    ("core.adapt", {"steps": -1}, "steps=-1: a whole number of at least 0"),
    ("core.adapt", {"steps": 1.0}, "steps=1.0: a whole number of at least 0"),
    ("core.adapt", {"steps": None}, "steps=None: a whole number of at least 0"),
    ("core.adapt", {"steps": 2**70}, "steps=.*: a whole number of at most 9223372036854775807"),
    ("core.adapt", {"optimizer": None}, "optimizer=None: an InnerOptimizer is needed"),
    (
        "core.adapt",
        {"optimizer": torch.optim.SGD},
        "optimizer=.*SGD.*: an InnerOptimizer is needed",
    ),
    ("core.adapt", {"frozen": "head.*"}, r"frozen='head.\*': a pattern that matches a parameter"),
    ("core.adapt", {"frozen": 3}, "frozen=3: a text or a list of texts or null is needed"),
    ("core.adapt", {"support": all_leaves(lambda x: x[:0])}, "support=.*: it needs samples"),
    ("core.adapt", {"params": {}}, "params={}: a tree with at least one tensor"),
    ("core.meta_gradient", {"tasks": None}, "tasks=None: a TaskBatch is needed"),
    ("core.meta_gradient", {"tasks": Changed(tuple)}, "tasks=.*: a TaskBatch is needed"),
    (
        "core.meta_gradient",
        {"tasks": Changed(lambda t: TaskBatch(t.support, tree_map(lambda x: x[:2], t.query)))},
        r"tasks=\[2, 3\]: every leaf of support and query needs the same leading task axis",
    ),
    (
        "core.meta_gradient",
        {"tasks": all_leaves(lambda x: x[:0])},
        r"tasks=\[0\]: every leaf of support and query",
    ),
    (
        "core.meta_gradient",
        {"tasks": all_leaves(lambda x: x[:, :0])},
        "query=.*: it needs samples",
    ),
    (
        "core.meta_gradient",
        {"tasks": Changed(lambda t: TaskBatch((t[0][0].numpy(), t[0][1]), t.query))},
        r"support\[0\]='ndarray': a torch.Tensor is needed",
    ),
    ("core.meta_gradient", {"method": "exact"}, "method='exact': one of auto, reverse, mixed"),
    ("core.meta_gradient", {"engine": "fast"}, "engine='fast': one of auto, batched, vmap, loop"),
    ("core.meta_gradient", {"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
    ("core.meta_gradient", {"chunk_size": "auto"}, "chunk_size='auto': a whole number"),
    (
        "core.meta_gradient",
        {"method": "implicit", "implicit": core.Implicit(0.0)},
        "regularization=0.0: a finite number above 0",
    ),
    (
        "core.meta_gradient",
        {"method": "implicit", "implicit": core.Implicit(1.0, 5, -1.0)},
        "damping=-1.0: a finite number of at least 0",
    ),
    (
        "core.meta_gradient",
        {"method": "implicit", "implicit": core.Implicit(1.0, 0)},
        "iterations=0: a whole number of at least 1",
    ),
    ("core.meta_gradient", {"implicit": 0.5}, "implicit=0.5: an Implicit or null is needed"),
    ("core.plan_meta_gradient", {"params": None}, "params.*NoneType"),
    ("core.hyper_gradient", {"inner_loss": None}, "inner_loss=None: a function of 3 arguments"),
    ("core.hyper_gradient", {"outer_loss": whole_loss}, "outer_loss=.*: a function of 3 argu"),
    ("core.hyper_gradient", {"hyper": {"w": 1.0}}, f"hyper.w.='float': {FLOAT}"),
    ("core.hyper_gradient", {"inner_batches": []}, "inner_batches='no batch': at least one step"),
    ("core.hyper_gradient", {"inner_batches": 3}, "inner_batches='int': a sequence of batches"),
    ("core.hyper_gradient", {"inner_batches": lambda k: 0}, "steps=None: the number of steps"),
    ("core.hyper_gradient", {"steps": 3}, "steps=3: None is needed, or 2"),
    ("core.hyper_gradient", {"method": "exact"}, "method='exact': one of auto, reverse, mixed"),
    ("core.hyper_gradient", {"method": "truncated"}, "truncation=None: a number of steps, 1 to 2"),
    ("core.hyper_gradient", {"truncation": 1}, "truncation=1: method='truncated' is needed"),
    ("core.hyper_gradient", {"memory": "1"}, "memory='1': at least .* bytes, those of one state"),
    ("core.hyper_gradient", {"memory": "much"}, "memory='much': an amount above 0"),
    ("core.hyper_gradient", {"method": "reverse", "kept": {}}, "kept='dict': None is needed"),
    ("core.hyper_gradient", {"kept": {0: 0}}, "kept='1 states': an empty mapping is needed"),
    ("core.hyper_gradient", {"implicit": core.ImplicitSolver()}, "implicit='a solver': method="),
    (
        "core.hyper_gradient",
        {"resume": {"identity": {"steps": 9}}},
        "resume='steps: 9': the snapshot",
    ),
    ("core.hyper_gradient", {"resume": {}}, "resume='steps: None': the snapshot of a gradient"),
    ("core.hyper_gradient", {"optimizer": None}, "optimizer=None: an InnerOptimizer is needed"),
    ("core.check_hyper_gradient", {"found": None}, "found=None: a HyperGradient is needed"),
    ("core.check_hyper_gradient", {"spacing": 0.0}, "spacing=0.0: a finite number above 0"),
    ("core.plan_hyper_gradient", {"method": "implicit"}, "method='implicit': one of auto, mixed"),
    ("core.ImplicitSolver", {"solver": "lu"}, "solver='lu': one of"),
    ("core.ImplicitSolver", {"damping": -1.0}, "damping=-1.0: a finite number of at least 0"),
    ("core.ImplicitSolver", {"scale": 0.0}, "scale=0.0: a finite number above 0"),
    ("core.task_meta_gradients", {"params": 1.0}, f"params='float': {FLOAT}"),
    ("core.task_gradient", {"task_loss": None}, "task_loss=None: a function of 3 arguments"),
    ("core.task_gradient", {"task_loss": whole_loss}, "task_loss=.*: a function of 3 arguments"),
    ("core.task_gradient", {"tasks": None}, "tasks=None: a TaskBatch is needed"),
    ("core.task_gradient", {"tasks": all_leaves(lambda x: x[:, :0])}, "query=.*: it needs samples"),
    ("core.task_gradient", {"params": 1.0}, f"params='float': {FLOAT}"),
    ("core.task_gradient", {"engine": "fast"}, "engine='fast': one of auto, batched, vmap, loop"),
    ("core.plan_task_gradient", {"task_loss": None}, "task_loss=None: a function of 3 arguments"),
    ("core.plan_task_gradient", {"memory": 0}, "memory=0: a whole number of at least 1"),
    ("core.member_task_gradient", {"task_loss": None}, "task_loss=None: a function of 3 argu"),
    ("core.member_task_gradient", {"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
    ("core.Adaptation", {"loss": None}, "loss=None: a function of 2 arguments is needed"),
    ("core.Adaptation", {"optimizer": 0.1}, "optimizer=0.1: an InnerOptimizer is needed"),
    ("core.Adaptation", {"steps": -1}, "steps=-1: a whole number of at least 0"),
    ("core.Adaptation", {"frozen": 3}, "frozen=3: a text or a list of texts or null is needed"),
    ("core.along_adaptation", {"visit": None}, "visit=None: a function of 3 arguments"),
    ("core.along_adaptation", {"visit": lambda p: p}, "visit=.*: a function of 3 arguments"),
    ("core.along_adaptation", {"visit": lambda p, s, q: None}, "visit='NoneType': a torch.Tensor"),
    ("core.sgd", {"lr": -0.1}, "lr=-0.1: a finite number above 0"),
    ("core.sgd", {"lr": None}, "lr=None"),
    ("core.sgd", {"lr": math.nan}, "lr=nan"),
    ("core.sgd", {"momentum": 1.5}, "momentum=1.5"),
    ("core.sgd", {"nesterov": True}, "nesterov=True: a momentum above 0 is needed with it"),
    ("core.sgd", {"nesterov": 1}, "nesterov=1: true or false is needed"),
    ("core.sgd", {"weight_decay": None}, "weight_decay=None: a number of at least 0"),
    ("core.adam", {"lr": "0.1"}, "lr='0.1'"),
    ("core.adam", {"betas": (0.9,)}, "betas=.*: a list of 2 values"),
    ("core.adamw", {"weight_decay": -0.1}, "weight_decay=-0.1: a number of at least 0"),
    ("core.meta_gradient", {"step_weights": [1.0]}, "step_weights=.*: 2 weights are needed"),
    ("core.meta_gradient", {"step_weights": "all"}, "step_weights='all': 2 weights are needed"),
    ("core.member_meta_gradient", {"learnt": 0.1}, "learnt='float': a torch.Tensor is needed"),
    ("core.per_sample_gradients", {"batch": None}, "batch='NoneType': a torch.Tensor is needed"),
    ("core.per_sample_gradients", {"batch": []}, f"batch={{}}: {LENGTHS}"),
    (
        "core.per_sample_gradients",
        {"batch": Changed(lambda b: (b[0], b[1][:2]))},
        f"batch={{'0': 4, '1': 2}}: {LENGTHS}",
    ),
    (
        "core.per_sample_gradients",
        {"batch": Changed(lambda b: (b[0], 3))},
        r"batch\[1\]='int': a torch.Tensor is needed",
    ),
    (
        "core.per_sample_gradients",
        {"batch": Changed(lambda b: (b[0], torch.tensor(1)))},
        r"batch\[1\]='a scalar': a tensor with a leading sample axis",
    ),
    ("core.per_sample_gradients", {"batch": SPARSE}, rf"batch\[0\]='torch.sparse_coo': {DENSE}"),
    ("core.per_sample_gradients", {"batch": META}, rf"batch\[0\]='a meta tensor': {DENSE}"),
    ("core.per_sample_gradients", {"method": "hooks"}, "method='hooks': one of layers, vmap, loop"),
    (
        "core.per_sample_gradients",
        {"chunk_size": -4},
        "chunk_size=-4: a whole number of at least 1",
    ),
    ("core.per_sample_gradients", {"memory": "1GB"}, "memory='1GB': it goes with chunk_size"),
    ("core.clipped_gradient", {"max_norm": 0}, "max_norm=0: .*above 0"),
    ("core.clipped_gradient", {"max_norm": torch.tensor(-1.0)}, "max_norm=-1.0: .*above 0"),
    ("core.clipped_gradient", {"max_norm": None}, "max_norm=None"),
    ("core.clipped_gradient", {"max_norm": torch.ones(3)}, "max_norm=.*"),
    ("core.check_per_sample", {"samples": 0}, "samples=0: a whole number of at least 1"),
    ("core.per_sample_module", {"batch_norm": "batch_stats"}, "batch_norm='batch_stats'"),
    ("core.reduce_per_sample", {"reductions": None}, "reductions=None: a mapping is needed"),
    ("core.norm_quantiles", {"q": (2.0,)}, r"q=\(2.0,\): numbers from 0 to 1"),
    ("core.norm_quantiles", {"q": 0.5}, "q=0.5: a list of numbers"),
    ("core.noise_average", {"decay": 1.0}, "decay=1.0: a number from 0 to below 1, or None"),
    ("core.noise_average", {"decay": "0.9"}, "decay='0.9': a number from 0 to below 1"),
    ("core.gradient_noise_scale", {"group_size": 0}, "group_size=0: a whole number"),
    ("core.gradient_sketches", {"size": 0}, "size=0: a whole number of at least 1"),
    ("core.gradient_sketches", {"generator": None}, "generator=None: a Generator is needed"),
    ("core.compiled", {"function": None}, "function=None: a function is needed"),
    ("core.compiled", {"compiler": "gcc"}, "compiler='gcc': one of inductor, aot_eager"),
    ("core.hvp", {"f": None}, "f=None: a function is needed"),
    ("core.hvp", {"f": lambda: 1}, r"f=.*: a function that takes 1 such argument is needed \("),
    ("core.hvp", {"primals": None}, f"primals='NoneType': {FLOAT}"),
    ("core.hvp", {"primals": [1.0, 2.0]}, rf"primals\[0\]='float': {FLOAT}"),
    ("core.hvp", {"tangents": torch.ones(4)}, r"tangents=\(4,\): the shape \(3,\) is needed"),
    ("core.hvp", {"tangents": {"a": torch.ones(3)}}, "tangents="),
    ("core.hvp", {"mode": "fast"}, "mode='fast': one of"),
    ("core.hvp", {"f": lambda x: x}, rf"f=\(3,\): {SCALAR}"),
    ("core.jvp", {"tangents": torch.ones(2)}, r"tangents=\(2,\): the shape \(3,\)"),
    ("core.vjp", {"cotangents": torch.ones(2)}, r"cotangents=\(2,\): the shape \(3,\)"),
    ("core.ggn_vp", {"vector": None}, "vector="),
    ("core.hessian_operator", {"batches": None}, "batches=None: a list"),
    ("core.hessian_operator", {"batches": []}, "batches='list': a list of batches is needed"),
    ("core.hessian_operator", {"params": {}}, "params={}: a tree with at least one tensor"),
    ("core.fisher_diagonal", {"likelihood": "poisson"}, "likelihood='poisson': one of categorical"),
    ("core.fisher_diagonal", {"kind": "true"}, "kind='true': one of exact, monte_carlo, empirical"),
    ("core.fisher_diagonal", {"kind": "monte_carlo"}, "generator=None: kind='monte_carlo' needs"),
    ("core.fisher_diagonal", {"samples": 3}, "samples=3: only kind='monte_carlo'"),
    ("core.fisher_diagonal", {"variance": 2.0}, "variance=2.0: only a gaussian likelihood"),
    (
        "core.fisher_diagonal",
        {"batch": Changed(lambda b: b[0])},
        r"batch='Tensor': a pair \(inputs, targets\)",
    ),
    (
        "core.fisher_diagonal",
        {"batch": Changed(lambda b: (*b, b[1]))},
        r"batch='tuple of 3': a pair \(inputs, targets\)",
    ),
    (
        "core.fisher_diagonal",
        {"kind": "empirical", "batch": Changed(lambda b: (b[0], b[1] + 1))},
        "targets=2: a class in 0..1",
    ),
    (
        "core.fisher_diagonal",
        {"kind": "empirical", "batch": Changed(lambda b: (b[0], None))},
        "targets=None: the shape",
    ),
    ("core.fisher_diagonal", {"outputs_fn": lambda p, x: None}, r"outputs_fn='NoneType': outputs"),
    ("core.fisher_diagonal", {"outputs_fn": lambda p, x: x.sum()}, r"outputs_fn=\(\): outputs"),
    ("core.fisher_diagonal", {"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
    ("core.fisher_vp", {"vector": without("0.bias")}, "vector="),
    ("core.fisher_kfac", {"module": None}, "module=None: a Module is needed"),
    ("core.fisher_kfac", {"params": without("0.bias")}, "params=.*: a tree with"),
    (
        "core.fisher_kfac",
        {"params": leaf("2.bias", lambda x: x[:1])},
        r"params\[2.bias\]=\(1,\): the shape \(2,\)",
    ),
    ("core.fisher_kfac", {"sharing": "mean"}, "sharing='mean': one of expand, reduce"),
    (
        "core.fisher_kfac",
        {"batch": Changed(lambda b: (b[0][:, :2], b[1]))},
        r"batch inputs='torch.float64 \[1, 2\]': inputs that the module takes",
    ),
    ("KroneckerFisher.product", {"vector": without("0.weight")}, "vector=.*0.weight is needed"),
    ("KroneckerFisher.product", {"vector": None}, "vector=None: a mapping is needed"),
    ("KroneckerFisher.inverse_product", {"damping": 0.0}, "damping=0.0: a number above 0"),
    ("core.effective_rank", {"matrix": torch.ones(3)}, r"matrix=\(3,\): a square matrix"),
    ("core.effective_rank", {"matrix": torch.ones(2, 3)}, r"matrix=\(2, 3\): a square matrix"),
    ("core.lanczos", {"like": None}, f"like='NoneType': {FLOAT}"),
    ("core.lanczos", {"like": {}}, "like={}: a tree with at least one tensor"),
    ("core.lanczos", {"iterations": 0}, "iterations=0: a whole number of at least 1"),
    ("core.lanczos", {"iterations": 6}, "iterations=6: at most P = 5 are possible"),
    ("core.lanczos", {"generator": None}, "generator=None: a Generator is needed"),
    ("core.lanczos", {"generator": 0}, "generator=0: a Generator is needed"),
    ("core.lanczos", {"matvec": None}, "matvec=None: a function of 1 argument is needed"),
    ("core.lanczos", {"matvec": lambda v: v.flip(0) * torch.arange(5)}, "matvec='not symmetric'"),
    ("core.lanczos", {"matvec": lambda v: v * math.nan}, "matvec='NaN or infinite'"),
    ("core.top_eigenvalues", {"count": 5}, "iterations=4: a whole number of at least 5"),
    ("core.top_eigenvalues", {"which": "top"}, "which='top': one of largest, smallest"),
    ("core.spectral_density", {"points": 10**9}, "points=1000000000: a whole number of at most"),
    ("core.spectral_density", {"width": 0.0}, "width=0.0: a number above 0"),
    ("core.trace_estimate", {"products": 1}, "products=1: a whole number of at least 2"),
    ("core.trace_estimate", {"method": "exact"}, "method='exact': one of hutchinson"),
    ("core.natural_gradient", {"gradient": None}, f"gradient='NoneType': {FLOAT}"),
    ("core.natural_gradient", {"damping": -1.0}, "damping=-1.0: a number of at least 0"),
    ("core.natural_gradient", {"fisher": None}, "fisher=None: "),
    ("core.natural_gradient_step", {"params": torch.ones(4)}, r"gradient=\(5,\): the shape \(4,\)"),
    ("core.consolidation_penalty", {"anchor": without("0.bias")}, "anchor=.*: a tree with"),
    ("core.consolidation_penalty", {"strength": -1.0}, "strength=-1.0: a number of at least 0"),
    ("core.consolidated_loss", {"fisher": None}, "fisher='NoneType': a torch.Tensor"),
    ("core.laplace_posterior", {"prior_precision": 0}, "prior_precision=0: a number above 0"),
    (
        "core.laplace_probabilities",
        {"covariance": torch.ones(4, 2)},
        r"covariance=\(4, 2\): the shape \[4, 2, 2\]",
    ),
    ("core.laplace_probabilities", {"method": "exact"}, "method='exact': one of probit"),
    ("core.laplace_probabilities", {"method": "monte_carlo"}, "generator=None: method="),
    ("core.last_layer", {"names": "head"}, "names='head': a pattern that matches"),
    ("core.functionalize", {"module": nn.Linear}, "module=<class .*: a Module is needed"),
    ("core.functionalize", {"module": nn.BatchNorm1d(3)}, r"module\[\]='BatchNorm1d': running"),
    ("core.convert_norm", {"norm": "rms"}, "norm='rms': one of batch_stats, running"),
    ("core.stack", {"trees": []}, "members=0: at least one is needed"),
    ("core.stack", {"trees": None}, "trees=None: a list is needed"),
    ("core.stack", {"trees": [{"a": torch.ones(1)}, {"b": torch.ones(1)}]}, r"members\[1\]="),
    ("core.stack", {"trees": [{"a": 1.0}]}, r"members\[0\]\[a\]='float': a torch.Tensor"),
    ("core.unstack", {"tree": {"a": torch.tensor(1.0)}}, "members=.*every leaf needs the same"),
    ("core.member_gradients", {"params": all_leaves(lambda x: x[:0])}, "members="),
    ("core.map_members", {"params": None}, "args|members"),
    ("apply", {"params": without("0.bias")}, "params=.*are all needed"),
    ("apply", {"params": Changed(lambda p: list(p.values()))}, "params='list': a dict with"),
    ("apply", {"buffers": None}, "buffers='NoneType': a dict with"),
    ("apply", {"params": NUMPY}, r"params\[0.weight\]='ndarray': a torch.Tensor"),
    ("jacobian(f)(x)", {"x": torch.arange(3)}, rf"args\[0\]=torch.int64: {FLOAT}"),
    ("hessian_operator(v)", {"vector": without("0.bias")}, r"tangents"),
]

MODELS: list[Row] = [
    ("models.Ensemble", {"stacks": []}, "members=.*M at least 1, is needed"),
    ("models.Ensemble", {"stacks": None}, "stacks=None: a list of Modules"),
    ("models.Ensemble.from_modules", {"modules": []}, "members=0: at least one"),
    ("models.Ensemble.from_modules", {"modules": [1, 2]}, r"modules=\[1, 2\]: a list of Modules"),
    ("models.Ensemble.from_modules", {"modules": nn.Linear(1, 1)}, "modules=.*: a list of Modules"),
    ("models.Ensemble.from_factory", {"make": None}, "make=None: a function is needed"),
    (
        "models.Ensemble.from_factory",
        {"make": lambda seed: None},
        "make='NoneType for seed 0': a function that gives",
    ),
    (
        "models.Ensemble.from_factory",
        {"make": lambda: nn.Linear},
        "make='type for seed 0': a function that gives",
    ),
    ("models.Ensemble.from_factory", {"seeds": 0}, "seeds=0: a whole number of at least 1"),
    ("models.Ensemble.from_factory", {"seeds": []}, "members=0|seeds"),
    ("Ensemble.member", {"index": 2}, "member=2: a whole number from 0 to 1"),
    ("Ensemble.member", {"index": -1}, "member=-1: a whole number of at least 0"),
    ("Ensemble.member", {"index": "0"}, "member='0': a whole number"),
    ("Stack.member", {"row": 99}, "row=99: a whole number of at most 1"),
    ("models.MLP", {"outputs": 0}, "outputs=0: a whole number of at least 1"),
    ("models.MLP", {"hidden": (0,)}, "hidden"),
    ("models.MLP", {"activation": "swish"}, "activation='swish': one of relu, gelu, tanh"),
    ("models.MLP", {"hidden": 4}, "hidden=4: a list of whole numbers"),
    ("models.MLP", {"input_shape": (2.0,)}, r"input_shape=\(2.0,\): a list of whole numbers"),
    ("models.MLP", {"dropout": 1.0}, r"dropout=1.0: a number in \[0, 1\)"),
    ("models.MLP", {"seed": 2**70}, "seed=1180591620717411303424"),
    ("models.Conv4", {"input_shape": (8, 8)}, "input_shape"),
    ("models.Conv4", {"filters": 0}, "filters=0: a whole number of at least 1"),
    ("models.ResNet12", {"filters": 0}, "filters=0: a whole number of at least 1"),
    ("models.ViT", {"patch": 3}, "patch=3: a divisor"),
    ("models.Recurrent", {"hidden": 0}, "hidden=0: a whole number of at least 1"),
    ("models.DropBlock", {"p": 1.0}, r"p=1.0: a number in \[0, 1\)"),
    ("models.Dropout", {"p": 1.0}, r"p=1.0: a number in \[0, 1\)"),
    ("models.Dropout", {"p": None}, r"p=None: a number in \[0, 1\)"),
    ("models.BatchEnsemble", {"members": 0}, "members=0: a whole number of at least 1"),
    ("models.BatchEnsemble", {"network": None}, "network=None: a Module is needed"),
    ("models.MCDropout", {"draws": 0}, "draws=0: a whole number of at least 1"),
    ("models.set_draw", {"draw": -1}, "draw=-1: a whole number of at least 0"),
]

DATA: list[Row] = [
    ("data.ClassificationData", {"inputs": None}, "inputs=None: a Tensor is needed"),
    ("data.RegressionData", {"targets": torch.ones(12)}, r"targets='torch.float32 \[12\]': floats"),
    ("data.RegressionData", {"targets": torch.ones(12, 0)}, "targets=.*: at least one for each"),
    ("data.RegressionData", {"targets": Changed(torch.log)}, "targets='[0-9]+ samples': finite"),
    ("data.RegressionData", {"targets": Changed(Tensor.long)}, "targets='torch.int64 .*': floats"),
    ("data.RegressionData", {"splits": {}}, r"splits=\[\]: train, validation and test"),
    ("RegressionData.take", {"indices": torch.tensor([96])}, "indices=96: indices in 0..95"),
    ("data.waves_data", {"samples": 2}, "samples=2: a whole number of at least 3"),
    ("data.waves_data", {"noise": 0.0}, "noise=0.0: a finite number above 0"),
    (
        "data.waves_data",
        {"samples": 3, "test_fraction": 0.7},
        "samples=3: 3 are for validation and",
    ),
    ("data.ClassificationData", {"targets": [0, 1]}, r"targets=\[0, 1\]: a Tensor is needed"),
    (
        "data.ClassificationData",
        {"targets": Changed(lambda t: t.float())},
        "targets='torch.float32.*int64 class indices",
    ),
    ("data.ClassificationData", {"targets": Changed(lambda t: t + 1)}, "targets='1..3': 3 classes"),
    ("data.ClassificationData", {"class_names": ("a",)}, "class_names=1: at least two"),
    ("data.ClassificationData", {"class_names": None}, "class_names=None: a list of texts"),
    ("data.ClassificationData", {"splits": {}}, r"splits=\[\]: train, validation and test"),
    ("data.ClassificationData", {"splits": None}, "splits=None: a mapping is needed"),
    ("data.LabelledImages", {"images": Changed(lambda x: x.float())}, "images='torch.float32"),
    ("data.LabelledImages", {"labels": Changed(lambda x: x[:2])}, "labels=.*an int64 tensor"),
    ("data.LabelledImages", {"splits": {"train": (99,)}}, "splits.*classes lie in 0"),
    ("ClassificationData.take", {"indices": None}, "indices=None: a Tensor is needed"),
    ("ClassificationData.take", {"indices": torch.tensor([96])}, "indices=96: indices in 0..95"),
    ("ClassificationData.take", {"indices": torch.tensor([-1])}, "indices=-1: indices in 0..95"),
    ("ClassificationData.take", {"indices": torch.ones(2)}, "indices='torch.float32': whole"),
    ("ClassificationData.take", {"device": "gpu"}, "device='gpu': a device of this machine"),
    ("ClassificationData.part", {"split": "dev"}, "split='dev': one of train, validation, test"),
    ("ClassificationData.size", {"split": None}, "split=None: one of train, validation, test"),
    ("data.MemberBatches", {"samples": 0}, "samples=0: a whole number of at least 1"),
    ("data.MemberBatches", {"seeds": []}, r"seeds=\[\]"),
    ("data.MemberBatches", {"seeds": [2**70]}, "seed=1180591620717411303424"),
    ("data.MemberBatches", {"seeds": 1}, "seeds=1: a list of whole numbers"),
    ("MemberBatches.indices", {"step": -1}, "step=-1"),
    ("data.augment", {"inputs": torch.ones(3)}, r"inputs='torch.float32 \[3\]': float pictures"),
    ("data.augment", {"augmentation": None}, "augmentation=None: an Augmentation is needed"),
    ("data.augment", {"seeds": []}, r"seeds=\[\]: at least one"),
    ("data.augment", {"step": -1}, "step=-1: a whole number of at least 0"),
    ("data.Augmentation", {"max_shift": -1}, "max_shift=-1"),
    ("data.digits_data", {"test_fraction": 1.5}, "test_fraction=1.5: a number between 0 and 1"),
    ("data.digits_data", {"seed": -1}, "seed=-1"),
    ("data.resized", {"image_size": 0}, "image_size=0: a whole number of at least 1"),
    ("data.resized", {"data": None}, "data=None: "),
    ("tasks.FewShotTasks", {"way": 1}, "way=1: a whole number of at least 2"),
    (
        "tasks.FewShotTasks",
        {"data": None},
        "data=None: a LabelledImages or a LabelledFiles or a LabelledTexts or a LabelledArrays is "
        "needed",
    ),
    ("tasks.FewShotTasks", {"way": 10**9}, "way=1000000000"),
    ("tasks.SinusoidTasks", {"shot": 0}, "shot=0: a whole number of at least 1"),
    ("FewShotTasks.sample", {"indices": []}, r"indices=\[\]: at least one task index"),
    ("FewShotTasks.sample", {"indices": 3}, "indices=3: a list of whole numbers"),
    ("FewShotTasks.sample", {"indices": "01"}, "indices='01': a list of whole numbers"),
    ("FewShotTasks.sample", {"indices": [-1]}, "index=-1"),
    ("FewShotTasks.sample", {"split": "valid"}, "split='valid'"),
    ("FewShotTasks.sample", {"device": "cuda:99"}, "device='cuda:99': a device of this machine"),
    ("SinusoidTasks.sample", {"indices": [0.5]}, r"indices=\[0.5\]: a list of whole numbers"),
    ("SinusoidTasks.sample", {"indices": [2**70]}, "index=1180591620717411303424"),
    ("SinusoidTasks.sample", {"split": None}, "split=None: one of train, validation, test"),
]

EVALUATION: list[Row] = [
    ("evaluation.reliability_bins", {"bins": 0}, "bins=0: a whole number of at least 1"),
    ("evaluation.reliability_bins", {"hits": torch.ones(3)}, r"shape of hits=\[3\]: \[20\]"),
    ("evaluation.expected_calibration_error", {"confidences": None}, "confidences=None: a Tensor"),
    ("evaluation.expected_calibration_error", {"bins": 10**9}, "bins=1000000000: .*at most"),
    ("evaluation.risk_coverage", {"hits": torch.ones(3)}, r"shape of hits=\[3\]: \[20\]"),
    ("evaluation.area_under_risk_coverage", {"confidences": 0.5}, "confidences=0.5: a Tensor"),
    ("evaluation.fit_conformal", {"coverage": 0.0}, "coverage=0.0"),
    ("evaluation.fit_conformal", {"targets": Changed(lambda t: t + 1)}, "target=4: a class in"),
    ("evaluation.fit_conformal", {"probabilities": torch.ones(3)}, "shape of probabilities"),
    ("evaluation.set_scores", {"sets": torch.ones(20, 4)}, "dtype of sets"),
    ("evaluation.fit_temperature", {"logits": torch.ones(3)}, "shape of logits"),
    (
        "evaluation.fit_temperature",
        {"logits": Changed(lambda x: x * math.nan)},
        "logits='not finite'",
    ),
    ("evaluation.fit_temperature", {"targets": Changed(lambda t: t + 1)}, "target=4: a class in"),
    ("evaluation.fit_temperature", {"targets": Changed(lambda t: t.float())}, "dtype of targets"),
    ("evaluation.fit_temperature", {"pooling": "mean"}, "pooling='mean': one of members"),
    ("evaluation.tempered_log_probabilities", {"temperature": 0.0}, "temperature=0.0: .*above 0"),
    ("evaluation.tempered_log_probabilities", {"temperature": -1}, "temperature=-1: .*above 0"),
    ("evaluation.ood_scores", {"generator": None}, "generator=None: a torch.Generator is needed"),
    ("evaluation.ood_scores", {"in_scores": torch.ones(0)}, r"shape of in_scores=\[0\]"),
    ("evaluation.ood_scores", {"out_scores": torch.tensor([math.nan])}, "out_scores=nan"),
    ("evaluation.uncertainty_scores", {"of": "all"}, "of='all': one of"),
    ("evaluation.EnsembleStatistics", {"members": 10**9}, "members=1000000000: .*at most"),
    ("EnsembleStatistics.update", {"logits": torch.ones(3, 4, 3)}, "shape of logits"),
    ("evaluation.RegressionStatistics", {"targets": 0}, "targets=0: a whole number of at least 1"),
    (
        "RegressionStatistics.update",
        {"outputs": torch.ones(2, 4, 5)},
        "width of outputs=5: 3 means",
    ),
    ("RegressionStatistics.update", {"outputs": torch.ones(4, 6)}, "shape of outputs"),
    ("RegressionStatistics.update", {"targets": torch.ones(4)}, "shape of targets"),
    ("EnsembleStatistics.update", {"targets": torch.ones(4)}, "dtype of targets"),
    ("trainers.mean_interval", {"values": torch.ones(0, 2)}, r"values=\[0, 2\]: at least one task"),
]

TRAINERS: list[Row] = [
    ("trainers.MAML", {"inner_lr": -1.0}, "inner_lr=-1.0"),
    ("trainers.MAML", {"inner_lr": torch.tensor(0.1)}, "inner_lr="),
    ("trainers.MAML", {"inner_steps": -1}, "inner_steps=-1: a whole number of at least 0"),
    ("trainers.MAML", {"engine": "fast"}, "engine='fast': one of"),
    ("trainers.MAML", {"norm": "rms"}, "norm='rms'"),
    ("trainers.LoopSettings", {"steps": -1}, "steps=-1: a whole number"),
    ("trainers.LoopSettings", {"clip": 0}, "clip=0"),
    ("trainers.LoopSettings", {"schedule": "exponential"}, "schedule='exponential'"),
    ("trainers.MetaLearner", {"module": None}, "module=None: a Module is needed"),
    ("trainers.MetaLearner", {"module": made(frozen_network)}, "module='Linear': a parameter to"),
    ("trainers.MetaLearner", {"kind": "ranking"}, "kind='ranking': classification or regression"),
    ("trainers.MetaLearner", {"maml": {}}, "maml={}: a MAML or null is needed"),
    ("trainers.MetaLearner.adapt", {"support": None}, r"support='NoneType': a pair"),
    ("trainers.MetaLearner.adapt", {"support": torch.ones(3)}, r"support='Tensor': a pair"),
    ("trainers.MetaLearner.adapt", {"steps": -1}, "steps=-1: a whole number of at least 0"),
    ("trainers.MetaLearner.adapt", {"transductive": 1}, "transductive=1: true or false"),
    (
        "trainers.MetaLearner.adapt",
        {"support": Changed(lambda s: (s[0].expand(-1, 3), s[1]))},
        r"support inputs='torch.float32 \[1, 5, 3\]': inputs that the module takes",
    ),
    (
        "MetaLearner.adapt of classes",
        {"support": Changed(lambda s: (s[0], s[1] + 1))},
        "targets.*=2: a class in 0..1",
    ),
    (
        "MetaLearner.adapt of classes",
        {"support": Changed(lambda s: (s[0], s[1].float()))},
        "targets='torch.float32.*",
    ),
    (
        "MetaLearner.score of classes",
        {"tasks": Changed(lambda t: TaskBatch(t.support, (t.query[0], t.query[1] + 1)))},
        "targets of the query set=2: a class in 0..1",
    ),
    ("MetaLearner.score of classes", {"tasks": None}, "tasks=None: a TaskBatch is needed"),
    ("MetaLearner.settle", {"task_count": 0}, "task_count=0: a whole number of at least 1"),
    ("MetaLearner.outputs", {"inputs": None}, "inputs='NoneType': inputs that the module takes"),
    ("MemberLearner.adapt", {"support": None}, "support='NoneType': a pair"),
    (
        "trainers.MemberLearner",
        {"module": made(lambda: nn.Linear(1, 1))},
        "module='Linear': an Ens",
    ),
    ("data.imbalanced", {"ratio": 17}, "ratio=17.0: at most 16 is accepted"),
    ("trainers.MetaTrainer", {"tasks": None}, "tasks=None: a TaskDistribution is needed"),
    ("trainers.MetaTrainer", {"meta_batch": 0}, "meta_batch=0: a whole number of at least 1"),
    ("trainers.MetaTrainer", {"device": "gpu"}, "device='gpu': a device of this machine"),
    ("trainers.MetaTrainer", {"optimizer": torch.optim.LBFGS}, "optimizer=.*LBFGS"),
    ("trainers.MetaTrainer", {"optimizer": lambda p: None}, "optimizer"),
    ("trainers.MetaTrainer", {"steps": None}, "steps=None"),
    ("trainers.MetaTrainer", {"model": None}, "model=None: a Module is needed"),
    ("trainers.MetaTrainer", {"model": made(frozen_network)}, "a parameter to learn is needed"),
    ("trainers.EnsembleTrainer", {"model": made(lambda: nn.Linear(2, 3))}, "model=.*: an Ensemble"),
    ("trainers.EnsembleTrainer", {"data": None}, "data=None: a ClassificationData or a "),
    ("trainers.EnsembleTrainer", {"loss": "mse"}, "loss='mse': cross_entropy, focal or a"),
    ("trainers.EnsembleTrainer", {"loss": {}}, r"loss={}: the name of a loss is needed"),
    ("trainers.FocalLoss", {"gamma": -1.0}, "gamma=-1.0: a finite number of at least 0"),
    ("trainers.EnsembleTrainer", {"loss": "nll"}, "loss='nll': cross_entropy, gaussian_nll, mse,"),
    (
        "trainers.EnsembleTrainer",
        {"loss": lambda f, y: f},
        r"shape of loss=\[4, 3\]: losses \[4\],",
    ),
    ("trainers.EnsembleTrainer", {"loss": lambda f, y: y}, "type of loss=torch.int64: a floating"),
    ("trainers.EnsembleTrainer", {"metrics": [len]}, "metrics=.*: a mapping or null is needed"),
    ("trainers.EnsembleTrainer", {"metrics": {"nll": len}}, "metrics='nll': another name is"),
    (
        "trainers.EnsembleTrainer",
        {"metrics": {"a": 1}},
        "metrics\\['a'\\]=1: a function of outputs",
    ),
    ("trainers.EnsembleTrainer", {"members": 3}, "members=3: the model has 2 members"),
    ("trainers.EnsembleTrainer", {"batch_size": 0}, "batch_size=0: a whole number of at least 1"),
    ("trainers.EnsembleTrainer", {"seeds": [1]}, "seeds"),
    ("trainers.EnsembleTrainer", {"lr": [0.1]}, "lr"),
    ("trainers.EnsembleTrainer", {"optimizer": torch.optim.LBFGS}, "optimizer=.*LBFGS"),
    ("trainers.SWAGTrainer", {"start": 1.0}, r"start=1.0: a number in \[0, 1\)"),
    ("trainers.SWAGTrainer", {"rank": 10**12}, "rank=1000000000000"),
    ("trainers.PerSampleTrainer", {"model": None}, "model=None: a Module is needed"),
    ("trainers.PerSampleTrainer", {"batch_size": 10**9}, "batch_size=1000000000"),
    ("trainers.HyperTrainer", {"model": None}, "model=None: a Module is needed"),
    ("trainers.HyperTrainer", {"hyper": "weights"}, "hyper='weights': known are example_weights"),
    ("trainers.HyperTrainer", {"inner": {"steps": 0}}, "inner.steps=0: a whole number of at"),
    (
        "trainers.HyperTrainer",
        {"inner": {"step": 1}},
        "inner.step=1: there is no such setting; did",
    ),
    ("trainers.HyperTrainer", {"inner": {"start": "fresh"}}, "inner.start='fresh': a factory of"),
    ("trainers.HyperTrainer", {"method": "first_order"}, "method='first_order': another is needed"),
    ("trainers.HyperTrainer", {"outer_batch": 13}, "outer_batch=13: null is needed, or at most 12"),
    ("trainers.HyperTrainer", {"precision": "bfloat16"}, "precision='bfloat16': float32 is needed"),
    ("trainers.HyperTrainer", {"diagnostics": ["gradient_norms"]}, "diagnostics"),
    ("trainers.LearntExampleWeights", {"initial": 1.0}, r"initial=1.0: a number in \(0, 1\)"),
    ("trainers.LearntSchedule", {"setup": None}, "setup=None: a RunSetup is needed"),
    ("trainers.LearntWeightDecay", {"initial": 0}, "initial=0: a finite number above 0"),
    ("trainers.DistilledExamples", {"per_class": 17}, "per_class=17: at most 16 is accepted"),
    ("EnsembleTrainer.predict", {"inputs": None}, "inputs=None: a Tensor is needed"),
    ("EnsembleTrainer.predict", {"inputs": torch.ones(4, 5)}, r"inputs='torch.float32 \[4, 5\]'"),
    ("PerSampleTrainer.predict", {"inputs": torch.ones(4, 5)}, r"inputs='torch.float32 \[4, 5\]'"),
    ("EnsembleTrainer.test", {"split": "dev"}, "split='dev': one of train, validation, test"),
    ("MetaTrainer.test", {"count": 0}, "count=0: a whole number of at least 1"),
    ("MetaTrainer.test", {"split": []}, r"split=\[\]: one of train, validation, test"),
    ("MetaTrainer.resume", {"path": None}, "path=None: a text or a path is needed"),
    ("MetaTrainer.resume", {"path": "nowhere.pt"}, "nowhere.pt: there is no such checkpoint"),
    ("RunTracker", {"folder": None}, "folder=None: a path is needed"),
    ("RunTracker", {"resume_step": -1}, "resume_step=-1: a whole number of at least 0"),
    ("RunTracker.scalars", {"step": None}, "step=None: a whole number of at least 0"),
    ("RunTracker.scalars", {"values": 1.0}, "values=1.0: a mapping is needed"),
    ("load_checkpoint", {"path": None}, "path=None: a path is needed"),
    ("load_checkpoint", {"path": "nowhere.pt"}, "nowhere.pt: there is no such checkpoint"),
    ("save_checkpoint", {"state": None}, "state=None: a mapping is needed"),
]

ATTRIBUTION: list[Row] = [
    (f"attribution.{call}", changes, message)
    for call in (
        "conjugate_gradient_influence",
        "gradient_similarity",
        "kronecker_influence",
        "tracin_scores",
    )
    for changes, message in (
        ({"loss_fn": None}, "loss_fn=None: a function of 2 arguments is needed"),
        ({"loss_fn": vector_loss}, rf"loss_fn=.*: {SCALAR}"),
        ({"loss_fn": detached_loss}, "loss_fn=.*no parameter reached"),
        ({"targets": None}, "targets='NoneType': a torch.Tensor is needed"),
        ({"examples": ()}, f"examples={{}}: {LENGTHS}"),
        (
            {"examples": Changed(lambda b: (b[0], b[1][:2]))},
            f"examples={{'0': 4, '1': 2}}: {LENGTHS}",
        ),
        ({"examples": SPARSE}, rf"examples\[0\]='torch.sparse_coo': {DENSE}"),
        ({"parameters": "head.*"}, r"parameters='head.\*': a pattern that matches a parameter"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
        ({"chunk_size": 2, "memory": "1GB"}, "memory='1GB': it goes with chunk_size"),
        ({"method": "hooks"}, "method='hooks': one of layers, vmap, loop"),
    )
]

LOOKED_AT: list[Row] = [
    ("attribution.Findings", {"scores": {}, "self_scores": {}}, "at least one method is needed"),
    ("attribution.Findings", {"targets": None}, "targets=None: a TargetSamples is needed"),
    ("attribution.Findings", {"retrained": [1]}, r"retrained=\[1\]"),
    (
        "attribution.TargetSamples",
        {"losses": torch.ones(2)},
        r"targets.losses=\[2\]: \[3\] is needed",
    ),
    ("attribution.TargetSamples", {"rows": torch.ones(3)}, "rows=.*: whole numbers are needed"),
    (
        "attribution.load_findings",
        {"path": "nowhere.npz"},
        "there are no such findings",
    ),
    ("attribution.save_findings", {"path": "a.pt"}, "path='a.pt': the name of a file .npz"),
    ("attribution.confident_joint", {"labels": None}, "labels=None: a Tensor is needed"),
    ("attribution.label_issues", {"rule": "all"}, "rule='all': one of noise_rate, class, both"),
    ("attribution.label_issues", {"probabilities": torch.ones(5, 3)}, "probabilities=3.0: numbers"),
    ("attribution.out_of_sample_probabilities", {"folds": 49}, "folds=49: at most 48 are accepted"),
    ("attribution.leave_k_out", {"counts": [0]}, "counts=0: a whole number of at least 1"),
    ("attribution.leave_k_out", {"scores": {}}, r"scores=\[\]: a method with finite"),
    ("attribution.LearnerFindings", {"scores": {}, "trained": None}, "or of tasks are needed"),
    ("attribution.TrainedTasks", {"names": ["a"]}, "names=1: one for each of 5 tasks is needed"),
    ("attribution.learner_scores", {"learner": None}, "learner=None: a Learner is needed"),
    ("attribution.learner_scores", {"members": [7]}, "members=7: numbers from 0 to 0 are needed"),
    ("attribution.save_learner_scores", {"path": "a.pt"}, "path='a.pt': the name of a file .npz"),
    ("attribution.track_learner_findings", {"step": -1}, "step=-1: a whole number of at least 0"),
    ("attribution.write_learner_page", {"path": ""}, "path=''|path='.': the name of a file"),
    ("attribution.subset_outcomes", {"outcomes": torch.ones(4, 2)}, "outcomes='all equal'"),
    ("attribution.track_findings", {"tracker": None}, "tracker=None: a Tracker is needed"),
    ("attribution.write_page", {"path": ""}, "path='': the name of a file is needed"),
    ("attribution.write_page", {"top": 0}, "top=0: a whole number of at least 1"),
]

OF_TASKS: list[Row] = [
    (f"attribution.{call}", changes, message)
    for call in ("learner_support_scores", "leave_one_support_out", "support_example_scores")
    for changes, message in (
        ({"tasks": None}, "tasks=None: a TaskBatch is needed"),
        ({"tasks": (1, 2)}, "tasks=.*: a TaskBatch is needed"),
        ({"steps": -1}, "steps=-1: a whole number of at least 0"),
        ({"reduction": "sum"}, "reduction='sum': one of none, mean is needed"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
        ({"chunk_size": 2, "memory": "1GB"}, "memory='1GB': it goes with chunk_size"),
    )
]
OF_TASKS += [
    ("attribution.support_example_scores", {"losses_fn": None}, "losses_fn=None: a function of 2"),
    ("attribution.support_example_scores", {"losses_fn": detached_loss}, r"losses_fn=\(\): losses"),
    ("attribution.support_example_scores", {"params": SPARSE}, rf"params\[0.weight\]=.*: {DENSE}"),
    ("attribution.support_example_scores", {"engine": "batched"}, "engine='batched': one of vmap"),
    ("attribution.support_example_scores", {"frozen": "head.*"}, "frozen='head.*': a pattern that"),
    ("attribution.learner_support_scores", {"learner": None}, "learner=None: a Learner is needed"),
    ("attribution.leave_one_support_out", {"learner": None}, "learner=None: a Learner is needed"),
    ("attribution.task_scores", {"gradients_fn": None}, "gradients_fn=None: a function of 2"),
    ("attribution.task_scores", {"gradients_fn": lambda p, t: p}, "gradients_fn='leaves of length"),
    ("attribution.task_scores", {"checkpoints": []}, "checkpoints=0: at least one is needed"),
    ("attribution.task_scores", {"learning_rates": [1.0]}, "learning_rates=1: one for each of 2"),
    ("attribution.task_scores", {"metric": "l2"}, "metric='l2': one of cosine, dot is needed"),
    ("attribution.task_scores", {"targets": None}, "targets=None: a TaskBatch is needed"),
    ("attribution.task_scores", {"parameters": "head.*"}, r"parameters='head.\*': a pattern that"),
    ("attribution.task_scores", {"parameters": []}, r"parameters=\[\]: a pattern that matches"),
]

REFUSED = [
    *LOSSES, *TREES, *CORE, *MODELS, *DATA, *EVALUATION, *TRAINERS, *ATTRIBUTION, *LOOKED_AT,
    *OF_TASKS,
]  # fmt: skip

ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("core.adapt", {"steps": 0}),
    ("core.adapt", {"frozen": ["0.*"]}),
    ("core.adapt", {"frozen": ("0.weight", "2.bias")}),
    ("core.adapt", {"optimizer": core.adam(0.1)}),
    ("core.adapt", {"optimizer": core.sgd(torch.tensor(0.1))}),
    ("core.adapt", {"params": Changed(dict)}),
    ("core.meta_gradient", {"chunk_size": 2}),
    ("core.meta_gradient", {"chunk_size": None}),
    ("core.meta_gradient", {"engine": "loop", "method": "mixed"}),
    ("core.meta_gradient", {"method": "implicit", "implicit": core.Implicit(2.0, 3)}),
    ("core.meta_gradient", {"loss_fn": Changed(lambda f: lambda *args: f(*args))}),
    ("core.sgd", {"lr": torch.tensor(0.1)}),
    ("core.sgd", {"momentum": 0.9}),
    ("core.sgd", {"momentum": torch.tensor(0.9), "nesterov": True}),
    ("core.sgd", {"lr": torch.tensor([0.1, 0.2])}),
    ("core.adamw", {"betas": (torch.tensor(0.9), 0.999)}),
    ("core.meta_gradient", {"step_weights": torch.tensor([0.5, 0.5])}),
    ("core.clipped_gradient", {"max_norm": torch.tensor(1.0)}),
    ("core.clipped_gradient", {"max_norm": math.inf}),
    ("core.clipped_gradient", {"max_norm": torch.ones(4)}),
    ("core.per_sample_gradients", {"chunk_size": "auto", "memory": "1GB"}),
    ("core.per_sample_gradients", {"chunk_size": 3, "method": "vmap"}),
    ("core.per_sample_gradients", {"batch": Changed(list)}),
    ("core.norm_quantiles", {"q": [0, 1]}),
    ("core.noise_average", {"decay": None}),
    ("core.hvp", {"tangents": torch.ones(3)}),
    ("core.hvp", {"f": torch.sum}),
    ("core.hvp", {"f": lambda x, y=1.0: (y * x**2).sum()}),
    ("core.hvp", {"primals": (torch.ones(3),), "tangents": (torch.ones(3),)}),
    ("core.hessian_operator", {"batches": Changed(lambda b: b * 3)}),
    ("core.fisher_diagonal", {"batch": Changed(lambda b: (b[0], None))}),
    ("core.fisher_diagonal", {"batch": Changed(list)}),
    (
        "core.fisher_diagonal",
        {"kind": "empirical", "batch": Changed(lambda b: (b[0], b[1] * 0 - 100))},
    ),
    ("core.fisher_diagonal", {"params": all_leaves(lambda x: nn.Parameter(x))}),
    ("core.fisher_vp", {"vector": Changed(lambda v: dict(reversed(list(v.items()))))}),
    ("core.lanczos", {"like": {"a": torch.zeros(5)}, "matvec": lambda v: v}),
    ("core.lanczos", {"iterations": 5}),
    ("core.natural_gradient", {"damping": 0}),
    ("core.consolidation_penalty", {"fisher": lambda v: v}),
    ("core.functionalize", {"module": nn.BatchNorm1d(3, track_running_stats=False)}),
    ("core.stack", {"trees": ({"a": torch.ones(1)},)}),
    ("apply", {"params": Changed(lambda p: {**p, "of another part": torch.ones(1)})}),
    ("apply", {"params": all_leaves(lambda x: nn.Parameter(x))}),
    ("models.Ensemble", {"stacks": made(lambda: [nn.Linear(1, 1), nn.Linear(1, 1)])}),
    ("models.Ensemble.from_factory", {"seeds": range(3)}),
    ("models.Ensemble.from_factory", {"seeds": 3}),
    ("models.Ensemble.from_modules", {"modules": made(lambda: (nn.Linear(1, 1), nn.Linear(1, 1)))}),
    ("models.Ensemble.from_modules", {"modules": made(lambda: nn.ModuleList([nn.Linear(1, 1)]))}),
    ("models.MLP", {"hidden": []}),
    ("models.MLP", {"seed": 2**63 - 1}),
    ("models.Dropout", {"p": 0}),
    ("ClassificationData.take", {"indices": torch.tensor([[95, 0]])}),
    ("ClassificationData.take", {"indices": torch.tensor([0], dtype=torch.int32)}),
    ("ClassificationData.take", {"indices": torch.zeros(0, dtype=torch.int64)}),
    ("ClassificationData.take", {"device": torch.device("cpu")}),
    ("FewShotTasks.sample", {"indices": range(2)}),
    ("FewShotTasks.sample", {"indices": torch.arange(2)}),
    ("SinusoidTasks.sample", {"indices": torch.arange(2).numpy()}),
    ("SinusoidTasks.sample", {"indices": (2**40,)}),
    ("evaluation.tempered_log_probabilities", {"temperature": torch.tensor(2.0)}),
    ("evaluation.tempered_log_probabilities", {"temperature": torch.ones(3), "pooling": "members"}),
    ("evaluation.ood_scores", {"resamples": 0, "generator": None}),
    ("trainers.MetaLearner", {"maml": None}),
    ("trainers.MetaLearner.adapt", {"support": Changed(list)}),
    ("trainers.MetaLearner.adapt", {"steps": 0, "transductive": True}),
    ("trainers.MetaTrainer", {"device": torch.device("cpu")}),
    ("trainers.MetaTrainer", {"optimizer": torch.optim.Adam}),
    ("trainers.EnsembleTrainer", {"lr": [0.1, 0.2]}),
    ("trainers.EnsembleTrainer", {"seeds": [3, 4]}),
    ("trainers.EnsembleTrainer", {"data": made(blobs), "members": 2}),
    ("load_checkpoint", {"path": Changed(str)}),
    ("MetaTrainer.resume", {"path": Changed(str)}),
]
