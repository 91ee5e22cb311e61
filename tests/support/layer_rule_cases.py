"""Losses whose parameters are all used in operations with a rule.

Each is a loss of one sample's batch, parameters and a batch ``(x, …)``, in float64.
Axes: N samples, S positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize
from tests.support.oracles import draw
from tests.support.sample_oracles import noise


class RuleCase(NamedTuple):
    """A mean loss, its parameters and a batch."""

    loss: Callable[[Any, Any], Tensor]
    params: dict[str, Tensor]
    batch: Any


def of_function(function: Callable[..., Tensor], params: dict[str, Tensor], *batch: Tensor) -> Any:
    """Mean over samples of Σ sin(2·z), z = function(params, x)."""

    def loss(params: Any, batch: Any) -> Tensor:
        return (2 * function(params, *batch)).sin().sum() / len(batch[0])

    return lambda: RuleCase(loss, params, batch)


def of_module(make: Callable[[], nn.Module], *shape: int) -> Any:
    """The same of a module's output."""

    def case() -> RuleCase:
        module = draw(make().double())
        apply, params, buffers = functionalize(module)
        function = lambda p, x: apply(p, buffers, x)  # noqa: E731
        made: RuleCase = of_function(function, params, noise(*shape, seed=3))()
        return made

    return case


