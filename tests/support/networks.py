"""Networks of many kinds for tests of derivatives and per-sample gradients, in float64.

Axes: N samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize
from tests.support.oracles import draw, generator


class Case(NamedTuple):
    """A mean loss, its parameters and a batch, and the module that they come from."""

    loss_fn: Callable[[Any, Any], Tensor]
    params: dict[str, Tensor]
    batch: Any
    module: nn.Module


class Cells(nn.Module):
    """A GRU cell and an LSTM cell, looped over 4 times."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm, self.head = nn.GRUCell(2, 3), nn.LSTMCell(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 3)
        state = (h, h)
        for step in x.unbind(1):
            h = self.gru(step, h)
            state = self.lstm(h, state)
        return self.head(state[0])


class Tied(nn.Module):
    """An embedding that is its own decoder, a layer that is used twice, a parameter without one."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.twice, self.shift = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(1, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.twice(torch.tanh(self.twice(self.table(tokens)))) + self.shift.bias
        return F.linear(h.mean(1), self.table.weight)


class Attention(nn.Module):
    """Tokens, a padding token among them, self-attention, layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4, padding_idx=0)
        self.mix, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        h = self.norm(h + self.mix(h, h, h, need_weights=False)[0])
        return self.head(h).mean(1)


def convolutions() -> nn.Module:
    """Stride, padding, dilation, groups, few and many channels, in-place activations."""
    return nn.Sequential(
        nn.Conv2d(1, 9, 3, stride=2, padding=(1, 2)), nn.GroupNorm(3, 9), nn.ReLU(inplace=True),
        nn.Conv2d(9, 9, (3, 2), padding=2, dilation=(1, 2), bias=False), nn.Tanh(),
        nn.Conv2d(9, 6, 3, groups=3, padding="same"), nn.InstanceNorm2d(6, affine=True),
        nn.BatchNorm2d(6).eval(), nn.Conv2d(6, 2, 1), nn.Softplus(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def large_pictures() -> nn.Module:
    """Enough positions and channels for another way of taking products."""
    layers = (nn.Conv2d(8, 3, 3, bias=False), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(200, 3))


def sequences() -> nn.Module:
    """Linear layers with a sequence axis, long and short against their sizes."""
    return nn.Sequential(
        nn.Linear(3, 2), nn.Tanh(), nn.LayerNorm(2), nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 7),
        nn.Flatten(), nn.Linear(28, 3),
    )  # fmt: skip


def tokens(rows: int = 4) -> Tensor:
    return torch.randint(5, (rows, 6), generator=generator(3))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(4), dtype=torch.float64)


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), noise(4, 3)),
    "sequences": lambda: (sequences(), noise(4, 4, 3)),
    "convolutions": lambda: (convolutions(), noise(4, 1, 8, 8)),
    "large_pictures": lambda: (large_pictures(), noise(4, 8, 14, 14)),
    "cells": lambda: (Cells(), noise(4, 4, 2)),
    "tied": lambda: (Tied(), tokens()),
    "attention": lambda: (Attention(), tokens()),
}


def case(name: str) -> Case:
    """Cross-entropy of one of `CASES` with labels in turn."""
    module, inputs = CASES[name]()
    draw(module)
    apply, params, buffers = functionalize(module)

    def loss_fn(params: Any, batch: Any) -> Tensor:
        return F.cross_entropy(apply(params, buffers, batch[0]), batch[1])

    return Case(loss_fn, params, (inputs, torch.arange(len(inputs)) % 3), module)


def tiny_bert() -> Case:
    """A classifier of transformers from its settings, for inputs with padding.

    The mask has all its axes, because the model looks into a mask ``[N, tokens]``, which vmap
    does not allow.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BertConfig, BertForSequenceClassification

        settings = BertConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=12, max_position_embeddings=8, num_labels=3,
        )  # fmt: skip
        module = draw(BertForSequenceClassification(settings).eval())
    apply, params, buffers = functionalize(module)

    def loss_fn(params: Any, batch: Any) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return F.cross_entropy(apply(params, buffers, **inputs).logits, batch["labels"])

    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
    batch = {
        "input_ids": torch.randint(11, (3, 5), generator=generator(5)),
        "attention_mask": mask[:, None, None].expand(3, 1, 5, 5),
        "labels": torch.arange(3),
    }
    return Case(loss_fn, params, batch, module)


def tiny_gpt2() -> Case:
    """A language model of transformers from its settings: Conv1D, and a head tied to its table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import GPT2Config, GPT2LMHeadModel

        settings = GPT2Config(
            vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        module = draw(GPT2LMHeadModel(settings).eval())
    apply, params, buffers = functionalize(module)

    def loss_fn(params: Any, batch: Any) -> Tensor:
        logits = apply(params, buffers, input_ids=batch["input_ids"]).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    batch = {"input_ids": torch.randint(11, (3, 6), generator=generator(5))}
    return Case(loss_fn, params, batch, module)


def scaled(params: dict[str, Tensor], members: int = 2) -> dict[str, Tensor]:
    """A stack of parameter sets, the first as given."""
    return {
        name: torch.stack([v * (1 + 0.1 * m) for m in range(members)]) for name, v in params.items()
    }
