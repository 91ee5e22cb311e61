"""The name that was meant: what every table of names says of one that it does not have."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from metalearn.errors import SettingError

__all__ = ["check_known", "nearest", "with_nearest"]


def check_known(
    setting: str, name: object, known: Collection[str], accepted: str = "known are {}"
) -> None:
    """Refuse a name that a table does not have.

    Args:
        setting: where it was given.
        name: that was given.
        known: the table's.
        accepted: what the error says, with these in place of ``{}``.

    Raises:
        SettingError: names those that are known, and the nearest where one is near.
    """
    if not isinstance(name, str) or name not in known:
        wanted = accepted.format(", ".join(known))
        raise SettingError(setting, name, with_nearest(wanted, name, known))


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that means the same or is most like another one; None where none is."""
    names = list(known)
    meant = [other for other in _OTHER_WORDS.get(str(name), ()) if other in names]
    found = meant or difflib.get_close_matches(str(name), names, n=1)
    return found[0] if found else None


_OTHER_WORDS = {
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs", "max_epochs"), ("steps",)),
    **dict.fromkeys(("iterations", "n_steps", "num_steps", "max_steps"), ("steps",)),
    "batch_size": ("meta_batch", "outer_batch"),
    "bs": ("batch_size", "meta_batch"),
    "callbacks": ("diagnostics",),
    "criterion": ("loss",),
    "early_stopping": ("patience",),
    "gradient_clip": ("clip",),
    "learning_rate": ("lr",),
    "log_dir": ("folder",),
    "logger": ("tracker",),
    "loss_fn": ("loss",),
    "max_grad_norm": ("clip", "max_norm"),
    "num_members": ("members",),
    "output_dir": ("folder",),
    "random_state": ("seed",),
    "scheduler": ("schedule",),
    "verbose": ("progress",),
}
"""Settings as other libraries call them."""


def with_nearest(accepted: str, name: object, known: Iterable[str]) -> str:
    """What would be accepted, with ``did you mean …?`` where a known name is near."""
    near = nearest(name, known)
    return accepted if near is None else f"{accepted}; did you mean {near}?"
