"""Texts of class folders and tables: tokens, splits, and a sentence for each mistake."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.data import LabelledTexts, Tokenizer, load_texts
from metalearn.errors import DataError, SettingError
from tests.support.text_sets import topics, write_table

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")


def number(word: str, vocabulary: int = 8192) -> int:
    return 1 + zlib.crc32(word.encode()) % (vocabulary - 1)


def six(root: Path) -> Path:
    """Six class folders of two texts."""
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        (root / name / "b.txt").write_text(f"The {name}, second")
        (root / name / "a.txt").write_text(f"the {name} FIRST")
    return root


def rows(**columns: Any) -> list[dict[str, Any]]:
    """Two rows of each of six classes; columns beside text and label by class."""
    return [
        {"text": f"{name} {i}", "label": name, **{k: v[c] for k, v in columns.items()}}
        for c, name in enumerate(CLASSES)
        for i in range(2)
    ]


def as_jsonl(path: Path, table: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def as_separated(path: Path, table: list[dict[str, Any]]) -> Path:
    separator = "," if path.suffix == ".csv" else "\t"
    lines = [list(table[0]), *([str(v) for v in row.values()] for row in table)]
    path.write_text("\n".join(separator.join(line) for line in lines) + "\n")
    return path


def as_parquet(path: Path, table: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(table), path)
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    ".csv": as_separated,
    ".tsv": as_separated,
    ".jsonl": as_jsonl,
    ".parquet": as_parquet,
}


# --- numbers of tokens ----------------------------------------------------------------------


def test_words_have_hashed_numbers_and_padding_is_zero() -> None:
    found = Tokenizer("words", 8192, 6).numbers("The cat's  naïve.")
    assert found == [number(w) for w in ("the", "cat", "'", "s", "naïve", ".")]
    assert Tokenizer("words", 100, 3).numbers("Cat") == [number("cat", 100), 0, 0]
    assert Tokenizer("words", 100, 3).numbers(" \n") == [0, 0, 0]
    many = Tokenizer("words", 5, 2000).numbers(" ".join(f"w{i}" for i in range(2000)))
    assert set(many) == {1, 2, 3, 4}


def test_a_letter_with_its_accent_apart_and_half_of_a_pair() -> None:
    words = Tokenizer("words", 8192, 3)
    composed = [number("café"), number("!"), 0]
    assert words.numbers("cafe\u0301!") == words.numbers("Caf\u00e9!") == composed
    assert words.numbers("a \ud83d b")[::2] == [number("a"), number("b")]
    assert Tokenizer("bytes", None, 4).numbers("\ud83d") == [0xED + 1, 0xA0 + 1, 0xBD + 1, 0]


def test_bytes_are_those_of_utf8() -> None:
    tokenizer = Tokenizer("bytes", None, 4)
    assert tokenizer.size == 257
    assert tokenizer.numbers("é!") == [0xC3 + 1, 0xA9 + 1, ord("!") + 1, 0]


def test_a_function_gives_numbers_of_its_own() -> None:
    tokenizer = Tokenizer(lambda text: [len(word) for word in text.split()], 9, 2)
    assert tokenizer.numbers("one four seven") == [3, 4]
    assert torch.equal(tokenizer.encode(["a", "bb ccc"]), torch.tensor([[1, 0], [2, 3]]))
    assert tokenizer.encode([]).shape == (0, 2)
    with pytest.raises(SettingError, match=r"tokens=9: numbers in 1\.\.8 are needed"):
        tokenizer.numbers("a ninechars")
    for wrong, shown in ((None, "None"), ([1.5], r".1\.5."), ("12", "'12'")):
        with pytest.raises(SettingError, match=f"tokens={shown}: a function from a text to a seq"):
            Tokenizer(lambda text, wrong=wrong: wrong, 9, 2).numbers("a")  # type: ignore


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("letters", 9, 9), "tokens='letters': words, bytes or a function"),
        (("bytes", 300, 9), "vocabulary=300: null is needed: bytes have 257"),
        (("words", 1, 9), "vocabulary=1: a whole number of at least 2"),
        (("words", 2**31 + 1, 9), "vocabulary=2147483649: a whole number of at most 2147483648"),
        (("words", 9, 0), "length=0: a whole number of at least 1"),
    ],
)
def test_settings_out_of_range(given: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Tokenizer(*given)


# --- what comes out -------------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    data = load_texts(six(tmp_path), length=4)
    assert data.class_names == CLASSES and data.class_groups == ("",) * 6
    assert data.tokens.shape == (12, 4) and data.tokens.dtype == torch.int32
    assert data.labels.bincount().tolist() == [2] * 6
    first = [number(w) for w in ("the", "ant", "first")] + [0]
    assert data.tokens[0].tolist() == first
    assert data.tokens[1].tolist() == [number(w) for w in ("the", "ant", ",", "second")]
    assert sorted(c for split in data.splits.values() for c in split) == list(range(6))
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [2, 2, 2]


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_table_says_what_folders_say(tmp_path: Path, suffix: str) -> None:
    path = WRITERS[suffix](tmp_path / f"all{suffix}", rows())
    for name in CLASSES:
        for i in range(2):
            file = tmp_path / "folders" / name / f"{i}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} {i}")
    table, folders = load_texts(path, length=3), load_texts(tmp_path / "folders", length=3)
    for name, value in vars(folders).items():
        found = getattr(table, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def test_columns_by_name_groups_and_splits(tmp_path: Path) -> None:
    splits = ["train", "train", "val", "val", "test", "test"]
    table = rows(group=["x", "y", "x", "y", "x", "y"], split=splits)
    renamed = [
        {"label": "no", "said": r["text"], "intent": r["label"]}
        | {k: r[k] for k in ("group", "split")}
        for r in table
    ]
    data = load_texts(
        as_jsonl(tmp_path / "t.jsonl", renamed), text="said", label="intent", length=2
    )
    assert data.class_names == ("x/ant", "x/cat", "x/eel", "y/bee", "y/dog", "y/fox")
    assert data.class_groups == ("x", "x", "x", "y", "y", "y")
    assert data.splits == {"train": (0, 3), "validation": (1, 4), "test": (2, 5)}


@pytest.mark.parametrize("suffix", WRITERS)
def test_tables_named_by_splits(tmp_path: Path, suffix: str) -> None:
    table = rows()
    for name, part in (("train", table[:4]), ("val", table[4:8]), ("test", table[8:])):
        WRITERS[suffix](tmp_path / f"{name}{suffix}", part)
    data = load_texts(tmp_path)
    assert data.splits == {"train": (0, 1), "validation": (2, 3), "test": (4, 5)}


def test_folders_named_by_splits(tmp_path: Path) -> None:
    for c, name in enumerate(CLASSES):
        file = tmp_path / ("train", "validation", "test")[c // 2] / name / "a.txt"
        file.parent.mkdir(parents=True)
        file.write_text(name)
    data = load_texts(tmp_path)
    assert data.splits == {"train": (0, 1), "validation": (2, 3), "test": (4, 5)}


def test_a_byte_order_mark_and_quotes_of_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = "".join(f'"a, ""{c}""\nline",{name}\n' for c, name in enumerate(CLASSES))
    path.write_bytes(("text,label\n" + lines).encode("utf-8-sig"))
    words = ("a", ",", '"', "0", '"', "line")
    assert load_texts(path, length=6).tokens[0].tolist() == [number(w) for w in words]


def test_a_byte_order_mark_of_a_text_file_is_no_token(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"{name} one", encoding="utf-8-sig")
    assert load_texts(tmp_path, length=2).tokens[0].tolist() == [number("ant"), number("one")]


def test_signs_that_end_a_line_elsewhere_are_part_of_a_text(tmp_path: Path) -> None:
    table = [{**row, "text": "one\u2028two\x85three"} for row in rows()]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in table)
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines.encode())
    words = [number(word) for word in ("one", "two", "three")]
    assert load_texts(path, length=3).tokens[0].tolist() == words


def test_labels_that_are_numbers_and_groups_with_blanks(tmp_path: Path) -> None:
    table = [row | {"label": CLASSES.index(row["label"]), "group": " g "} for row in rows()]
    data = load_texts(as_jsonl(tmp_path / "t.jsonl", table))
    assert data.class_names == tuple(f"g/{c}" for c in range(6))
    table[3]["group"], table[2]["group"] = None, float("nan")
    with pytest.raises(DataError, match="no class|leave|too few|needs at least"):
        load_texts(as_jsonl(tmp_path / "t.jsonl", table[:4]))


def test_files_that_a_system_hides_are_no_tables(tmp_path: Path) -> None:
    for name, part in (("train", rows()[:4]), ("val", rows()[4:8]), ("test", rows()[8:])):
        as_separated(tmp_path / f"{name}.csv", part)
        (tmp_path / f"._{name}.csv").write_bytes(b"\x00\xff")
    assert load_texts(tmp_path).class_names == CLASSES


def test_other_columns_of_parquet_may_be_anything(tmp_path: Path) -> None:
    """Times that Python cannot hold stand beside what is read, which stands there once."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(rows())
    when = pyarrow.array([1] * len(rows()), pyarrow.timestamp("ns"))
    parquet.write_table(table.append_column("when", when), tmp_path / "t.parquet")
    assert load_texts(tmp_path / "t.parquet").class_names == CLASSES
    with pytest.raises(DataError, match="row 1 has no said; its columns are text, label, when"):
        load_texts(tmp_path / "t.parquet", text="said")
    parquet.write_table(table.append_column("label", table["text"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="the column label is there more than once"):
        load_texts(tmp_path / "t.parquet")


def test_names_of_labels_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    numbered = [row | {"label": CLASSES.index(row["label"])} for row in rows()]
    table = pyarrow.Table.from_pylist(numbered)
    names = {"info": {"features": {"label": {"names": list(CLASSES)}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert load_texts(tmp_path / "t.parquet").class_names == CLASSES


# --- what is refused ------------------------------------------------------------------------


def test_columns_of_class_folders_are_refused(tmp_path: Path) -> None:
    for name in ("text", "label"):
        with pytest.raises(SettingError, match=f"{name}='said': a table is needed for it"):
            load_texts(six(tmp_path / name), **{name: "said"})  # type: ignore[arg-type]


def test_texts_without_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    six(tmp_path)
    for number_ in range(7):
        (tmp_path / "ant" / f"x{number_}.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"7 texts have no tokens: ant/x0.txt.*x4.txt and 2 more; "):
        load_texts(tmp_path)
    with caplog.at_level(logging.WARNING):
        data = load_texts(tmp_path, on_empty="skip")
    assert "7 texts have no tokens and left out: ant/x0.txt" in caplog.text
    assert data.labels.bincount().tolist() == [2] * 6
    path = as_jsonl(tmp_path / "t.jsonl", [{"text": "", "label": "a"}])
    with pytest.raises(DataError, match="no texts with tokens are there"):
        load_texts(path, on_empty="skip")


TABLES: dict[str, tuple[str, str]] = {
    "column.csv": ("text,intent\na,b\n", "row 1 has no label; its columns are text, intent"),
    "short.csv": ("text,label\na\n", "row 1 has no label"),
    "empty.csv": ("text,label\n", "this table has no rows"),
    "nothing.jsonl": ("", "this table has no rows"),
    "null.jsonl": ('{"text": null, "label": "a"}', "row 1 has no text"),
    "label.csv": ("text,label\na, \n", "the label of row 1 is empty"),
    "broken.jsonl": ('{"text": "a"', "line 1 is no JSON"),
    "deep.jsonl": ("[" * 100_000, "line 1 is no JSON"),
    "list.jsonl": ("[1, 2]", "line 1 is no JSON object"),
    "more.csv": ("text,label\na,b\nno, wait,b\n", "row 2 has more cells than there are columns; a"),
    "more.tsv": ("text\tlabel\na\tb\tc\n", "row 1 has more cells"),
    "twice.csv": ("text,label,label\na,b,c\n", "the column label is there more than once"),
    "tokens.jsonl": ('{"text": ["a"], "label": "a"}', "the text of row 1 is no text or number"),
    "nested.jsonl": ('{"text": "a", "label": {"a": 1}}', "the label of row 1 is no text or num"),
    "nan.jsonl": ('{"text": "a", "label": NaN}', "row 1 has no label"),
    "half.jsonl": ('{"text": "a", "label": "\\ud83d"}', "the label of row 1 is no Unicode"),
    "quote.csv": ('text,label\n"a"b,c\n', "cannot be read as a table"),
    "split.csv": ("text,label,split\na,b,dev\n", "row 1 has the split dev; known are train"),
    "part.csv": ("text,label,split\na,b,test\nc,d,\n", "part.csv, row 2 names no split, and"),
    "both.csv": (
        "text,label,split\na,b,test\nc,b,train\n",
        "the class b stands in test .both.csv, row 1. and in train .both.csv, row 2.",
    ),
    "few.csv": ("text,label\na,b\nc,d\n", "2 classes leave 0 for train"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    text, message = TABLES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_texts(tmp_path / name)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    six(tmp_path)
    (tmp_path / "ant" / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="ant/a.txt cannot be read as a text .*utf-8"):
        load_texts(tmp_path)
    (tmp_path / "t.csv").write_bytes(b"text,label\n\xff,a\n")
    with pytest.raises(DataError, match="t.csv cannot be read as a table"):
        load_texts(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"text,label\n")
    with pytest.raises(DataError, match=r"t\.parquet"):
        load_texts(tmp_path / "t.parquet")
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(SettingError, match=r"root=.*t.xlsx.*: a folder or a table \(.csv"):
        load_texts(tmp_path / "t.xlsx")


def test_folders_of_tables_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="nothing is there"):
        load_texts(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class folders with texts"):
        load_texts(tmp_path)
    table = rows()
    as_jsonl(tmp_path / "train.jsonl", table[:8])
    with pytest.raises(DataError, match="the table validation is missing beside train.jsonl"):
        load_texts(tmp_path)
    as_jsonl(tmp_path / "val.jsonl", table[6:10])
    as_jsonl(tmp_path / "test.jsonl", table[8:])
    with pytest.raises(DataError, match="the class dog stands in train .* and in validation"):
        load_texts(tmp_path)
    as_jsonl(tmp_path / "other.jsonl", table)
    with pytest.raises(DataError, match="other.jsonl is none of the tables train"):
        load_texts(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.ones(2, 3)}, r"tokens=.*float32 \[2, 3\].*: an int32 tensor \[N, L\]"),
        ({"tokens": torch.tensor([[1, 9], [1, 0]]).int()}, r"tokens='1\.\.9|tokens='0\.\.9"),
        ({"tokens": torch.tensor([[1, 2], [0, 1]]).int()}, "each text needs a token"),
        ({"tokens": torch.tensor([[1, 2], [0, 0]]).int()}, "each text needs a token"),
        ({"vocabulary": 1}, "vocabulary=1: a whole number of at least 2"),
        ({"labels": torch.tensor([0, 2])}, r"labels='0\.\.2': classes lie in 0\.\.1"),
        ({"class_groups": ("",)}, "class_groups=1: 2 names are needed"),
        ({"splits": {"train": (0, 0)}}, "a class stands twice"),
    ],
)
def test_texts_in_memory_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "tokens": torch.tensor([[1, 2], [3, 0]]).int(),
        "vocabulary": 5,
        "labels": torch.tensor([0, 1]),
        "class_names": ("a", "b"),
        "class_groups": ("", ""),
        "splits": {"train": (0,), "test": (1,)},
    }
    assert LabelledTexts(**good).inputs.shape == (2, 2)
    with pytest.raises(SettingError, match=message):
        LabelledTexts(**good | changes)


def test_a_table_of_topics_is_read_whole(tmp_path: Path) -> None:
    data = load_texts(write_table(tmp_path / "topics.csv", topics(6, 4)), length=12)
    assert data.labels.bincount().tolist() == [4] * 6 and bool((data.tokens > 0).all())
