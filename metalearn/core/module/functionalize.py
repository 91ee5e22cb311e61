"""From an ``nn.Module`` to a pure function of its parameters.

What a pure function cannot do (keep running statistics, draw from the global random state) is
refused here, with the layer's name and what to do instead.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from metalearn.core.module.pure_call import PureCall
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = ["check_layers", "functionalize"]


@checked
def functionalize(
    module: nn.Module, *, vectorize: bool = True
) -> tuple[PureCall, dict[str, Tensor], dict[str, Tensor]]:
    """Split a module into a pure function, its parameters and its buffers.

    ``apply(params, buffers, *args, **kwargs)`` equals ``module(*args, **kwargs)`` with those
    values. The trees hold detached tensors that share storage with the module, so an optimiser
    that steps the module's parameters in place steps them too. Tied weights appear once. Parameters
    with ``requires_grad=False`` stay as they are: they stand among the buffers. Attention runs on
    torch's MATH backend, the one that has second derivatives.

    A call runs on a private copy of the module's structure and leaves the module as it is, also
    where it raises or runs inside transforms: what forward stores is dropped with the copy (what a
    hook records elsewhere is the hook's, and inside transforms shows their tensors). What
    the next call would read (a running mean, a counter, a list that grows) is refused by a trial
    at the first call, and at the first that changes anything. Later changes of the module's mode,
    hooks and attributes, and of what containers and objects in them hold, are followed and checked
    anew; replaced or moved parameters are not in the trees.

    Args:
        module: any module whose forward pass is a function of its parameters, buffers and inputs.
        vectorize: whether the function is meant for ``vmap``; with False, recurrent layers that
            vmap cannot take are let through.

    Raises:
        SettingError: a layer that cannot work, by name, with what to do instead.
    """
    check_layers(module, vectorize=vectorize)
    params = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    fixed = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
    buffers = fixed | {n: b.detach() for n, b in module.named_buffers()}
    needed = frozenset(params), frozenset(buffers)
    return (
        PureCall(module, partial(check_layers, vectorize=vectorize), needed=needed),
        params,
        buffers,
    )


def check_layers(module: nn.Module, *, vectorize: bool = True, running_stats: bool = False) -> None:
    """Refuse layers that a pure function of parameters, buffers and inputs cannot have.

    Args:
        module: in the mode (train or eval) that it will be used in.
        vectorize: whether it is meant for ``vmap``.
        running_stats: whether running statistics may be written, because every buffer has a row of
            its own in a stack of members.

    Raises:
        SettingError: the first such layer, by name, with what to do instead.
    """
    for name, layer in module.named_modules():
        reason = _refusal(layer, vectorize, running_stats)
        if reason:
            raise SettingError(f"module[{name}]", type(layer).__name__, reason)


def _refusal(layer: nn.Module, vectorize: bool, running_stats: bool) -> str | None:
    """Why a layer cannot work and what to do instead; None where it can."""
    tracks = isinstance(layer, _NormBase) and layer.track_running_stats and layer.training
    if tracks and running_stats and layer.momentum is None:
        return "an average over all batches (momentum=None) cannot be kept; a momentum is needed"
    if tracks and not running_stats:
        return (
            "running statistics are written in place, which a pure function cannot do; "
            "set track_running_stats=False, or convert with convert_norm(module, 'batch_stats') "
            "or another (maml.norm=batch_stats, running, group or layer)"
        )
    if layer.training and isinstance(layer, nn.RReLU):
        return "random slopes come from the global random state; use nn.LeakyReLU or eval mode"
    if layer.training and isinstance(layer, _DropoutNd | nn.MultiheadAttention | nn.RNNBase):
        dropout = layer.p if isinstance(layer, _DropoutNd) else layer.dropout
        if dropout > 0:
            return (
                f"dropout with p={dropout} draws from the global random state; set it to 0, put "
                "the layer in eval mode, or use metalearn.models.Dropout (convert_dropout)"
            )
    if vectorize and isinstance(layer, nn.RNNBase):
        return (
            f"vmap cannot take fused recurrent layers; loop over nn.{type(layer).__name__}Cell, "
            "or take a plain loop, with vectorize=False here (engine='loop', method='loop', "
            "maml.engine=loop)"
        )
    if isinstance(layer, torch.jit.ScriptModule):
        return "the parameters of compiled TorchScript cannot be replaced; use the Python module"
    if isinstance(layer, nn.parallel.DistributedDataParallel) or (
        isinstance(layer, nn.DataParallel) and len(layer.device_ids) > 1
    ):
        return "its copies on other devices cannot be replaced; use the module inside, its .module"
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
        return (
            f"max_norm={layer.max_norm:g} rewrites the weight in each forward pass; "
            "set max_norm=None"
        )
    if any(is_lazy(p) for p in layer.parameters(recurse=False)):
        return "a lazy layer has no parameters yet; run one batch through the module first"
    return None
