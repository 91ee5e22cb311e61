"""Numbers of the tokens of a text, the same on any machine and without a table of words.

Axes: L tokens of a text, V numbers of tokens.
"""

from __future__ import annotations

import itertools
import operator
import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metalearn.errors import SettingError, check_whole
from metalearn.signatures import known_fields

__all__ = ["Tokenizer", "Tokens"]

Tokens = str | Callable[[str], Sequence[int]]
"""``"words"``, ``"bytes"``, or a function from a text to numbers of at least 1."""

_BYTES = 257  # and padding
_WORDS = 8192  # where nothing else is said
_WORD = re.compile(r"\w+|[^\w\s]")


@known_fields
@dataclass(frozen=True)
class Tokenizer:
    """From a text to the numbers of its first L tokens, followed by zeros.

    ``words``: runs of letters and digits in lower case, and each other sign by itself, composed
    (Unicode's NFC), as 1 + CRC-32(word) mod (V − 1): words may share a number, and no table has to
    be kept (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009).
    ``bytes``: 1 + each byte of the text in UTF-8, with V = 257. A function: its numbers, in 1..V-1.

    Attributes:
        tokens: which of these.
        vocabulary: V, 2 to 2^31; None is 8,192, of bytes 257, which have no other.
        length: L, at least 1.

    Raises:
        SettingError: a setting out of range.
    """

    tokens: Tokens
    vocabulary: int | None
    length: int

    def __post_init__(self) -> None:
        if not callable(self.tokens) and self.tokens not in ("words", "bytes"):
            accepted = "words, bytes or a function from a text to numbers is needed"
            raise SettingError("tokens", self.tokens, accepted)
        if self.tokens == "bytes" and self.vocabulary not in (None, _BYTES):
            raise SettingError(
                "vocabulary", self.vocabulary, f"null is needed: bytes have {_BYTES}"
            )
        check_whole("vocabulary", self.size, 2, 2**31)  # numbers are kept as int32
        check_whole("length", self.length, 1)

    @property
    def size(self) -> int:
        """V."""
        if self.vocabulary is not None:
            return self.vocabulary
        return _BYTES if self.tokens == "bytes" else _WORDS

    def numbers(self, text: str) -> list[int]:
        """L numbers; all of them 0 for a text without tokens.

        Raises:
            SettingError: a function that gives something else than numbers in 1..V-1.
        """
        if self.tokens == "bytes":
            found = [1 + byte for byte in _utf8(text)[: self.length]]
        elif callable(self.tokens):
            found = self._checked(self.tokens(text))[: self.length]
        else:
            words = _WORD.findall(unicodedata.normalize("NFC", text).lower())[: self.length]
            found = [1 + zlib.crc32(_utf8(word)) % (self.size - 1) for word in words]
        return found + [0] * (self.length - len(found))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Int64 ``[N, L]`` of N texts, as networks of texts take them."""
        every = itertools.chain.from_iterable(map(self.numbers, texts))
        numbers = np.fromiter(every, np.int64, len(texts) * self.length)  # lists take far more
        return torch.from_numpy(numbers).view(len(texts), self.length)

    def _checked(self, numbers: object) -> list[int]:
        """Numbers that a function gave."""
        try:
            found = [operator.index(number) for number in numbers]  # type: ignore[attr-defined]
        except TypeError as error:
            accepted = "a function from a text to a sequence of whole numbers is needed"
            raise SettingError("tokens", numbers, accepted) from error
        wrong = [number for number in found if not 0 < number < self.size]
        if wrong:
            accepted = f"numbers in 1..{self.size - 1} are needed, or a larger vocabulary"
            raise SettingError("tokens", wrong[0], accepted)
        return found


def _utf8(text: str) -> bytes:
    """Half a surrogate pair, which JSON can hold, has bytes too."""
    return text.encode(errors="surrogatepass")
