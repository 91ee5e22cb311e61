"""A ledger of steps: what stands in it, several writers, kills at any moment, damaged files."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from metalearn.errors import DataError, SettingError, StorageError
from metalearn.privacy import PrivacyLedger, SampledGaussian
from metalearn.privacy.ledger_lines import Declared, Header, Reserved, written
from metalearn.privacy.mechanism import SeededNoise

POISSON = SampledGaussian("poisson", 1000, 50, 1.5)
SHUFFLED = SampledGaussian("shuffled", 100, 30, 2.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "privacy.jsonl"


def filled(path: Path) -> PrivacyLedger:
    ledger = PrivacyLedger(path)
    number = ledger.declare("a", POISSON, name="first", data="abc")
    for step in range(3):
        ledger.reserve(number, step)
    return ledger


def test_what_is_written_is_read_by_another(path: Path) -> None:
    ledger = filled(path)
    other = PrivacyLedger(path)
    number = other.declare("b", SeededNoise(POISSON))
    other.reserve(number, 7, 5)
    other.reserve(other.declare("a", SHUFFLED, data="abd"), 0, 4)
    for reader in (ledger, other, PrivacyLedger(path)):
        assert reader.of("a") == [(POISSON, 3), (SHUFFLED, 6)]
        assert reader.of("b") == [(SeededNoise(POISSON), 5)]
        assert reader.of("c") == []
        expected = [(POISSON, 3), (SeededNoise(POISSON), 5), (SHUFFLED, 6)]
        assert reader.composed() == expected
        named = [(run.run, run.name, run.data, run.steps) for run in reader.runs()]
        assert named == [
            ("a", "first", "abd", ((POISSON, 3), (SHUFFLED, 6))),
            ("b", "", "", ((SeededNoise(POISSON), 5),)),
        ]


def test_without_a_file_nothing_was_spent_and_reading_makes_none(path: Path) -> None:
    ledger = PrivacyLedger(path)
    assert ledger.composed() == []
    assert ledger.runs() == []
    assert not path.parent.exists()


def test_steps_taken_again_count_again(path: Path) -> None:
    ledger = filled(path)
    ledger.reserve(0, 2)
    ledger.reserve(0, 2)
    assert ledger.of("a") == [(POISSON, 5)]
    again = ledger.declare("a", POISSON)
    ledger.reserve(again, 3, 10)
    assert ledger.of("a") == [(POISSON, 15)]


def test_a_shuffled_step_that_is_taken_again_begins_an_epoch(path: Path) -> None:
    """Three batches an epoch: one that is taken five times shows its examples five times."""
    ledger = PrivacyLedger(path)
    one = ledger.declare("a", SHUFFLED)
    for step in range(3):
        ledger.reserve(one, step)
    assert ledger.of("a") == [(SHUFFLED, 3)]
    for _ in range(4):
        ledger.reserve(one, 2)
    assert ledger.of("a") == [(SHUFFLED, 15)]
    two = ledger.declare("a", SHUFFLED)  # another process may have another order of the epoch
    ledger.reserve(two, 3)
    ledger.reserve(one, 3)
    assert ledger.of("a") == [(SHUFFLED, 21)]
    ledger.reserve(two, 4, 2)
    ledger.reserve(one, 4)
    assert ledger.of("a") == [(SHUFFLED, 21)]


def test_each_line_is_synchronised_and_the_folder_at_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronised: list[tuple[bool, int]] = []

    def noted(descriptor: int) -> None:
        folder = os.path.isdir(f"/dev/fd/{descriptor}")
        synchronised.append((folder, path.stat().st_size))

    monkeypatch.setattr(os, "fsync", noted)
    ledger = PrivacyLedger(path)
    ledger.declare("a", POISSON)
    begun = path.stat().st_size
    assert synchronised == [(False, begun), (True, begun)]
    ledger.reserve(0, 0)
    assert synchronised[2:] == [(False, path.stat().st_size)]
    assert path.stat().st_size > begun


def test_a_line_cut_anywhere_is_passed_over_and_mended(path: Path) -> None:
    filled(path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for length in range(last, len(whole)):
        path.write_bytes(whole[:length])
        ledger = PrivacyLedger(path)
        assert ledger.of("a") == [(POISSON, 2)]
        assert path.stat().st_size == length  # reading changes nothing
        ledger.reserve(0, 2)
        assert path.read_bytes() == whole
        assert ledger.of("a") == PrivacyLedger(path).of("a") == [(POISSON, 3)]
    path.write_bytes(whole[:-9] + b"\0" * 20)  # a disk that had made room and had not written
    assert PrivacyLedger(path).of("a") == [(POISSON, 2)]
    path.write_bytes(whole + b"\0" * 20)
    assert PrivacyLedger(path).of("a") == [(POISSON, 3)]
    for length in range(whole.index(b"\n") + 1):  # killed while the first line was written
        path.write_bytes(whole[:length])
        assert PrivacyLedger(path).composed() == []
        filled(path)
        assert path.read_bytes() == whole


def changed(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def without_line(number: int) -> Callable[[bytes], bytes]:
    def cut(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        return b"".join(lines[:number] + lines[number + 1 :])

    return cut


def valid(*said: Header | Declared | Reserved) -> Callable[[bytes], bytes]:
    """Lines with right checksums."""

    def lines(data: bytes) -> bytes:
        text, total = b"", 0
        for entry in said:
            line, total = written(entry, total)
            text += line
        return text

    return lines


DECLARED = Declared("a", "", "", POISSON)
DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a first line missing": (without_line(0), "byte 0: its checksum is another"),
    "a line missing": (without_line(2), "its checksum is another"),
    "a line twice": (lambda d: d + d[d.rindex(b"\n", 0, -1) + 1 :], "its checksum is another"),
    "an empty line": (lambda d: d + b"\n", "it does not begin as lines of a ledger do"),
    "another text": (lambda d: b"epsilon: 3\n", "byte 0: it does not begin as lines"),
    "another text without an end": (lambda d: b"epsilon: 3", "its last line does not begin"),
    "more after the end": (lambda d: d + b"and more", "its last line does not begin"),
    "JSON": (lambda d: b'{"kind": "ledger"}\n', "byte 0: it does not begin as lines"),
    "noise": (lambda d: bytes(range(256)) * 20, "does not begin as lines"),
    "no header": (valid(DECLARED), "a ledger's own line is the first one"),
    "two headers": (valid(Header(), Header()), "a ledger's own line is the first one"),
    "undeclared steps": (valid(Header(), Reserved(0, 0, 1)), "mechanism that was not declared"),
    "steps below 0": (valid(Header(), DECLARED, Reserved(0, -1, 1)), "first is -1, but a whole"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_one_sentence_and_stays_as_it_is(path: Path, kind: str) -> None:
    filled(path)
    damage, said = DAMAGED[kind]
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    for use in (
        lambda: PrivacyLedger(path).composed(),
        lambda: PrivacyLedger(path).declare("a", POISSON),
    ):
        with pytest.raises(DataError, match=r"this is no ledger, or a damaged one \(") as caught:
            use()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_every_changed_byte_is_noticed(path: Path) -> None:
    """But in the last line's end: it reads as one that was half written."""
    filled(path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for place in range(0, len(whole), 3):
        path.write_bytes(changed(place)(whole))
        try:
            found = PrivacyLedger(path).composed()
        except DataError:
            continue
        assert place >= last
        assert found == [(POISSON, 2)]


def test_unknown_kinds_and_versions_are_named(path: Path) -> None:
    path.parent.mkdir()
    cases: list[tuple[dict[str, object], str]] = [
        ({"kind": "refund"}, "kind is 'refund', but one of ledger, mechanism, steps is needed"),
        ({"kind": "ledger", "version": 2}, "version is 2, but 1 is needed"),
        ({"kind": "ledger", "version": 1, "more": 0}, "more is 0, but no such entry is needed"),
        ({**DECLARED.entry(), "mechanism": {"kind": "magic"}}, "kind is 'magic', known are"),
    ]
    for entry, said in cases:
        made = SimpleNamespace(entry=lambda entry=entry: entry)
        path.write_bytes(written(made, 0)[0])  # type: ignore[arg-type]
        with pytest.raises(DataError) as caught:
            PrivacyLedger(path).composed()
        assert said in str(caught.value)


def test_what_is_no_file_is_refused(path: Path, tmp_path: Path) -> None:
    filled(path)
    link, folder, pipe = tmp_path / "link", tmp_path / "folder", tmp_path / "pipe"
    link.symlink_to(path)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    folder.mkdir()
    os.mkfifo(pipe)
    for other, said in (
        (link, "a ledger is needed there, and not a link"),
        (dangling, "a ledger is needed there, and not a link"),
        (folder, "a ledger is needed there .a folder, not a file"),
        (pipe, "a ledger is needed there .a pipe, not a file"),
    ):
        for use in (
            lambda other=other: PrivacyLedger(other).composed(),
            lambda other=other: PrivacyLedger(other).declare("a", POISSON),
        ):
            with pytest.raises(DataError, match=said):
                use()
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(StorageError, match="no step is taken, as none can be noted here"):
        PrivacyLedger(path / "under").declare("a", POISSON)


def test_a_ledger_that_is_taken_away_is_missed(path: Path) -> None:
    ledger = filled(path)
    whole = path.read_bytes()
    cut = whole[: whole.rindex(b"\n", 0, -1) + 1]
    for damage, said in (
        (path.unlink, "this ledger is gone; what stood there was spent"),
        (lambda: path.write_bytes(b""), "this ledger was made shorter"),
        (lambda: path.write_bytes(cut), "this ledger was made shorter"),
    ):
        damage()
        for use in (ledger.composed, lambda: ledger.reserve(0, 3)):
            with pytest.raises(DataError, match=said):
                use()
    path.write_bytes(whole)
    assert ledger.of("a") == [(POISSON, 3)]


def test_a_full_disk_takes_no_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = filled(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"no step is taken.*No space left on device"):
            ledger.reserve(0, 3)
    assert path.read_bytes().startswith(before)
    ledger.reserve(0, 3)
    assert ledger.of("a")[0][1] in (4, 5)  # the line that was not synchronised may be there
    assert PrivacyLedger(path).of("a") == ledger.of("a")


def test_steps_of_what_was_not_declared_are_refused(path: Path) -> None:
    ledger = filled(path)
    for number, first, count, said in (
        (1, 0, 1, "number=1: a whole number of at most 0"),
        (0, -1, 1, "first=-1"),
        (0, 0, 0, "count=0: a whole number of at least 1"),
    ):
        with pytest.raises(SettingError, match=said):
            ledger.reserve(number, first, count)
    assert ledger.of("a") == [(POISSON, 3)]


def test_many_lines_are_read_as_one_series(path: Path) -> None:
    """Lines are looked at once: what was read is not read again."""
    filled(path)
    text, total = b"", 0
    for entry in [Header(), DECLARED, *(Reserved(0, step, 1) for step in range(5000))]:
        line, total = written(entry, total)
        text += line
    path.write_bytes(text)
    ledger = PrivacyLedger(path)
    assert ledger.of("a") == [(POISSON, 5000)]
    path.write_bytes(b"\n" * len(text))  # would be refused if it were read
    assert ledger.of("a") == [(POISSON, 5000)]


DRIVER = textwrap.dedent(
    """
    import os, random, signal, sys, time
    from metalearn.privacy import PrivacyLedger, SampledGaussian
    path, kills, writers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    mechanism = SampledGaussian("poisson", 1000, 50, 1.5)

    def begin(run, most):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            ledger = PrivacyLedger(path)
            number = ledger.declare(run, mechanism)
            for step in range(most):
                ledger.reserve(number, step)
                os.write(writer, b".")
            os._exit(0)
        os.close(writer)
        return child, reader

    def done(reader):
        with os.fdopen(reader, "rb") as file:
            return len(file.read())

    random.seed(0)
    least = {}
    for kill in range(kills):
        children = [(f"{kill}-{w}", *begin(f"{kill}-{w}", 10**6)) for w in range(writers)]
        time.sleep(random.uniform(0.0, 0.08))
        for _, child, _ in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for run, _, reader in children:
            least[run] = done(reader)
    steady = [begin("steady", 25) for _ in range(3)]
    for child, reader in steady:
        assert os.waitpid(child, 0)[1] == 0
        assert done(reader) == 25
    ledger = PrivacyLedger(path)
    for run, reported in least.items():
        found = dict(ledger.of(run)).get(mechanism, 0)
        assert reported <= found <= reported + 1, (run, reported, found)
    assert ledger.of("steady") == [(mechanism, 75)]
    assert ledger.composed()[0][1] == 75 + sum(dict(ledger.of(r)).get(mechanism, 0) for r in least)
    print(sum(least.values()))
    """
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_kills_at_any_moment_and_writers_at_once(path: Path) -> None:
    """What a process had reported is in the file, whenever it and those beside it were killed."""
    command = [sys.executable, "-c", DRIVER, str(path), "8", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 0
