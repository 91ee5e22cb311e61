"""Hints name settings as they are typed on the command line."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from metalearn.cli.typed_names import hints_as_typed, typed_names
from metalearn.errors import SettingError

CONFIG = OmegaConf.create(
    {
        "seed": 0,
        "trainer": {"batch_norm": None, "steps": 1, "norm": None},
        "maml": {"norm": None, "first_order": False},
        "task": "${nowhere}",
    }
)


@pytest.mark.parametrize(
    ("text", "near", "typed"),
    [
        ("would do (batch_norm=groupnorm)", "model", "would do (trainer.batch_norm=groupnorm)"),
        ("norm=group or layer", "maml", "maml.norm=group or layer"),
        ("norm=group or layer", "model", "norm=group or layer"),
        ("steps=3, first_order=true", "", "trainer.steps=3, maml.first_order=true"),
        ("trainer.steps=3 and +steps=3", "", "trainer.steps=3 and +steps=3"),
        ("seed=3, unheard=4, steps = 3", "", "seed=3, unheard=4, steps = 3"),
    ],
)
def test_a_setting_of_one_group_is_named_with_it(text: str, near: str, typed: str) -> None:
    assert typed_names(text, CONFIG, near) == typed


def test_errors_keep_all_else() -> None:
    @hints_as_typed
    def fails(config: DictConfig, hint: str) -> None:
        raise SettingError("maml.norm", 3, hint)

    with pytest.raises(SettingError, match=r"^maml.norm=3: trainer.steps=2 is needed$") as found:
        fails(CONFIG, "steps=2 is needed")
    assert (found.value.setting, found.value.value) == ("maml.norm", 3)
    with pytest.raises(SettingError, match=r"^maml.norm=3: nothing$"):
        fails(CONFIG, "nothing")