def of_labels(params: Any, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of labels among which −100 is padding."""
    logits = F.linear(torch.tanh(F.linear(x, params["v"])), params["w"])
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


W, V, B, X = noise(4, 3, seed=1), noise(3, 4, seed=2), noise(4, seed=3), noise(5, 6, 3, seed=4)
SQUARE, PACKED, TABLE = noise(3, 3, seed=5), noise(9, 3, seed=6), noise(7, 3, seed=7)
WORDS = torch.tensor([[0, 4, 4], [2, 2, 2], [1, 0, 6], [6, 5, 4]])
Y = noise(4, 3, seed=8)


def attention(p: Any, x: Tensor) -> Tensor:
    """A packed projection whose parts are used as they are taken out."""
    query, rest = p["w"].split([3, 6])
    key, value = rest.chunk(2)
    b = p["b"]
    q, k = F.linear(x, query, b[:3]), F.linear(x, key, b[3:6])
    return (q @ k.mT).softmax(-1) @ F.linear(x, value, b[6:])


def overlapping(p: Any, x: Tensor) -> Tensor:
    return F.linear(x, p["w"][:6]) + F.linear(x.sin(), p["w"][3:]) * 2


def written_into(p: Any, x: Tensor) -> Tensor:
    """Outputs of layers that are changed in place, whole or in part."""
    h = F.relu_(F.linear(x, p["v"], p["c"]))
    h = F.linear(h, p["w"], p["b"])
    h[..., 0].mul_(2.0)
    return torch.tanh_(F.linear(h, p["w"].T))


MATRICES: dict[str, Any] = {
    "written into": of_function(written_into, {"v": W, "c": B, "w": V, "b": B[:3]}, X),
    "written into, no positions": of_function(written_into, {"v": W, "c": B, "w": V, "b": B[:3]},
                                              X[:, 0]),
    "linear, a vector": of_function(lambda p, x: F.linear(x[0, 0], p["w"], p["b"]),
                                    {"w": W, "b": B}, X),
    "addmm": of_function(lambda p, x: torch.addmm(p["b"], x.flatten(0, 1), p["w"]),
                         {"w": V, "b": B}, X),
    "matmul": of_function(lambda p, x: x @ p["w"], {"w": V}, X),
    "matmul from the left": of_function(lambda p, x: p["w"] @ x.mT[0], {"w": W}, X),
    "matmul of a vector": of_function(lambda p, x: p["w"] @ x[0, 0], {"w": W}, X),
    "mm": of_function(lambda p, x: torch.mm(x[0], p["w"]), {"w": V}, X),
    "transposed": of_function(lambda p, x: x @ p["w"].T + F.linear(x, p["v"].t(), p["b"]),
                              {"w": W, "v": V, "b": B}, X),
    "tied autoencoder": of_function(lambda p, x: F.linear(F.linear(x, p["w"]).sin(), p["w"].T),
                                    {"w": W}, X),
    "used twice": of_function(lambda p, x: F.linear(F.linear(x, p["w"], p["b"]).sin(), p["w"],
                                                    p["b"]), {"w": SQUARE, "b": B[:3]}, X),
    "used four times": of_function(lambda p, x: sum(F.linear(x[:, i], p["w"]) * i  # type: ignore
                                                    for i in range(1, 5)), {"w": W}, X),
    "packed": of_function(attention, {"w": PACKED, "b": noise(9, seed=9)}, X),
    "overlapping rows": of_function(overlapping, {"w": PACKED}, X),
    "rows and the whole": of_function(lambda p, x: F.linear(x, p["w"]) + F.linear(
        x, p["w"][2:5]).sum(), {"w": PACKED}, X),
    "no positions": of_function(lambda p, x: F.linear(x, p["w"], p["b"]).sum((0, 1)) + x.sum(),
                                {"w": W, "b": B}, X[:, :0]),
    "padded labels": lambda: RuleCase(
        lambda p, b: of_labels(p, *b) / len(b[0]), {"v": W, "w": noise(5, 4)},
        (X[:4], torch.tensor([[0, 1, 2, 3, 4, 0], [1, -100, 2, -100, -100, 0], [-100] * 6,
                              [4, 3, 2, 1, 0, -100]]))),
}  # fmt: skip

LOOKUPS: dict[str, Any] = {
    "embedding": of_function(lambda p, i: F.embedding(i, p["w"]), {"w": TABLE}, WORDS),
    "padding": of_function(lambda p, i: F.embedding(i, p["w"], padding_idx=4), {"w": TABLE}, WORDS),
    "indexed": of_function(lambda p, i: p["w"][i - 7], {"w": TABLE}, WORDS),
    "looked up twice": of_function(lambda p, i: F.embedding(i, p["w"]) * F.embedding(
        i.flip(1), p["w"]), {"w": TABLE}, WORDS),
    "tied to the head": of_function(lambda p, i: F.linear(F.embedding(i, p["w"]).sin(), p["w"]),
                                    {"w": TABLE}, WORDS),
    "looked up by rows": of_function(lambda p, i: F.embedding(i % 3, p["w"][2:5]),
                                     {"w": TABLE}, WORDS),
    "bag, sum": of_function(lambda p, i: F.embedding_bag(i, p["w"], mode="sum"),
                            {"w": TABLE}, WORDS),
    "bag, mean": of_function(lambda p, i: F.embedding_bag(i, p["w"], padding_idx=4),
                             {"w": TABLE}, WORDS),
    "bag, max": of_function(lambda p, i: F.embedding_bag(i, p["w"], mode="max"),
                            {"w": TABLE}, WORDS),
    "bag, weighted": of_function(lambda p, i, y: F.embedding_bag(
        i, p["w"], mode="sum", per_sample_weights=y), {"w": TABLE}, WORDS, Y),
    "bag, offsets": of_function(lambda p, i: F.embedding_bag(
        i.flatten(), p["w"], torch.arange(0, i.numel(), i.shape[1]), mode="sum"),
        {"w": TABLE}, WORDS),
    "bag, offsets in the sample": of_function(lambda p, i, at: F.embedding_bag(
        i[0], p["w"], at[0], mode="mean", padding_idx=4), {"w": TABLE}, WORDS,
        torch.tensor([[0, 1], [0, 2], [0, 0], [0, 3]])),
    "bag, offsets and the last": of_function(lambda p, i, y: F.embedding_bag(
        i[0], p["w"], torch.tensor([0, 2, 3]), mode="sum", per_sample_weights=y[0],
        include_last_offset=True), {"w": TABLE}, WORDS, Y),
}  # fmt: skip

SCALES: dict[str, Any] = {
    "scale": of_function(lambda p, x: x * p["a"], {"a": noise(3)}, X),
    "scale from the left": of_function(lambda p, x: p["a"] * x, {"a": noise(3)}, X),
    "a number": of_function(lambda p, x: p["a"] * x, {"a": noise(1)[0]}, X),
    "shift": of_function(lambda p, x: x + p["a"], {"a": noise(3)}, X),
    "positions": of_function(lambda p, x: torch.add(x, p["a"]), {"a": noise(1, 6, 1)}, X),
    "larger than the sample": of_function(lambda p, x: x[0, :1] * p["a"], {"a": noise(2, 3)}, X),
    "difference": of_function(lambda p, x: (x - p["a"]) * (p["b"] - x),
                              {"a": noise(3), "b": noise(6, 3)}, X),
    "several times": of_function(lambda p, x: x * p["a"] + x.sin() * p["a"] + p["a"],
                                 {"a": noise(3)}, X),
}  # fmt: skip

NORMS: dict[str, Any] = {
    "layer": of_module(lambda: nn.LayerNorm(3), 5, 6, 3),
    "layer over two axes": of_module(lambda: nn.LayerNorm((6, 3)), 5, 2, 6, 3),
    "layer of a row": of_module(lambda: nn.LayerNorm(3), 5, 3),
    "layer without bias": of_module(lambda: nn.LayerNorm(3, bias=False), 5, 6, 3),
    "rms": of_module(lambda: nn.RMSNorm(3), 5, 6, 3),
    "group": of_module(lambda: nn.GroupNorm(2, 4), 5, 4, 3, 2),
    "group of a row": of_module(lambda: nn.GroupNorm(2, 6), 5, 6),
    "instance": of_module(lambda: nn.InstanceNorm2d(3, affine=True), 5, 3, 4, 2),
    "instance, evaluated": of_module(
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True).eval(), 5, 3, 4),
    "batch, evaluated": of_module(lambda: nn.BatchNorm1d(3).eval(), 5, 3),
    "batch of pictures, evaluated": of_module(lambda: nn.BatchNorm2d(3).eval(), 5, 3, 4, 2),
}  # fmt: skip

CONVOLUTIONS: dict[str, Any] = {
    "1d": of_module(lambda: nn.Conv1d(2, 3, 3), 5, 2, 7),
    "1d, all": of_module(
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), 5, 4, 9),
    "1d, many channels": of_module(lambda: nn.Conv1d(9, 2, 2, padding=1), 5, 9, 5),
    "1d, circular": of_module(
        lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), 5, 2, 7),
    "2d, groups": of_module(lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2), 5, 4, 6, 7),
    "2d, by channel": of_module(lambda: nn.Conv2d(9, 9, 3, groups=9, bias=False), 5, 9, 5, 4),
    "2d, reflected": of_module(
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), 5, 2, 5, 4),
    "3d": of_module(lambda: nn.Conv3d(2, 3, (2, 3, 1), padding=(1, 0, 1)), 5, 2, 3, 4, 2),
    "3d, all": of_module(
        lambda: nn.Conv3d(4, 2, 2, stride=(2, 1, 2), dilation=(1, 2, 1), groups=2),
        5, 4, 4, 4, 3),
    "3d, same": of_module(lambda: nn.Conv3d(1, 2, (3, 2, 2), padding="same"), 5, 1, 3, 3, 2),
    "transposed 1d": of_module(lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1), 5, 2, 4),
    "transposed 1d, padded output": of_module(
        lambda: nn.ConvTranspose1d(2, 3, 2, stride=2, dilation=3, output_padding=2), 5, 2, 4),
    "transposed 2d, groups": of_module(
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, output_padding=1),
        5, 4, 3, 2),
    "transposed 2d, many channels": of_module(
        lambda: nn.ConvTranspose2d(3, 9, 3, padding=1, bias=False), 5, 3, 4, 3),
    "transposed 3d": of_module(lambda: nn.ConvTranspose3d(2, 2, 2, stride=(1, 2, 1)),
                               5, 2, 2, 2, 3),
    "a kernel used twice": of_function(
        lambda p, x: F.conv2d(F.conv2d(x, p["w"], p["b"]).sin(), p["w"]),
        {"w": noise(2, 2, 2, 2), "b": noise(2)}, noise(4, 2, 5, 4)),
    "a kernel there and back": of_function(
        lambda p, x: F.conv_transpose2d(F.conv2d(x, p["w"]).sin(), p["w"]),
        {"w": noise(3, 2, 2, 2)}, noise(4, 2, 4, 4)),
}  # fmt: skip

RULE_CASES: dict[str, Callable[[], RuleCase]] = {
    **MATRICES, **LOOKUPS, **SCALES, **NORMS, **CONVOLUTIONS,
}  # fmt: skip
