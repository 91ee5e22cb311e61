"""Whether a model can have per-sample gradients, and whether all ways to them agree.

Axes: N samples.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.core.chunking import chunks
from metalearn.core.module.copying import copy_module
from metalearn.core.module.norms import convert_norm
from metalearn.core.precision import norms_of, squares
from metalearn.core.samples.gradients import one_gradient, per_sample_gradients
from metalearn.core.samples.norms import ghost_parameters, per_sample_norms
from metalearn.core.tree import leaf_names, leaves
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["BatchNormPolicy", "SampleCheck", "check_per_sample", "per_sample_module"]

BatchNormPolicy = Literal["eval", "groupnorm"]


class SampleCheck(NamedTuple):
    """Largest relative errors against a loop of ordinary backward passes over single samples."""

    vmap: dict[str, float]
    """By parameter: gradients by ``vmap(grad)``."""
    layers: dict[str, float]
    """By parameter: gradients by what layers receive."""
    norms: float
    """Norms by `per_sample_norms`."""
    batch: dict[str, float]
    """By parameter: the mean of the gradients against the gradient of the batch. Beyond rounding
    where samples depend on each other, or where the loss is no plain mean over samples."""
    ghosts: dict[str, bool]
    """Whose gradients `per_sample_norms` does not form."""


@checked
def per_sample_module(module: nn.Module, *, batch_norm: BatchNormPolicy = "eval") -> nn.Module:
    """A copy of the module whose samples do not depend on each other.

    Args:
        module: left as it is.
        batch_norm: ``"eval"`` normalises with the running statistics, as in evaluation;
            ``"groupnorm"`` puts GroupNorm in the place of BatchNorm (see `convert_norm`).

    Raises:
        SettingError: an unknown policy; ``"batch_stats"``, with which a sample's loss depends on
            all others, so that it has no gradient of its own; ``"eval"`` for a layer without
            running statistics.
    """
    if str(batch_norm) == "batch_stats":
        raise SettingError(
            "batch_norm", batch_norm,
            "statistics of the batch make every sample's loss depend on all others, so that no "
            "sample has a gradient of its own; use 'eval' or 'groupnorm'",
        )  # fmt: skip
    if batch_norm not in get_args(BatchNormPolicy):
        known = ", ".join(get_args(BatchNormPolicy))
        raise SettingError("batch_norm", batch_norm, f"one of {known} is needed")
    if batch_norm == "groupnorm":
        return convert_norm(module, "group")
    module = copy_module(module)
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            if layer.running_mean is None:
                raise SettingError(
                    f"module[{name}]", type(layer).__name__,
                    "there are no running statistics to evaluate with; use 'groupnorm'",
                )  # fmt: skip
            layer.eval()
    return module


@checked
def check_per_sample(
    loss_fn: LossFn, params: Params, batch: Batch, *, samples: int = 4
) -> SampleCheck:
    """Take the gradients of the first samples in all ways and compare them.

    An error is the largest difference, relative to the largest entry of the parameter's gradients,
    or to a millionth of that of all gradients, so that rounding around a gradient of zero is not
    taken for an error. It reads values: not for use inside vmap.

    Raises:
        SettingError: fewer than one sample; as `per_sample_gradients`.
    """
    check_whole("samples", samples, 1)
    batch = next(chunks(batch, samples))
    exact = leaves(per_sample_gradients(loss_fn, params, batch, method="loop"))
    top = max(float(g.abs().max()) for g in exact if g.numel())
    names = leaf_names(params)

    def errors(found: list[Tensor], wanted: list[Tensor]) -> dict[str, float]:
        return {name: _error(f, w, top) for name, f, w in zip(names, found, wanted)}

    ways = {
        method: errors(leaves(per_sample_gradients(loss_fn, params, batch, method=method)), exact)
        for method in ("vmap", "layers")
    }
    norms = norms_of(list(map(squares, exact)))
    whole = leaves(one_gradient(loss_fn, params, batch))
    return SampleCheck(
        **ways,
        norms=_error(per_sample_norms(loss_fn, params, batch), norms, top),
        batch=errors([g.mean(0) for g in exact], whole),
        ghosts=ghost_parameters(loss_fn, params, batch),
    )


def _error(found: Tensor, wanted: Tensor, top: float) -> float:
    if wanted.numel() == 0:
        return 0.0
    gap, size = float((found - wanted).abs().max()), float(wanted.abs().max())
    return gap / (max(size, 1e-6 * top) or 1.0)
