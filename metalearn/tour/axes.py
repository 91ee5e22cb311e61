"""Chapter: vmap, a function of one example made a function of many.

Axes: N samples, T tasks, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.func import vmap

from metalearn.core import adapt, sgd
from metalearn.tour.draws import normal
from metalearn.tour.stops import Chapter, Ways, stop

__all__ = ["CHAPTER"]


@stop("One axis", formula="out[n] = a[n]·b[n]")
def one_axis() -> Ways:
    """Write a function of two vectors, call it for 256 pairs of them at once.

    vmap runs no loop: every operation inside takes all pairs in one call.
    """
    a, b = normal(256, 64, seed=0), normal(256, 64, seed=1)

    def by_vmap():
        return vmap(torch.dot)(a, b)

    def by_loop():
        return torch.stack([torch.dot(a[n], b[n]) for n in range(256)])

    def by_hand():
        return (a * b).sum(1)

    return Ways((by_vmap, by_loop, by_hand))


@stop("Several arguments, each along an axis of its own", formula="out[n, :] = W·x[:, n] + b[n]")
def several_axes() -> Ways:
    """Say with in_dims along which axis each argument is batched; None shares it."""
    weight, x, bias = normal(8, 16, seed=0), normal(16, 200, seed=1), normal(200, seed=2)

    def affine(weight, x, bias):
        return weight @ x + bias

    def by_vmap():
        return vmap(affine, in_dims=(None, 1, 0))(weight, x, bias)

    def by_loop():
        return torch.stack([affine(weight, x[:, n], bias[n]) for n in range(200)])

    def by_hand():
        return (weight @ x + bias).T

    return Ways((by_vmap, by_loop, by_hand))


@stop("Nested axes", formula="out[i, j] = ‖a[i] − b[j]‖²")
def nested_axes() -> Ways:
    """Let one vmap run inside another: all pairs, from a function of a single pair.

    The inner one goes over b while a stands still, the outer one over a.
    """
    a, b = normal(48, 8, seed=0), normal(32, 8, seed=1)

    def distance(a, b):
        return (a - b).square().sum()

    def by_vmap():
        return vmap(vmap(distance, in_dims=(None, 0)), in_dims=(0, None))(a, b)

    def by_two_loops():
        return torch.stack([torch.stack([distance(u, v) for v in b]) for u in a])

    def by_hand():
        return a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)

    return Ways((by_vmap, by_two_loops, by_hand))


@stop(
    "A whole training loop under vmap",
    formula="θ[t] = 3 steps of θ ← θ − 0.1·∇L_t(θ), for every task t",
)
def many_tasks() -> Ways:
    """Train 64 regressions at once: adapt is written for one task, and vmap does the rest.

    With an outer gradient this is meta-learning; over parameters in place of tasks, an ensemble.
    """
    x, y, start = normal(64, 10, 3, seed=0), normal(64, 10, seed=1), normal(3, seed=2)

    def loss(w, batch):
        return (batch[0] @ w - batch[1]).square().mean()

    def train(x, y):
        return adapt(loss, start, (x, y), optimizer=sgd(0.1), steps=3).params

    def by_vmap():
        return vmap(train)(x, y)

    def by_loop():
        return torch.stack([train(x[t], y[t]) for t in range(64)])

    def by_hand():
        w = start.expand(64, 3)
        for _ in range(3):
            residual = torch.einsum("tnd,td->tn", x, w) - y
            w = w - 0.1 * 2 / 10 * torch.einsum("tn,tnd->td", residual, x)
        return w

    return Ways((by_vmap, by_loop, by_hand))


@stop(
    "Depthwise convolution is a convolution under vmap",
    formula="out[:, c] = x[:, c] ∗ kernel[c]",
)
def depthwise() -> Ways:
    """Give every channel a kernel of its own: convolve one channel, and vmap over channels.

    torch has a special case for it, conv2d with as many groups as channels.
    """
    x, kernels = normal(8, 12, 16, 16, seed=0), normal(12, 3, 3, seed=1)

    def one_channel(plane, kernel):
        return F.conv2d(plane[:, None], kernel[None, None], padding=1)[:, 0]

    def by_vmap():
        return vmap(one_channel, in_dims=(1, 0), out_dims=1)(x, kernels)

    def with_groups():
        return F.conv2d(x, kernels[:, None], padding=1, groups=12)

    def by_loop():
        return torch.stack([one_channel(x[:, c], kernels[c]) for c in range(12)], dim=1)

    return Ways((by_vmap, with_groups, by_loop))


CHAPTER = Chapter(
    "vmap",
    "One more axis",
    "A function of one example becomes one of many: over one axis, several, one in another.",
    (one_axis, several_axes, nested_axes, many_tasks, depthwise),
)
