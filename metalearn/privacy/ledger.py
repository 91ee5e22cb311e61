"""A ledger of private steps on the disk, that no later run makes shorter.

Axes: none; a step is a whole number, counted from 0 at the start of its run.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from metalearn.errors import DataError, StorageError, check_whole
from metalearn.files import append_whole, check_regular, lock
from metalearn.privacy.ledger_lines import (
    Declared,
    Header,
    Reserved,
    could_begin_a_line,
    read_line,
    written,
)
from metalearn.privacy.mechanism import Mechanism
from metalearn.privacy.series import RecordedRun, Records
from metalearn.signatures import checked

__all__ = ["PrivacyLedger"]

_LARGEST = 2**30  # bytes, of ten million lines
_PLAIN = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_ITSELF = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class PrivacyLedger:
    """A file in which steps are written down before they are taken.

    A line is added for each declaration of a mechanism and for each reservation of steps; it is on
    the disk, synchronised, when the call returns. Several processes may share a file: they lock it
    while they add to it. Nothing ever lowers what stands there: a line carries a checksum of itself
    and of all before it, so that one that was changed, moved or taken away is noticed by the next
    reader. A last line that a killed process left half written is passed over, and replaced by the
    next one; its step was not taken.

    What is *not* noticed is that whole lines are missing at the end, or that somebody has written
    the file anew on purpose. Runs that share a ledger are composed whatever data they saw: for who
    is in all of them, that is what was spent.

    Args:
        path: of the file, made with its folders when the first line is written; ``~`` is not
            expanded.

    Raises:
        SettingError: ``path`` is no path.
    """

    @checked
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._records, self._end, self._sum, self._begun = Records(), 0, 0, False
        self._mutex = threading.Lock()

    @checked
    def declare(
        self, run: str, mechanism: Mechanism, *, name: str = "", data: str = "", planned: int = 0
    ) -> int:
        """Write down that this process will take steps of a mechanism for a run.

        Args:
            run: the run's random identity, see `PrivacyAccount`.
            mechanism: of the steps.
            name: what the run is called.
            data: a checksum of its training data.
            planned: steps in all of a run that may be ended before by what it released; they count
                from its first step on, and the most that was said of a run holds.

        Returns:
            The number of the declaration, for `reserve`.

        Raises:
            DataError: the file is damaged or no ledger.
            StorageError: it cannot be written to.
        """
        return self._append(Declared(run, name, data, mechanism, planned))

    def reserve(self, number: int, first: int, count: int = 1) -> None:
        """Write down steps; they may be taken once this has returned.

        Args:
            number: of the declaration.
            first: the first of the steps, counted from 0 at the start of the run.
            count: how many follow each other, at least 1.

        Raises:
            SettingError: no such declaration or steps.
            DataError: the file is damaged or no ledger.
            StorageError: it cannot be written to.
        """
        check_whole("number", number, 0, max(len(self._records) - 1, 0))
        check_whole("first", first, 0)
        check_whole("count", count, 1)
        self._append(Reserved(number, first, count))

    def composed(self) -> list[tuple[Mechanism, int]]:
        """Every mechanism with as how many steps it counts, over all runs, those `left` included.

        Raises:
            DataError: the file is damaged or no ledger.
        """
        return self._read().composed()

    @checked
    def of(self, run: str) -> list[tuple[Mechanism, int]]:
        """What one run has reserved, without those `left`; empty where nothing is known of it.

        Raises:
            DataError: the file is damaged or no ledger.
        """
        return self._read().of(run)

    def left(self, run: str, planned: int = 0) -> list[tuple[Mechanism, int]]:
        """What going on from the last step of a run to all that were planned would add.

        Nothing where no step is known; ``planned`` is how many it is known of otherwise.

        Raises:
            DataError: the file is damaged or no ledger.
        """
        return self._read().left(run, planned)

    def runs(self) -> list[RecordedRun]:
        """Every run, in the order in which they began.

        Raises:
            DataError: the file is damaged or no ledger.
        """
        return self._read().runs()

    def _read(self) -> Records:
        """What the file says now; only what was added since the last time is read."""
        with self._mutex:
            try:
                with self._opened(os.O_RDONLY) as file:
                    self._catch_up(file)
            except FileNotFoundError as error:
                if self._begun:
                    raise self._gone() from error
            except OSError as error:
                reason = error.strerror or error
                raise DataError(f"{self.path}: this ledger cannot be read ({reason})") from error
            return self._records

    def _append(self, entry: Declared | Reserved) -> int:
        """Add a line, on the disk when this returns; how many declarations were before it."""
        with self._mutex:
            try:
                if not self._begun:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                made = 0 if self._begun else os.O_CREAT
                with self._opened(os.O_RDWR | made) as file:
                    lock(file, wait=True)
                    self._catch_up(file, mend=True)
                    self._write(file, entry)
            except FileNotFoundError as error:
                if self._begun:
                    raise self._gone() from error
                raise self._unwritable(error) from error
            except OSError as error:
                raise self._unwritable(error) from error
            return len(self._records) - 1

    def _write(self, file: FileIO, entry: Declared | Reserved) -> None:
        """Append an entry, after the header where there is none yet, and take it as read."""
        lines, total, new = b"", self._sum, not self._begun
        for said in [Header(), entry] if new else [entry]:
            line, total = written(said, total)
            lines += line
        append_whole(file, lines)
        os.fsync(file.fileno())
        if new:
            _synchronise(self.path.parent)
        self._begun, self._end, self._sum = True, self._end + len(lines), total
        self._take(entry)

    def _catch_up(self, file: FileIO, *, mend: bool = False) -> None:
        """Read lines from where the last reading ended.

        Args:
            file: the ledger.
            mend: cut off a last line that was written in part; the file is locked then.

        Raises:
            DataError: a line is damaged.
        """
        size = os.fstat(file.fileno()).st_size
        if size < self._end:
            raise DataError(f"{self.path}: this ledger was made shorter; what is missing was spent")
        if size == self._end:
            return
        file.seek(self._end)
        data = file.read(size - self._end) or b""
        whole, _, rest = data.rpartition(b"\n")
        if rest and not could_begin_a_line(rest):
            raise self._damaged("its last line does not begin as lines of a ledger do")
        for line in whole.split(b"\n") if len(rest) < len(data) else []:
            try:
                entry, total = read_line(line, self._sum)
                self._take(entry)
            except DataError as error:
                raise self._damaged(f"byte {self._end}: {error}") from error
            self._sum, self._end = total, self._end + len(line) + 1
        if rest and mend:
            file.truncate(self._end)

    def _take(self, entry: Header | Declared | Reserved) -> None:
        if isinstance(entry, Header) != (self._end == 0):
            raise DataError("a ledger's own line is the first one and no other")
        if isinstance(entry, Header):
            self._begun = True
        elif isinstance(entry, Declared):
            said: Any = {"name": entry.name, "data": entry.data, "planned": entry.planned}
            self._records.declare(entry.run, entry.mechanism, **said)
        elif entry.number < len(self._records):
            self._records.reserve(entry.number, entry.first, entry.steps)
        else:
            raise DataError("it has steps of a mechanism that was not declared")

    @contextmanager
    def _opened(self, flags: int) -> Iterator[FileIO]:
        """The file itself, without following a link.

        Raises:
            DataError: something else stands in its place.
            OSError: it cannot be opened.
        """
        try:
            if stat.S_ISLNK(os.lstat(self.path).st_mode):
                raise DataError(f"{self.path}: a ledger is needed there, and not a link")
            _check_plain(self.path)
        except FileNotFoundError:
            pass
        descriptor = os.open(self.path, flags | _PLAIN | _ITSELF, 0o666)
        with os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "rb", buffering=0) as file:
            yield file

    def _damaged(self, how: str) -> DataError:
        return DataError(f"{self.path}: this is no ledger, or a damaged one ({how})")

    def _gone(self) -> DataError:
        return DataError(f"{self.path}: this ledger is gone; what stood there was spent")

    def _unwritable(self, error: OSError) -> StorageError:
        reason = error.strerror or error
        return StorageError(f"{self.path}: no step is taken, as none can be noted here ({reason})")


def _check_plain(path: Path) -> None:
    try:
        check_regular(path, _LARGEST)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: a ledger is needed there ({error.strerror or error})") from error


def _synchronise(folder: Path) -> None:
    """Have a new file's name on the disk, where folders can be synchronised."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
