"""A layer under two names is trained and saved as under one, by every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, MetaTrainer


class Net(nn.Module):
    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.inp, self.mid, self.out = nn.Linear(1, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        if twice:
            self.again = self.mid

    def forward(self, x: Tensor) -> Any:
        self.features = torch.tanh(self.mid(torch.tanh(self.inp(x))))
        return self.out(torch.tanh(getattr(self, "again", self.mid)(self.features)))


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_what_is_saved_is_what_was_trained(engine: Any) -> None:
    saved = []
    for twice in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Net(twice=twice)
        start, owned = net.mid.weight.detach().clone(), net.mid.weight
        trainer = MetaTrainer(
            net, SinusoidTasks(), maml=MAML(inner_lr=0.02, engine=engine),
            steps=4, meta_batch=2, validation_tasks=2, eval_every=2,
            optimizer=lambda ps: torch.optim.Adam(ps, lr=3e-3),
        )  # fmt: skip
        trainer.fit()
        assert net.mid.weight is owned and not torch.equal(owned, start)
        saved.append(net.state_dict()["mid.weight"].clone())
        support = trainer.tasks.sample("test", [0]).support
        adapted = trainer.learner.adapt((support[0][0], support[1][0]))
        assert adapted(support[0][0]).shape == (len(support[0][0]), 1)
    torch.testing.assert_close(saved[0], saved[1], rtol=1e-4, atol=1e-5)
