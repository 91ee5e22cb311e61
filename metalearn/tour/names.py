"""Chapter: axes with names instead of places, by torch's first-class dimensions.

Axes: N samples, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from functorch.dim import dims

from metalearn.tour.draws import normal, number
from metalearn.tour.stops import Chapter, Ways, stop

__all__ = ["CHAPTER"]


@stop("A product over a named axis", formula="out[i, j] = Σ_k a[i, k]·b[j, k]")
def named_product() -> Ways:
    """Name the axes of two arrays, multiply, and sum over one name: no place is counted.

    What has the same name belongs together, wherever it stands. A matrix product is never written
    down, and torch makes one of it; b is stored the other way round, and no transpose is needed.
    """
    a, b = normal(24, 40, seed=0), normal(32, 40, seed=1)

    def by_name():
        i, j, k = dims(3)
        return (a[i, k] * b[j, k]).sum(k).order(i, j)

    def by_place():
        return a @ b.T

    def by_letters():
        return torch.einsum("ik,jk->ij", a, b)

    return Ways((by_name, by_place, by_letters))


@stop("Names that disagree", formula="refused: k of 4 and k of 6;  Σ_k of what has no k")
def names_disagree() -> Ways:
    """Give one name to an axis of 4 and to one of 6, or sum over a name that is gone: refused.

    A sum over a place goes through whatever stands there. Each way counts what torch refuses. Names
    are no proof: an axis of 1 is stretched under a name as it is without.
    """
    a, b = normal(3, 4, seed=0), normal(6, 3, seed=1)

    def refused(*attempts):
        count = 0
        for attempt in attempts:
            try:
                attempt()
            except (ValueError, RuntimeError):
                count += 1
        return number(count)

    def by_name():
        i, j, k = dims(3)
        other_size, gone = (lambda: a[i, k] * b[k, j]), (lambda: a[i, k].sum(k).sum(k))
        return refused(other_size, gone)

    def both():
        return number(2)

    def by_place():
        return refused(lambda: a[:, :, None] * b, lambda: a.sum(0).sum(0))

    return Ways((by_name, both), unlike=by_place)


@stop("A depthwise convolution over named axes", formula="out[n, c] = x[n, c] ∗ kernel[c]")
def named_depthwise() -> Ways:
    """Convolve one plane with one kernel; names say that c of both is the same, and n is free.

    It is vmap without in_dims: a name is a batch axis that every operation carries along.
    """
    x, kernels = normal(8, 12, 16, 16, seed=0), normal(12, 3, 3, seed=1)

    def by_name():
        n, c = dims(2)
        planes = x[n, c][None, None]
        return F.conv2d(planes, kernels[c][None, None], padding=1).order(n, c)[:, :, 0, 0]

    def with_groups():
        return F.conv2d(x, kernels[:, None], padding=1, groups=12)

    def by_loop():
        planes = [
            F.conv2d(x[:, c, None], kernels[c, None, None], padding=1)[:, 0] for c in range(12)
        ]
        return torch.stack(planes, dim=1)

    return Ways((by_name, with_groups, by_loop))


CHAPTER = Chapter(
    "names",
    "Axes with names",
    "Names instead of places: what belongs together is said, and what does not is refused.",
    (named_product, names_disagree, named_depthwise),
)
