"""Texts of your own: class folders of text files, or a table.

Axes: N texts, L tokens of a text, V numbers of tokens, C classes.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from metalearn.core.memory import check_memory
from metalearn.data.division import check_class_fractions, divide_classes
from metalearn.data.text_files import LabelledText, read_texts
from metalearn.data.texts import LabelledTexts
from metalearn.data.tokens import Tokenizer, Tokens
from metalearn.errors import DataError, SettingError
from metalearn.signatures import checked

__all__ = ["load_texts"]

_log = logging.getLogger(__name__)
_NAMED = 5  # texts without tokens that a message names


@checked
def load_texts(
    root: str | Path,
    *,
    tokens: Tokens = "words",
    vocabulary: int | None = None,
    length: int = 64,
    text: str = "text",
    label: str = "label",
    on_empty: Literal["refuse", "skip"] = "refuse",
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
) -> LabelledTexts:
    """Texts as token numbers, with their classes divided in splits.

    They are the files ``root/class/*.txt`` or ``root/group/class/*.txt`` in UTF-8, or the rows of a
    table: ``.csv`` and ``.tsv`` with the names of columns in their first row, ``.jsonl`` with an
    object a line, ``.parquet`` (the extra ``parquet``). Its columns ``group`` and ``split`` count
    too. Splits are named by folders or tables train, validation (or val) and test in ``root``, or
    by the column; otherwise classes are divided by hashes of their names, as in `load_folder`.

    Args:
        root: the folder, or the table.
        tokens: ``words``, ``bytes``, or a function from a text to numbers; see `Tokenizer`.
        vocabulary: V, of words and functions; None is 8,192. Bytes have 257.
        length: L; what is longer is cut off, what is shorter is padded with 0.
        text: the column of texts.
        label: the column of classes.
        on_empty: ``refuse`` raises on texts without tokens; ``skip`` leaves them out and logs a
            warning that names some.
        validation_fraction: share of the classes for validation where no split is named; 0: none.
        test_fraction: share of the classes for testing; 1: all of them are test classes.

    Returns:
        ``tokens`` int32 ``[N, L]``; classes sorted by name, ``"class"`` with the group ``""``, or
        ``"group/class"``.

    Raises:
        SettingError: a setting that cannot work, or nothing at ``root``.
        DataError: no texts, some without tokens, a class in two splits, too few classes.
    """
    if on_empty not in ("refuse", "skip"):
        raise SettingError("on_empty", on_empty, "refuse or skip is needed")
    check_class_fractions(validation_fraction, test_fraction)
    tokenizer = Tokenizer(tokens, vocabulary, length)
    numbers, found = _with_tokens(
        root, read_texts(root, text=text, label=label), tokenizer, on_empty
    )
    classes = _classes(root, found)
    names = sorted(classes)
    named = [classes[name].split for name in names]
    fractions = {"validation": validation_fraction, "test": test_fraction}
    places = {name: place for place, name in enumerate(names)}
    return LabelledTexts(
        tokens=numbers,
        vocabulary=tokenizer.size,
        labels=torch.tensor([places[row.label] for row in found]),
        class_names=tuple(names),
        class_groups=tuple(classes[name].group for name in names),
        splits=divide_classes(Path(root), names, named, **fractions),
    )


def _with_tokens(
    root: str | Path, rows: list[LabelledText], tokenizer: Tokenizer, on_empty: str
) -> tuple[Tensor, list[LabelledText]]:
    """Tokens ``[N, L]`` of all texts that have some, and these texts."""
    check_memory("length", tokenizer.length, 8 * tokenizer.length * len(rows))
    numbers = tokenizer.encode([row.text for row in rows]).int()
    there = (numbers[:, 0] != 0).tolist()
    if not all(there):
        _report(root, [row for row, full in zip(rows, there) if not full], on_empty)
    return numbers[there], [row for row, full in zip(rows, there) if full]


def _classes(root: str | Path, rows: list[LabelledText]) -> dict[str, LabelledText]:
    """By class, a text of it; refused where its texts stand in two splits."""
    found: dict[str, LabelledText] = {}
    for row in rows:
        first = found.setdefault(row.label, row)
        if first.split != row.split:
            raise DataError(
                f"{root}: the class {row.label} stands in {first.split} ({first.where}) and in "
                f"{row.split} ({row.where}), but splits of few-shot tasks share no class; without "
                "splits, classes are divided by name"
            )
    if not found:
        raise DataError(f"{root}: no texts with tokens are there")
    return found


def _report(root: str | Path, empty: list[LabelledText], on_empty: str) -> None:
    count = "1 text has" if len(empty) == 1 else f"{len(empty)} texts have"
    more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
    named = ", ".join(row.where for row in empty[:_NAMED]) + more
    if on_empty == "refuse":
        raise DataError(
            f"{root}: {count} no tokens: {named}; remove what is empty, or set on_empty=skip to "
            "leave it out"
        )
    _log.warning("%s: %s no tokens and left out: %s", root, count, named)
